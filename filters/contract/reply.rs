//! The answers a filter may give instead of the upstream.
//!
//! A filter says what the problem is; which status and which shape the client gets is decided in
//! one table elsewhere.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

/// The kinds of refusal. Few and general: what is special about one is its code and message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The request is malformed or ambiguous.
    BadRequest,
    /// No credential, or one that is not valid.
    Unauthenticated,
    /// A valid credential that may not do this.
    Forbidden,
    /// Too many.
    RateLimited,
    /// Something this depends on is away; trying again later may help.
    Unavailable,
    /// None: what was asked for, given here instead of by the upstream.
    Answer,
}

/// A body that is not in the shape of the API's errors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// What it is; `None` where there is none.
    pub content_type: Option<HeaderValue>,
    /// The body itself.
    pub bytes: Bytes,
}

/// A reply of our own.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What kind of refusal this is.
    pub problem: Problem,
    /// Another status than the one that the problem has.
    pub status: Option<StatusCode>,
    /// Another body than the problem's, in the shape of the API.
    pub body: Option<Body>,
    /// A stable word for programs: OpenAI's `error.code`.
    pub code: &'static str,
    /// For the client: what to do. Never whose key it is, nor what would be allowed.
    pub message: Cow<'static, str>,
    /// A stable word for the metrics: why, from a short closed list of the filter's.
    pub reason: &'static str,
    /// For the log only; holds no secret either.
    pub detail: Option<String>,
    /// More header fields, such as `Retry-After` or `WWW-Authenticate`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Reply {
    /// A refusal. `reason` is the metric's word, `code` the client's.
    pub fn new(problem: Problem, code: &'static str, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { problem, status: None, body: None, code, message: message.into(), reason, detail: None, headers: Vec::new() }
    }

    /// Adds what only the log may say.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Gives it a status of its own.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// Gives it a body of its own.
    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        self.body = Some(body);
        self
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}
