//! Kept connections: for how long they are kept, whether one is open still, and whether a request on one was received.
//! It sends and repeats nothing.
//!
//! A server closes a connection that is idle for longer than it likes, and may do so while a request is on its way. Three things
//! keep that from the client: connections are closed before the server's own `Keep-Alive: timeout` ends; the socket is looked at
//! before the request is written, since Pingora sees an end only once the event loop has turned to it; and a request of which the
//! server's kernel acknowledged no byte was not received, so that it may be repeated.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use parking_lot::{Mutex, RwLock};
use pingora::protocols::SocketDigest;
use pingora::upstreams::peer::Tracing;
use pingora::{Error, ErrorSource, ErrorType};

use super::Address;

/// A server may close a connection this long before the time it announced is over, counted from here.
const MARGIN_MAX: Duration = Duration::from_secs(1);

/// What servers announced in `Keep-Alive: timeout=N`.
#[derive(Default)]
pub struct KeepAlive {
    any: AtomicBool,
    announced: RwLock<HashMap<Address, u32>>,
}

impl KeepAlive {
    /// Notes what a response of this server announces.
    pub fn observe(&self, address: &Address, headers: &HeaderMap) {
        let Some(seconds) = timeout_s(headers) else { return };
        if self.announced.read().get(address) != Some(&seconds) {
            self.announced.write().insert(address.clone(), seconds);
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// For how long a connection to this server is kept, `most` at the longest.
    pub fn limit(&self, address: &Address, most: Duration) -> Duration {
        if !self.any.load(Ordering::Relaxed) {
            return most;
        }
        let announced = self.announced.read().get(address).copied();
        announced.map_or(most, |seconds| {
            let announced = Duration::from_secs(seconds.into());
            most.min(announced - MARGIN_MAX.min(announced / 2))
        })
    }

    /// Forgets addresses that are no longer in use.
    pub fn retain(&self, in_use: &std::collections::BTreeSet<Address>) {
        if self.any.load(Ordering::Relaxed) {
            self.announced.write().retain(|address, _| in_use.contains(address));
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

/// Whether nothing has come on an idle connection: neither its end nor anything else that a server must not send unasked.
pub fn is_open(fd: RawFd) -> bool {
    let mut byte = [0];
    matches!(recv(fd, &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT), Err(Errno::EAGAIN))
}

/// Connections that are open, by their descriptors.
static WATCHED: LazyLock<[Shard; 16]> = LazyLock::new(Default::default);

type Shard = Mutex<HashMap<RawFd, Arc<Connection>>>;

fn shard(fd: RawFd) -> &'static Shard {
    let all = &*WATCHED;
    all.get(usize::try_from(fd).unwrap_or(0) % all.len()).unwrap_or(&all[0])
}

/// What is known of a connection: its protocol, and how many bytes the other end's kernel has acknowledged.
#[derive(Debug)]
pub struct Connection {
    socket: SocketDigest,
    /// A response has come, and was HTTP/1.
    http1: AtomicBool,
    before: AtomicU64,
    at_end: AtomicU64,
}

const UNKNOWN: u64 = u64::MAX;

impl Connection {
    fn now(&self) -> u64 {
        self.socket.tcp_info().map_or(UNKNOWN, |info| info.tcpi_bytes_acked)
    }

    /// A response came, of this version.
    pub fn responded(&self, version: http::Version) {
        if version < http::Version::HTTP_2 {
            self.http1.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is known to be HTTP/1.
    pub fn is_http1(&self) -> bool {
        self.http1.load(Ordering::Relaxed)
    }

    /// A request is about to be written.
    pub fn begin(&self) {
        self.before.store(self.now(), Ordering::Relaxed);
        self.at_end.store(UNKNOWN, Ordering::Relaxed);
    }

    /// Whether nothing that was written since [`begin`](Self::begin) was acknowledged until the connection ended.
    fn nothing_acknowledged(&self) -> bool {
        let before = self.before.load(Ordering::Relaxed);
        before != UNKNOWN && before == self.at_end.load(Ordering::Relaxed)
    }
}

/// Part of a connection's stream; notes at its end what was acknowledged.
#[derive(Clone, Debug)]
pub struct Watch {
    fd: RawFd,
    connection: Arc<Connection>,
}

/// Watches a TCP connection until its stream is dropped.
pub fn watch(fd: RawFd) -> Watch {
    let socket = SocketDigest::from_raw_fd(fd);
    let connection =
        Arc::new(Connection { socket, http1: AtomicBool::new(false), before: AtomicU64::new(UNKNOWN), at_end: AtomicU64::new(UNKNOWN) });
    shard(fd).lock().insert(fd, Arc::clone(&connection));
    Watch { fd, connection }
}

impl Tracing for Watch {
    fn on_connected(&self) {}

    /// Pingora calls it before it closes the descriptor.
    fn on_disconnected(&self) {
        self.connection.at_end.store(self.connection.now(), Ordering::Relaxed);
        shard(self.fd).lock().remove(&self.fd);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

/// The connection of this descriptor, if it is watched.
pub fn connection(fd: RawFd) -> Option<Arc<Connection>> {
    shard(fd).lock().get(&fd).cloned()
}

/// Whether an error proves that the server received nothing of the request.
///
/// Two facts together prove it. The server's FIN came, which acknowledges all that its kernel had received before the server closed;
/// and nothing of the request was acknowledged. A reset alone proves nothing: its acknowledgement is not counted by Linux.
///
/// The client's leaving in the middle of its body is no such error, although it ends the connection to the server as well.
pub fn proves_unsent(error: &Error, connection: &Connection) -> bool {
    if *error.esource() == ErrorSource::Downstream {
        return false;
    }
    // Linux makes of a reset after a FIN `EPIPE`, of one without it `ECONNRESET`.
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
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_closed_or_talking_socket_is_not_open() {
        let (client, mut server) = pair();
        assert!(is_open(client.as_raw_fd()));
        server.write_all(b"x").unwrap();
        let mut byte = [0];
        client.peek(&mut byte).unwrap();
        assert!(!is_open(client.as_raw_fd()));
        let (client, server) = pair();
        drop(server);
        client.peek(&mut byte).unwrap();
        assert!(!is_open(client.as_raw_fd()));
    }

    #[test]
    fn what_was_acknowledged_is_told_from_what_was_not() {
        let (mut client, mut server) = pair();
        let watched = watch(client.as_raw_fd());
        let received = connection(client.as_raw_fd()).unwrap();
        received.begin();
        client.write_all(b"GET").unwrap();
        server.read_exact(&mut [0; 3]).unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        watched.on_disconnected();
        assert!(!received.nothing_acknowledged(), "the FIN acknowledges it");
        assert!(connection(client.as_raw_fd()).is_none(), "no longer watched");

        let (mut client, server) = pair();
        let watched = watch(client.as_raw_fd());
        drop(server);
        client.peek(&mut [0]).unwrap();
        let received = connection(client.as_raw_fd()).unwrap();
        received.begin();
        client.write_all(b"GET").unwrap();
        // The reset comes at once on loopback; until then nothing is acknowledged either.
        let closed = Error::explain(ErrorType::ConnectionClosed, "while reading");
        assert!(!proves_unsent(&closed, &received), "the connection has not ended yet");
        watched.on_disconnected();
        assert!(proves_unsent(&closed, &received));
        let left = Error::explain(ErrorType::ConnectionClosed, "the client left").into_down();
        assert!(!proves_unsent(&left, &received), "nothing is repeated for a client that left");
        for (kind, proves) in [(std::io::ErrorKind::BrokenPipe, true), (std::io::ErrorKind::ConnectionReset, false)] {
            let error = Error::because(ErrorType::ReadError, "while reading", std::io::Error::from(kind));
            assert_eq!(proves_unsent(&error, &received), proves, "{kind:?}");
        }
    }

    #[test]
    fn connections_are_closed_before_the_server_does() {
        let (keep, address) = (KeepAlive::default(), Address::Inet(([127, 0, 0, 1], 80).into()));
        let minute = Duration::from_secs(60);
        assert_eq!(keep.limit(&address, minute), minute);
        for (value, ms) in [("timeout=5, max=100", 4000), ("max=3, Timeout=1", 500), ("timeout=600", 60_000), ("timeout=0", 0)] {
            let headers = HeaderMap::from_iter([(http::HeaderName::from_static("keep-alive"), value.parse().unwrap())]);
            keep.observe(&address, &headers);
            assert_eq!(keep.limit(&address, minute), Duration::from_millis(ms), "{value}");
        }
        keep.observe(&address, &HeaderMap::new());
        assert_eq!(keep.limit(&address, minute), Duration::ZERO, "what was announced last");
    }
}
