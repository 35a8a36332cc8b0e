//! A new configuration takes the place of the old one: read, compile, swap. The only writer of the
//! [`arc_swap::ArcSwap`]. Any error, and nothing has changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{Compiler, Settings, Snapshot, parse_file};
use crate::proxy::Shared;

/// Reloads one file, one reload at a time.
pub struct Reloader {
    path: PathBuf,
    compiler: Arc<Compiler>,
    shared: Arc<Shared>,
    /// What the process was started with: what needs a restart is compared with this.
    started: Settings,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Reloader {
    /// For the file the process was started with.
    pub fn new(path: &Path, compiler: Arc<Compiler>, shared: Arc<Shared>) -> Self {
        let started = shared.snapshot.load().settings.clone();
        Self { path: path.to_owned(), compiler, shared, started, one_at_a_time: tokio::sync::Mutex::default() }
    }

    /// Reloads. The text says what happened, either way.
    pub async fn reload(&self) -> Result<String, String> {
        let _one = self.one_at_a_time.lock().await;
        let loaded = load(&self.path, &self.compiler).await;
        let metrics = &self.shared.metrics;
        match loaded {
            Ok(fresh) => {
                let pending = fresh.needs_restart(&self.started);
                self.shared.snapshot.store(Arc::new(fresh));
                metrics.reloads.with_label_values(&["ok"]).inc();
                metrics.last_reload.set(unix_s());
                let mut said = format!("{} is in force", self.path.display());
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
        }
    }
}

/// Reads and compiles, and starts what the snapshot needs.
pub async fn load(path: &Path, compiler: &Compiler) -> Result<Snapshot, String> {
    let parsed = parse_file(path).map_err(|report| report.to_string())?;
    let snapshot = compiler.compile(parsed).map_err(|report| report.to_string())?;
    for upstream in &snapshot.upstreams {
        upstream.start().await;
    }
    Ok(snapshot)
}

/// Seconds since 1970.
pub fn unix_s() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
