//! The [`Filter`] trait, and [`ErasedFilter`], through which a chain calls filters of any type. It holds no filter and runs none.

use std::any::Any;
use std::future::Future;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{BodyCx, BoxFuture, Invalid, LogCx, Reply, RequestCx, ResponseCx, Site, UpstreamCx};

/// The phases for which a filter has a hook. A phase without a hook adds no cost to a chain.
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
    /// [`Filter::response`] also runs, with a fresh state, for requests refused before the chain starts.
    pub gate_response: bool,
}

impl Hooks {
    /// No hooks; the base of a `const` declaration.
    pub const NONE: Hooks = Hooks {
        request: false,
        request_body: false,
        upstream_request: false,
        response: false,
        response_body: false,
        log: false,
        gate_response: false,
    };
    /// The request hook only.
    pub const REQUEST: Hooks = Hooks { request: true, ..Hooks::NONE };
}

/// An error in a hook. The request ends with it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// An internal error: neither the client nor the configuration caused it. The client gets a 500 without details.
    /// The text is logged and contains no secret.
    #[error("{0}")]
    Internal(String),
    /// The request body is longer than the limit.
    #[error("the request body exceeds the limit")]
    BodyTooLarge,
}

/// The result of a hook.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The decision of a request hook.
#[derive(Debug)]
pub enum Flow {
    /// Continue with the next filter.
    Continue,
    /// Stop the chain and send this reply. It passes the response hooks of the filters that have seen the request.
    Respond(Box<Reply>),
}

impl From<Reply> for Flow {
    fn from(reply: Reply) -> Self {
        Flow::Respond(Box::new(reply))
    }
}

/// One filter: one YAML key, one file.
///
/// [`Filter::HOOKS`] must declare exactly the hooks that the filter overrides; a test compares the two.
pub trait Filter: Sized + Send + Sync + 'static {
    /// The YAML key.
    const NAME: &'static str;
    /// The hooks that the filter implements.
    const HOOKS: Hooks;
    /// The source text of the filter's main file (`include_str!`). Its `//!` lines are the manual.
    const SOURCE: &'static str;
    /// The configuration under the YAML key. Always `#[serde(deny_unknown_fields)]`.
    type Config: DeserializeOwned + JsonSchema;
    /// The state of one request at one position in the chain; `()` for none.
    type State: Default + Send + Sync + 'static;

    /// Whether the request hook reads the fact [`super::RequestModel`], for which the body may have to be read ahead.
    fn reads_model(&self) -> bool {
        false
    }

    /// Whether a decision that depends on that fact is enforced, and not only counted in shadow mode.
    fn enforces_model(&self) -> bool {
        self.reads_model()
    }

    /// Whether the request hook reads the fact [`crate::usage_scan::RequestParameters`], for which the whole body is read ahead
    /// if it fits.
    fn reads_parameters(&self) -> bool {
        false
    }

    /// Compiles the filter from its configuration. All configuration errors are reported here.
    fn compile(config: Self::Config, site: &mut Site<'_>) -> Result<Self, Invalid>;

    /// Runs once, after the request header has arrived and before anything is sent upstream.
    fn request(&self, _cx: &mut RequestCx<'_>, _state: &mut Self::State) -> impl Future<Output = Result<Flow>> + Send {
        async { Ok(Flow::Continue) }
    }

    /// Runs for each chunk of the request body, and again from the first chunk for each upstream attempt.
    fn request_body(&self, _cx: &mut BodyCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// Runs on the request that is about to be sent upstream, once per attempt.
    fn upstream_request(&self, _cx: &mut UpstreamCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// Runs on the response header, in reverse chain order. It also runs for responses that Keylatch generates.
    fn response(&self, _cx: &mut ResponseCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// Runs for each chunk of the response body, inside the loop of the stream. It must not block.
    fn response_body(&self, _cx: &mut BodyCx<'_>, _state: &mut Self::State) -> Result<()> {
        Ok(())
    }

    /// Runs once, after the response has ended.
    fn log(&self, _cx: &mut LogCx<'_>, _state: &mut Self::State) {}
}

/// The type-erased state of one position in a chain.
pub type State = Box<dyn Any + Send + Sync>;

/// A type-erased [`Filter`], so that a chain can hold filters of different types.
/// The blanket implementation below is the only one.
pub trait ErasedFilter: Send + Sync {
    /// See [`Filter::NAME`].
    fn name(&self) -> &'static str;
    /// See [`Filter::HOOKS`].
    fn hooks(&self) -> Hooks;
    /// See [`Filter::reads_model`].
    fn reads_model(&self) -> bool;
    /// See [`Filter::enforces_model`].
    fn enforces_model(&self) -> bool;
    /// See [`Filter::reads_parameters`].
    fn reads_parameters(&self) -> bool;
    /// Makes a new state. A zero-sized state does not allocate.
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
    fn log(&self, cx: &mut LogCx<'_>, state: &mut State);
}

/// Downcasts the state. The type always matches: the chain makes the state from the same filter.
fn typed<F: Filter>(state: &mut State) -> Result<&mut F::State> {
    state.downcast_mut().ok_or_else(|| Failure::Internal(format!("the state of `{}` has another type", F::NAME)))
}

impl<F: Filter> ErasedFilter for F {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn hooks(&self) -> Hooks {
        F::HOOKS
    }
    fn reads_model(&self) -> bool {
        Filter::reads_model(self)
    }
    fn enforces_model(&self) -> bool {
        Filter::enforces_model(self)
    }
    fn reads_parameters(&self) -> bool {
        Filter::reads_parameters(self)
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
    fn log(&self, cx: &mut LogCx<'_>, state: &mut State) {
        if let Ok(state) = typed::<F>(state) {
            Filter::log(self, cx, state);
        }
    }
}

/// Turns an error of the header types into a [`Failure`]. These errors never contain header values.
pub fn failure(error: impl std::fmt::Display) -> Failure {
    Failure::Internal(error.to_string())
}

/// Makes a header value from text that Keylatch has generated.
pub fn header_value(text: &str) -> Result<http::HeaderValue> {
    http::HeaderValue::from_str(text).map_err(failure)
}
