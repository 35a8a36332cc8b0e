//! One client connection: a layer over its stream that hands exactly one request at a time to
//! Pingora. It does not interpret requests; the gate does.
//!
//! Pingora limits only single reads (60 s), reads headers up to 1 MiB, repairs illegal request
//! lines, answers requests that it cannot parse itself, accepts chunk sizes that other servers read
//! differently, and aborts a request when bytes arrive behind it. This layer gives a header one
//! deadline and one size limit, from its first byte. Bytes are handed on up to the end of the
//! header, then up to the end of the body ([`Framing`]); the rest waits for the next request. So
//! nothing is parsed as a request unless the gate has seen its first byte.

pub mod body_rate;
mod chunks;
mod client_cert;
mod delegate;
mod header_guard;
pub mod http2;
pub mod lingering;
mod phase;
pub mod proxy_protocol;
mod request_body;
mod stream;
pub mod tls;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keylatch_filters::contract::{Arrival, CancelReason, CancellationHandle};
use parking_lot::Mutex;

use body_rate::BodyRate;
pub use client_cert::ClientCertCheck;
use http2::Http2Streams;
use lingering::{ClosingStream, LingeringLimits};
use phase::{CurrentPhase, Event};
pub use stream::ConnStream;

use super::header_check::Malformed;

/// Stands for chunked framing in place of a length.
const CHUNKED: u64 = u64::MAX;

/// How a request body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes; 0 for most requests.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// The connection switches to another protocol, if the upstream agrees.
    Upgrade,
}

/// The state of a connection, shared by its stream and its requests.
#[derive(Debug)]
pub struct Conn {
    /// The peer address, or the client named by the PROXY protocol. IPv4-mapped IPv6 is turned into
    /// IPv4.
    pub peer: IpAddr,
    /// The facts from TLS; `None`: plain TCP.
    pub tls: Option<Arrival>,
    /// Checks whether the client certificate is still valid.
    pub client_cert: ClientCertCheck,
    phase: CurrentPhase,
    /// The last header, if it is malformed. No request follows it.
    malformed: OnceLock<Box<Malformed>>,
    /// The length of the current body, or [`CHUNKED`].
    body: AtomicU64,
    /// The chunks of the current body are malformed.
    body_bad: AtomicBool,
    /// The current body arrives too slowly.
    body_slow: AtomicBool,
    /// The response to the current request has begun.
    responding: AtomicBool,
    /// The cancellation handle, after an upgrade.
    cancellation: OnceLock<Arc<CancellationHandle>>,
    cancelled: OnceLock<CancelReason>,
    http2: OnceLock<Arc<Http2Streams>>,
    /// Set when Pingora has dropped the connection.
    closing: Mutex<Option<ClosingStream>>,
    /// Counts the connection until it is closed.
    _admission: crate::listener::admission::Admission,
}

impl Conn {
    /// A new connection that occupies this admission.
    pub fn new(peer: IpAddr, tls: Option<Arrival>, client_cert: ClientCertCheck, admission: crate::listener::admission::Admission) -> Self {
        Self {
            peer,
            tls,
            client_cert,
            phase: CurrentPhase::new(),
            malformed: OnceLock::new(),
            body: AtomicU64::new(0),
            body_bad: AtomicBool::new(false),
            body_slow: AtomicBool::new(false),
            responding: AtomicBool::new(false),
            cancellation: OnceLock::new(),
            cancelled: OnceLock::new(),
            http2: OnceLock::new(),
            closing: Mutex::default(),
            _admission: admission,
        }
    }

    /// Switches the connection to HTTP/2.
    pub fn set_http2(&self) {
        self.phase.apply(Event::Http2Preface);
        self.http2.get_or_init(Arc::default);
    }

    /// Its streams, if it speaks HTTP/2.
    pub fn http2(&self) -> Option<&Arc<Http2Streams>> {
        self.http2.get()
    }

    /// Sets the handle that ends the connection.
    pub fn set_cancellation(&self, cancellation: Arc<CancellationHandle>) {
        let _ = self.cancellation.set(cancellation);
    }

    /// Why the connection was cancelled.
    pub fn cancelled(&self) -> Option<CancelReason> {
        self.cancelled.get().copied()
    }

    /// The last header, if Pingora would not have parsed it.
    pub fn malformed(&self) -> Option<&Malformed> {
        self.malformed.get().map(|malformed| &**malformed)
    }

    /// The scheme of its requests.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Notes that a request with this framing has passed the gate.
    pub fn header_complete(&self, framing: Framing) {
        let (event, body) = match framing {
            Framing::Length(length) => (Event::Admitted, length.min(CHUNKED - 1)),
            Framing::Chunked => (Event::Admitted, CHUNKED),
            Framing::Upgrade => (Event::UpgradeAdmitted, 0),
        };
        self.body.store(body, Ordering::Relaxed);
        self.phase.apply(event);
    }

    /// Whether the current body was cut off because its chunks are malformed.
    pub fn body_bad(&self) -> bool {
        self.body_bad.load(Ordering::Relaxed)
    }

    /// Whether the current body was cut off because it arrives too slowly.
    pub fn body_slow(&self) -> bool {
        self.body_slow.load(Ordering::Relaxed)
    }

    /// Notes that the response has begun. From here on the body has no minimum rate: the two
    /// directions may be a dialogue.
    pub fn response_begun(&self) {
        self.responding.store(true, Ordering::Relaxed);
    }

    /// Takes the connection that Pingora has dropped, if it is still open.
    pub fn take_closing(&self) -> Option<ClosingStream> {
        self.closing.lock().take()
    }

    /// Notes the end of the request: the next byte begins a header.
    pub fn request_finished(&self) {
        self.phase.apply(Event::Finished);
    }
}

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnLimits {
    /// The size of a header, in bytes.
    pub header_bytes: usize,
    /// The number of its fields.
    pub header_fields: usize,
    /// The time from the first byte of a header to the last.
    pub header_timeout: Duration,
    /// The time to the first byte of a new connection.
    pub idle_timeout: Duration,
    /// The minimum rate of a request body.
    pub body_rate: BodyRate,
    /// The lingering close.
    pub lingering: LingeringLimits,
}

/// Called with the reason of a refusal that Pingora does not see: for Pingora, the stream ends.
pub type OnRefusal = Arc<dyn Fn(&'static str) + Send + Sync>;
