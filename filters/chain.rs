//! The chain of a route: the global filters, then those of the route. It names no filter.
//!
//! Each phase has a list of the positions that take part in it, made when the chain is compiled, so that an unused phase
//! costs nothing. Request hooks run in list order, response hooks in reverse order.

use std::sync::Arc;

use crate::contract::{
    BodyCx, ErasedFilter, Flow, Hooks, LetThrough, LogCx, Problem, Reply, RequestCx, RequestModel, ResponseCx, Result, State, Trace,
    UpstreamCx,
};

/// One position in a chain.
#[derive(Clone)]
pub struct Item {
    /// The compiled filter.
    pub filter: Arc<dyn ErasedFilter>,
    /// Shadow mode: the filter decides, counts and logs, but enforces and changes nothing.
    pub shadow: bool,
}

/// The decision of a filter, for metrics and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The filter's YAML key.
    pub filter: &'static str,
    /// The reason, from the short, closed list of the filter.
    pub reason: &'static str,
    /// The decision was not enforced.
    pub shadow: bool,
    /// The reply was not a refusal but an answer in place of the upstream.
    pub answer: bool,
    /// Details for the log only.
    pub detail: Option<String>,
}

/// The effect of one filter on a request, for `explain`.
#[derive(Debug)]
pub struct Explained {
    /// The filter's YAML key.
    pub filter: &'static str,
    /// The decision would not be enforced.
    pub shadow: bool,
    /// The reply that the filter would send.
    pub reply: Option<Box<Reply>>,
    /// The explanation of the filter, line by line.
    pub lines: Vec<String>,
    /// The filter could not reach a service it depends on and lets the request pass, as configured.
    pub let_through: bool,
}

/// A compiled chain; immutable, shared by all requests of its route.
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
    /// The first filter that reads the model or the parameters of the request.
    model_reader: Option<usize>,
    /// A filter outside shadow mode decides by it.
    model_enforced: bool,
    /// A filter reads the parameters of the request.
    reads_parameters: bool,
}

/// The progress of one request through a chain.
#[derive(Default)]
pub struct Progress {
    states: Vec<State>,
    /// The number of request hooks that have run.
    hooks_run: usize,
    /// The filters below this position have seen the request. Only they see the response.
    passed: usize,
    /// The decisions so far.
    pub decisions: Vec<Decision>,
}

/// The outcome of the request hooks.
#[derive(Debug)]
pub enum Outcome {
    /// All filters let the request pass.
    Passed,
    /// A filter has replied, and the filters after it did not run.
    Replied(Box<Reply>),
    /// The next filter reads the fact [`RequestModel`], which is missing: the caller states it and runs the rest.
    ModelNeeded,
}

impl Chain {
    /// Builds the list of each phase.
    pub fn new(items: Vec<Item>) -> Self {
        // In shadow mode only the request and log hooks run; the other hooks could change something.
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
            model_reader: items.iter().position(|item| item.filter.reads_model() || item.filter.reads_parameters()),
            reads_parameters: items.iter().any(|item| item.filter.reads_parameters()),
            model_enforced: items.iter().any(|item| !item.shadow && item.filter.enforces_model()),
            items,
        }
    }

    /// The names of the filters, in order, with their shadow mode.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        self.items.iter().map(|item| (item.filter.name(), item.shadow))
    }

    /// The progress of a new request.
    pub fn begin(&self) -> Progress {
        Progress { states: self.items.iter().map(|item| item.filter.state()).collect(), hooks_run: 0, passed: 0, decisions: Vec::new() }
    }

    /// Whether a filter has a request body hook.
    pub fn reads_request_body(&self) -> bool {
        !self.request_body.is_empty()
    }

    /// Whether a filter has a response body hook.
    pub fn reads_response_body(&self) -> bool {
        !self.response_body.is_empty()
    }

    /// Whether a request with two models must be refused: a filter outside shadow mode decides by the model.
    pub fn enforces_model(&self) -> bool {
        self.model_enforced
    }

    /// Whether a filter reads the parameters of the request, so that its whole body is read ahead.
    pub fn reads_parameters(&self) -> bool {
        self.reads_parameters
    }

    /// Runs the request hooks, or those that remain after [`Outcome::ModelNeeded`].
    pub async fn request(&self, cx: &mut RequestCx<'_>, progress: &mut Progress) -> Result<Outcome> {
        while let Some(&index) = self.request.get(progress.hooks_run) {
            let (Some(item), Some(state)) = (self.items.get(index), progress.states.get_mut(index)) else { break };
            if self.model_reader.is_some_and(|reader| reader <= index) && cx.facts.get::<RequestModel>().is_none() {
                return Ok(Outcome::ModelNeeded);
            }
            progress.hooks_run += 1;
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
                        // The replying filter sees its own reply in the response phase: a limit adds its fields there.
                        progress.passed = index + 1;
                        return Ok(Outcome::Replied(reply));
                    }
                }
            }
        }
        // The reader may have no request hook.
        if self.model_reader.is_some() && cx.facts.get::<RequestModel>().is_none() {
            return Ok(Outcome::ModelNeeded);
        }
        progress.passed = self.items.len();
        Ok(Outcome::Passed)
    }

    /// The effect of each filter on a request, also after a filter that would refuse it. For `explain` only: the caller states
    /// the fact [`crate::contract::DryRun`], so that counters and bindings do not change.
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

    /// Runs the request body hooks on a chunk.
    pub fn request_body(&self, cx: &mut BodyCx<'_>, progress: &mut Progress) -> Result<()> {
        self.each(&self.request_body, progress, |item, state| item.filter.request_body(cx, state))
    }

    /// Runs the upstream request hooks.
    pub fn upstream_request(&self, cx: &mut UpstreamCx<'_>, progress: &mut Progress) -> Result<()> {
        self.each(&self.upstream_request, progress, |item, state| item.filter.upstream_request(cx, state))
    }

    /// Runs the response hooks of the filters that have seen the request, in reverse order. If the request was refused before
    /// the chain started, runs those with [`Hooks::gate_response`].
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

    /// Runs the response body hooks on a chunk, in reverse order.
    pub fn response_body(&self, cx: &mut BodyCx<'_>, progress: &mut Progress) -> Result<()> {
        for &index in self.response_body.iter().rev() {
            if let (Some(item), Some(state)) = (self.items.get(index), progress.states.get_mut(index)) {
                item.filter.response_body(cx, state)?;
            }
        }
        Ok(())
    }

    /// Runs the log hooks.
    pub fn log(&self, cx: &mut LogCx<'_>, progress: &mut Progress) {
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
