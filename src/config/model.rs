//! What an operator may write: the types the YAML is read into, and the source of its JSON Schema.
//! Field comments are the documentation; defaults live here and nowhere else.

use std::net::SocketAddr;

use keylatch_filters::contract::{Dialect, HumanDuration, KeyForm, SecretRef, TrustConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::acme::{Acme, Challenge, ExternalAccount};
pub use super::alerts::{Alerts, InterceptAlert, Webhook, WebhookFormat};
pub use super::listeners::{
    CertificateFiles, ClientCertificates, Limits, Listener, ListenerTls, OriginSecret, Presented, TlsVersion, Underscores, Vouches,
};
pub use super::redis::Redis;
pub use super::storage::{Postgres, PostgresTls, Retention, Sqlite, Storage};
pub use super::upstreams::{ActiveHealth, AddressFamily, Balance, Health, HttpVersion, PassiveHealth, Server, Timeouts, Tls, Upstream};

/// A whole configuration file.
#[derive(Clone, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Settings {
    /// Where requests come in; at least one.
    pub listeners: Vec<Listener>,
    /// Where certificates come from that are made by themselves.
    #[schemars(default)]
    pub acme: Option<Acme>,
    /// The listener for health, metrics, the admin API and the console.
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

/// The listener for health, metrics, the admin API and the console. Changing it needs a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Its address. Default: `127.0.0.1:9901`. Whoever reaches it sees the metrics.
    pub address: SocketAddr,
    /// How long a sign-in lasts, 1m to 30days. Default: 12h.
    pub session: HumanDuration,
    /// How long the token of a sign-in lasts before it must be renewed, 10s to 1h. Default: 10m.
    pub token: HumanDuration,
    /// Where browsers reach the console, if a proxy in between changes `Host`: `https://console.example.com`. Default: the `Host`
    /// of each request.
    pub public_origin: Option<String>,
}

impl Admin {
    /// What is settled when the process starts.
    pub fn at_start(&self) -> (SocketAddr, HumanDuration, HumanDuration) {
        (self.address, self.session, self.token)
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 9901)),
            session: HumanDuration::secs(12 * 3600),
            token: HumanDuration::secs(600),
            public_origin: None,
        }
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
    /// The secret under which sign-ins to the admin API are signed, at least 32 bytes; every replica needs the same.
    /// Changing it signs everybody out. Default: one that follows from `key_hmac` and tells nothing of it.
    pub admin: Option<SecretRef>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// How long they may go on in the old process once a new one has taken its place (`keylatch upgrade`). Default: 1h.
    pub upgrade_drain: HumanDuration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { readiness_delay: HumanDuration::secs(0), drain: HumanDuration::secs(30), upgrade_drain: HumanDuration::secs(3600) }
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
    #[schemars(!skip, default)]
    pub filters: Vec<FilterItem>,
    /// Let `%2F` in paths pass, for APIs whose names hold slashes. Default: false, it is refused.
    #[serde(default)]
    pub allow_encoded_slash: bool,
    /// The API its clients speak, which decides the shape of errors and the frames of streams. Default: by the path.
    pub dialect: Option<Dialect>,
}

/// Which requests a route is for. Each list that is given must hold one that fits.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Hosts without port: `api.example.com`, `*.example.com`.
    pub hosts: Vec<String>,
    /// Paths: `/v1/models` exactly, `/v1/*` for `/v1` and everything below, `/*/mj/*` with any one segment first.
    pub paths: Vec<String>,
    /// Paths that the route is not for, although `paths` fits, in the same form. Default: none.
    pub except_paths: Vec<String>,
    /// Methods: `GET`, `POST`.
    pub methods: Vec<String>,
}
