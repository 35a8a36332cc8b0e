//! The table from problems to HTTP responses: the status of every refusal, and the errors of the proxy itself. Filters
//! state code and message of their refusals, `dialects` decides the JSON; this module writes nothing to a client.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};
use keylatch_filters::contract::{self, CancelReason, Dialect, Failure, Problem, Reply};
use pingora::{Error, ErrorSource, ErrorType};

use super::dialects::{self, ErrorContext, Fault};
use crate::listener::refusal::Refused;

/// A response of Keylatch.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// A stable code for programs.
    pub code: &'static str,
    /// A sentence for people. Contains nothing internal.
    pub message: Cow<'static, str>,
    /// Further header fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// A body that replaces the error document.
    pub own_body: Option<contract::Body>,
}

impl Answer {
    const fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self { status, code, message: Cow::Borrowed(message), headers: Vec::new(), own_body: None }
    }

    /// The error document in the dialect of the API.
    pub fn body(&self, dialect: Dialect, request_id: Option<&str>) -> Bytes {
        self.document(dialect, &ErrorContext { request_id, ..ErrorContext::default() })
    }

    /// The error document, with the ids of the request.
    pub fn document(&self, dialect: Dialect, place: &ErrorContext<'_>) -> Bytes {
        dialects::body(dialect, &self.fault(), place)
    }

    /// The error as the last event of a stream.
    pub fn event(&self, dialect: Dialect, place: &ErrorContext<'_>) -> Bytes {
        dialects::event(dialect, &self.fault(), place)
    }

    /// Adds `x-should-retry: false` to a 429 with a `Retry-After` longer than this.
    pub fn discourage_long_retry(&mut self, longest: Duration) {
        const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
        let wait =
            self.headers.iter().find(|(name, _)| *name == RETRY_AFTER).and_then(|(_, value)| value.to_str().ok()?.parse::<u64>().ok());
        if self.status == StatusCode::TOO_MANY_REQUESTS && wait.is_some_and(|seconds| seconds > longest.as_secs()) {
            self.headers.push((SHOULD_RETRY, HeaderValue::from_static("false")));
        }
    }

    fn fault(&self) -> Fault<'_> {
        Fault { status: self.status, code: self.code.into(), message: (&*self.message).into(), retry_after_s: None, own: None, late: false }
    }
}

/// The response for a filter's reply.
pub fn from_reply(reply: Reply) -> Answer {
    let status = match reply.problem {
        Problem::BadRequest => StatusCode::BAD_REQUEST,
        Problem::Unauthenticated => StatusCode::UNAUTHORIZED,
        Problem::Forbidden => StatusCode::FORBIDDEN,
        Problem::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Problem::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Problem::Answer => StatusCode::OK,
    };
    let status = reply.status.unwrap_or(status);
    Answer { status, code: reply.code, message: reply.message, headers: reply.headers, own_body: reply.body }
}

/// The response for a refusal of the gate.
pub fn from_refusal(refused: Refused) -> Answer {
    let message = match refused.status.as_u16() {
        403 => "Forbidden. The request lacks a valid client certificate or origin secret.",
        405 => "The method is not allowed.",
        408 => "Request timeout. The request did not arrive in time.",
        413 => "The request body is too large.",
        414 => "The request target is too long.",
        421 => "The scheme of the request target does not match the connection.",
        431 => "The request header is too large.",
        _ => "The request is malformed or ambiguous.",
    };
    Answer::new(refused.status, refused.reason, message)
}

/// The response in maintenance mode.
pub fn maintenance() -> Answer {
    let headers = vec![(RETRY_AFTER, HeaderValue::from_static("30"))];
    let message = "The service is under maintenance. Retry after 30 s.";
    Answer { headers, ..Answer::new(StatusCode::SERVICE_UNAVAILABLE, "maintenance", message) }
}

/// A 200 response with these bytes.
pub fn plain(bytes: Vec<u8>) -> Answer {
    let body = contract::Body { bytes: bytes.into(), content_type: Some(HeaderValue::from_static("application/octet-stream")) };
    Answer { own_body: Some(body), ..Answer::new(StatusCode::OK, "answered", "") }
}

/// No route matches.
pub const NO_ROUTE: Answer = Answer::new(StatusCode::NOT_FOUND, "unknown_path", "Not found. No route matches this path.");
/// The body is larger than the listener allows.
pub const BODY_TOO_LARGE: Answer = Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The request body is too large.");
/// Servers would read different models from the request.
pub const TWO_MODELS: Answer = Answer::new(StatusCode::BAD_REQUEST, "two_models", "The request names two different models.");
/// A filter or Keylatch failed.
pub const INTERNAL: Answer = Answer::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Internal server error.");
const NO_SERVER: Answer =
    Answer::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_unavailable", "The service is temporarily unavailable. Retry shortly.");
const UNREACHABLE: Answer = Answer::new(StatusCode::BAD_GATEWAY, "upstream_unreachable", "The server behind this API cannot be reached.");
const BROKEN: Answer = Answer::new(StatusCode::BAD_GATEWAY, "upstream_error", "The server behind this API ended the response too early.");
const INVALID: Answer =
    Answer::new(StatusCode::BAD_GATEWAY, "upstream_error", "The server behind this API sent a response that is not valid HTTP.");
const TIMEOUT: Answer = Answer::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "The server behind this API took too long to answer.");
/// The body took too long, or arrived too slowly.
pub const SLOW_BODY: Answer =
    Answer::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "Request timeout. The request did not arrive in time.");
/// The framing of the body is malformed.
pub const BAD_BODY: Answer = Answer::new(StatusCode::BAD_REQUEST, "malformed_body", "The request body is malformed.");
const TOO_OLD: Answer = Answer::new(StatusCode::GATEWAY_TIMEOUT, "stream_max_age", "The stream has reached its maximum age.");
const CUT: Answer = Answer::new(StatusCode::FORBIDDEN, "key_not_allowed_here", "This API key cannot be used from your network.");
const ENDED: Answer = Answer::new(StatusCode::SERVICE_UNAVAILABLE, "stream_ended", "The stream was ended by an operator of this service.");

const STOPPED: Answer = Answer::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "The service is restarting. Retry shortly.");

/// No server of the upstream can be chosen.
pub const NO_SERVER_ERROR: ErrorType = ErrorType::Custom("NoServer");
/// The body exceeded the limit.
pub const BODY_ERROR: ErrorType = ErrorType::Custom("BodyTooLarge");
/// The body names another model after the first one.
pub const TWO_MODELS_ERROR: ErrorType = ErrorType::Custom("TwoModels");
/// The body arrives too slowly.
pub const BODY_RATE_ERROR: ErrorType = ErrorType::Custom("BodyRate");
/// The upstream sent no data in time.
pub const FIRST_BYTE_ERROR: ErrorType = ErrorType::Custom("FirstByte");
/// The stream reached its maximum age.
pub const MAX_AGE_ERROR: ErrorType = ErrorType::Custom("MaxAge");
/// The binding of the stream's key no longer allows it.
pub const CUT_ERROR: ErrorType = ErrorType::Custom("Cut");
/// An operator ended the stream.
pub const ENDED_ERROR: ErrorType = ErrorType::Custom("Ended");
/// The process is stopping.
pub const STOPPED_ERROR: ErrorType = ErrorType::Custom("Stopped");
/// A filter failed.
pub const FILTER_ERROR: ErrorType = ErrorType::Custom("Filter");

/// A filter's failure as a Pingora error.
pub fn from_failure(failure: &Failure) -> Box<Error> {
    match failure {
        Failure::BodyTooLarge => Error::explain(BODY_ERROR, failure.to_string()).into_down(),
        Failure::Internal(_) => Error::explain(FILTER_ERROR, failure.to_string()),
    }
}

/// The cancellation of a stream as a Pingora error.
pub fn from_cancellation(why: CancelReason) -> Box<Error> {
    match why {
        CancelReason::Binding => Error::explain(CUT_ERROR, "the binding of the stream's key no longer allows it"),
        CancelReason::Operator => Error::explain(ENDED_ERROR, "an operator ended the stream"),
        CancelReason::Stop => Error::explain(STOPPED_ERROR, "the process is stopping"),
    }
}

/// The response for a Pingora error. `None`: the client has left.
pub fn from_error(error: &Error) -> Option<Answer> {
    Some(match (error.etype(), error.esource()) {
        (t, _) if *t == NO_SERVER_ERROR => NO_SERVER,
        (t, _) if *t == BODY_ERROR => BODY_TOO_LARGE,
        (t, _) if *t == TWO_MODELS_ERROR => TWO_MODELS,
        (t, _) if *t == BODY_RATE_ERROR => SLOW_BODY,
        (t, _) if *t == FIRST_BYTE_ERROR => TIMEOUT,
        (t, _) if *t == MAX_AGE_ERROR => TOO_OLD,
        (t, _) if *t == CUT_ERROR => CUT,
        (t, _) if *t == ENDED_ERROR => ENDED,
        (t, _) if *t == STOPPED_ERROR => STOPPED,
        (t, _) if *t == FILTER_ERROR => INTERNAL,
        (
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout,
            ErrorSource::Upstream,
        ) => TIMEOUT,
        (
            ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::SocketError
            | ErrorType::BindError
            | ErrorType::TLSHandshakeFailure
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError,
            ErrorSource::Upstream,
        ) => UNREACHABLE,
        (ErrorType::InvalidHTTPHeader, ErrorSource::Upstream) => INVALID,
        (_, ErrorSource::Upstream) => BROKEN,
        (ErrorType::ReadTimedout, ErrorSource::Downstream) => SLOW_BODY,
        (
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed | ErrorType::WriteTimedout | ErrorType::H2Error,
            ErrorSource::Downstream,
        ) => return None,
        (_, ErrorSource::Downstream) => BAD_BODY,
        (_, ErrorSource::Internal | ErrorSource::Unset) => INTERNAL,
    })
}
