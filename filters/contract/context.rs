//! The context that each hook receives. It gives filters no access to sockets or sessions.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora_http::{RequestHeader, ResponseHeader};

use super::{Dialect, DryRun, Facts};

/// The current time, passed as an argument so that tests can set it without sleeping.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic time, for durations.
    pub instant: Instant,
    /// Wall-clock time, for dates (`exp`, `nbf`, database rows). It can jump.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// Seconds since 1970; 0 if the clock is set to an earlier date.
    pub fn unix_s(&self) -> u64 {
        self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
    }
}

/// Context of the request hook: the request header has arrived.
pub struct RequestCx<'a> {
    /// The request after the gate: exactly one `Host`, unambiguous framing, a normalised path.
    pub request: &'a RequestHeader,
    /// Facts stated by earlier filters.
    pub facts: &'a mut Facts,
    /// The other end of the TCP connection. An IPv4-mapped IPv6 address is given as IPv4.
    pub peer: IpAddr,
    /// The route's name.
    pub route: &'a str,
    /// The API dialect of the client: configured for the route, or else derived from the path.
    pub dialect: Dialect,
    /// The time when the request header was complete.
    pub now: Now,
    /// The filter runs in shadow mode: its decision is counted and logged but not enforced.
    pub shadow: bool,
}

impl RequestCx<'_> {
    /// The header fields of the request.
    pub fn headers(&self) -> &HeaderMap {
        &self.request.headers
    }

    /// Whether this is a dry run: filters must not change counters or bindings.
    pub fn is_dry_run(&self) -> bool {
        self.facts.get::<DryRun>().is_some()
    }

    /// The client address found by `client_ip`, or else the address of the peer.
    pub fn client(&self) -> IpAddr {
        self.facts.client().unwrap_or(self.peer)
    }
}

/// Context of the upstream request hook: the request is about to be sent upstream.
pub struct UpstreamCx<'a> {
    /// The request to send upstream; hooks may change it.
    pub upstream: &'a mut RequestHeader,
    /// The request as it arrived.
    pub request: &'a RequestHeader,
    /// Facts stated by the request hooks.
    pub facts: &'a mut Facts,
    /// The other end of the client's connection.
    pub peer: IpAddr,
}

/// The origin of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The upstream.
    Upstream,
    /// Keylatch, in place of an upstream response.
    Ours,
    /// Keylatch, before the upstream has answered: an early stream. The later answer of the upstream passes the hooks as
    /// [`Source::Upstream`].
    Early,
}

/// Context of the response hook: the response header is about to be sent to the client.
pub struct ResponseCx<'a> {
    /// The response header; hooks may change it.
    pub response: &'a mut ResponseHeader,
    /// The request as it arrived.
    pub request: &'a RequestHeader,
    /// Facts stated by earlier hooks.
    pub facts: &'a mut Facts,
    /// The origin of the response.
    pub source: Source,
    /// The time when the response header arrived.
    pub now: Now,
}

/// Context of the body hooks: one chunk of a body.
pub struct BodyCx<'a> {
    /// The chunk; a hook may replace it. `None` if the body ends without further bytes.
    pub body: &'a mut Option<Bytes>,
    /// Whether this is the last chunk.
    pub end: bool,
    /// Facts stated by earlier hooks.
    pub facts: &'a mut Facts,
    /// The time when the request header was complete.
    pub begun: Instant,
}

/// Context of the log hook: the request has ended.
pub struct LogCx<'a> {
    /// The request as it arrived.
    pub request: &'a RequestHeader,
    /// The status sent to the client; `None` if none was sent.
    pub status: Option<StatusCode>,
    /// All facts stated during the request. A log hook may add one for the hooks after it and for the access log.
    pub facts: &'a mut Facts,
    /// The route's name.
    pub route: &'a Arc<str>,
    /// The name of the route's upstream.
    pub upstream: &'a Arc<str>,
    /// The time when the request header was complete.
    pub now: Now,
    /// The time from the complete request header to the end of the response.
    pub duration: Duration,
}
