//! Parses configured server addresses: `host:port` or `unix:/path`. No I/O.

use std::net::SocketAddr;
use std::sync::Arc;

use keylatch_filters::contract::Invalid;
use pingora::lb::{Backend, Extensions};

use super::Address;

/// Linux allows 107 bytes and a terminating zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A configured server.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its place.
    pub place: Place,
    weight: usize,
}

/// The place of a server.
#[derive(Clone, Debug)]
pub enum Place {
    /// An IP address and a port.
    Literal(ServerName, SocketAddr),
    /// A name and a port.
    Name(ServerName),
    /// A Unix socket.
    Unix(Address),
}

/// Attached to a backend, so that TLS verifies the right name.
#[derive(Clone, Debug)]
pub struct ServerName {
    /// The host without its port.
    pub host: Arc<str>,
    /// The host with its port, without `:443`.
    pub authority: Arc<str>,
    /// Host and port.
    pub address: Arc<str>,
}

impl Target {
    /// Parses `host:port` or `unix:/path`.
    pub fn parse(address: &str, weight: usize) -> Result<Self, Invalid> {
        if let Some(path) = address.strip_prefix("unix:") {
            return Ok(Self { place: Place::Unix(unix(path)?), weight });
        }
        if let Some((scheme, rest)) = address.split_once("://") {
            let says = match rest.trim_end_matches('/').split_once('/') {
                Some((host, path)) => format!("write the server as `{host}`, with its port, and the path as `base_path: /{path}`"),
                None => "write `host:port` alone".to_owned(),
            };
            let tls = if scheme == "https" { "; enable TLS with `tls: {}`" } else { "" };
            return Err(Invalid::new(format!("`{address}` is a URL; {says}{tls}")));
        }
        let wrong = || {
            let forms = "`host:port`, such as `127.0.0.1:3000` or `api.example.com:443`, or `unix:/path`";
            Invalid::new(format!("`{address}` is not {forms}"))
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let authority = if port == "443" { host } else { address };
        let name = ServerName { host: host.trim_matches(['[', ']']).into(), authority: authority.into(), address: address.into() };
        let place = match address.parse() {
            Ok(literal) => Place::Literal(name, literal),
            Err(_) if !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) => Place::Name(name),
            Err(_) => return Err(wrong()),
        };
        Ok(Self { place, weight })
    }

    /// The host for TLS and `Host`; none for a Unix socket.
    pub fn name(&self) -> Option<&ServerName> {
        match &self.place {
            Place::Literal(name, _) | Place::Name(name) => Some(name),
            Place::Unix(_) => None,
        }
    }

    /// This server at one address, for the balancer.
    pub fn backend(&self, addr: Address) -> Backend {
        let mut ext = Extensions::new();
        if let Some(name) = self.name() {
            ext.insert(name.clone());
        }
        Backend { addr, weight: self.weight, ext }
    }
}

/// The host of `host:port`; `localhost` for a Unix socket, since HTTP requires a host.
pub fn host_of(address: &str) -> &str {
    if address.starts_with("unix:") {
        return "localhost";
    }
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

fn unix(path: &str) -> Result<Address, Invalid> {
    if !path.starts_with('/') {
        return Err(Invalid::new(format!("`unix:{path}` needs an absolute path, such as `unix:/run/model.sock`")));
    }
    if path.len() > SOCKET_PATH_BYTES_MAX {
        return Err(Invalid::new(format!("the path of a Unix socket has at most {SOCKET_PATH_BYTES_MAX} bytes")));
    }
    let address = std::os::unix::net::SocketAddr::from_pathname(path);
    Ok(Address::Unix(address.map_err(|error| Invalid::new(format!("`unix:{path}`: {error}")))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:80", "[::1]:80", "api.example.com:443", "new-api:3000", "unix:/run/model.sock"] {
            assert!(Target::parse(good, 1).is_ok(), "{good}");
        }
        let long = format!("unix:/{}", "a".repeat(SOCKET_PATH_BYTES_MAX));
        for wrong in
            ["", "host", "host:", ":80", "host:0", "host:99999", "http://host:80", "::1:80", "a b:80", "unix:", "unix:model.sock", &long]
        {
            assert!(Target::parse(wrong, 1).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_url_gets_a_hint() {
        let says = Target::parse("https://api.example.com/openai/", 1).map(drop).unwrap_err().to_string();
        assert!(says.contains("`base_path: /openai`") && says.contains("`tls: {}`"), "{says}");
    }
}
