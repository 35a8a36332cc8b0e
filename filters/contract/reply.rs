//! The reply that a filter sends in place of the upstream response.
//!
//! A filter states the problem, a code and a message. `src/http_proxy` decides the status and the shape of the error.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

/// The kinds of refusal. They are few and general; the code and message carry the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The request is malformed or ambiguous: 400.
    BadRequest,
    /// No credential, or an invalid one: 401.
    Unauthenticated,
    /// A valid credential without permission for this request: 403.
    Forbidden,
    /// A rate or concurrency limit is exceeded: 429.
    RateLimited,
    /// A dependency is unavailable; a later retry may succeed: 503.
    Unavailable,
    /// Not a problem: the filter answers the request in place of the upstream.
    Answer,
}

/// A custom body, not in the error shape of the API dialect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// The content type; `None` for an empty body.
    pub content_type: Option<HeaderValue>,
    /// The bytes of the body.
    pub bytes: Bytes,
}

/// A reply that Keylatch generates.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The kind of refusal.
    pub problem: Problem,
    /// Overrides the status of the problem.
    pub status: Option<StatusCode>,
    /// Overrides the error body of the API dialect.
    pub body: Option<Body>,
    /// A stable identifier for client programs: `error.code` in the OpenAI dialect.
    pub code: &'static str,
    /// The message for the client: what to do. It never names the owner of a key or what would be allowed.
    pub message: Cow<'static, str>,
    /// A stable identifier for metrics, from a short, closed list of the filter.
    pub reason: &'static str,
    /// Details for the log only. Contains no secret.
    pub detail: Option<String>,
    /// Additional header fields, such as `Retry-After` or `WWW-Authenticate`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Reply {
    /// Makes a refusal. `code` is for the client, `reason` for the metrics.
    pub fn new(problem: Problem, code: &'static str, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { problem, status: None, body: None, code, message: message.into(), reason, detail: None, headers: Vec::new() }
    }

    /// Sets the details for the log.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Overrides the status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// Overrides the body.
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
