//! Connects to servers: tries the address families of a name in turn (RFC 8305), and registers each
//! connection for [`super::reuse`]. It chooses no server.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::{PeerOptions, Tracer};
use pingora::{Error, ErrorType, Result};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::resolve::Names;
use super::{Address, SharedConnector, reuse};
use crate::config::model::{HttpVersion, Upstream as UpstreamConfig};

/// The delay until the next address is tried in parallel (RFC 8305, section 5).
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// The most addresses of the other family per connection.
const ALTERNATIVES_MAX: usize = 3;

/// Connects to the servers of one upstream.
pub struct Connector {
    names: Arc<Names>,
    time_max: Duration,
    /// Notified when a name switches to its other address family.
    changed: Arc<tokio::sync::Notify>,
    keep_alive: Arc<reuse::ServerIdleLimits>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// Each connection must be established within `time_max`.
    pub fn new(names: Arc<Names>, time_max: Duration, changed: Arc<tokio::sync::Notify>, keep_alive: Arc<reuse::ServerIdleLimits>) -> Self {
        Self { names, time_max, changed, keep_alive }
    }

    async fn connect_any(&self, first: SocketAddr) -> io::Result<TcpStream> {
        let mut rest = self.names.alternatives(first).into_iter().take(ALTERNATIVES_MAX);
        let attempt = |address: SocketAddr| async move { (address, TcpStream::connect(address).await) };
        let mut attempts = FuturesUnordered::from_iter([attempt(first)]);
        let mut failure = None;
        loop {
            // The last address has the whole remaining time.
            let next = if rest.len() == 0 { self.time_max } else { NEXT_AFTER };
            match timeout(next, attempts.next()).await {
                Ok(Some((address, Ok(stream)))) => {
                    if address != first {
                        self.names.prefer(address);
                        self.changed.notify_one();
                    }
                    return Ok(stream);
                }
                // The error of the chosen address is the most useful one.
                Ok(Some((_, Err(error)))) => failure = failure.or(Some(error)),
                Ok(None) | Err(_) => {}
            }
            match rest.next() {
                Some(address) => attempts.push(attempt(address)),
                None if attempts.is_empty() => return Err(failure.unwrap_or_else(|| ErrorKind::TimedOut.into())),
                None => {}
            }
        }
    }

    /// Opens a connection and closes it.
    pub async fn probe(&self, address: &Address) -> io::Result<()> {
        let made = async {
            match address {
                Address::Inet(address) => self.connect_any(*address).await.map(drop),
                Address::Unix(address) => UnixStream::connect(path_of(address)?).await.map(drop),
            }
        };
        timeout(self.time_max, made).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }
}

fn path_of(address: &std::os::unix::net::SocketAddr) -> io::Result<&std::path::Path> {
    address.as_pathname().ok_or_else(|| ErrorKind::InvalidInput.into())
}

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &Address) -> Result<Stream> {
        let made = async {
            Ok(match address {
                Address::Inet(address) => {
                    let stream = self.connect_any(*address).await?;
                    let server = Address::Inet(stream.peer_addr().unwrap_or(*address));
                    let watched = reuse::watch(stream.as_raw_fd(), server, Arc::clone(&self.keep_alive));
                    let mut stream = Stream::from(stream);
                    stream.tracer = Some(Tracer(Box::new(watched)));
                    stream
                }
                Address::Unix(address) => UnixStream::connect(path_of(address)?).await?.into(),
            })
        };
        let made = timeout(self.time_max, made).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        made.map_err(|error: io::Error| Error::because(kind_of(&error), format!("connecting to {address}"), error))
    }
}

/// The error type that Pingora uses.
fn kind_of(error: &io::Error) -> ErrorType {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => ErrorType::ConnectRefused,
        ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => ErrorType::ConnectNoRoute,
        _ => ErrorType::ConnectError,
    }
}

/// The connection options of an upstream.
pub fn options(config: &UpstreamConfig, connector: &SharedConnector) -> PeerOptions {
    let mut options = PeerOptions::new();
    let timeouts = &config.timeouts;
    options.connection_timeout = Some(timeouts.connect.0);
    options.total_connection_timeout = Some(timeouts.connect.0);
    options.read_timeout = Some(timeouts.read.0);
    options.write_timeout = Some(timeouts.write.0);
    options.idle_timeout = Some(timeouts.idle.0);
    options.custom_l4 = Some(connector.clone());
    match (config.http, config.tls.is_some()) {
        (HttpVersion::Http2, _) => options.set_http_version(2, 2),
        (HttpVersion::Auto, true) => options.set_http_version(2, 1),
        (HttpVersion::Auto, false) | (HttpVersion::Http1, _) => options.set_http_version(1, 1),
    }
    options
}

#[cfg(test)]
mod tests {
    use super::super::resolve::Lookup;
    use super::super::server::Target;
    use super::*;
    use crate::config::model::AddressFamily;

    struct Both(u16);

    #[async_trait]
    impl Lookup for Both {
        async fn lookup(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
            Ok(vec![([0, 0, 0, 0, 0, 0, 0, 1], self.0).into(), ([127, 0, 0, 1], self.0).into()])
        }
    }

    #[tokio::test]
    async fn the_other_family_is_tried_and_remembered() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let names = Names::new(vec![Target::parse("model:80", 1).unwrap()], AddressFamily::Any, Box::new(Both(port)));
        names.resolve("u").await;
        let names = Arc::new(names);
        let changed = Arc::default();
        let connector = Connector::new(Arc::clone(&names), Duration::from_secs(5), Arc::clone(&changed), Arc::default());
        let first = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port));
        let stream = connector.connect_any(first).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        changed.notified().await;
        assert_eq!(names.alternatives(stream.peer_addr().unwrap()), [first]);
        drop(listener);
        assert_eq!(connector.connect_any(first).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}
