//! Names to addresses, in the background: a request never waits for a resolver.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use keylatch_filters::contract::Invalid;
use parking_lot::Mutex;
use pingora::lb::discovery::ServiceDiscovery;
use pingora::lb::{Backend, Extensions};

/// A server as configured.
#[derive(Clone, Debug)]
pub struct Target {
    name: ServerName,
    weight: usize,
}

/// Travels with a backend, so that TLS can ask for the right name.
#[derive(Clone, Debug)]
pub struct ServerName {
    /// The host alone.
    pub host: Arc<str>,
    /// The host, with its port unless it is HTTPS's.
    pub authority: Arc<str>,
    /// Host and port.
    address: Arc<str>,
}

impl Target {
    /// Reads `host:port`.
    pub fn parse(address: &str, weight: usize) -> Result<Self, Invalid> {
        let wrong = || Invalid::new(format!("`{address}` is not `host:port`, such as `127.0.0.1:3000` or `api.example.com:443`"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let literal = address.parse::<SocketAddr>().is_ok();
        let name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !(literal || name) {
            return Err(wrong());
        }
        let authority = if port == "443" { host } else { address };
        let name = ServerName { host: host.trim_matches(['[', ']']).into(), authority: authority.into(), address: address.into() };
        Ok(Self { name, weight })
    }
}

/// The host of `host:port`.
pub fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

/// Discovers the addresses behind the configured names. A name that cannot be resolved keeps the
/// addresses it had.
pub struct Names {
    targets: Vec<Target>,
    last: Mutex<HashMap<Arc<str>, Vec<SocketAddr>>>,
}

impl Names {
    /// For these servers.
    pub fn new(targets: Vec<Target>) -> Self {
        Self { targets, last: Mutex::default() }
    }
}

#[async_trait]
impl ServiceDiscovery for Names {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut backends = BTreeSet::new();
        for target in &self.targets {
            let key = &target.name.address;
            let addresses = match tokio::net::lookup_host(&**key).await {
                Ok(found) => {
                    let found: Vec<_> = found.collect();
                    self.last.lock().insert(Arc::clone(key), found.clone());
                    found
                }
                Err(error) => {
                    tracing::warn!(server = %key, %error, "a name cannot be resolved");
                    self.last.lock().get(key).cloned().unwrap_or_default()
                }
            };
            for address in addresses {
                let mut ext = Extensions::new();
                ext.insert(target.name.clone());
                backends.insert(Backend { addr: pingora::protocols::l4::socket::SocketAddr::Inet(address), weight: target.weight, ext });
            }
        }
        Ok((backends, HashMap::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:80", "[::1]:80", "api.example.com:443", "new-api:3000"] {
            assert!(Target::parse(good, 1).is_ok(), "{good}");
        }
        for wrong in ["", "host", "host:", ":80", "host:0", "host:99999", "http://host:80", "::1:80", "a b:80"] {
            assert!(Target::parse(wrong, 1).is_err(), "{wrong}");
        }
    }
}
