//! Makes the usage record of a request that has ended: reported counts, or estimates, and their cost.

use std::sync::Arc;

use crate::body_scan::Scanned;
use crate::contract::{Cost, CountSource, Identity, Key, KeyId, LogCx, OtherUnits, RequestModel, TokenCounts, UsageRecord};
use crate::usage_scan::{AnswerUsage, RequestParameters};

use super::{RequestBody, Usage, UsageState};

/// Counts, with their source.
type Counts = (TokenCounts, OtherUnits, CountSource);

impl Usage {
    /// The record of a request that was sent to the upstream.
    pub(super) fn record(&self, cx: &LogCx<'_>, state: UsageState) -> UsageRecord {
        let UsageState { request, model, answer, answered, streamed, first_token, .. } = state;
        let (scanned, form_model) = match request {
            RequestBody::Unread => (None, None),
            RequestBody::Json(mut scan) => (Some(scan.finish()), None),
            RequestBody::Form(mut scan) => (None, named(scan.scanned(true))),
        };
        let parameters = cx.facts.get::<RequestParameters>().or(scanned.as_ref());
        let answer = answer.map(|mut scan| scan.finish());
        let asked = cx.facts.get::<RequestModel>().and_then(|model| match model {
            RequestModel::Named(model) => Some(Arc::clone(model)),
            RequestModel::Absent | RequestModel::Unknown(_) => None,
        });
        let asked = asked.or(model).or_else(|| parameters?.model.clone()).or(form_model);
        let told = answer.as_ref().and_then(|answer| answer.model.clone());
        let is_speech = cx.request.uri.path().ends_with("/audio/speech");
        let (tokens, units, source) = match &answer {
            Some(answer) => self.counts(answer, parameters),
            None if answered && is_speech => spoken(parameters),
            None => Counts::default(),
        };
        let status = cx.status.map_or(0, |status| status.as_u16());
        let cost = if source == CountSource::None { None } else { self.cost([&asked, &told], cx, &tokens, &units) };
        UsageRecord {
            at: cx.now.wall,
            key: if matches!(status, 401 | 403) { None } else { self.key(cx) },
            subject: cx.facts.get::<Identity>().and_then(|identity| identity.subject.as_deref().map(Arc::from)),
            model: asked.or(told).map(printable),
            route: Arc::clone(cx.route),
            upstream: Arc::clone(cx.upstream),
            status,
            tokens,
            units,
            source,
            cost,
            streamed,
            first_token,
            duration: cx.duration,
        }
    }

    /// The counts of an answer, or an estimate.
    fn counts(&self, answer: &AnswerUsage, parameters: Option<&RequestParameters>) -> Counts {
        let reported = answer.reported.as_ref().map(|reported| (reported.tokens, reported.units));
        let (tokens, units) = reported.unwrap_or_default();
        let units = OtherUnits { images: units.images.max(answer.images), ..units };
        if reported.is_some() && answer.ended || !self.estimate {
            let source = if reported.is_some() || units.images > 0 { CountSource::Reported } else { CountSource::None };
            return (tokens, units, source);
        }
        // An answer without text is no generation: a list of models, a count of tokens.
        if answer.ended && answer.text_chars == 0 {
            return (tokens, units, if units.images > 0 { CountSource::Reported } else { CountSource::None });
        }
        let estimate = |chars: u64| chars.div_ceil(self.chars_per_token);
        let asked = parameters.map_or(0, |parameters| estimate(parameters.prompt_chars));
        let estimated = TokenCounts {
            input: if tokens.input > 0 { tokens.input } else { asked },
            output: tokens.output.max(estimate(answer.text_chars)),
            reasoning: tokens.reasoning.max(estimate(answer.reasoning_chars)),
            ..tokens
        };
        let source = if estimated.is_zero() && units.images == 0 { CountSource::None } else { CountSource::Estimated };
        (estimated, units, source)
    }

    /// The cost by the first of these models that has a price.
    fn cost(&self, models: [&Option<Arc<str>>; 2], cx: &LogCx<'_>, tokens: &TokenCounts, units: &OtherUnits) -> Option<Cost> {
        models.into_iter().flatten().find_map(|model| self.prices.cost(model, cx.now.wall, tokens, units))
    }

    /// The key of the request. Without `key_binding` in the chain, it is read from the well-known places.
    fn key(&self, cx: &LogCx<'_>) -> Option<KeyId> {
        match cx.facts.get::<Key>() {
            Some(key) => Some(key.id),
            None => self.keys.read(cx.request).ok().flatten().map(|key| self.hasher.id(&key)),
        }
    }
}

/// The counts of spoken text: its characters.
fn spoken(parameters: Option<&RequestParameters>) -> Counts {
    let characters = parameters.map_or(0, |parameters| parameters.input_chars);
    let source = if characters == 0 { CountSource::None } else { CountSource::Reported };
    (TokenCounts::default(), OtherUnits { characters, ..OtherUnits::default() }, source)
}

/// A name without control characters, which could write to the terminal of an operator.
fn printable(name: Arc<str>) -> Arc<str> {
    if name.contains(char::is_control) { name.replace(char::is_control, "\u{fffd}").into() } else { name }
}

fn named(scanned: Scanned) -> Option<Arc<str>> {
    match scanned {
        Scanned::Model(RequestModel::Named(model)) => Some(model),
        Scanned::Model(_) | Scanned::Nothing | Scanned::Two => None,
    }
}
