//! The bindings of one process: process cache, shared cache, authority and write-behind queue.
//! Which of them may decide is in [`freshness`](super::freshness). Contains no rule of a binding.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, Bindings, BoxFuture, CancellationHandle, FirstUse, Intercept, KeyId, KeyUse, StoreError};
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::{Notify, Semaphore, watch};

use super::cache::Cache;
use super::health::Writability;
use super::metrics::Counters;
use super::revalidate::RevalidationQueue;
use super::stream_registry::StreamRegistry;
use crate::redis::Redis;
use crate::redis::cache::SharedCache;
use crate::sql::batch::Batch;
use crate::sql::record::RetentionPolicy;
use crate::sql::{Authority, StoreEvent};
use crate::util::breaker::Breaker;
use crate::util::failure_log::FailureLog;
use crate::util::periodic::every;

/// The maximum number of upstream verdicts written at once. Further confirmations go to the
/// write-behind queue.
const SETTLING_MAX: usize = 4096;

/// The store of bindings; implements [`Bindings`] for the filters.
pub struct Store {
    pub(super) me: Weak<Self>,
    pub(super) authority: Arc<dyn Authority>,
    pub(super) cache: Cache,
    /// The shared cache, with Redis only.
    pub(super) shared: Option<Arc<SharedCache>>,
    breaker: Breaker,
    pub(super) writability: Writability,
    /// Redis, for its health.
    pub(super) redis: OnceLock<Arc<Redis>>,
    pub(super) stale_grace: Duration,
    waiting: Mutex<Batch>,
    /// Keys with intercepts written since alerts took them.
    pub(super) intercepted: Mutex<HashSet<KeyId>>,
    /// Serializes flushes: the last one waits for the one before.
    flushing: tokio::sync::Mutex<()>,
    flush_failures: FailureLog,
    retention_failures: FailureLog,
    /// Limits the verdicts being written.
    settling: Arc<Semaphore>,
    pub(super) streams: StreamRegistry,
    /// Keys to read again.
    pub(super) revalidation: Mutex<RevalidationQueue>,
    /// Notified when a live setting may have changed.
    pub(super) settings_changed: Notify,
    /// Notified when a question or an answer of a replica may have arrived.
    pub(super) mail: watch::Sender<()>,
    /// The runtime of background tasks.
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) metrics: Counters,
}

impl Store {
    /// `stale_grace`: how long a stale binding is used while the authority is away.
    pub(super) fn new(
        authority: Arc<dyn Authority>,
        shared: Option<Arc<SharedCache>>,
        cache_max: usize,
        stale_grace: Duration,
        metrics: &Registry,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            authority,
            cache: Cache::new(cache_max),
            shared,
            breaker: Breaker::default(),
            writability: Writability::default(),
            redis: OnceLock::new(),
            stale_grace,
            waiting: Mutex::default(),
            intercepted: Mutex::default(),
            flushing: tokio::sync::Mutex::default(),
            flush_failures: FailureLog::default(),
            retention_failures: FailureLog::default(),
            settling: Arc::new(Semaphore::new(SETTLING_MAX)),
            streams: StreamRegistry::default(),
            revalidation: Mutex::default(),
            settings_changed: Notify::new(),
            mail: watch::Sender::new(()),
            runtime: tokio::runtime::Handle::current(),
            metrics: Counters::new(metrics),
        })
    }

    /// Subscribes to events of other processes.
    pub(super) fn follow(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.authority.watch(Arc::new(move |event| {
            if let Some(store) = weak.upgrade() {
                store.handle_event(event);
            }
        }));
    }

    /// Applies a change that was made here or by another process.
    pub fn handle_event(&self, event: StoreEvent) {
        let changed = match event {
            StoreEvent::BindingChanged(id, version) => {
                // A cached key is read again at once: the store may fail before its next request.
                let known = self.cache.changed(id, version);
                if let Some(shared) = &self.shared {
                    shared.changed(id, version);
                }
                if known || self.streams.has(&id) { vec![id] } else { Vec::new() }
            }
            StoreEvent::SettingsChanged => {
                self.settings_changed.notify_one();
                Vec::new()
            }
            StoreEvent::MailChanged => {
                self.mail.send_replace(());
                Vec::new()
            }
            StoreEvent::NotificationsWork(works) => {
                self.metrics.notifications.set(works.into());
                Vec::new()
            }
            StoreEvent::EventsLost => {
                self.settings_changed.notify_one();
                self.mail.send_replace(());
                self.invalidate_all();
                self.streams.keys()
            }
        };
        self.revalidate(changed);
    }

    fn invalidate_all(&self) {
        self.cache.invalidate_all();
        if let Some(shared) = &self.shared {
            shared.invalidate_all();
        }
    }

    /// Flushes the write-behind queue in each `period`, as long as the store is in use.
    pub fn flush_every(self: &Arc<Self>, period: Duration) {
        every(self, period, |store| async move { store.flush().await });
    }

    /// Applies retention in each `period`; `policy` returns `None` to skip a run.
    pub fn apply_retention_every(self: &Arc<Self>, period: Duration, policy: impl Fn() -> Option<RetentionPolicy> + Send + 'static) {
        every(self, period, move |store| {
            let policy = policy();
            async move {
                if let Some(policy) = policy {
                    store.apply_retention(policy).await;
                }
            }
        });
    }

    /// Flushes the write-behind queue. Entries that cannot be written are queued again.
    pub async fn flush(&self) {
        let _one = self.flushing.lock().await;
        let batch = std::mem::take(&mut *self.waiting.lock());
        let mut pieces = batch.pieces().into_iter();
        for piece in pieces.by_ref() {
            let written: Vec<KeyId> = piece.intercepts.values().map(|repeated| repeated.first.id).collect();
            if let Err(error) = self.authority.write(&piece).await {
                if let Some(failures) = self.flush_failures.failed(Instant::now()) {
                    tracing::error!(%error, failures, "last uses, confirmations and intercepts could not be written; trying again at each flush");
                }
                let lost: usize = std::iter::once(piece).chain(pieces).map(|piece| self.waiting.lock().put_back(piece)).sum();
                self.metrics.dropped.inc_by(lost as u64);
                return;
            }
            self.intercepted.lock().extend(written);
            if let Some(failures) = self.flush_failures.succeeded() {
                tracing::info!(failures, "last uses, confirmations and intercepts are written again");
            }
        }
    }

    /// The last flush of a process: two attempts, then the lost entries are logged.
    pub async fn finish(&self) {
        self.flush().await;
        self.flush().await;
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let lost = waiting.used.len() + waiting.confirmed.len() + waiting.intercepts.len();
        if lost > 0 {
            tracing::error!(lost, "last uses, confirmations and intercepts could not be written and are lost");
        }
    }

    pub(super) async fn apply_retention(&self, policy: RetentionPolicy) {
        match self.authority.apply_retention(policy).await {
            // Another replica does it.
            Ok(None) => return,
            Ok(Some(result)) => {
                if result.archived + result.unconfirmed > 0 {
                    self.invalidate_all();
                }
                for (what, rows) in [("archived", result.archived), ("unconfirmed", result.unconfirmed), ("trimmed", result.trimmed)] {
                    self.metrics.retention.iter().for_each(|counter| counter.with_label_values(&[what]).inc_by(rows));
                }
                if result != crate::sql::record::RetentionResult::default() {
                    tracing::info!(
                        archived = result.archived,
                        unconfirmed = result.unconfirmed,
                        trimmed = result.trimmed,
                        "applied retention to the store"
                    );
                }
            }
            Err(error) => {
                if let Some(failures) = self.retention_failures.failed(Instant::now()) {
                    tracing::warn!(%error, failures, "retention failed; trying again later");
                }
                return;
            }
        }
        if let Some(failures) = self.retention_failures.succeeded() {
            tracing::info!(failures, "retention works again");
        }
    }

    /// Writes the upstream's verdict in the background. A confirmation that cannot be written now
    /// goes to the write-behind queue.
    fn settle(&self, binding: &Binding, accepted: bool) {
        let (id, version) = (binding.id, binding.version);
        let place = Arc::clone(&self.settling).try_acquire_owned().ok().filter(|_| !self.breaker.is_open());
        let (Some(store), Some(place)) = (self.me.upgrade(), place) else {
            if !(accepted && self.waiting.lock().confirmed(id, version)) {
                self.metrics.dropped.inc();
            }
            return;
        };
        self.runtime.spawn(async move {
            // Bypasses the circuit breaker: a late verdict under load says nothing about the
            // look-ups of requests.
            match store.authority.settle(id, version, accepted).await {
                Ok(true) => {
                    // The other replicas may cache it from now on.
                    if let (Some(shared), Some(known)) = (&store.shared, store.cache.fresh(&id, Instant::now())) {
                        shared.put(&known);
                    }
                }
                // The binding was removed: rows read meanwhile must not be cached.
                Ok(false) => {
                    store.cache.changed(id, version.saturating_add(1));
                }
                Err(_) if accepted && store.waiting.lock().confirmed(id, version) => {}
                Err(error) => {
                    store.metrics.dropped.inc();
                    tracing::warn!(%error, "the binding of a key that the upstream refused could not be removed; retention.unconfirmed removes it");
                }
            }
            drop(place);
        });
    }

    /// Waits until all verdicts of upstreams so far are written.
    #[cfg(test)]
    pub(super) async fn settled(&self) {
        let _ = self.settling.acquire_many(u32::try_from(SETTLING_MAX).unwrap_or(u32::MAX)).await;
    }

    pub(super) async fn query<T>(&self, query: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let away = || Err(StoreError::Away("the store does not answer; try again in a moment".into()));
        let answer = self.breaker.run(query, |error| matches!(error, StoreError::Away(_))).await.unwrap_or_else(away);
        self.metrics.away.set(self.breaker.is_open().into());
        answer
    }
}

impl Bindings for Store {
    fn cached(&self, id: &KeyId) -> Option<Arc<Binding>> {
        self.read_cached(id)
    }

    fn authoritative(&self, id: KeyId, key_use: Option<KeyUse>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(self.read(id, key_use))
    }

    fn bind_first_use(&self, first: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>> {
        Box::pin(async move {
            let (read_at, epoch) = (Instant::now(), self.cache.epoch());
            let row = self.query(self.authority.bind_first_use(first)).await;
            self.writability.note(&row);
            let row = row?;
            Ok(self.remember(row, read_at, epoch))
        })
    }

    fn adopt(&self, id: KeyId, previous: Vec<KeyId>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async move {
            for from in previous {
                let (read_at, epoch) = (Instant::now(), self.cache.epoch());
                // A read first: most keys never had another id, and reads are cheap.
                if self.query(self.authority.get(from)).await?.is_none() {
                    continue;
                }
                if let Some(row) = self.query(self.authority.adopt(id, from)).await? {
                    return Ok(Some(self.remember(row, read_at, epoch)));
                }
            }
            Ok(None)
        })
    }

    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async move {
            let (read_at, epoch) = (Instant::now(), self.cache.epoch());
            let known = self.cache.just_read(&id, read_at);
            // Repeated requests from other networks are answered from the cache.
            let elsewhere = |known: &Arc<Binding>| !known.has_room(network, at) && !known.networks.iter().any(|one| one.contains(&network));
            if let Some(known) = known.filter(elsewhere) {
                return Ok(Some(known));
            }
            let row = self.query(self.authority.roam(id, network, at)).await?;
            Ok(row.map(|row| self.remember(row, read_at, epoch)))
        })
    }

    fn stream_cancellation(&self, id: KeyId, client: IpAddr) -> Arc<CancellationHandle> {
        let cancellation = self.streams.register(id, client);
        // A change after the request was admitted found no stream to end.
        if !self.cache.fresh(&id, Instant::now()).is_some_and(|known| !known.banned && known.covers(client)) {
            self.revalidate(vec![id]);
        }
        cancellation
    }

    fn confirm(&self, binding: &Binding) {
        self.cache.confirmed(&binding.id, binding.version);
        self.settle(binding, true);
    }

    fn release(&self, binding: &Binding) {
        // Another response may have confirmed it meanwhile.
        if !self.cache.is_confirmed(&binding.id, binding.version) {
            self.settle(binding, false);
        }
    }

    fn used(&self, id: KeyId, at: SystemTime) {
        if !self.waiting.lock().used(id, at) {
            self.metrics.dropped.inc();
        }
    }

    fn intercepted(&self, intercept: Intercept) {
        if !intercept.shadow {
            self.metrics.intercepts.inc();
        }
        if !self.waiting.lock().intercepted(intercept) {
            self.metrics.dropped.inc();
        }
    }
}
