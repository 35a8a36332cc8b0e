//! A new configuration takes the place of the old one: read, compile, swap. The only writer of the
//! [`arc_swap::ArcSwap`]. Any error, and nothing has changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::compile::{Compiler, Snapshot, check};
use crate::config::{Overrides, Parsed, Report, Settings, parse_file};
use crate::http_proxy::ProxyState;
use crate::upstream::Upstream;
use crate::util::time::millis;

/// Reloads one file, one reload at a time.
pub struct Reloader {
    path: PathBuf,
    compiler: Arc<Compiler>,
    shared: Arc<ProxyState>,
    /// What the process was started with: what needs a restart is compared with this.
    started: Settings,
    /// The file in force, as it was read: what operators set apart from it is put into it, whatever the file has become since.
    in_force: tokio::sync::Mutex<Parsed>,
    last: Mutex<Last>,
}

/// What came of the last attempts.
#[derive(Clone, Debug)]
pub struct Last {
    /// How often a configuration was taken, the start included.
    pub generation: u64,
    /// When the one in force was, in milliseconds since 1970.
    pub loaded_ms: i64,
    /// When it was tried last.
    pub at_ms: i64,
    /// What happened then.
    pub outcome: Result<String, Report>,
}

impl Reloader {
    /// For the file the process was started with.
    pub fn new(path: &Path, compiler: Arc<Compiler>, shared: Arc<ProxyState>, parsed: Parsed) -> Self {
        let started = shared.snapshot.load().settings.clone();
        let now = millis(SystemTime::now());
        let last = Last { generation: 1, loaded_ms: now, at_ms: now, outcome: Ok(format!("{} is in force", path.display())) };
        Self { path: path.to_owned(), compiler, shared, started, in_force: tokio::sync::Mutex::new(parsed), last: Mutex::new(last) }
    }

    /// What came of the last attempts.
    pub fn last(&self) -> Last {
        self.last.lock().clone()
    }

    /// Reloads the file. The text says what happened, either way.
    pub async fn reload(&self) -> Result<String, String> {
        // One at a time.
        let mut in_force = self.in_force.lock().await;
        let read = parse_file(&self.path).map(|parsed| parsed.with(&self.shared.live.overrides()));
        self.take(&mut in_force, read, format!("{} is in force", self.path.display())).await
    }

    /// Reloads the file if it says something else than what is in force. The outcome is logged and counted.
    pub async fn catch_up(&self) {
        let same = {
            let in_force = self.in_force.lock().await;
            parse_file(&self.path).is_ok_and(|read| read.says_the_same(&in_force))
        };
        if !same {
            let _ = self.reload().await;
        }
    }

    /// Compiles what is in force once more, since `what` it refers to has changed.
    pub async fn again(&self, what: &str) {
        let mut in_force = self.in_force.lock().await;
        let same = in_force.clone();
        // The outcome is logged and counted; nobody waits for it.
        let _ = self.take(&mut in_force, Ok(same), format!("what has changed is in force: {what}")).await;
    }

    async fn take(&self, in_force: &mut Parsed, read: Result<Parsed, Report>, mut said: String) -> Result<String, String> {
        let loaded = match &read {
            Ok(parsed) => begin(&self.compiler, parsed.clone()).await,
            Err(report) => Err(report.clone()),
        };
        let metrics = &self.shared.metrics;
        let outcome = match loaded {
            Ok(fresh) => {
                let pending = fresh.needs_restart(&self.started);
                self.enforce(fresh);
                if let Ok(parsed) = read {
                    *in_force = parsed;
                }
                metrics.reloads.with_label_values(&["ok"]).inc();
                metrics.last_reload.set(unix_s());
                if !pending.is_empty() {
                    said.push_str(&format!("; a restart is needed for what has changed in: {}", pending.join(", ")));
                    tracing::warn!(sections = pending.join(", "), "changed, and in force only after a restart");
                }
                tracing::info!("{said}");
                Ok(said)
            }
            Err(report) => {
                metrics.reloads.with_label_values(&["failed"]).inc();
                tracing::error!("the configuration was not reloaded, the old one stays in force:\n{report}");
                Err(report)
            }
        };
        let mut last = self.last.lock();
        last.at_ms = millis(SystemTime::now());
        if outcome.is_ok() {
            (last.generation, last.loaded_ms) = (last.generation + 1, last.at_ms);
        }
        last.outcome = outcome.clone();
        outcome.map_err(|report| report.to_string())
    }

    /// Puts what operators have set of filters into the configuration in force.
    pub async fn apply(&self, overrides: &Overrides) {
        let mut in_force = self.in_force.lock().await;
        let parsed = in_force.clone().with(overrides);
        match begin(&self.compiler, parsed.clone()).await {
            Ok(fresh) => {
                self.enforce(fresh);
                *in_force = parsed;
                tracing::info!("what operators have set of filters is in force");
            }
            // What it refers to may have changed since it was read.
            Err(report) => tracing::error!("what operators have set of filters is not in force:\n{report}"),
        }
    }

    fn enforce(&self, mut fresh: Snapshot) {
        // A listener that was taken out of the file is open until a restart: what it asked last, it asks until then.
        let before = self.shared.snapshot.load_full();
        let gone: Vec<_> = before.entries.iter().filter(|entry| fresh.listener_policy(entry.address).is_none()).cloned().collect();
        gone.iter().for_each(|gone| self.compiler.keep_on(gone, &self.path, &mut fresh));
        self.shared.metrics.shows(&fresh.entries);
        self.shared.snapshot.store(Arc::new(fresh));
    }

    /// Whether this text, or the file, would be taken.
    pub fn check(&self, text: Option<&str>) -> Result<(), Report> {
        check(&self.path, text)
    }
}

/// Compiles, and starts what the snapshot needs.
pub async fn begin(compiler: &Compiler, parsed: Parsed) -> Result<Snapshot, Report> {
    let snapshot = compiler.compile(parsed)?;
    futures::future::join_all(snapshot.upstreams.iter().map(Upstream::start)).await;
    Ok(snapshot)
}

/// Seconds since 1970.
pub fn unix_s() -> i64 {
    millis(SystemTime::now()) / 1000
}
