//! Tells the store what this replica counts: how it is every few seconds, and sums of minutes and hours. Whoever looks at
//! any replica so sees them all, without a server that collects metrics.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::counted::Counted;
use super::metrics::Metrics;
use super::top_k::Asked;
use crate::bindings::Store;
use crate::cluster::replica::Replica;
use crate::sql::samples::{HOUR_S, MINUTE_S, Replica as Said, Sample, SampleKind};
use crate::util::time::millis;

/// How often a replica says how it is.
pub const SAID_EVERY: Duration = Duration::from_secs(5);
/// A replica that has said nothing for so long is gone.
pub const GONE_MS: i64 = 20_000;

/// How a replica is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Its program's version.
    pub version: String,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: i64,
    /// How often it has taken a configuration.
    pub generation: u64,
    /// When it took the one in force.
    pub loaded_ms: i64,
    /// Whether its last attempt to take one succeeded.
    pub reload_ok: bool,
    /// Open streams.
    pub streams: i64,
    /// Open connections.
    pub connections: i64,
    /// Requests a second, of late.
    pub requests_per_s: f64,
    /// It was told to stop.
    pub stopping: bool,
    /// Another process serves in its place, and it only lets end what is open.
    pub handed_over: bool,
}

/// Of one replica.
pub struct Sampler {
    replica: Arc<Replica>,
    metrics: Arc<Metrics>,
    steps: Mutex<[Step; 2]>,
    /// What was counted when the replica said how it is, and when.
    said: Mutex<(u64, SystemTime)>,
    /// One says so at a time.
    saying: tokio::sync::Mutex<()>,
}

/// A minute or an hour that is being counted.
struct Step {
    step_s: i64,
    /// When it began; 0: not yet.
    at_ms: i64,
    /// What had been counted when it began, or when this process was started.
    before: Counted,
    /// What this replica had counted in it before that.
    base: Counted,
    /// What had been counted when that was noted last.
    noted: Counted,
    /// Who has asked how often in it.
    asked: Asked,
}

impl Step {
    /// One of which nothing was noted yet; what was counted until now is none of it.
    fn begin(step_s: i64, now: Counted) -> Self {
        Self { step_s, at_ms: 0, before: now.clone(), base: Counted::default(), noted: now, asked: Asked::default() }
    }
}

impl Sampler {
    /// Begins to count.
    pub fn new(replica: Arc<Replica>, metrics: Arc<Metrics>) -> Self {
        let now = Counted::of(&metrics);
        let steps = Mutex::new([MINUTE_S, HOUR_S].map(|step_s| Step::begin(step_s, now.clone())));
        Self { replica, metrics, steps, said: Mutex::new((0, SystemTime::now())), saying: tokio::sync::Mutex::new(()) }
    }

    /// Notes what was counted so far, and counts what comes, or could not be noted, under the name that `rename` gives.
    pub async fn rename(&self, store: &Store, rename: impl FnOnce()) {
        let _alone = self.saying.lock().await;
        self.note(store, millis(SystemTime::now())).await;
        rename();
        self.steps.lock().iter_mut().for_each(|step| *step = Step::begin(step.step_s, std::mem::take(&mut step.noted)));
    }

    /// Requests a second since this was asked last.
    pub fn rate(&self) -> f64 {
        let (total, now) = (Counted::of(&self.metrics).total(), SystemTime::now());
        let mut said = self.said.lock();
        let (before, at) = std::mem::replace(&mut *said, (total, now));
        let seconds = now.duration_since(at).unwrap_or_default().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "requests of a few seconds")]
        if seconds > 0.5 { total.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }

    /// Says how it is, and what was counted so far in the minute and the hour.
    pub async fn say(&self, store: &Store, state: &State) {
        let _alone = self.saying.lock().await;
        let now_ms = millis(SystemTime::now());
        let said = Said { name: self.replica.name(), seen_ms: now_ms, state: serde_json::to_value(state).unwrap_or_default() };
        // The store may be away; then this is said in a moment.
        if store.admin_store().put_replica(&said).await.is_ok() {
            self.note(store, now_ms).await;
        }
    }

    async fn note(&self, store: &Store, now_ms: i64) {
        let counted = Counted::of(&self.metrics);
        let asked = self.metrics.tops.take();
        self.steps.lock().iter_mut().for_each(|step| step.asked.add(asked.clone()));
        for index in 0..2 {
            let (step_s, fresh) = {
                let steps = self.steps.lock();
                (steps[index].step_s, now_ms - now_ms.rem_euclid(steps[index].step_s * 1000) != steps[index].at_ms)
            };
            if fresh {
                let at_ms = now_ms - now_ms.rem_euclid(step_s * 1000);
                // What was counted since the last note belongs to the step before: it is noted once more, whole. Where it
                // cannot be, or what stands in the new one is not known, the old one goes on until it can.
                let (true, Some((base, asked))) = (self.write(store, index, &counted).await, self.base(store, step_s, at_ms).await) else {
                    continue;
                };
                let step = &mut self.steps.lock()[index];
                let mut asked = asked;
                let before = if step.at_ms == 0 {
                    asked.add(std::mem::take(&mut step.asked));
                    step.before.clone()
                } else {
                    counted.clone()
                };
                *step = Step { at_ms, before, base, asked, ..Step::begin(step_s, std::mem::take(&mut step.noted)) };
            }
            self.write(store, index, &counted).await;
        }
    }

    /// What a process before this one has counted in this step.
    async fn base(&self, store: &Store, step_s: i64, at_ms: i64) -> Option<(Counted, Asked)> {
        let mine = async |of| {
            let known = store.admin_store().samples(of, step_s, at_ms).await.ok()?;
            Some(
                known
                    .into_iter()
                    .find(|sample| sample.replica == self.replica.name() && sample.at_ms == at_ms)
                    .map(|sample| sample.counted),
            )
        };
        let (counted, asked) = (mine(SampleKind::Counts).await?, mine(SampleKind::TopRequesters).await?);
        // What a process of another version has written may be anything.
        let counted = counted.and_then(|counted| serde_json::from_value(counted).ok()).unwrap_or_default();
        Some((counted, asked.and_then(|asked| serde_json::from_value(asked).ok()).unwrap_or_default()))
    }

    /// False: it was not noted.
    async fn write(&self, store: &Store, index: usize, counted: &Counted) -> bool {
        let (step_s, sample, asked) = {
            let step = &self.steps.lock()[index];
            if step.at_ms == 0 {
                return true;
            }
            let mut sum = counted.since(&step.before);
            sum.add(&step.base);
            let sample = |counted| Sample { at_ms: step.at_ms, replica: self.replica.name(), counted };
            let json = |sum: &Counted| serde_json::to_value(sum).unwrap_or_default();
            (step.step_s, sample(json(&sum)), sample(serde_json::to_value(step.asked.told()).unwrap_or_default()))
        };
        let admin_store = store.admin_store();
        let noted = async {
            admin_store.put_sample(SampleKind::Counts, step_s, &sample).await?;
            admin_store.put_sample(SampleKind::TopRequesters, step_s, &asked).await
        };
        let noted = noted.await.inspect_err(|error| tracing::debug!(%error, "what was counted is noted later")).is_ok();
        if noted {
            self.steps.lock()[index].noted.clone_from(counted);
        }
        noted
    }
}
