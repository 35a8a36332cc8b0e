//! # usage
//!
//! Reads how many tokens each request used, from the request and the answer, without delaying a byte. The counts and their
//! cost go to the accounts (admin API, console, `keylatch usage`), to the access log and to the metrics.
//!
//! ```yaml
//! usage:
//!   estimate: true
//!   ask_upstream: true
//!   chars_per_token: 4
//! ```
//!
//! **What is read.** JSON answers, event streams and JSON lines of the APIs of OpenAI (chat, completions, embeddings,
//! responses, images, audio), Anthropic, Gemini, Cohere, Mistral, Ollama, DashScope, Bedrock (Converse) and compatible
//! servers. Of a stream, the last counts that are neither null nor zero apply. Nothing is buffered: one stream takes about
//! 1 KiB of memory, however long its events are.
//!
//! **Asking.** OpenAI's chat and text completions report the usage of a stream only if the request asks for it. With
//! `ask_upstream: true`, Keylatch asks if the client says nothing about it (`stream_options`), and takes the chunk of usage out
//! of the stream again. For this, bodies are read ahead (`read_ahead_bytes`); a larger body is left alone. An event is then sent
//! when it is complete.
//!
//! **Kinds.** Input tokens include those read from and written to a prompt cache; output tokens include reasoning. Anthropic
//! counts cached tokens separately, and Gemini reasoning: they are added, so that all APIs mean the same.
//!
//! **Estimates.** If the upstream reports no counts, or the answer was cut (the client left, the upstream failed), the counts
//! are estimated from the length of the texts: `chars_per_token` characters are one token. Records say `estimated` then. With
//! `estimate: false` such requests have no counts.
//!
//! **Model.** The model that the request names, or else the one that the answer names.
//!
//! **Cost.** From the section `prices`. A model without a price has no known cost, which is not the same as 0.
//!
//! **Encodings.** For a request with a body, the upstream is asked for an answer without content coding (`Accept-Encoding: identity`). If it
//! compresses nevertheless, the counts are unknown.
//!
//! **Which requests.** Requests that were sent to the upstream. If it answers 401 or 403, the record has no key: made-up keys
//! must not fill the accounts. In shadow mode the filter does nothing.

mod ask;
mod record;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::{self, HeaderValue};
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::body_scan::{ModelScan, ModelSource};
use crate::contract::{
    BodyCx, Filter, Hooks, Invalid, KeyHasher, KeyReader, LogCx, PriceTable, RequestModel, ResponseCx, Result, Site, Source, UpstreamCx,
    UsageSink, failure, is_event_stream, is_json_lines, is_uncoded,
};
use crate::usage_scan::{AnswerFormat, AnswerScan, RequestParameters, RequestScan, has_body};
use ask::UnaskedUsage;

/// `usage`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UsageConfig {
    /// Whether counts that the upstream does not report are estimated. Default: true.
    pub estimate: bool,
    /// Whether the upstream is asked for the usage of streams. Default: false.
    pub ask_upstream: bool,
    /// How many characters are one token in an estimate, 1 to 16. Default: 4, as in English text; Chinese text has 1 to 2.
    pub chars_per_token: NonZeroU32,
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self { estimate: true, ask_upstream: false, chars_per_token: NonZeroU32::MIN.saturating_add(3) }
    }
}

/// The compiled filter.
pub struct Usage {
    estimate: bool,
    ask_upstream: bool,
    chars_per_token: u64,
    prices: Arc<PriceTable>,
    accounts: Arc<dyn UsageSink>,
    keys: KeyReader,
    hasher: KeyHasher,
}

/// What is known about one request so far.
#[derive(Default)]
pub struct UsageState {
    /// The request was sent to the upstream.
    sent: bool,
    has_body: bool,
    /// Reads the body of the request, unless it was read ahead.
    request: RequestBody,
    /// The model that the header of the request names.
    model: Option<Arc<str>>,
    /// The upstream is asked for usage: the member is still to be added, or was added.
    asks: Option<Asking>,
    /// Takes the usage out of the answer again.
    unasked: Option<Box<UnaskedUsage>>,
    /// Reads the answer, if it is a success with a readable body.
    answer: Option<Box<AnswerScan>>,
    /// The upstream answered with a success.
    answered: bool,
    streamed: bool,
    /// From the complete header to the first generated text of a stream.
    first_token: Option<Duration>,
}

/// How far the upstream was asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asking {
    Pending,
    Done,
}

/// The reader of a request body.
#[derive(Default)]
enum RequestBody {
    #[default]
    Unread,
    Json(Box<RequestScan>),
    /// A form: only its model is read.
    Form(Box<ModelScan>),
}

impl Filter for Usage {
    const NAME: &'static str = "usage";
    const HOOKS: Hooks =
        Hooks { request_body: true, upstream_request: true, response: true, response_body: true, log: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = UsageConfig;
    type State = UsageState;

    fn compile(config: UsageConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.chars_per_token.get() > 16 {
            return Err(Invalid::new("must be between 1 and 16").at("chars_per_token"));
        }
        site.reads_usage.set(true);
        Ok(Self {
            estimate: config.estimate,
            ask_upstream: config.ask_upstream,
            chars_per_token: u64::from(config.chars_per_token.get()),
            prices: Arc::clone(&site.prices),
            accounts: Arc::clone(&site.ports.usage),
            keys: KeyReader::of_known_fields(site.ports.hasher.form()),
            hasher: site.ports.hasher.clone(),
        })
    }

    fn reads_parameters(&self) -> bool {
        self.ask_upstream
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, state: &mut UsageState) -> Result<()> {
        // Each attempt begins anew.
        *state = UsageState { sent: true, has_body: has_body(cx.request), ..UsageState::default() };
        match ModelSource::of_request(cx.request, state.has_body, false) {
            ModelSource::Header(RequestModel::Named(model)) => {
                state.model = Some(model);
                state.request = RequestBody::Json(Box::default());
            }
            ModelSource::Header(_) => {}
            ModelSource::Body(scan) if scan.is_form() => state.request = RequestBody::Form(Box::new(scan)),
            ModelSource::Body(_) => state.request = RequestBody::Json(Box::default()),
        }
        if let Some(parameters) = cx.facts.get::<RequestParameters>() {
            state.request = RequestBody::Unread;
            if self.ask_upstream && ask::applies(cx.request.uri.path(), parameters) {
                state.asks = Some(Asking::Pending);
                lengthen(cx.upstream)?;
            }
        }
        if state.has_body {
            cx.upstream.insert_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")).map_err(failure)?;
        }
        Ok(())
    }

    fn request_body(&self, cx: &mut BodyCx<'_>, state: &mut UsageState) -> Result<()> {
        let Some(body) = &cx.body else { return Ok(()) };
        if state.asks == Some(Asking::Pending)
            && let Some(longer) = ask::add_member(body)
        {
            *cx.body = Some(longer);
            state.asks = Some(Asking::Done);
            return Ok(());
        }
        match &mut state.request {
            RequestBody::Unread => {}
            RequestBody::Json(scan) => scan.feed(body),
            RequestBody::Form(scan) => scan.feed(body),
        }
        Ok(())
    }

    fn response(&self, cx: &mut ResponseCx<'_>, state: &mut UsageState) -> Result<()> {
        if cx.source != Source::Upstream || !state.sent {
            return Ok(());
        }
        state.answered = cx.response.status.is_success();
        let format = answer_format(&cx.response.headers).filter(|_| state.answered && state.has_body);
        state.streamed = format.is_some_and(|format| format != AnswerFormat::Json);
        let asked = state.asks.is_some() && format == Some(AnswerFormat::EventStream);
        // A length would no longer be true.
        state.unasked = (asked && !cx.response.headers.contains_key(header::CONTENT_LENGTH)).then(Box::default);
        state.answer = format.map(|format| Box::new(AnswerScan::new(format)));
        Ok(())
    }

    fn response_body(&self, cx: &mut BodyCx<'_>, state: &mut UsageState) -> Result<()> {
        if let (Some(scan), Some(body)) = (&mut state.answer, &cx.body) {
            scan.feed(body);
            if state.streamed && state.first_token.is_none() && scan.text_seen() {
                state.first_token = Some(cx.begun.elapsed());
            }
        }
        if let Some(unasked) = &mut state.unasked {
            *cx.body = unasked.replace(cx.body.as_ref(), cx.end);
        }
        Ok(())
    }

    fn log(&self, cx: &mut LogCx<'_>, state: &mut UsageState) {
        if state.sent {
            let record = self.record(cx, std::mem::take(state));
            self.accounts.record(&record);
            cx.facts.put(record);
        }
    }
}

/// Adds the bytes of the question to the announced length.
fn lengthen(upstream: &mut RequestHeader) -> Result<()> {
    let announced = upstream.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match announced {
        Some(length) => upstream.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length + ask::ADDED_BYTES)).map_err(failure),
        None => Ok(()),
    }
}

/// The format of an answer, if its usage can be read.
fn answer_format(headers: &HeaderMap) -> Option<AnswerFormat> {
    if is_event_stream(headers) {
        return Some(AnswerFormat::EventStream);
    }
    if is_json_lines(headers) {
        return Some(AnswerFormat::JsonLines);
    }
    let kind = headers.get(header::CONTENT_TYPE)?.as_bytes().split(|byte| *byte == b';').next()?.trim_ascii_end();
    let ends_with = |suffix: &[u8]| kind.len() >= suffix.len() && kind[kind.len() - suffix.len()..].eq_ignore_ascii_case(suffix);
    (is_uncoded(headers) && (ends_with(b"/json") || ends_with(b"+json"))).then_some(AnswerFormat::Json)
}

#[cfg(test)]
mod tests;
