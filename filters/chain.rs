//! The ordered filters of a route: the top-level ones, then the route's. Names no filter.
//!
//! One list of positions a phase is made when the chain is compiled, so a phase nobody takes part in
//! costs nothing. Requests run in list order, responses in reverse order.

use std::sync::Arc;

use crate::contract::{
    BodyCx, Erased, Flow, Hooks, LetThrough, LogCx, Problem, Reply, RequestCx, ResponseCx, Result, State, Trace, UpstreamCx,
};

/// One position in a chain.
#[derive(Clone)]
pub struct Item {
    /// The compiled filter.
    pub filter: Arc<dyn Erased>,
    /// Decides, counts and logs, and changes nothing.
    pub shadow: bool,
}

/// What a filter decided, for metrics and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The filter's YAML key.
    pub filter: &'static str,
    /// Why: one of the filter's short list of words.
    pub reason: &'static str,
    /// It was not carried out.
    pub shadow: bool,
    /// It was no refusal, but an answer in the upstream's place.
    pub answer: bool,
    /// For the log only.
    pub detail: Option<String>,
}

/// What one filter does with a request.
#[derive(Debug)]
pub struct Explained {
    /// The filter's YAML key.
    pub filter: &'static str,
    /// It would not be carried out.
    pub shadow: bool,
    /// What it would answer.
    pub reply: Option<Box<Reply>>,
    /// What it says of that.
    pub lines: Vec<String>,
    /// It could not ask whom it had to ask, and lets the request pass all the same.
    pub let_through: bool,
}

/// A compiled chain; immutable, shared by all exchanges of its route.
#[derive(Default)]
pub struct Chain {
    items: Vec<Item>,
    request: Vec<usize>,
    request_body: Vec<usize>,
    upstream_request: Vec<usize>,
    response: Vec<usize>,
    response_body: Vec<usize>,
    log: Vec<usize>,
    gate_response: Vec<usize>,
}

/// What one exchange remembers of its way through a chain.
#[derive(Default)]
pub struct Progress {
    states: Vec<State>,
    /// Positions below this one have seen the request; only they see the response.
    passed: usize,
    /// What was decided on the way.
    pub decisions: Vec<Decision>,
}

impl Chain {
    /// Puts the phases' lists together.
    pub fn new(items: Vec<Item>) -> Self {
        // A shadowed filter sees requests and logs; where it could change something, it is left out.
        let list = |wanted: fn(&Hooks) -> bool, in_shadow: bool| -> Vec<usize> {
            let takes_part = |(index, item): (usize, &Item)| (wanted(&item.filter.hooks()) && (in_shadow || !item.shadow)).then_some(index);
            items.iter().enumerate().filter_map(takes_part).collect()
        };
        Self {
            request: list(|h| h.request, true),
            request_body: list(|h| h.request_body, false),
            upstream_request: list(|h| h.upstream_request, false),
            response: list(|h| h.response, false),
            response_body: list(|h| h.response_body, false),
            log: list(|h| h.log, true),
            gate_response: list(|h| h.gate_response, false),
            items,
        }
    }

    /// The names of its filters, in order, with their shadow mode.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        self.items.iter().map(|item| (item.filter.name(), item.shadow))
    }

    /// A fresh exchange's memory.
    pub fn begin(&self) -> Progress {
        Progress { states: self.items.iter().map(|item| item.filter.state()).collect(), passed: 0, decisions: Vec::new() }
    }

    /// Whether any filter wants to see the request's body.
    pub fn reads_request_body(&self) -> bool {
        !self.request_body.is_empty()
    }

    /// Whether any filter wants to see the response's body.
    pub fn reads_response_body(&self) -> bool {
        !self.response_body.is_empty()
    }

    /// Runs the request hooks. `Some`: a filter answered, and the rest did not run.
    pub async fn request(&self, cx: &mut RequestCx<'_>, progress: &mut Progress) -> Result<Option<Box<Reply>>> {
        for &index in &self.request {
            let (Some(item), Some(state)) = (self.items.get(index), progress.states.get_mut(index)) else { continue };
            cx.shadow = item.shadow;
            match item.filter.request(cx, state).await? {
                Flow::Continue => {}
                Flow::Respond(reply) => {
                    progress.decisions.push(Decision {
                        filter: item.filter.name(),
                        reason: reply.reason,
                        shadow: item.shadow,
                        answer: reply.problem == Problem::Answer,
                        detail: reply.detail.clone(),
                    });
                    if !item.shadow {
                        // The one that answers sees its own reply pass: a limit adds its fields there.
                        progress.passed = index + 1;
                        return Ok(Some(reply));
                    }
                }
            }
        }
        progress.passed = self.items.len();
        Ok(None)
    }

    /// What each filter does with a request, whatever those before it say: for who wants to know, not for requests. With
    /// the fact [`crate::contract::DryRun`] counts and bindings stay as they are.
    pub async fn explain(&self, cx: &mut RequestCx<'_>) -> Result<Vec<Explained>> {
        let mut explained = Vec::new();
        for item in &self.items {
            cx.shadow = item.shadow;
            cx.facts.put(Trace::default());
            let flow = item.filter.request(cx, &mut item.filter.state()).await?;
            let lines = cx.facts.get::<Trace>().map(|trace| trace.0.clone()).unwrap_or_default();
            let reply = match flow {
                Flow::Continue => None,
                Flow::Respond(reply) => Some(reply),
            };
            let let_through = cx.facts.get::<LetThrough>().is_some_and(|filters| filters.0.contains(&item.filter.name()));
            explained.push(Explained { filter: item.filter.name(), shadow: item.shadow, reply, lines, let_through });
        }
        Ok(explained)
    }

    /// Runs the hooks on a piece of the request's body.
    pub fn request_body(&self, cx: &mut BodyCx<'_>, progress: &mut Progress) -> Result<()> {
        self.each(&self.request_body, progress, |item, state| item.filter.request_body(cx, state))
    }

    /// Runs the hooks on the request as it goes upstream.
    pub fn upstream_request(&self, cx: &mut UpstreamCx<'_>, progress: &mut Progress) -> Result<()> {
        self.each(&self.upstream_request, progress, |item, state| item.filter.upstream_request(cx, state))
    }

    /// Runs the response hooks of the filters the request has passed, in reverse. Of a request that was refused before
    /// the chain began, those of the filters that want to see such a refusal.
    pub fn response(&self, cx: &mut ResponseCx<'_>, progress: &mut Progress) -> Result<()> {
        if progress.states.is_empty() {
            let mut items = self.gate_response.iter().rev().filter_map(|index| self.items.get(*index));
            return items.try_for_each(|item| item.filter.response(cx, &mut item.filter.state()));
        }
        for &index in self.response.iter().rev() {
            if index >= progress.passed {
                continue;
            }
            if let (Some(item), Some(state)) = (self.items.get(index), progress.states.get_mut(index)) {
                item.filter.response(cx, state)?;
            }
        }
        Ok(())
    }

    /// Runs the hooks on a piece of the response's body, in reverse.
    pub fn response_body(&self, cx: &mut BodyCx<'_>, progress: &mut Progress) -> Result<()> {
        for &index in self.response_body.iter().rev() {
            if let (Some(item), Some(state)) = (self.items.get(index), progress.states.get_mut(index)) {
                item.filter.response_body(cx, state)?;
            }
        }
        Ok(())
    }

    /// Runs the log hooks.
    pub fn log(&self, cx: &LogCx<'_>, progress: &mut Progress) {
        for &index in &self.log {
            if let (Some(item), Some(state)) = (self.items.get(index), progress.states.get_mut(index)) {
                item.filter.log(cx, state);
            }
        }
    }

    fn each(&self, indexes: &[usize], progress: &mut Progress, mut hook: impl FnMut(&Item, &mut State) -> Result<()>) -> Result<()> {
        for &index in indexes {
            if let (Some(item), Some(state)) = (self.items.get(index), progress.states.get_mut(index)) {
                hook(item, state)?;
            }
        }
        Ok(())
    }
}
