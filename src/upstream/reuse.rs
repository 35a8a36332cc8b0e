//! Pooled connections: how long they are kept, whether one is still open, and whether a request on
//! one was received. It sends and retries nothing.
//!
//! A server closes a connection that is idle for longer than its limit, possibly while a request is
//! in flight. Three measures hide that from the client. Connections are closed before the server's
//! limit, which it announces (`Keep-Alive: timeout`) or was observed to have. The socket is checked
//! before the request is written, because Pingora notices a close only when the event loop polls
//! it. And a request of which the server's kernel acknowledged no byte was not received, so it may
//! be retried.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::HeaderMap;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use parking_lot::{Mutex, RwLock};
use pingora::protocols::SocketDigest;
use pingora::upstreams::peer::Tracing;
use pingora::{Error, ErrorSource, ErrorType};

use super::Address;

/// A connection is closed this long before the server's limit, or earlier by a fraction of it if
/// that is less.
const MARGIN_MAX: Duration = Duration::from_secs(1);
/// A close within this time after a response is not caused by an idle limit: the server chose to
/// close after this response.
const IDLE_MIN: Duration = Duration::from_millis(20);
/// Closes within this interval have one cause, such as a restart, and count as one.
const APART_MIN: Duration = Duration::from_millis(250);
/// The number of closes after a similar idle time that show a limit.
const SEEN: usize = 3;
/// An observed limit counts only if the latest close is younger than this: the server may have a new limit.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// The idle limits of servers.
#[derive(Default)]
pub struct ServerIdleLimits {
    any: AtomicBool,
    /// A server closed an idle connection or announced a limit: a request may meet a close.
    ends: AtomicBool,
    known: RwLock<HashMap<Address, Limit>>,
}

/// The idle limit of one server.
#[derive(Debug, Default)]
struct Limit {
    announced_s: Option<u32>,
    /// The times of its closes of idle connections, and the idle times; the latest is last.
    seen: VecDeque<(Instant, Duration)>,
}

impl Limit {
    /// The observed idle limit, if the idle times were similar.
    fn seen(&self, now: Instant) -> Option<Duration> {
        let last = self.seen.back().filter(|(at, _)| self.seen.len() == SEEN && now.saturating_duration_since(*at) < FORGOTTEN_AFTER)?;
        let (least, most) = self.seen.iter().fold((last.1, last.1), |(least, most), (_, idle)| (least.min(*idle), most.max(*idle)));
        (most <= least + least / 4).then_some(least)
    }
}

impl ServerIdleLimits {
    /// Notes the limit that a response announces.
    pub fn observe(&self, address: &Address, headers: &HeaderMap) {
        let Some(seconds) = timeout_s(headers) else { return };
        self.ends.store(true, Ordering::Relaxed);
        if self.known.read().get(address).and_then(|limit| limit.announced_s) != Some(seconds) {
            self.known.write().entry(address.clone()).or_default().announced_s = Some(seconds);
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that the server closed a connection after this idle time.
    fn ended(&self, address: &Address, idle: Duration, now: Instant) {
        self.ends.store(true, Ordering::Relaxed);
        if idle < IDLE_MIN {
            return;
        }
        let mut known = self.known.write();
        let seen = &mut known.entry(address.clone()).or_default().seen;
        if seen.back().is_some_and(|(at, _)| now.saturating_duration_since(*at) < APART_MIN) {
            return;
        }
        if seen.len() == SEEN {
            seen.pop_front();
        }
        seen.push_back((now, idle));
        self.any.store(true, Ordering::Relaxed);
    }

    /// How long a connection to this server is kept, at most `most`.
    pub fn limit(&self, address: &Address, most: Duration, now: Instant) -> Duration {
        if !self.any.load(Ordering::Relaxed) {
            return most;
        }
        let known = self.known.read();
        let Some(limit) = known.get(address) else { return most };
        let announced = limit.announced_s.map(|seconds| Duration::from_secs(seconds.into())).map(|limit| limit - MARGIN_MAX.min(limit / 2));
        let seen = limit.seen(now).map(|limit| limit - MARGIN_MAX.min(limit / 4));
        [announced, seen].into_iter().flatten().fold(most, Duration::min)
    }

    /// Whether a request on a pooled connection may meet a close. Only then is the proof of
    /// non-receipt worth a system call per request.
    pub fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Forgets addresses that are no longer in use.
    pub fn retain(&self, in_use: &BTreeSet<Address>) {
        if self.any.load(Ordering::Relaxed) {
            self.known.write().retain(|address, _| in_use.contains(address));
        }
    }
}

fn timeout_s(headers: &HeaderMap) -> Option<u32> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    value.split(',').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse().ok())?
    })
}

/// Whether an idle connection is open and silent: a server must neither close it nor send
/// unrequested bytes.
pub fn is_open(fd: RawFd) -> bool {
    let mut byte = [0];
    matches!(recv(fd, &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT), Err(Errno::EAGAIN))
}

/// The open connections, by file descriptor.
static WATCHED: LazyLock<[Shard; 16]> = LazyLock::new(Default::default);

type Shard = Mutex<HashMap<RawFd, Arc<Connection>>>;

fn shard(fd: RawFd) -> &'static Shard {
    let all = &*WATCHED;
    all.get(usize::try_from(fd).unwrap_or(0) % all.len()).unwrap_or(&all[0])
}

/// The state of a connection: its protocol, and how many bytes the peer's kernel has acknowledged.
#[derive(Debug)]
pub struct Connection {
    socket: SocketDigest,
    /// An HTTP/1 response has come.
    http1: AtomicBool,
    /// Since when it is idle, in milliseconds of the process clock; 0: in use.
    idle_since_ms: AtomicU64,
    before: AtomicU64,
    at_end: AtomicU64,
}

const UNKNOWN: u64 = u64::MAX;
/// The `tcpi_state` after the peer's FIN.
const CLOSE_WAIT: u8 = 8;

/// Milliseconds since the first call; never 0.
fn clock_ms() -> u64 {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(BEGUN.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
}

impl Connection {
    fn now(&self) -> u64 {
        self.socket.tcp_info().map_or(UNKNOWN, |info| info.tcpi_bytes_acked)
    }

    /// Notes a response and its HTTP version.
    pub fn responded(&self, version: http::Version) {
        if version < http::Version::HTTP_2 {
            self.http1.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is known to be HTTP/1.
    pub fn is_http1(&self) -> bool {
        self.http1.load(Ordering::Relaxed)
    }

    /// Marks the connection as in use.
    pub fn busy(&self) {
        self.idle_since_ms.store(0, Ordering::Relaxed);
    }

    /// Marks the connection as idle.
    pub fn idle(&self) {
        self.idle_since_ms.store(clock_ms(), Ordering::Relaxed);
    }

    /// How long it was idle, if it is HTTP/1 and the server has closed it.
    fn ended_while_idle(&self) -> Option<Duration> {
        let since = self.idle_since_ms.load(Ordering::Relaxed);
        let ended = since > 0 && self.is_http1() && self.socket.tcp_info().is_some_and(|info| info.tcpi_state == CLOSE_WAIT);
        ended.then(|| Duration::from_millis(clock_ms().saturating_sub(since)))
    }

    /// Notes the acknowledged bytes before a request is written.
    pub fn begin(&self) {
        self.before.store(self.now(), Ordering::Relaxed);
        self.at_end.store(UNKNOWN, Ordering::Relaxed);
    }

    /// Whether no byte written since [`begin`](Self::begin) was acknowledged before the connection
    /// ended.
    fn nothing_acknowledged(&self) -> bool {
        let before = self.before.load(Ordering::Relaxed);
        before != UNKNOWN && before == self.at_end.load(Ordering::Relaxed)
    }
}

/// Owned by the stream of a connection; records the acknowledged bytes at its end.
#[derive(Clone)]
pub struct WatchedConnection {
    fd: RawFd,
    address: Address,
    keep_alive: Arc<ServerIdleLimits>,
    connection: Arc<Connection>,
}

/// Registers a TCP connection until its stream is dropped.
pub fn watch(fd: RawFd, address: Address, keep_alive: Arc<ServerIdleLimits>) -> WatchedConnection {
    let socket = SocketDigest::from_raw_fd(fd);
    let connection = Arc::new(Connection {
        socket,
        http1: AtomicBool::new(false),
        idle_since_ms: AtomicU64::new(0),
        before: AtomicU64::new(UNKNOWN),
        at_end: AtomicU64::new(UNKNOWN),
    });
    shard(fd).lock().insert(fd, Arc::clone(&connection));
    WatchedConnection { fd, address, keep_alive, connection }
}

impl std::fmt::Debug for WatchedConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchedConnection").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Tracing for WatchedConnection {
    fn on_connected(&self) {}

    /// Pingora calls this before it closes the descriptor.
    fn on_disconnected(&self) {
        self.connection.at_end.store(self.connection.now(), Ordering::Relaxed);
        if let Some(idle) = self.connection.ended_while_idle() {
            self.keep_alive.ended(&self.address, idle, Instant::now());
        }
        shard(self.fd).lock().remove(&self.fd);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

/// The connection of this descriptor, if it is registered.
pub fn connection(fd: RawFd) -> Option<Arc<Connection>> {
    shard(fd).lock().get(&fd).cloned()
}

/// Whether an error proves that the server received nothing of the request.
///
/// Two facts together prove it. The server's FIN came, which acknowledges everything that its
/// kernel had received before the close; and no byte of the request was acknowledged. A reset alone
/// proves nothing: Linux does not count the bytes that it acknowledges.
///
/// A client that leaves in the middle of its body is no such error, although it ends the connection
/// to the server as well.
pub fn proves_unsent(error: &Error, connection: &Connection) -> bool {
    if *error.esource() == ErrorSource::Downstream {
        return false;
    }
    // Linux reports a reset after a FIN as `EPIPE`, and one without a FIN as `ECONNRESET`.
    let io = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let fin = match error.etype() {
        ErrorType::ConnectionClosed => io.is_none(),
        ErrorType::ReadError | ErrorType::WriteError => {
            matches!(io, Some(std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::UnexpectedEof))
        }
        _ => false,
    };
    fin && connection.nothing_acknowledged()
}

#[cfg(test)]
#[path = "reuse_tests.rs"]
mod tests;
