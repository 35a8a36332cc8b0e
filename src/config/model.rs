//! What an operator may write: the types the YAML is read into, and the source of its JSON Schema.
//! Field comments are the documentation; defaults live here and nowhere else.

use std::net::SocketAddr;

use keylatch_filters::contract::{ByteSize, HumanDuration, KeyForm, SecretRef, TrustConfig};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

pub use super::alerts::{Alerts, InterceptAlert, Webhook, WebhookFormat};
pub use super::redis::Redis;
pub use super::storage::{Postgres, PostgresTls, Retention, Sqlite, Storage};

/// A whole configuration file.
#[derive(Clone, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Settings {
    /// Where requests come in; at least one.
    pub listeners: Vec<Listener>,
    /// The listener for health and metrics.
    #[schemars(default)]
    pub admin: Admin,
    /// The peers whose word about the client's address is taken.
    #[schemars(default)]
    pub trusted_proxies: TrustConfig,
    /// Where bindings and intercepts are kept.
    #[schemars(default)]
    pub storage: Storage,
    /// What replicas remember together, beside `storage.postgres`.
    #[schemars(default)]
    pub redis: Option<Redis>,
    /// Secrets of Keylatch's own.
    #[schemars(default)]
    pub secrets: Secrets,
    /// When rows of the store go.
    #[schemars(default)]
    pub retention: Retention,
    /// Who is told when a key is refused too often.
    #[schemars(default)]
    pub alerts: Option<Alerts>,
    /// What the logs say and where they go.
    #[schemars(default)]
    pub log: Log,
    /// How the process ends.
    #[schemars(default)]
    pub shutdown: Shutdown,
    /// Threads that carry requests. Default 0: one a core. Needs a restart.
    #[schemars(default)]
    pub workers: usize,
    /// Named groups of servers; at least one.
    pub upstreams: Vec<Upstream>,
    /// The filters every request runs through, before those of its route.
    #[schemars(default)]
    pub filters: Vec<FilterItem>,
    /// Which requests go where; the first that matches is taken. At least one.
    pub routes: Vec<RouteSettings>,
}

/// One item of a chain: one filter's name with its configuration, and perhaps `shadow: true` beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterItem {
    /// The filter's YAML key.
    pub name: String,
    /// What stands under it.
    pub config: Value,
    /// Decides, counts and logs, and changes nothing.
    pub shadow: bool,
}

/// A place where requests come in. Changing one needs a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// The address to listen on: `127.0.0.1:8080`, `[::]:8080`.
    pub address: SocketAddr,
    /// Whether HTTP/2 in clear is spoken to clients that open with its preface. Default: true.
    #[serde(default = "yes")]
    pub h2c: bool,
    /// What a client may ask for at most.
    #[serde(default)]
    pub limits: Limits,
}

/// Limits of a listener.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The size of a request's header, at most 512KiB. Default: 32KiB. Past it: 431.
    pub header_bytes: ByteSize,
    /// The number of its fields, at most 256. Default: 100. Past it: 431.
    pub headers: usize,
    /// How long it may take to arrive, from its first byte. Default: 10s. Past it: 408.
    pub header_timeout: HumanDuration,
    /// The size of a request's body. Default: 64MiB. Past it: 413.
    pub body_bytes: ByteSize,
    /// How long a client may send nothing in the middle of a body. Default: 30s. Past it: 408.
    pub body_timeout: HumanDuration,
    /// How long one write to a client that does not read may take. Default: 60s. Past it the client is cut off.
    pub write_timeout: HumanDuration,
    /// How long a connection may be idle between requests, 1s to 1h. Default: 75s.
    pub idle_timeout: HumanDuration,
    /// Connections in all. Default: 20000. Past it, new ones are closed.
    pub connections: usize,
    /// Connections of one peer address. Default: 20000: behind a proxy all come from one peer.
    pub connections_per_peer: usize,
    /// Requests on one HTTP/1 connection before it is closed. Default: 10000.
    pub requests_per_connection: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: ByteSize::kib(32),
            headers: 100,
            header_timeout: HumanDuration::secs(10),
            body_bytes: ByteSize::mib(64),
            body_timeout: HumanDuration::secs(30),
            write_timeout: HumanDuration::secs(60),
            idle_timeout: HumanDuration::secs(75),
            connections: 20_000,
            connections_per_peer: 20_000,
            requests_per_connection: 10_000,
        }
    }
}

/// The listener for health and metrics. Changing it needs a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Its address. Default: `127.0.0.1:9901`. Whoever reaches it sees the metrics.
    pub address: SocketAddr,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 9901)) }
    }
}

/// Secrets of Keylatch's own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// The secret under which keys are hashed, at least 32 bytes. Every replica needs the same, and a
    /// database goes with one: changing it makes every key look new. Without it, one is made beside the
    /// SQLite file on the first run, readable by its owner only.
    pub key_hmac: Option<SecretRef>,
    /// Secrets that were `key_hmac` before, the latest first: what is bound under them holds, and is taken over
    /// to the new one when its key is used.
    pub previous: Vec<SecretRef>,
    /// Which spellings of a key are the same key. A database goes with one, as with one secret. Default: `exact`.
    pub key_form: KeyForm,
}

/// What the logs say and where they go.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least level that is told on standard error. Default: `info`. Needs a restart.
    pub level: Level,
    /// How standard error is written. Default: `text`. Needs a restart.
    pub format: Format,
    /// Whether each request is told as one line of JSON on standard output. Default: true.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Text, access: true }
    }
}

/// A log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Only what failed.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what happens.
    Info,
    /// And why.
    Debug,
}

/// A log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How the process ends on SIGTERM. Changing it needs a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long `/health/ready` fails before the listeners close, so that a balancer looks elsewhere. Default: 0s.
    pub readiness_delay: HumanDuration,
    /// How long open requests and streams may go on after that. Default: 30s.
    pub drain: HumanDuration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { readiness_delay: HumanDuration::secs(0), drain: HumanDuration::secs(30) }
    }
}

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

/// TLS towards servers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The name asked for and verified. Default: each server's own.
    pub server_name: Option<String>,
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

/// Which requests go where, through which filters.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSettings {
    /// Its name in logs, metrics and limits.
    pub name: String,
    /// Which requests it is for. Default: all.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// The upstream they go to.
    pub upstream: String,
    /// The filters they run through, after the top-level ones.
    #[serde(skip)]
    #[schemars(default)]
    pub filters: Vec<FilterItem>,
    /// Let `%2F` in paths pass, for APIs whose names hold slashes. Default: false, it is refused.
    #[serde(default)]
    pub allow_encoded_slash: bool,
}

/// Which requests a route is for. Each list that is given must hold one that fits.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Hosts without port: `api.example.com`, `*.example.com`.
    pub hosts: Vec<String>,
    /// Paths: `/v1/models` exactly, `/v1/*` for `/v1` and everything below.
    pub paths: Vec<String>,
    /// Methods: `GET`, `POST`.
    pub methods: Vec<String>,
}

fn yes() -> bool {
    true
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
