//! What a hook is handed. Filters see these, never a socket.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};

use super::{Dialect, DryRun, Facts};

/// The clock as an input, so that tests move it and nothing sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations: never goes back.
    pub instant: Instant,
    /// For dates (`exp`, `nbf`, rows): may be set.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// Seconds since 1970, 0 for a clock before it.
    pub fn unix_s(&self) -> u64 {
        self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
    }
}

/// The request's header has arrived.
pub struct RequestCx<'a> {
    /// The request as the gate left it: one Host, one framing, the path normalised.
    pub request: &'a RequestHeader,
    /// What the filters before this one found out.
    pub facts: &'a mut Facts,
    /// The other end of the TCP connection, IPv4-mapped IPv6 already turned into IPv4.
    pub peer: IpAddr,
    /// The route's name.
    pub route: &'a str,
    /// The API the client speaks: the route's, or else the one of the path.
    pub dialect: Dialect,
    /// The time at which the header was complete.
    pub now: Now,
    /// This filter's verdict will be counted and logged, and not carried out.
    pub shadow: bool,
}

impl RequestCx<'_> {
    /// The request's header fields.
    pub fn headers(&self) -> &HeaderMap {
        &self.request.headers
    }

    /// Whether the request is only explained: counts and bindings stay as they are.
    pub fn is_dry_run(&self) -> bool {
        self.facts.get::<DryRun>().is_some()
    }

    /// The client's address: what `client_ip` found, or else the peer's.
    pub fn client(&self) -> IpAddr {
        self.facts.client().unwrap_or(self.peer)
    }
}

/// The request is about to go upstream.
pub struct UpstreamCx<'a> {
    /// The request as the upstream will get it.
    pub upstream: &'a mut RequestHeader,
    /// The request as it arrived.
    pub request: &'a RequestHeader,
    /// What the request hooks found out.
    pub facts: &'a mut Facts,
    /// The other end of the client's connection.
    pub peer: IpAddr,
}

/// Whose word a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The upstream's.
    Upstream,
    /// Ours, instead of the upstream's.
    Ours,
    /// Ours, before the upstream has said anything: a stream that begins while it is waited for. What the upstream then
    /// says comes as [`Source::Upstream`].
    Early,
}

/// A response is about to go to the client.
pub struct ResponseCx<'a> {
    /// The response's header.
    pub response: &'a mut ResponseHeader,
    /// The request as it arrived.
    pub request: &'a RequestHeader,
    /// What the request hooks found out.
    pub facts: &'a mut Facts,
    /// Whose it is.
    pub source: Source,
    /// The time at which the header arrived.
    pub now: Now,
}

/// A piece of a body passes.
pub struct BodyCx<'a> {
    /// The piece; a hook may replace it. `None` at an end that brings no bytes.
    pub body: &'a mut Option<Bytes>,
    /// Whether this is the last piece.
    pub end: bool,
    /// What the hooks before found out.
    pub facts: &'a mut Facts,
}

/// The exchange is over.
pub struct LogCx<'a> {
    /// The request as it arrived.
    pub request: &'a RequestHeader,
    /// The status the client got; `None` if it got none.
    pub status: Option<StatusCode>,
    /// Everything found out.
    pub facts: &'a Facts,
    /// The route's name.
    pub route: &'a str,
    /// From the complete header to the end.
    pub duration: Duration,
}
