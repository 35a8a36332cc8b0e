//! The types of the configuration file, and the source of its JSON Schema. Field comments are the
//! documentation; defaults are defined here and nowhere else.

use std::net::SocketAddr;

use keylatch_filters::contract::{Dialect, HumanDuration, KeyForm, PricesConfig, SecretRef, TrustConfig};
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
pub use super::usage::{Usage, UsageRequests, UsageRetention};

/// A configuration file.
#[derive(Clone, Debug, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Settings {
    /// The listeners for requests; at least one.
    pub listeners: Vec<Listener>,
    /// Certificates by ACME.
    #[schemars(default)]
    pub acme: Option<Acme>,
    /// The listener for health, metrics, the admin API and the console.
    #[schemars(default)]
    pub admin: Admin,
    /// The peers with trusted client address headers.
    #[schemars(default)]
    pub trusted_proxies: TrustConfig,
    /// The store of bindings and intercepts.
    #[schemars(default)]
    pub storage: Storage,
    /// Redis, for limits and cached bindings that replicas share.
    #[schemars(default)]
    pub redis: Option<Redis>,
    /// Keylatch's own secrets.
    #[schemars(default)]
    pub secrets: Secrets,
    /// The ages after which rows of the store are archived or deleted.
    #[schemars(default)]
    pub retention: Retention,
    /// What requests used, and how long it is kept.
    #[schemars(default)]
    pub usage: Usage,
    /// Alerts when a key is refused too often.
    #[schemars(default)]
    pub alerts: Option<Alerts>,
    /// The prices of models, for the cost of requests and for budgets.
    #[schemars(default)]
    pub prices: Option<PricesConfig>,
    /// Logs.
    #[schemars(default)]
    pub log: Log,
    /// Shutdown.
    #[schemars(default)]
    pub shutdown: Shutdown,
    /// Threads that serve requests. Default: 0, one per core. Needs a restart.
    #[schemars(default)]
    pub workers: usize,
    /// How these threads share work. Default: `work_stealing`. Needs a restart.
    #[schemars(default)]
    pub scheduling: Scheduling,
    /// Named groups of servers; at least one.
    pub upstreams: Vec<Upstream>,
    /// The filters of all requests, before those of the route.
    #[schemars(default)]
    pub filters: Vec<FilterItem>,
    /// The routes; the first match is used. At least one.
    pub routes: Vec<RouteSettings>,
}

/// How the threads that serve requests share work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// Idle threads take over requests of busy ones.
    #[default]
    WorkStealing,
    /// Each thread has its own runtime and connections to upstreams. It takes less processor time for
    /// each request, but a connection stays on its thread, with all its HTTP/2 streams.
    PerThread,
}

/// An item of a chain: a filter's name with its configuration, and optionally `shadow: true`.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterItem {
    /// The filter's name.
    pub name: String,
    /// The filter's configuration.
    pub config: Value,
    /// Whether the filter decides, counts and logs, but changes nothing.
    pub shadow: bool,
}

/// The listener for health, metrics, the admin API and the console. `address`, `session` and
/// `token` need a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// The listen address. Default: `127.0.0.1:9901`. The metrics need no sign-in, so keep it on a
    /// private network.
    pub address: SocketAddr,
    /// The lifetime of a sign-in, 1m to 30days. Default: 12h.
    pub session: HumanDuration,
    /// The lifetime of a session's access token before it is renewed, 10s to 1h. Default: 10m.
    pub token: HumanDuration,
    /// The origin of the console in browsers, if a proxy in between changes `Host`:
    /// `https://console.example.com`. Default: the `Host` of each request.
    pub public_origin: Option<String>,
}

impl Admin {
    /// The values that are fixed at the start of the process.
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

/// Keylatch's own secrets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// The secret under which keys are hashed, at least 32 bytes. All replicas need the same one. A
    /// database belongs to one secret: with another one, every key looks new. Default: with SQLite,
    /// a secret that is created beside the database on the first run, with mode 0600.
    pub key_hmac: Option<SecretRef>,
    /// Previous values of `key_hmac`, the latest first. Their bindings stay valid, and move to the
    /// new secret on the key's next use.
    pub previous: Vec<SecretRef>,
    /// The secret that signs the admin API's tokens, at least 32 bytes; all replicas need the same
    /// one. A change ends all sessions. Default: derived from `key_hmac`, which it does not reveal.
    pub admin: Option<SecretRef>,
    /// Which spellings of a key are the same key. A database belongs to one form. Default: `exact`.
    pub key_form: KeyForm,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The lowest level on standard error. Default: `info`. Needs a restart.
    pub level: Level,
    /// The format of standard error. Default: `text`. Needs a restart.
    pub format: Format,
    /// Whether each request is logged as one line of JSON on standard output. Default: true.
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
    /// Failures.
    Error,
    /// Also possible problems.
    Warn,
    /// Also normal events.
    Info,
    /// Also details for diagnosis.
    Debug,
}

/// A log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Text for people.
    Text,
    /// JSON for programs.
    Json,
}

/// Shutdown.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long `/health/ready` fails before the listeners close, so that a load balancer stops
    /// sending requests. Default: 0s.
    pub readiness_delay: HumanDuration,
    /// How long open requests and streams may continue after that. Default: 30s.
    pub drain: HumanDuration,
    /// How long they may continue in the old process after `keylatch upgrade` has started a new
    /// one. Default: 1h.
    pub upgrade_drain: HumanDuration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { readiness_delay: HumanDuration::secs(0), drain: HumanDuration::secs(30), upgrade_drain: HumanDuration::secs(3600) }
    }
}

/// A route: which requests go to which upstream, through which filters.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSettings {
    /// The name in logs, metrics and limits.
    pub name: String,
    /// The requests that it matches. Default: all.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// The upstream.
    pub upstream: String,
    /// The filters, after the top-level ones.
    #[serde(skip)]
    #[schemars(!skip, default)]
    pub filters: Vec<FilterItem>,
    /// Whether paths may contain `%2F`, for APIs with slashes in names. Default: false; such
    /// requests are refused.
    #[serde(default)]
    pub allow_encoded_slash: bool,
    /// The API of its clients, which determines the format of errors and stream frames. Default:
    /// derived from the path.
    pub dialect: Option<Dialect>,
}

/// The requests that a route matches. Each non-empty list must have a matching item.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Hosts without port: `api.example.com`, `*.example.com`.
    pub hosts: Vec<String>,
    /// Paths: `/v1/models` exactly, `/v1/*` for `/v1` and everything below, `/*/mj/*` with any
    /// single segment first.
    pub paths: Vec<String>,
    /// Paths that the route does not match although `paths` does, in the same form. Default: none.
    pub except_paths: Vec<String>,
    /// Methods: `GET`, `POST`.
    pub methods: Vec<String>,
}
