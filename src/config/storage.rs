//! The part of [`super::model`] about stores.

use std::path::Path;

use keylatch_filters::contract::{HumanDuration, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// Where bindings and intercepts are kept. Changing it needs a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Storage {
    /// In one file, for one process.
    Sqlite(Sqlite),
    /// In PostgreSQL 13 or later, for any number of replicas.
    Postgres(Postgres),
    /// In memory: gone with the process. For trials and tests.
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
    /// The file, relative to the configuration file; made if it is not there. Default: `data/keylatch.db`.
    pub path: String,
    /// The path as it was written, where it is relative: it once followed the working directory.
    #[serde(skip)]
    pub relative_path: Option<String>,
    /// How many bindings the process remembers without asking the file. Default: 100000.
    pub cache_max: usize,
    /// How often last uses and intercepts are written. A crash loses at most this much of them. Default: 5s.
    pub flush_every: HumanDuration,
    /// For how long a known key is judged by what was known of it while the file cannot be read. Default: 10min.
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

    /// Where an earlier version kept the database, if nothing has replaced it.
    pub fn former_path(&self) -> Option<&Path> {
        let former = Path::new(self.relative_path.as_ref()?);
        (!Path::new(&self.path).exists() && former.exists()).then_some(former)
    }
}

/// `postgres`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Where it is: `postgres://user:password@host:5432/database`, from `${ENV}` or `file:PATH`. Of several hosts (`a:5432,b:5432`)
    /// the first that takes writes is used.
    pub url: SecretRef,
    /// Where changes are listened for, if not at `url`: the server itself, where `url` names a pooler in transaction mode.
    pub listen_url: Option<SecretRef>,
    /// How the server is known to be the right one. Default: `verify_full`, or `off` on this machine.
    pub tls: Option<PostgresTls>,
    /// The certificates that may sign the server's, as PEM. Default: the system's.
    pub ca_file: Option<String>,
    /// Connections at most, 2 to 500. One of them listens for changes. Default: 8.
    #[serde(default = "eight")]
    pub connections_max: u32,
    /// How long a statement may take, the wait for a connection included; a request waits at most twice this. Default: 1s.
    #[serde(default = "one_second")]
    pub timeout: HumanDuration,
    /// How long the start waits for the server. Default: 30s.
    #[serde(default = "half_a_minute")]
    pub connect_timeout: HumanDuration,
    /// How many bindings the process remembers without asking. Default: 100000.
    #[serde(default = "hundred_thousand")]
    pub cache_max: usize,
    /// How often last uses and intercepts are written. A crash loses at most this much of them. Default: 5s.
    #[serde(default = "five_seconds")]
    pub flush_every: HumanDuration,
    /// For how long a known key is judged by what was known of it while the server is away. Default: 10min.
    #[serde(default = "ten_minutes")]
    pub stale_grace: HumanDuration,
    /// This replica's name in intercepts. Default: the machine's name.
    pub replica: Option<String>,
}

impl Postgres {
    /// This replica's name.
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

/// How a PostgreSQL server is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PostgresTls {
    /// Its certificate is signed by one that is trusted, and names the host.
    VerifyFull,
    /// Its certificate is signed by one that is trusted.
    VerifyCa,
    /// No TLS.
    Off,
}

/// When rows of the store go. In force from the next reload on.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Bindings unused for this long are archived; the next use binds anew. Default: 90 days.
    pub archive_after: HumanDuration,
    /// Bindings whose key the upstream never accepted go after this. Default: 1h.
    pub unconfirmed: HumanDuration,
    /// Intercepts go after this. Default: 90 days.
    pub intercepts: HumanDuration,
    /// Archived bindings go after this. Default: 365 days.
    pub archive: HumanDuration,
    /// Lines of the audit go after this. Default: 365 days.
    pub audit: HumanDuration,
    /// How often it is looked, by one process of all that share a store. Default: 10min.
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
