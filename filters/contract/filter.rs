//! The trait a filter implements, and its erasure.

use std::any::Any;
use std::future::Future;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{BodyCx, BoxFuture, Invalid, LogCx, Reply, RequestCx, ResponseCx, Site, UpstreamCx};

/// The phases a filter takes part in. A phase nobody takes part in costs a chain nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// [`Filter::request`]
    pub request: bool,
    /// [`Filter::request_body`]
    pub request_body: bool,
    /// [`Filter::upstream_request`]
    pub upstream_request: bool,
    /// [`Filter::response`]
    pub response: bool,
    /// [`Filter::response_body`]
    pub response_body: bool,
    /// [`Filter::log`]
    pub log: bool,
    /// [`Filter::response`] also runs, with a fresh state, for what is refused before a chain begins.
    pub gate_response: bool,
}

impl Hooks {
    /// Takes part in nothing; the start of a `const` list.
    pub const NONE: Hooks = Hooks {
        request: false,
        request_body: false,
        upstream_request: false,
        response: false,
        response_body: false,
        log: false,
        gate_response: false,
    };
    /// Takes part in the request phase only.
    pub const REQUEST: Hooks = Hooks { request: true, ..Hooks::NONE };
}

/// Why a filter did not come to an end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something went wrong that is neither the client's nor the configuration's fault. The client gets a 500 that
    /// says nothing of it; the text goes to the log and holds no secret.
    #[error("{0}")]
    Internal(String),
    /// More of the request's body has come than may.
    #[error("the request's body is larger than it may be here")]
    BodyTooLarge,
}

/// What a hook returns.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What the chain does after a request hook.
#[derive(Debug)]
pub enum Flow {
    /// Go on to the next filter.
    Continue,
    /// Stop here with this reply. It travels back through the response hooks of the filters passed.
    Respond(Box<Reply>),
}

impl From<Reply> for Flow {
    fn from(reply: Reply) -> Self {
        Flow::Respond(Box::new(reply))
    }
}

/// One filter: one YAML key, one file.
///
/// Hooks that are overridden must be declared in [`Filter::HOOKS`]; a test compares the two.
pub trait Filter: Sized + Send + Sync + 'static {
    /// The YAML key.
    const NAME: &'static str;
    /// The phases it takes part in.
    const HOOKS: Hooks;
    /// The text of the filter's own file (`include_str!`), whose `//!` lines are its manual.
    const SOURCE: &'static str;
    /// What stands under the YAML key. Always `#[serde(deny_unknown_fields)]`.
    type Config: DeserializeOwned + JsonSchema;
    /// What it remembers of one exchange, for one position in the chain; `()` if nothing.
    type State: Default + Send + Sync + 'static;

    /// Makes the filter from its configuration. Everything that can be wrong is found here.
    fn compile(config: Self::Config, site: &mut Site<'_>) -> Result<Self, Invalid>;

    /// Once, when the request's header is here and nothing went upstream.
    fn request(&self, _cx: &mut RequestCx<'_>, _state: &mut Self::State) -> impl Future<Output = Result<Flow>> + Send {
        async { Ok(Flow::Continue) }
    }

    /// For each piece of the request's body; anew for each attempt at an upstream.
    fn request_body(&self, _cx: &mut BodyCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// On the request as it will go upstream; anew for each attempt.
    fn upstream_request(&self, _cx: &mut UpstreamCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// On the response's header, in reverse order of the chain, also for replies of our own.
    fn response(&self, _cx: &mut ResponseCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// For each piece of the response's body. Runs inside the stream's loop: never blocks.
    fn response_body(&self, _cx: &mut BodyCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// Once, last, when everything is known.
    fn log(&self, _cx: &LogCx<'_>, _state: &mut Self::State) {}
}

/// The state of one position of a chain, its type forgotten.
pub type State = Box<dyn Any + Send + Sync>;

/// A [`Filter`] with its types forgotten, so that a chain can hold any.
/// The one implementation is the blanket one below.
pub trait Erased: Send + Sync {
    /// See [`Filter::NAME`].
    fn name(&self) -> &'static str;
    /// See [`Filter::HOOKS`].
    fn hooks(&self) -> Hooks;
    /// A fresh state. A state without size does not allocate.
    fn state(&self) -> State;
    /// See [`Filter::request`].
    fn request<'a, 'b: 'a>(&'a self, cx: &'a mut RequestCx<'b>, state: &'a mut State) -> BoxFuture<'a, Result<Flow>>;
    /// See [`Filter::request_body`].
    fn request_body(&self, cx: &mut BodyCx<'_>, state: &mut State) -> Result<()>;
    /// See [`Filter::upstream_request`].
    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, state: &mut State) -> Result<()>;
    /// See [`Filter::response`].
    fn response(&self, cx: &mut ResponseCx<'_>, state: &mut State) -> Result<()>;
    /// See [`Filter::response_body`].
    fn response_body(&self, cx: &mut BodyCx<'_>, state: &mut State) -> Result<()>;
    /// See [`Filter::log`].
    fn log(&self, cx: &LogCx<'_>, state: &mut State);
}

/// The state of a position always is of its filter's type: the chain makes it from that very filter.
fn typed<F: Filter>(state: &mut State) -> Result<&mut F::State> {
    state.downcast_mut().ok_or_else(|| Failure::Internal(format!("the state of `{}` is of another type", F::NAME)))
}

impl<F: Filter> Erased for F {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn hooks(&self) -> Hooks {
        F::HOOKS
    }
    fn state(&self) -> State {
        Box::<F::State>::default()
    }
    fn request<'a, 'b: 'a>(&'a self, cx: &'a mut RequestCx<'b>, state: &'a mut State) -> BoxFuture<'a, Result<Flow>> {
        Box::pin(async move { Filter::request(self, cx, typed::<F>(state)?).await })
    }
    fn request_body(&self, cx: &mut BodyCx<'_>, state: &mut State) -> Result<()> {
        Filter::request_body(self, cx, typed::<F>(state)?)
    }
    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, state: &mut State) -> Result<()> {
        Filter::upstream_request(self, cx, typed::<F>(state)?)
    }
    fn response(&self, cx: &mut ResponseCx<'_>, state: &mut State) -> Result<()> {
        Filter::response(self, cx, typed::<F>(state)?)
    }
    fn response_body(&self, cx: &mut BodyCx<'_>, state: &mut State) -> Result<()> {
        Filter::response_body(self, cx, typed::<F>(state)?)
    }
    fn log(&self, cx: &LogCx<'_>, state: &mut State) {
        if let Ok(state) = typed::<F>(state) {
            Filter::log(self, cx, state);
        }
    }
}

/// An error of the header types as a failure: they say nothing about values.
pub fn failure(error: impl std::fmt::Display) -> Failure {
    Failure::Internal(error.to_string())
}

/// Text of ours as a field value.
pub fn header_value(text: &str) -> Result<http::HeaderValue> {
    http::HeaderValue::from_str(text).map_err(failure)
}
