//! The `storage` and `retention` sections of [`super::model`]. Opens no store; `crate::bindings`
//! does.

use std::path::Path;

use keylatch_filters::contract::{HumanDuration, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// The store of bindings and intercepts. Needs a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Storage {
    /// One SQLite file, for one process.
    Sqlite(Sqlite),
    /// PostgreSQL 13 or later, for any number of replicas.
    Postgres(Postgres),
    /// In memory, lost with the process. For trials and tests.
    Memory,
}

impl Default for Storage {
    fn default() -> Self {
        Storage::Sqlite(Sqlite::default())
    }
}

/// `sqlite`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sqlite {
    /// The database file, relative to the configuration file; created if missing. Default:
    /// `data/keylatch.db`.
    pub path: String,
    /// The path as it was written, if it is relative: earlier versions resolved it against the
    /// working directory.
    #[serde(skip)]
    pub relative_path: Option<String>,
    /// The maximum number of bindings in the process cache. Default: 100000.
    pub cache_max: usize,
    /// How often last-use times and intercepts are written. A crash loses at most this period.
    /// Default: 5s.
    pub flush_every: HumanDuration,
    /// How long known keys are judged by cached bindings while the file cannot be read. Default:
    /// 10min.
    pub stale_grace: HumanDuration,
}

impl Default for Sqlite {
    fn default() -> Self {
        Self {
            path: "data/keylatch.db".into(),
            relative_path: None,
            cache_max: 100_000,
            flush_every: HumanDuration::secs(5),
            stale_grace: HumanDuration::secs(600),
        }
    }
}

impl Sqlite {
    /// Resolves a relative path against the folder of the configuration file.
    pub fn follow(&mut self, configuration: &Path) {
        if Path::new(&self.path).is_relative() {
            let resolved = configuration.parent().unwrap_or(Path::new("")).join(&self.path);
            self.relative_path = Some(std::mem::replace(&mut self.path, resolved.to_string_lossy().into_owned()));
        }
    }

    /// The path that an earlier version used, if only that one exists.
    pub fn former_path(&self) -> Option<&Path> {
        let former = Path::new(self.relative_path.as_ref()?);
        (!Path::new(&self.path).exists() && former.exists()).then_some(former)
    }
}

/// `postgres`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// The URL: `postgres://user:password@host:5432/database`, from `${ENV}` or `file:PATH`. Of
    /// several hosts (`a:5432,b:5432`), the first that takes writes is used.
    pub url: SecretRef,
    /// The URL for `LISTEN`, if `url` names a pooler in transaction mode: the server itself.
    pub listen_url: Option<SecretRef>,
    /// The verification of the server. Default: `verify_full`, or `off` on the same host.
    pub tls: Option<PostgresTls>,
    /// CA certificates (PEM) that the server is verified with. Default: the system's.
    pub ca_file: Option<String>,
    /// The maximum number of connections, 2 to 500. One of them listens for changes. Default: 8.
    #[serde(default = "eight")]
    pub connections_max: u32,
    /// The time limit of a statement, including the wait for a connection. A request waits at most
    /// twice this. Default: 1s.
    #[serde(default = "one_second")]
    pub timeout: HumanDuration,
    /// How long the start waits for the server. Default: 30s.
    #[serde(default = "half_a_minute")]
    pub connect_timeout: HumanDuration,
    /// The maximum number of bindings in the process cache. Default: 100000.
    #[serde(default = "hundred_thousand")]
    pub cache_max: usize,
    /// How often last-use times and intercepts are written. A crash loses at most this period.
    /// Default: 5s.
    #[serde(default = "five_seconds")]
    pub flush_every: HumanDuration,
    /// How long known keys are judged by cached bindings while the server is away. Default: 10min.
    #[serde(default = "ten_minutes")]
    pub stale_grace: HumanDuration,
    /// The replica's name in intercepts. Default: the host name.
    pub replica: Option<String>,
}

impl Postgres {
    /// The replica's name.
    pub fn replica(&self) -> String {
        let machine = || nix::unistd::gethostname().ok()?.into_string().ok();
        self.replica.clone().or_else(machine).unwrap_or_else(|| "unnamed".into())
    }
}

fn eight() -> u32 {
    8
}

fn hundred_thousand() -> usize {
    100_000
}

fn one_second() -> HumanDuration {
    HumanDuration::secs(1)
}

fn five_seconds() -> HumanDuration {
    HumanDuration::secs(5)
}

fn half_a_minute() -> HumanDuration {
    HumanDuration::secs(30)
}

fn ten_minutes() -> HumanDuration {
    HumanDuration::secs(600)
}

/// The verification of a PostgreSQL server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PostgresTls {
    /// The certificate must be signed by a trusted CA and name the host.
    VerifyFull,
    /// The certificate must be signed by a trusted CA.
    VerifyCa,
    /// No TLS.
    Off,
}

/// The ages after which rows are archived or deleted. Takes effect with the next reload.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Bindings unused for this long are archived; the next use binds again. Default: 90 days.
    pub archive_after: HumanDuration,
    /// Bindings of keys that the upstream never accepted are deleted after this. Default: 1h.
    pub unconfirmed: HumanDuration,
    /// Intercepts are deleted after this. Default: 90 days.
    pub intercepts: HumanDuration,
    /// Archived bindings are deleted after this. Default: 365 days.
    pub archive: HumanDuration,
    /// Audit entries are deleted after this. Default: 365 days.
    pub audit: HumanDuration,
    /// How often retention runs, in one process of all that share the store. Default: 10min.
    pub every: HumanDuration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |days: u64| HumanDuration::secs(days * 86_400);
        Self {
            archive_after: days(90),
            unconfirmed: HumanDuration::secs(3600),
            intercepts: days(90),
            archive: days(365),
            audit: days(365),
            every: HumanDuration::secs(600),
        }
    }
}
