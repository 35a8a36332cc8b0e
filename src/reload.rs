//! Replaces the configuration in force: read, compile, swap. After any error the old configuration stays in force.
//!
//! Only this file writes the [`arc_swap::ArcSwap`] with the snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::compile::{Compiler, Snapshot, check};
use crate::config::{Overrides, Parsed, Report, Settings, parse_file};
use crate::http_proxy::ProxyState;
use crate::upstream::Upstream;
use crate::util::time::millis;

/// Reloads one configuration file. Reloads run one at a time.
pub struct Reloader {
    path: PathBuf,
    compiler: Arc<Compiler>,
    shared: Arc<ProxyState>,
    /// The settings at the start. Changes that need a restart are found by comparison with them.
    started: Settings,
    /// The file in force, as it was read. Overrides of operators are applied to this text, even if the file has changed since.
    in_force: tokio::sync::Mutex<Parsed>,
    last: Mutex<LastReload>,
}

/// The result of the last attempts to load a configuration.
#[derive(Clone, Debug)]
pub struct LastReload {
    /// The number of successful loads, the start included.
    pub generation: u64,
    /// When the configuration in force was loaded, in milliseconds since 1970.
    pub loaded_ms: i64,
    /// When the last attempt ended, in milliseconds since 1970.
    pub at_ms: i64,
    /// The outcome of the last attempt.
    pub outcome: Result<String, Report>,
}

impl Reloader {
    /// A reloader for the file with which the process was started.
    pub fn new(path: &Path, compiler: Arc<Compiler>, shared: Arc<ProxyState>, parsed: Parsed) -> Self {
        let started = shared.snapshot.load().settings.clone();
        let now = millis(SystemTime::now());
        let last = LastReload { generation: 1, loaded_ms: now, at_ms: now, outcome: Ok(format!("{} is in force", path.display())) };
        Self { path: path.to_owned(), compiler, shared, started, in_force: tokio::sync::Mutex::new(parsed), last: Mutex::new(last) }
    }

    /// The result of the last attempts.
    pub fn last(&self) -> LastReload {
        self.last.lock().clone()
    }

    /// Reloads the file. Both results are messages for the operator.
    pub async fn reload(&self) -> Result<String, String> {
        // The lock keeps reloads one at a time.
        let mut in_force = self.in_force.lock().await;
        let read = parse_file(&self.path).map(|parsed| parsed.with(&self.shared.live.overrides()));
        self.take(&mut in_force, read, format!("{} is in force", self.path.display())).await
    }

    /// Reloads the file if its content differs from the configuration in force. The outcome is logged and counted.
    pub async fn catch_up(&self) {
        let same = {
            let in_force = self.in_force.lock().await;
            parse_file(&self.path).is_ok_and(|read| read.says_the_same(&in_force))
        };
        if !same {
            let _ = self.reload().await;
        }
    }

    /// Compiles the configuration in force again, because `changed`, files that it refers to, have new content.
    pub async fn recompile(&self, changed: &str) {
        let mut in_force = self.in_force.lock().await;
        let same = in_force.clone();
        // The outcome is logged and counted; no caller waits for it.
        let _ = self.take(&mut in_force, Ok(same), format!("changed files are in force: {changed}")).await;
    }

    async fn take(&self, in_force: &mut Parsed, read: Result<Parsed, Report>, mut message: String) -> Result<String, String> {
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
                    message.push_str(&format!("; a restart is needed for changes in: {}", pending.join(", ")));
                    tracing::warn!(sections = pending.join(", "), "changes in these sections need a restart");
                }
                tracing::info!("{message}");
                Ok(message)
            }
            Err(report) => {
                metrics.reloads.with_label_values(&["failed"]).inc();
                tracing::error!("the configuration was not reloaded; the old one stays in force:\n{report}");
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

    /// Applies the filter overrides of operators to the configuration in force.
    pub async fn apply(&self, overrides: &Overrides) {
        let mut in_force = self.in_force.lock().await;
        let parsed = in_force.clone().with(overrides);
        match begin(&self.compiler, parsed.clone()).await {
            Ok(fresh) => {
                self.enforce(fresh);
                *in_force = parsed;
                tracing::info!("the live settings of filters are in force");
            }
            // Files that the configuration refers to may have changed since it was read.
            Err(report) => tracing::error!("the live settings of filters were not applied:\n{report}"),
        }
    }

    fn enforce(&self, mut fresh: Snapshot) {
        // A listener that was removed from the file stays open until a restart, under the policy that it had last.
        let before = self.shared.snapshot.load_full();
        let removed: Vec<_> = before.entries.iter().filter(|entry| fresh.listener_policy(entry.address).is_none()).cloned().collect();
        removed.iter().for_each(|removed| self.compiler.keep_on(removed, &self.path, &mut fresh));
        self.shared.metrics.set_certificates(&fresh.entries);
        self.shared.snapshot.store(Arc::new(fresh));
    }

    /// Checks this text, or without one the file, as a reload would. Changes nothing.
    pub fn check(&self, text: Option<&str>) -> Result<(), Report> {
        check(&self.path, text)
    }
}

/// Compiles a configuration and starts the upstreams of its snapshot.
pub async fn begin(compiler: &Compiler, parsed: Parsed) -> Result<Snapshot, Report> {
    let snapshot = compiler.compile(parsed)?;
    futures::future::join_all(snapshot.upstreams.iter().map(Upstream::start)).await;
    Ok(snapshot)
}

/// Seconds since 1970.
pub fn unix_s() -> i64 {
    millis(SystemTime::now()) / 1000
}
