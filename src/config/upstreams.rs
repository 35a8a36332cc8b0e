//! The `upstreams` section of [`super::model`]. Connects to nothing; `crate::upstream` does.

use std::net::SocketAddr;

use keylatch_filters::contract::HumanDuration;
use schemars::JsonSchema;
use serde::Deserialize;

use super::listeners::CertificateFiles;

/// A named group of equivalent servers.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The name, which routes refer to.
    pub name: String,
    /// The servers; at least one.
    pub servers: Vec<Server>,
    /// The load balancing. Default: `round_robin`.
    #[serde(default)]
    pub balance: Balance,
    /// TLS towards the servers. Without this section they get plain HTTP.
    pub tls: Option<Tls>,
    /// The HTTP version. Default: `auto`, HTTP/2 if TLS negotiates it, else HTTP/1.1. WebSockets use
    /// HTTP/1.1, so `http2` prevents them.
    #[serde(default)]
    pub http: HttpVersion,
    /// The `Host` that servers get. Default: the client's without TLS, the server's own name with
    /// TLS.
    pub host: Option<String>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Health checks.
    #[serde(default)]
    pub health: Health,
    /// A prefix of the path of each request, such as `/openai`. It is not added to the path of
    /// `health.active`. Default: none.
    pub base_path: Option<String>,
    /// The maximum number of further attempts for one request, whatever failed: 0 to 10. A server
    /// that refuses connections is tried once. A request that was sent is repeated only if its
    /// method is idempotent (RFC 9110, section 9.2.2), or if the server certainly did not process
    /// it (see `retry_unsent`; and REFUSED_STREAM and GOAWAY, RFC 9113, section 8.7). Default: 2.
    #[serde(default = "two")]
    pub retries: usize,
    /// Whether a request is repeated on a new connection, with any method, if the server closed a
    /// reused connection before it received a byte of the request. TCP reports this on Linux, for
    /// HTTP/1.1 over TCP. Default: true.
    #[serde(default = "yes")]
    pub retry_unsent: bool,
    /// How often names are resolved again. A name without an address is retried within a second;
    /// after a failed connection, names are resolved at most once per second. Default: 30s.
    #[serde(default = "half_a_minute")]
    pub resolve_every: HumanDuration,
    /// The address family of resolved names. If a name has both, one family is in use at a time.
    /// The other is tried 250 ms after the first, or when that fails, and stays in use if it
    /// answers first. Default: `any`.
    #[serde(default)]
    pub address_family: AddressFamily,
}

/// The address family of resolved names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AddressFamily {
    /// IPv6 and IPv4.
    #[default]
    Any,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

impl AddressFamily {
    /// Whether this address is allowed.
    pub fn allows(self, address: &SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

impl std::fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `host:port`, or `unix:/path` for a Unix socket. A name may have several addresses.
    pub address: String,
    /// The weight relative to the other servers, 1 to 100. Default: 1.
    #[serde(default = "one")]
    pub weight: usize,
}

/// The load balancing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// At random, by weight.
    Random,
    /// The same server for the same client, as long as it is healthy (Ketama).
    ClientHash,
}

/// TLS towards servers. Certificates are always verified: issuer, name and validity. All files are
/// PEM, and reloaded when they change.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The name for SNI and verification. Default: each server's own.
    pub server_name: Option<String>,
    /// CA certificates that servers are verified with. Default: the system's.
    pub ca_file: Option<String>,
    /// Certificate revocation lists (CRLs). Their signatures are not verified. A server gets no request
    /// if the serial number of its certificate is listed. Intermediate CAs are not
    /// checked.
    pub revoked_file: Option<String>,
    /// The client certificate.
    pub client_certificate: Option<CertificateFiles>,
}

/// The HTTP version towards servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HttpVersion {
    /// HTTP/2 if TLS negotiates it, else HTTP/1.1. HTTP/1.1 for a request to upgrade.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; without TLS by prior knowledge.
    Http2,
}

/// Time limits of upstream connections.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// To connect, including TLS. Default: 5s.
    pub connect: HumanDuration,
    /// Between two reads of a response, including its header. Models may be silent for long.
    /// Default: 10min.
    pub read: HumanDuration,
    /// Of one write. Default: 60s.
    pub write: HumanDuration,
    /// How long an idle connection is kept; shorter if the server announces less (`Keep-Alive:
    /// timeout=N`), or was seen to close idle connections earlier. 0: each request gets its own
    /// connection. Default: 60s.
    pub idle: HumanDuration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: HumanDuration::secs(5),
            read: HumanDuration::secs(600),
            write: HumanDuration::secs(60),
            idle: HumanDuration::secs(60),
        }
    }
}

/// Health checks.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Probes of each server. Default: none.
    pub active: Option<ActiveHealth>,
    /// Failures of connections.
    pub passive: PassiveHealth,
}

/// Probes of each server.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActiveHealth {
    /// The path of a GET probe, without `base_path`; 200 is healthy. Default: none, a successful
    /// connection is healthy.
    pub path: Option<String>,
    /// The interval of probes. Default: 5s.
    pub interval: HumanDuration,
    /// Successes in a row until a server is healthy. Default: 1.
    pub well_after: usize,
    /// Failures in a row until a server is unhealthy. Default: 2.
    pub ill_after: usize,
}

impl Default for ActiveHealth {
    fn default() -> Self {
        Self { path: None, interval: HumanDuration::secs(5), well_after: 1, ill_after: 2 }
    }
}

/// Failures of connections.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PassiveHealth {
    /// Failed connections in a row until a server is ejected. Default: 3. 0: never.
    pub failures: u32,
    /// The interval of connection attempts to an ejected server, until one succeeds. Default: 10s.
    /// If all servers are ejected, requests try all of them.
    pub eject_for: HumanDuration,
}

impl Default for PassiveHealth {
    fn default() -> Self {
        Self { failures: 3, eject_for: HumanDuration::secs(10) }
    }
}

fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn yes() -> bool {
    true
}
fn half_a_minute() -> HumanDuration {
    HumanDuration::secs(30)
}
