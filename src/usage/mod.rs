//! What requests used: sums by minute in memory, written in batches, each of them once. Contains no
//! SQL, reads no answer and knows no price.
//!
//! Reports are queries of the store ([`crate::sql::usage::Usage`]), with the horizon of
//! [`Accounts::horizon`].

pub mod ledger;
pub mod metrics;
mod pending;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use keylatch_filters::contract::{StoreError, UsageRecord, UsageSink};
use parking_lot::{Mutex, RwLock};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use crate::config::model::Usage as UsageOptions;
use crate::sql::Authority;
use crate::sql::usage::{UsageBatch, UsageHorizon};
use crate::util::failure_log::FailureLog;
use metrics::UsageMetrics;
use pending::{Lost, Pending};

/// Writes batches; the store, except in tests.
#[async_trait]
trait BatchWriter: Send + Sync {
    async fn write(&self, batch: &UsageBatch) -> Result<(), StoreError>;
}

#[async_trait]
impl BatchWriter for Arc<dyn Authority> {
    async fn write(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.admin_store().write_usage(batch).await
    }
}

/// The accounts of this process: a write-behind queue of usage.
pub struct Accounts {
    writer: Box<dyn BatchWriter>,
    options: RwLock<UsageOptions>,
    pending: Mutex<Pending>,
    /// Batches that are being written, or could not be written yet. They keep their ids.
    unwritten: tokio::sync::Mutex<VecDeque<UsageBatch>>,
    /// The number of groups in `unwritten`.
    unwritten_groups: AtomicUsize,
    failures: FailureLog,
    lost: Option<IntCounterVec>,
    queued: Option<IntGauge>,
    metrics: Option<UsageMetrics>,
}

impl Accounts {
    /// Accounts that are written to this store by [`Self::flush`].
    pub fn new(authority: Arc<dyn Authority>, options: &UsageOptions, registry: &Registry) -> Arc<Self> {
        Self::with(Box::new(authority), options, registry)
    }

    fn with(writer: Box<dyn BatchWriter>, options: &UsageOptions, registry: &Registry) -> Arc<Self> {
        let lost = IntCounterVec::new(
            Opts::new("keylatch_usage_lost_total", "Requests with usage that was lost because the queue was full, by what was lost."),
            &["what"],
        );
        let queued = IntGauge::new("keylatch_usage_queued", "Sums of usage that wait to be written.");
        let (lost, queued) = (lost.ok(), queued.ok());
        lost.iter().for_each(|lost| drop(registry.register(Box::new(lost.clone()))));
        queued.iter().for_each(|queued| drop(registry.register(Box::new(queued.clone()))));
        Arc::new(Self {
            writer,
            options: RwLock::new(options.clone()),
            pending: Mutex::default(),
            unwritten: tokio::sync::Mutex::default(),
            unwritten_groups: AtomicUsize::new(0),
            failures: FailureLog::default(),
            lost,
            queued,
            metrics: UsageMetrics::new(registry).ok(),
        })
    }

    /// Applies the options of a reloaded configuration.
    pub fn set_options(&self, options: &UsageOptions) {
        if *self.options.read() != *options {
            *self.options.write() = options.clone();
        }
    }

    /// What the store has for reports at this time.
    pub fn horizon(&self, now: SystemTime) -> UsageHorizon {
        let now_s = seconds(now);
        let options = self.options.read();
        let since = |age: Duration| now_s.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        let retention = &options.retention;
        UsageHorizon { now_s, minutes_since_s: since(retention.minute.0), hours_since_s: since(retention.hour.0) }
    }

    /// Writes all usage so far. Batches that cannot be written are kept, and repeated by the next
    /// flush.
    pub async fn flush(&self) {
        let mut unwritten = self.unwritten.lock().await;
        let written = match self.write(&mut unwritten).await {
            // While older batches wait, new usage is merged in memory and not split.
            Ok(()) if unwritten.is_empty() => {
                let batches = self.pending.lock().take(SystemTime::now());
                self.unwritten_groups.store(batches.iter().map(|batch| batch.sums.len()).sum(), Ordering::Relaxed);
                unwritten.extend(batches);
                self.write(&mut unwritten).await
            }
            written => written,
        };
        let groups = unwritten.iter().map(|batch| batch.sums.len()).sum();
        self.unwritten_groups.store(groups, Ordering::Relaxed);
        self.queued.iter().for_each(|queued| queued.set(i64::try_from(groups + self.pending.lock().len()).unwrap_or(i64::MAX)));
        match written {
            Ok(()) => {
                if let Some(failures) = self.failures.succeeded() {
                    tracing::info!(failures, "usage is written again");
                }
            }
            Err(error) => {
                if let Some(failures) = self.failures.failed(Instant::now()) {
                    tracing::error!(%error, failures, "usage could not be written; trying again at each flush");
                }
            }
        }
    }

    /// Writes batches in their order. A batch leaves the queue only when it is written, so that a
    /// cancelled flush loses none.
    async fn write(&self, unwritten: &mut VecDeque<UsageBatch>) -> Result<(), StoreError> {
        let (mut index, mut result) = (0, Ok(()));
        while let Some(batch) = unwritten.get(index) {
            match self.writer.write(batch).await {
                Ok(()) => drop(unwritten.remove(index)),
                // The database refuses this batch; others may be fine.
                Err(error @ StoreError::Useless(_)) => {
                    index += 1;
                    result = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        result
    }

    /// The last flush of a process: two attempts, then the lost usage is logged.
    pub async fn finish(&self) {
        self.flush().await;
        self.flush().await;
        let groups = self.unwritten_groups.load(Ordering::Relaxed) + self.pending.lock().len();
        if groups > 0 {
            tracing::error!(groups, "usage could not be written and is lost");
        }
    }
}

impl UsageSink for Accounts {
    fn record(&self, record: &UsageRecord) {
        let (models_max, logs) = {
            let options = self.options.read();
            (options.models_max, options.requests.is_some())
        };
        let unwritten = self.unwritten_groups.load(Ordering::Relaxed);
        let lost = self.pending.lock().add(record, models_max, logs, unwritten);
        if lost != Lost::default() {
            self.count_lost(lost);
        }
        self.metrics.iter().for_each(|metrics| metrics.record(record));
    }
}

impl Accounts {
    #[cold]
    fn count_lost(&self, lost: Lost) {
        for (what, is_lost) in [("sums", lost.sums), ("latency", lost.latency), ("log", lost.log)] {
            if is_lost {
                self.lost.iter().for_each(|counter| counter.with_label_values(&[what]).inc());
            }
        }
    }
}

/// Seconds since 1970.
fn seconds(at: SystemTime) -> i64 {
    crate::util::time::millis(at) / 1000
}
