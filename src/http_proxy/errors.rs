//! From what went wrong to what the client gets: the one table of statuses and shapes.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};
use keylatch_filters::contract::{self, CancelReason, Dialect, Failure, Problem, Reply};
use pingora::{Error, ErrorSource, ErrorType};

use super::dialects::{self, Fault, Place};
use crate::listener::refusal::Refused;

/// What the client gets.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: &'static str,
    /// For people; holds nothing that is not theirs to know.
    pub message: Cow<'static, str>,
    /// More header fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// A body in no shape of ours.
    pub own_body: Option<contract::Body>,
}

impl Answer {
    const fn new(status: StatusCode, code: &'static str, message: &'static str) -> Self {
        Self { status, code, message: Cow::Borrowed(message), headers: Vec::new(), own_body: None }
    }

    /// The body, in the shape of the API.
    pub fn body(&self, dialect: Dialect, request_id: Option<&str>) -> Bytes {
        self.document(dialect, &Place { request_id, ..Place::default() })
    }

    /// The same, for a request of which more is known.
    pub fn document(&self, dialect: Dialect, place: &Place<'_>) -> Bytes {
        dialects::body(dialect, &self.fault(), place)
    }

    /// The same as the last event of a stream.
    pub fn event(&self, dialect: Dialect, place: &Place<'_>) -> Bytes {
        dialects::event(dialect, &self.fault(), place)
    }

    /// Tells client libraries not to sit out a wait that is longer than this.
    pub fn hint_at_retry(&mut self, longest: Duration) {
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

/// A filter's refusal.
pub fn of_reply(reply: Reply) -> Answer {
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

/// The gate's refusal.
pub fn of_refused(refused: Refused) -> Answer {
    let message = match refused.status.as_u16() {
        403 => "This request has not come the way it must.",
        405 => "This method is not allowed.",
        408 => "The request took too long to arrive.",
        413 => "The request's body is too large.",
        414 => "The request's target is too long.",
        421 => "The request's target names another scheme than that of this connection.",
        431 => "The request's header is too large.",
        _ => "The request is malformed or ambiguous.",
    };
    Answer::new(refused.status, refused.reason, message)
}

/// Operators have said so.
pub fn maintenance() -> Answer {
    let headers = vec![(RETRY_AFTER, HeaderValue::from_static("30"))];
    let message = "This service is down for maintenance. Try again in a while.";
    Answer { headers, ..Answer::new(StatusCode::SERVICE_UNAVAILABLE, "maintenance", message) }
}

/// Bytes as they are.
pub fn plain(bytes: Vec<u8>) -> Answer {
    let body = contract::Body { bytes: bytes.into(), content_type: Some(HeaderValue::from_static("application/octet-stream")) };
    Answer { own_body: Some(body), ..Answer::new(StatusCode::OK, "answered", "") }
}

/// No route is for this request.
pub const NO_ROUTE: Answer = Answer::new(StatusCode::NOT_FOUND, "unknown_path", "There is nothing at this path.");
/// The body is larger than the listener allows.
pub const BODY_TOO_LARGE: Answer = Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The request's body is too large.");
/// A filter failed, or we did.
pub const INTERNAL: Answer = Answer::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Something went wrong on our side.");
const NO_SERVER: Answer =
    Answer::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_unavailable", "No server can take the request right now. Try again shortly.");
const UNREACHABLE: Answer = Answer::new(StatusCode::BAD_GATEWAY, "upstream_unreachable", "The server behind this API cannot be reached.");
const BROKEN: Answer = Answer::new(StatusCode::BAD_GATEWAY, "upstream_error", "The server behind this API ended the response too early.");
const INVALID: Answer =
    Answer::new(StatusCode::BAD_GATEWAY, "upstream_error", "The server behind this API sent a response that is not valid HTTP.");
const TIMEOUT: Answer = Answer::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "The server behind this API took too long to answer.");
/// The body took too long, or arrived too slowly.
pub const SLOW_BODY: Answer = Answer::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The request took too long to arrive.");
/// The body's framing is malformed.
pub const BAD_BODY: Answer = Answer::new(StatusCode::BAD_REQUEST, "malformed_body", "The request's body is malformed.");
const TOO_OLD: Answer = Answer::new(StatusCode::GATEWAY_TIMEOUT, "stream_max_age", "The stream has reached its maximum age.");
const CUT: Answer = Answer::new(StatusCode::FORBIDDEN, "key_not_allowed_here", "This API key cannot be used from your network.");
const ENDED: Answer = Answer::new(StatusCode::SERVICE_UNAVAILABLE, "stream_ended", "This stream was ended by an operator of this service.");

const STOPPED: Answer = Answer::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "This service is restarted. Try again shortly.");

/// No server of the upstream can be chosen.
pub const NO_SERVER_ERROR: ErrorType = ErrorType::Custom("NoServer");
/// The body grew past the limit.
pub const BODY_ERROR: ErrorType = ErrorType::Custom("BodyTooLarge");
/// The body arrives too slowly.
pub const BODY_RATE_ERROR: ErrorType = ErrorType::Custom("BodyRate");
/// The upstream was silent for too long.
pub const FIRST_BYTE_ERROR: ErrorType = ErrorType::Custom("FirstByte");
/// The stream is too old.
pub const MAX_AGE_ERROR: ErrorType = ErrorType::Custom("MaxAge");
/// The key of the stream may not be used any more.
pub const CUT_ERROR: ErrorType = ErrorType::Custom("Cut");
/// An operator has ended the stream.
pub const ENDED_ERROR: ErrorType = ErrorType::Custom("Ended");
/// The process ends.
pub const STOPPED_ERROR: ErrorType = ErrorType::Custom("Stopped");
/// A filter failed.
pub const FILTER_ERROR: ErrorType = ErrorType::Custom("Filter");

/// What a filter says went wrong, for Pingora to carry on.
pub fn of_failure(failure: &Failure) -> Box<Error> {
    match failure {
        Failure::BodyTooLarge => Error::explain(BODY_ERROR, failure.to_string()).into_down(),
        Failure::Internal(_) => Error::explain(FILTER_ERROR, failure.to_string()),
    }
}

/// A stream that is ended from elsewhere.
pub fn cancellation_error(why: CancelReason) -> Box<Error> {
    match why {
        CancelReason::Binding => Error::explain(CUT_ERROR, "the stream's key may not be used any more"),
        CancelReason::Operator => Error::explain(ENDED_ERROR, "an operator has ended the stream"),
        CancelReason::Stop => Error::explain(STOPPED_ERROR, "the process ends"),
    }
}

/// What Pingora says went wrong. `None`: the client is gone, there is nobody to answer.
pub fn of_error(error: &Error) -> Option<Answer> {
    Some(match (error.etype(), error.esource()) {
        (t, _) if *t == NO_SERVER_ERROR => NO_SERVER,
        (t, _) if *t == BODY_ERROR => BODY_TOO_LARGE,
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
