//! Tests of [`super`]: the state of sockets, and the idle limits of servers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use super::*;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn watched(client: &TcpStream, keep_alive: &Arc<ServerIdleLimits>) -> WatchedConnection {
    watch(client.as_raw_fd(), Address::Inet(client.peer_addr().unwrap()), Arc::clone(keep_alive))
}

#[test]
fn a_closed_or_readable_socket_is_not_open() {
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
fn acknowledged_requests_are_distinguished() {
    let (mut client, mut server) = pair();
    let stream = watched(&client, &Arc::default());
    let received = connection(client.as_raw_fd()).unwrap();
    received.begin();
    client.write_all(b"GET").unwrap();
    server.read_exact(&mut [0; 3]).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    stream.on_disconnected();
    assert!(!received.nothing_acknowledged(), "the FIN acknowledges it");
    assert!(connection(client.as_raw_fd()).is_none(), "no longer watched");

    let (mut client, server) = pair();
    let stream = watched(&client, &Arc::default());
    drop(server);
    client.peek(&mut [0]).unwrap();
    let received = connection(client.as_raw_fd()).unwrap();
    received.begin();
    client.write_all(b"GET").unwrap();
    // On loopback the reset comes at once; nothing is acknowledged before either.
    let closed = Error::explain(ErrorType::ConnectionClosed, "while reading");
    assert!(!proves_unsent(&closed, &received), "the connection has not ended yet");
    stream.on_disconnected();
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
    let (keep, address) = (ServerIdleLimits::default(), Address::Inet(([127, 0, 0, 1], 80).into()));
    let minute = Duration::from_secs(60);
    assert_eq!(keep.limit(&address, minute, Instant::now()), minute);
    for (value, ms) in [("timeout=5, max=100", 4000), ("max=3, Timeout=1", 500), ("timeout=600", 60_000), ("timeout=0", 0)] {
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static("keep-alive"), value.parse().unwrap())]);
        keep.observe(&address, &headers);
        assert_eq!(keep.limit(&address, minute, Instant::now()), Duration::from_millis(ms), "{value}");
    }
    keep.observe(&address, &HeaderMap::new());
    assert_eq!(keep.limit(&address, minute, Instant::now()), Duration::ZERO, "the last announcement counts");
}

#[test]
fn observed_idle_limits() {
    let (keep, address, now) = (ServerIdleLimits::default(), Address::Inet(([127, 0, 0, 1], 80).into()), Instant::now());
    let (s, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let limit = |at: Instant| keep.limit(&address, minute, at);
    keep.ended(&address, 5 * s, now);
    for ms in [1, 100, 249] {
        keep.ended(&address, 5 * s, now + Duration::from_millis(ms));
    }
    keep.ended(&address, 5 * s + s / 10, now + 10 * s);
    assert_eq!(limit(now + 10 * s), minute, "a restart is no limit");
    keep.ended(&address, IDLE_MIN / 2, now + 15 * s);
    keep.ended(&address, 5 * s, now + 20 * s);
    assert_eq!(limit(now + 20 * s), 4 * s);
    assert_eq!(limit(now + 20 * s + FORGOTTEN_AFTER), minute);
    keep.ended(&address, 9 * s, now + 30 * s);
    assert_eq!(limit(now + 30 * s), minute, "the idle times differ: no limit");
}

#[test]
fn closes_of_idle_connections_are_noted() {
    let keep = Arc::new(ServerIdleLimits::default());
    for (busy, http1, noted) in [(false, true, 1), (true, true, 1), (false, false, 1), (false, true, 2)] {
        let (client, server) = pair();
        let watch = watched(&client, &keep);
        watch.connection.responded(if http1 { http::Version::HTTP_11 } else { http::Version::HTTP_2 });
        // Idle for long.
        watch.connection.idle_since_ms.store(if busy { 0 } else { 1 }, Ordering::Relaxed);
        assert_eq!(watch.connection.ended_while_idle(), None, "it is open");
        drop(server);
        client.peek(&mut [0]).unwrap();
        assert_eq!(watch.connection.ended_while_idle().is_some(), !busy && http1, "{noted}");
        watch.on_disconnected();
    }
}
