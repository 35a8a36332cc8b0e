//! The part of [`super::model`] about upstreams.

use std::net::SocketAddr;

use keylatch_filters::contract::HumanDuration;
use schemars::JsonSchema;
use serde::Deserialize;

use super::listeners::CertificateFiles;

/// A named group of servers that answer alike.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its name, which routes refer to.
    pub name: String,
    /// The servers; at least one.
    pub servers: Vec<Server>,
    /// How one is chosen. Default: `round_robin`.
    #[serde(default)]
    pub balance: Balance,
    /// Speak TLS to them.
    pub tls: Option<Tls>,
    /// Which HTTP is spoken to them. Default: `auto`, HTTP/2 where TLS agrees on it, else HTTP/1.1.
    #[serde(default)]
    pub http: HttpVersion,
    /// What `Host` they get. Default: the client's in clear, the server's own name over TLS.
    pub host: Option<String>,
    /// How long things may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How it is found out which of them work.
    #[serde(default)]
    pub health: Health,
    /// What is put before the path of each request, such as `/openai`. The path of `health.active` is sent as it is written.
    /// Default: nothing.
    pub base_path: Option<String>,
    /// Further attempts for one request, whatever failed before: 0 to 10. A server to which no connection can be made is not tried
    /// twice. A request that was sent is repeated only if its method is idempotent (RFC 9110, section 9.2.2), or if the server
    /// certainly did not process it (see `retry_unsent`; and REFUSED_STREAM and GOAWAY, RFC 9113, section 8.7). Default: 2.
    #[serde(default = "two")]
    pub retries: usize,
    /// Repeat a request of any method on a new connection if the server closed the kept one before its kernel had received any
    /// byte of the request, as TCP tells (Linux; HTTP/1.1 over TCP). Default: true.
    #[serde(default = "yes")]
    pub retry_unsent: bool,
    /// How often names are resolved again. While a name has no address, it is tried again within a second; and once at most in a
    /// second when a connection failed. Default: 30s.
    #[serde(default = "half_a_minute")]
    pub resolve_every: HumanDuration,
    /// Which addresses of a name are used. Where there are both, one family is in use at a time; the other is tried 250 ms later
    /// than the first, or when that fails, and stays in use if it answers first. Default: `any`.
    #[serde(default)]
    pub address_family: AddressFamily,
}

/// Which addresses of a name are used.
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
    /// Whether this address is used.
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
    /// `host:port`, or `unix:/path` for a Unix socket. A name may stand for several addresses.
    pub address: String,
    /// How much it gets, compared with the others, 1 to 100. Default: 1.
    #[serde(default = "one")]
    pub weight: usize,
}

/// How a server is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after the other, by weight.
    #[default]
    RoundRobin,
    /// By chance, by weight.
    Random,
    /// The same server for the same client, as long as it works (Ketama).
    ClientHash,
}

/// TLS towards servers. Their certificates are always verified: who has signed them, for which name, and when. All files are
/// PEM, and read anew when they change.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The name asked for and verified. Default: each server's own.
    pub server_name: Option<String>,
    /// The certificates of the CAs that may have signed theirs. Default: the system's.
    pub ca_file: Option<String>,
    /// Lists of those that were revoked (CRLs), taken as they are: a server whose own certificate has a serial number that is in one gets no
    /// request. Those of CAs between are not looked for.
    pub revoked_file: Option<String>,
    /// What is shown to them.
    pub client_certificate: Option<CertificateFiles>,
}

/// Which HTTP is spoken to servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HttpVersion {
    /// HTTP/2 where TLS agrees on it, else HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only, in clear without asking.
    Http2,
}

/// How long things may take upstream.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// To connect, TLS included. Default: 5s.
    pub connect: HumanDuration,
    /// Between two pieces of a response, its header included. Models think for long. Default: 10min.
    pub read: HumanDuration,
    /// For one write. Default: 60s.
    pub write: HumanDuration,
    /// For which a connection is kept for the next request; less if the server announces less (`Keep-Alive: timeout=N`), or was seen
    /// to end idle connections earlier. 0: each request has a connection of its own. Default: 60s.
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

/// How it is found out which servers work.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Ask each server from time to time. Default: not.
    pub active: Option<ActiveHealth>,
    /// Learn from connections that fail.
    pub passive: PassiveHealth,
}

/// Ask each server from time to time.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActiveHealth {
    /// What is asked for with GET, as it is written here (`base_path` is not put before it); 200 is well. Default: none, a
    /// connection is enough.
    pub path: Option<String>,
    /// How often. Default: 5s.
    pub interval: HumanDuration,
    /// Answers in a row until a server counts as well. Default: 1.
    pub well_after: usize,
    /// Failures in a row until it counts as ill. Default: 2.
    pub ill_after: usize,
}

impl Default for ActiveHealth {
    fn default() -> Self {
        Self { path: None, interval: HumanDuration::secs(5), well_after: 1, ill_after: 2 }
    }
}

/// Learn from connections that fail.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PassiveHealth {
    /// Failed connections in a row until a server is left out. Default: 3. 0: never.
    pub failures: u32,
    /// After so long a connection is tried again, and from then on as often; the server is left out until one succeeds.
    /// Default: 10s. If all are left out, all are tried by requests.
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
