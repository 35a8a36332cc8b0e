//! The part of [`super::model`] about upstreams.

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
    /// Attempts at other servers when a connection cannot be made. A request of which anything was sent
    /// is tried again only if its method allows it (RFC 9110, section 9.2.2). Default: 2.
    #[serde(default = "two")]
    pub retries: usize,
    /// How often names are resolved again. Default: 30s.
    #[serde(default = "half_a_minute")]
    pub resolve_every: HumanDuration,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `host:port`; a name may stand for several addresses.
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
    /// For which a connection is kept for the next request. Default: 60s.
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
    /// What is asked for with GET; 200 is well. Default: none, a TCP connection is enough.
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
    /// For how long. Default: 10s. If all are left out, all are tried.
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
fn half_a_minute() -> HumanDuration {
    HumanDuration::secs(30)
}
