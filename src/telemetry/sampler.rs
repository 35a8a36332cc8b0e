//! Reports to the store: the state of this replica every few seconds, and its counts by minute and hour.
//!
//! So every replica can show all of them without a metrics server. Reading the reports is up to the admin API.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::counted::Counted;
use super::metrics::Metrics;
use super::top_k::TopCounts;
use crate::bindings::Store;
use crate::cluster::replica::Replica;
use crate::sql::samples::{HOUR_S, MINUTE_S, Replica as ReplicaReport, Sample, SampleKind};
use crate::util::time::millis;

/// The interval at which a replica reports its state.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// A replica without a report for this time counts as gone, in milliseconds.
pub const GONE_MS: i64 = 20_000;

/// The state of a replica, as stored in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The version of the program.
    pub version: String,
    /// When the process started, in milliseconds since 1970.
    pub started_ms: i64,
    /// The number of configurations loaded, the start included.
    pub generation: u64,
    /// When the configuration in force was loaded, in milliseconds since 1970.
    pub loaded_ms: i64,
    /// Whether the last reload succeeded.
    pub reload_ok: bool,
    /// Open streams.
    pub streams: i64,
    /// Open connections.
    pub connections: i64,
    /// Requests per second since the report before.
    pub requests_per_s: f64,
    /// Whether the process is stopping.
    pub stopping: bool,
    /// Whether another process has taken over, so that this one only drains its connections.
    pub handed_over: bool,
}

/// The reports of one replica.
pub struct Sampler {
    replica: Arc<Replica>,
    metrics: Arc<Metrics>,
    steps: Mutex<[Step; 2]>,
    /// The number of requests at the last call of [`Sampler::rate`], and its time.
    last_rate: Mutex<(u64, SystemTime)>,
    /// Keeps reports one at a time.
    reporting: tokio::sync::Mutex<()>,
}

/// The current minute or hour.
struct Step {
    step_s: i64,
    /// The start of the period, in milliseconds since 1970; 0 if it has not begun.
    at_ms: i64,
    /// The counts of this process when the period began, or when the process started.
    before: Counted,
    /// The counts of the period by an earlier process of this replica.
    base: Counted,
    /// The counts of this process when the period was last stored.
    noted: Counted,
    /// Requests by key and client in the period.
    top: TopCounts,
}

impl Step {
    /// A period that is not stored yet. Counts until now do not belong to it.
    fn begin(step_s: i64, now: Counted) -> Self {
        Self { step_s, at_ms: 0, before: now.clone(), base: Counted::default(), noted: now, top: TopCounts::default() }
    }
}

impl Sampler {
    /// Starts counting.
    pub fn new(replica: Arc<Replica>, metrics: Arc<Metrics>) -> Self {
        let now = Counted::from_metrics(&metrics);
        let steps = Mutex::new([MINUTE_S, HOUR_S].map(|step_s| Step::begin(step_s, now.clone())));
        Self { replica, metrics, steps, last_rate: Mutex::new((0, SystemTime::now())), reporting: tokio::sync::Mutex::new(()) }
    }

    /// Stores the counts so far, and renames the replica with `rename`. Later counts, and those that could not be stored, belong to
    /// the new name.
    pub async fn rename(&self, store: &Store, rename: impl FnOnce()) {
        let _guard = self.reporting.lock().await;
        self.note(store, millis(SystemTime::now())).await;
        rename();
        self.steps.lock().iter_mut().for_each(|step| *step = Step::begin(step.step_s, std::mem::take(&mut step.noted)));
    }

    /// Requests per second since the last call; 0 if that was less than half a second ago.
    pub fn rate(&self) -> f64 {
        let (total, now) = (Counted::from_metrics(&self.metrics).total(), SystemTime::now());
        let mut last = self.last_rate.lock();
        let (before, at) = std::mem::replace(&mut *last, (total, now));
        let seconds = now.duration_since(at).unwrap_or_default().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "requests of a few seconds")]
        if seconds > 0.5 { total.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }

    /// Stores the state of this replica, and its counts of the current minute and hour.
    pub async fn report(&self, store: &Store, state: &State) {
        let _guard = self.reporting.lock().await;
        let now_ms = millis(SystemTime::now());
        let report = ReplicaReport { name: self.replica.name(), seen_ms: now_ms, state: serde_json::to_value(state).unwrap_or_default() };
        // If the store is unavailable, the next report follows in a few seconds.
        if store.admin_store().put_replica(&report).await.is_ok() {
            self.note(store, now_ms).await;
        }
    }

    async fn note(&self, store: &Store, now_ms: i64) {
        let counted = Counted::from_metrics(&self.metrics);
        let top = self.metrics.top_requesters.take();
        self.steps.lock().iter_mut().for_each(|step| step.top.add(top.clone()));
        for index in 0..2 {
            let (step_s, fresh) = {
                let steps = self.steps.lock();
                (steps[index].step_s, now_ms - now_ms.rem_euclid(steps[index].step_s * 1000) != steps[index].at_ms)
            };
            if fresh {
                let at_ms = now_ms - now_ms.rem_euclid(step_s * 1000);
                // Counts since the last write belong to the old period, which is written once more. If that fails, or the
                // stored counts of the new period cannot be read, the old period continues until both succeed.
                let (true, Some((base, top))) = (self.write(store, index, &counted).await, self.base(store, step_s, at_ms).await) else {
                    continue;
                };
                let step = &mut self.steps.lock()[index];
                let mut top = top;
                let before = if step.at_ms == 0 {
                    top.add(std::mem::take(&mut step.top));
                    step.before.clone()
                } else {
                    counted.clone()
                };
                *step = Step { at_ms, before, base, top, ..Step::begin(step_s, std::mem::take(&mut step.noted)) };
            }
            self.write(store, index, &counted).await;
        }
    }

    /// The stored counts of this period by an earlier process of this replica. `None` if the store cannot be read.
    async fn base(&self, store: &Store, step_s: i64, at_ms: i64) -> Option<(Counted, TopCounts)> {
        let stored = async |of| {
            let samples = store.admin_store().samples(of, step_s, at_ms).await.ok()?;
            Some(
                samples
                    .into_iter()
                    .find(|sample| sample.replica == self.replica.name() && sample.at_ms == at_ms)
                    .map(|sample| sample.counted),
            )
        };
        let (counted, top) = (stored(SampleKind::Counts).await?, stored(SampleKind::TopRequesters).await?);
        // A process of another version may have written another format; such counts are ignored.
        let counted = counted.and_then(|counted| serde_json::from_value(counted).ok()).unwrap_or_default();
        Some((counted, top.and_then(|top| serde_json::from_value(top).ok()).unwrap_or_default()))
    }

    /// Stores the counts of a period. Returns whether that succeeded.
    async fn write(&self, store: &Store, index: usize, counted: &Counted) -> bool {
        let (step_s, sample, top) = {
            let step = &self.steps.lock()[index];
            if step.at_ms == 0 {
                return true;
            }
            let mut sum = counted.since(&step.before);
            sum.add(&step.base);
            let sample = |counted| Sample { at_ms: step.at_ms, replica: self.replica.name(), counted };
            let json = |sum: &Counted| serde_json::to_value(sum).unwrap_or_default();
            (step.step_s, sample(json(&sum)), sample(serde_json::to_value(step.top.largest()).unwrap_or_default()))
        };
        let admin_store = store.admin_store();
        let noted = async {
            admin_store.put_sample(SampleKind::Counts, step_s, &sample).await?;
            admin_store.put_sample(SampleKind::TopRequesters, step_s, &top).await
        };
        let noted = noted
            .await
            .inspect_err(|error| tracing::debug!(%error, "the counts could not be stored; the next report includes them"))
            .is_ok();
        if noted {
            self.steps.lock()[index].noted.clone_from(counted);
        }
        noted
    }
}
