//! One client connection: a layer over its stream that hands on exactly one request at a time.
//!
//! Pingora limits only single reads (60 s), reads headers up to 1 MiB, mends illegal request lines before
//! anybody sees them, answers what it cannot parse by itself, takes chunk sizes that others read differently, and aborts an exchange when more
//! arrives behind its request. Here a header has one deadline and one size, from its first byte on; what is
//! handed on ends where the header ends, and then where the body ends ([`Framing`]); the rest waits for the
//! next exchange. So nothing is ever read as a request that the gate has not seen the first byte of.

pub mod body_rate;
mod client_cert;
mod delegate;
pub mod http2;
pub mod lingering;
pub mod proxy_protocol;
mod request_body;
mod stream;
pub mod tls;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keylatch_filters::contract::{Arrival, CancelReason, CancellationHandle};
use parking_lot::Mutex;

use body_rate::BodyRate;
pub use client_cert::Allowed;
use http2::Http2Streams;
use lingering::{ClosingStream, LingeringLimits};
pub use stream::ConnStream;

use super::header_check::Malformed;

/// Nothing of the next request has come.
const IDLE: u8 = 0;
/// Something of its header has.
const HEAD: u8 = 1;
/// Its body, and what is behind it.
const REQUEST: u8 = 2;
/// HTTP/2, from its preface on.
const HTTP2: u8 = 3;
/// Another protocol's, which others look after.
const OPAQUE: u8 = 4;

/// The framing is chunked, where otherwise a length is.
const CHUNKED: u64 = u64::MAX;

/// How a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes; none for most requests.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// The connection becomes another protocol's, if the upstream agrees.
    Upgrade,
}

/// What is known of a connection, shared between its stream and the exchanges on it.
#[derive(Debug)]
pub struct Conn {
    /// The other end, or whom it has named by the PROXY protocol; IPv4-mapped IPv6 already turned into IPv4.
    pub peer: IpAddr,
    /// What TLS says of it; `None`: it is in clear.
    pub tls: Option<Arrival>,
    /// Whether it may still be served.
    pub allowed: Allowed,
    phase: AtomicU8,
    /// Why the header that has arrived last is refused; nothing follows it.
    malformed: OnceLock<Box<Malformed>>,
    /// The length of the current body, or [`CHUNKED`].
    body: AtomicU64,
    /// The current body's chunks are malformed.
    body_bad: AtomicBool,
    /// The current body arrives too slowly.
    body_slow: AtomicBool,
    /// The response to the current request has begun.
    responding: AtomicBool,
    /// By which it is ended from elsewhere, once it is another protocol's.
    cancellation: OnceLock<Arc<CancellationHandle>>,
    cancelled: OnceLock<CancelReason>,
    http2: OnceLock<Arc<Http2Streams>>,
    /// Set when Pingora has given the connection up.
    closing: Mutex<Option<ClosingStream>>,
    /// Ends with the connection.
    _admission: crate::listener::admission::Admission,
}

impl Conn {
    /// A fresh connection that takes up this place.
    pub fn new(peer: IpAddr, tls: Option<Arrival>, allowed: Allowed, admission: crate::listener::admission::Admission) -> Self {
        Self {
            peer,
            tls,
            allowed,
            phase: AtomicU8::new(IDLE),
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

    /// The connection speaks HTTP/2.
    pub fn set_http2(&self) {
        self.phase.store(HTTP2, Ordering::Relaxed);
        self.http2.get_or_init(Arc::default);
    }

    /// Its streams, if it speaks HTTP/2.
    pub fn http2(&self) -> Option<&Arc<Http2Streams>> {
        self.http2.get()
    }

    /// It ends when this is cancelled.
    pub fn attach_cancellation(&self, cancellation: Arc<CancellationHandle>) {
        let _ = self.cancellation.set(cancellation);
    }

    /// Why it was ended from elsewhere.
    pub fn cancelled(&self) -> Option<CancelReason> {
        self.cancelled.get().copied()
    }

    /// Why the header that has arrived last is refused, if Pingora would not have taken it.
    pub fn malformed(&self) -> Option<&Malformed> {
        self.malformed.get().map(|malformed| &**malformed)
    }

    /// The scheme of what is asked for on it.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The gate has let a request pass whose body ends like this.
    pub fn head_complete(&self, framing: Framing) {
        let (phase, body) = match framing {
            Framing::Length(length) => (REQUEST, length.min(CHUNKED - 1)),
            Framing::Chunked => (REQUEST, CHUNKED),
            Framing::Upgrade => (OPAQUE, 0),
        };
        self.body.store(body, Ordering::Relaxed);
        let _ = self.phase.compare_exchange(HEAD, phase, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the current body was cut off because its chunks are malformed.
    pub fn body_bad(&self) -> bool {
        self.body_bad.load(Ordering::Relaxed)
    }

    /// Whether the current body was cut off because it arrives too slowly.
    pub fn body_slow(&self) -> bool {
        self.body_slow.load(Ordering::Relaxed)
    }

    /// The response begins: from here on the client may take its time, as in a conversation over two streams.
    pub fn response_begins(&self) {
        self.responding.store(true, Ordering::Relaxed);
    }

    /// The connection that Pingora has given up, if it is still open.
    pub fn take_closing(&self) -> Option<ClosingStream> {
        self.closing.lock().take()
    }

    /// The exchange is over: the next byte begins a header.
    pub fn exchange_over(&self) {
        let _ = self.phase.compare_exchange(REQUEST, IDLE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The limits this layer keeps.
#[derive(Clone, Copy, Debug)]
pub struct ConnLimits {
    /// A header's size.
    pub header_bytes: usize,
    /// The number of its fields.
    pub header_fields: usize,
    /// From a header's first byte to its last.
    pub header_timeout: Duration,
    /// For the first byte on a fresh connection.
    pub idle_timeout: Duration,
    /// For a request's body.
    pub body_rate: BodyRate,
    /// After the last response.
    pub lingering: LingeringLimits,
}

/// A refusal that Pingora never hears of: it only sees the stream end.
pub type OnRefusal = Arc<dyn Fn(&'static str) + Send + Sync>;
