//! The bindings of one process: cache, authority, and a batch that is written from time to time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use keylatch_filters::contract::{Binding, Bindings, BoxFuture, FirstUse, Intercept, KeyId, StoreError};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::cache::Cache;
use super::{Authority, Batch};

/// See the module.
pub struct Embedded {
    authority: Arc<dyn Authority>,
    cache: Cache,
    waiting: Mutex<Batch>,
    hits: IntCounter,
    misses: IntCounter,
    dropped: IntCounter,
    intercepts: IntCounter,
}

impl Embedded {
    pub(super) fn new(authority: Arc<dyn Authority>, cache_max: usize, metrics: &Registry) -> Arc<Self> {
        let counter = |name: &str, help: &str| counter(metrics, name, help);
        let look_ups = IntCounterVec::new(
            Opts::new("keylatch_binding_cache_requests_total", "Look-ups of bindings in the process cache, by result."),
            &["result"],
        );
        let look_up = |result: &str| {
            let vec = look_ups.as_ref().ok()?;
            vec.get_metric_with_label_values(&[result]).ok()
        };
        let store = Arc::new(Self {
            authority,
            cache: Cache::new(cache_max),
            waiting: Mutex::default(),
            hits: look_up("hit").unwrap_or_else(detached),
            misses: look_up("miss").unwrap_or_else(detached),
            dropped: counter("keylatch_store_dropped_total", "Last uses and intercepts that were lost because too many waited."),
            intercepts: counter("keylatch_intercepts_total", "Requests refused because of the key's binding."),
        });
        if let Ok(vec) = look_ups {
            let _ = metrics.register(Box::new(vec));
        }
        store
    }

    /// Writes what waits, every `period`, for as long as the store is in use.
    pub fn flush_every(self: &Arc<Self>, period: Duration) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                match weak.upgrade() {
                    Some(store) => store.flush().await,
                    None => return,
                }
            }
        });
    }

    /// Writes what waits, now. What cannot be written waits on.
    pub async fn flush(&self) {
        let batch = std::mem::take(&mut *self.waiting.lock());
        if batch.is_empty() {
            return;
        }
        if let Err(error) = self.authority.write(&batch).await {
            tracing::error!(%error, "last uses and intercepts could not be written; they wait on");
            let lost = self.waiting.lock().put_back(batch);
            self.dropped.inc_by(lost as u64);
        }
    }

    /// Whether the authority answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.authority.ping().await
    }
}

impl Bindings for Embedded {
    fn peek(&self, id: &KeyId) -> Option<Arc<Binding>> {
        let known = self.cache.fresh(id, Instant::now());
        if known.is_some() {
            self.hits.inc()
        } else {
            self.misses.inc()
        }
        known
    }

    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>> {
        Box::pin(async move {
            let asked_at = Instant::now();
            // A key that was bound before is read, which goes on where nothing can be written.
            if self.cache.knows(&first.id)
                && let Some(row) = self.authority.get(first.id).await?
            {
                return Ok(self.cache.put(row, asked_at));
            }
            let row = self.authority.latch(first).await?;
            Ok(self.cache.put(row, asked_at))
        })
    }

    fn recheck(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async move {
            let asked_at = Instant::now();
            if let Some(known) = self.cache.just_read(&id, asked_at) {
                return Ok(Some(known));
            }
            match self.authority.get(id).await? {
                Some(row) => Ok(Some(self.cache.put(row, asked_at))),
                None => {
                    self.cache.forget(&id);
                    Ok(None)
                }
            }
        })
    }

    fn used(&self, id: KeyId, at: SystemTime) {
        if !self.waiting.lock().used(id, at) {
            self.dropped.inc();
        }
    }

    fn intercepted(&self, intercept: Intercept) {
        self.intercepts.inc();
        if !self.waiting.lock().intercepted(intercept) {
            self.dropped.inc();
        }
    }
}

fn counter(metrics: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).unwrap_or_else(|_| detached());
    let _ = metrics.register(Box::new(counter.clone()));
    counter
}

/// A counter that is shown nowhere, for a name that cannot be had: counting never stops the work.
fn detached() -> IntCounter {
    IntCounter::new("detached", "not shown").unwrap_or_else(|_| unreachable!("`detached` is a valid name"))
}
