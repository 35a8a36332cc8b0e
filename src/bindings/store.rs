//! The bindings of one process: cache, authority, and a batch that is written from time to time.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, Bindings, BoxFuture, CancellationHandle, FirstUse, Intercept, KeyId, StoreError};
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::{Notify, Semaphore, watch};

use super::cache::Cache;
use super::health::Writability;
use super::metrics::Counters;
use super::revalidate::Unsettled;
use super::stream_registry::StreamRegistry;
use crate::redis::Redis;
use crate::redis::cache::Shared;
use crate::sql::batch::Batch;
use crate::sql::record::Tending;
use crate::sql::{Authority, News};
use crate::util::breaker::Breaker;
use crate::util::periodic::every;

/// Words of the upstream that are written at once; further ones wait for the next batch.
const SETTLING_MAX: usize = 4096;

/// See the module.
pub struct Store {
    pub(super) me: Weak<Self>,
    pub(super) authority: Arc<dyn Authority>,
    pub(super) cache: Cache,
    /// What replicas remember together, where there is Redis.
    pub(super) shared: Option<Arc<Shared>>,
    breaker: Breaker,
    pub(super) writability: Writability,
    /// What replicas share, to tell how it is.
    pub(super) redis: OnceLock<Arc<Redis>>,
    stale_grace: Duration,
    waiting: Mutex<Batch>,
    /// Keys whose intercepts were written since somebody looked.
    pub(super) intercepted: Mutex<HashSet<KeyId>>,
    /// One after the other: the last one at the end waits for the one before.
    flushing: tokio::sync::Mutex<()>,
    /// Words of the upstream that are being written.
    settling: Arc<Semaphore>,
    pub(super) stream_registry: StreamRegistry,
    /// Keys that are to be read anew.
    pub(super) unsettled: Mutex<Unsettled>,
    /// Somebody has changed a live setting, or may have.
    pub(super) settings_changed: Notify,
    /// Replicas have asked or answered something, or may have.
    pub(super) mail: watch::Sender<()>,
    /// Where what nobody waits for is done.
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) metrics: Counters,
}

impl Store {
    /// `stale_grace`: for how long what was read is good enough while the authority cannot be asked.
    pub(super) fn new(
        authority: Arc<dyn Authority>,
        shared: Option<Arc<Shared>>,
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
            settling: Arc::new(Semaphore::new(SETTLING_MAX)),
            stream_registry: StreamRegistry::default(),
            unsettled: Mutex::default(),
            settings_changed: Notify::new(),
            mail: watch::Sender::new(()),
            runtime: tokio::runtime::Handle::current(),
            metrics: Counters::new(metrics),
        })
    }

    /// Hears of what other processes change, from now on.
    pub(super) fn follow(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.authority.watch(Arc::new(move |news| {
            if let Some(store) = weak.upgrade() {
                store.hear(news);
            }
        }));
    }

    /// Somebody has changed something, here or elsewhere.
    pub fn hear(&self, news: News) {
        let looked_at = match news {
            News::Changed(id, version) => {
                // What was known is read anew at once: the store may go before it is asked for.
                let known = self.cache.changed(id, version);
                if let Some(shared) = &self.shared {
                    shared.changed(id, version);
                }
                if known || self.stream_registry.has(&id) { vec![id] } else { Vec::new() }
            }
            News::Settings => {
                self.settings_changed.notify_one();
                Vec::new()
            }
            News::Mail => {
                self.mail.send_replace(());
                Vec::new()
            }
            News::Hears(hears) => {
                self.metrics.hears.set(hears.into());
                Vec::new()
            }
            News::Lost => {
                self.settings_changed.notify_one();
                self.mail.send_replace(());
                self.doubt_everything();
                self.stream_registry.keys()
            }
        };
        self.look_after(looked_at);
    }

    fn doubt_everything(&self) {
        self.cache.doubt_everything();
        if let Some(shared) = &self.shared {
            shared.doubt_everything();
        }
    }

    /// Remembers what the authority has said. What is known to be older than the truth goes no further than the answer.
    pub(super) fn remember(&self, row: Binding, asked_at: Instant, epoch: u64) -> Arc<Binding> {
        let holds = self.cache.put(row, asked_at, epoch);
        let stands = self.cache.fresh(&holds.id, asked_at).is_some_and(|fresh| Arc::ptr_eq(&fresh, &holds));
        if let Some(shared) = self.shared.as_ref().filter(|_| stands) {
            shared.put(&holds);
        }
        holds
    }

    /// Writes what waits, every `period`, for as long as the store is in use.
    pub fn flush_every(self: &Arc<Self>, period: Duration) {
        every(self, period, |store| async move { store.flush().await });
    }

    /// Archives, sweeps and trims as `tending` says, whenever it says.
    pub fn tend_every(self: &Arc<Self>, period: Duration, tending: impl Fn() -> Option<Tending> + Send + 'static) {
        every(self, period, move |store| {
            let tending = tending();
            async move {
                if let Some(tending) = tending {
                    store.tend(tending).await;
                }
            }
        });
    }

    /// Writes what waits, now. What cannot be written waits on.
    pub async fn flush(&self) {
        let _one = self.flushing.lock().await;
        let batch = std::mem::take(&mut *self.waiting.lock());
        let mut pieces = batch.pieces().into_iter();
        for piece in pieces.by_ref() {
            let written: Vec<KeyId> = piece.intercepts.values().map(|repeated| repeated.first.id).collect();
            if let Err(error) = self.authority.write(&piece).await {
                tracing::error!(%error, "last uses, confirmations and intercepts could not be written; they wait on");
                let lost: usize = std::iter::once(piece).chain(pieces).map(|piece| self.waiting.lock().put_back(piece)).sum();
                self.metrics.dropped.inc_by(lost as u64);
                return;
            }
            self.intercepted.lock().extend(written);
        }
    }

    /// The last flush of a process: tried twice, and what is lost then is said.
    pub async fn finish(&self) {
        self.flush().await;
        self.flush().await;
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let lost = waiting.used.len() + waiting.confirmed.len() + waiting.intercepts.len();
        if lost > 0 {
            tracing::error!(lost, "last uses, confirmations and intercepts could not be written and are lost");
        }
    }

    pub(super) async fn tend(&self, tending: Tending) {
        match self.authority.tend(tending).await {
            Ok(None) => {}
            Ok(Some(tended)) => {
                if tended.archived + tended.unconfirmed > 0 {
                    self.doubt_everything();
                }
                for (what, rows) in [("archived", tended.archived), ("unconfirmed", tended.unconfirmed), ("trimmed", tended.trimmed)] {
                    self.metrics.tended.iter().for_each(|counter| counter.with_label_values(&[what]).inc_by(rows));
                }
                if tended != crate::sql::record::Tended::default() {
                    tracing::info!(
                        archived = tended.archived,
                        unconfirmed = tended.unconfirmed,
                        trimmed = tended.trimmed,
                        "tended the store"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "nothing was archived or trimmed; trying again later"),
        }
    }

    /// Writes the upstream's word, soon; a good one that cannot be written now is written with the next batch.
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
            // Not through the breaker: that this is late under load says nothing of what requests wait for.
            match store.authority.settle(id, version, accepted).await {
                Ok(true) => {
                    // The other replicas may know it from now on.
                    if let (Some(shared), Some(known)) = (&store.shared, store.cache.fresh(&id, Instant::now())) {
                        shared.put(&known);
                    }
                }
                // Whatever was read of it meanwhile is not to be remembered.
                Ok(false) => {
                    store.cache.changed(id, version.saturating_add(1));
                }
                Err(_) if accepted && store.waiting.lock().confirmed(id, version) => {}
                Err(error) => {
                    store.metrics.dropped.inc();
                    tracing::warn!(%error, "the binding of a key that the upstream refused stays until it is swept");
                }
            }
            drop(place);
        });
    }

    async fn ask<T>(&self, ask: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let away = || Err(StoreError::Away("the store does not answer; it is asked again in a moment".into()));
        let answer = self.breaker.run(ask, |error| matches!(error, StoreError::Away(_))).await.unwrap_or_else(away);
        self.metrics.away.set(self.breaker.is_open().into());
        answer
    }
}

impl Bindings for Store {
    fn cached(&self, id: &KeyId) -> Option<Arc<Binding>> {
        let known = self.cache.fresh(id, Instant::now());
        if known.is_some() {
            self.metrics.hits.inc();
        } else {
            self.metrics.misses.inc();
        }
        known
    }

    fn cached_by_replicas(&self, id: KeyId) -> BoxFuture<'_, Option<Arc<Binding>>> {
        let Some(shared) = self.shared.as_ref().filter(|shared| shared.is_there()) else { return Box::pin(std::future::ready(None)) };
        Box::pin(async move {
            let (asked_at, epoch) = (Instant::now(), self.cache.epoch());
            let known = self.cache.put_hearsay(shared.get(&id).await?, asked_at, epoch)?;
            self.metrics.shared.inc();
            Some(known)
        })
    }

    fn authoritative(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async move {
            let (asked_at, epoch) = (Instant::now(), self.cache.epoch());
            if let Some(known) = self.cache.just_read(&id, asked_at) {
                return Ok(Some(known));
            }
            match self.ask(self.authority.get(id)).await {
                Ok(Some(row)) => Ok(Some(self.remember(row, asked_at, epoch))),
                Ok(None) => {
                    self.cache.forget(&id);
                    Ok(None)
                }
                Err(error) => {
                    let known = match (self.cache.stale(&id, asked_at, self.stale_grace), &self.shared) {
                        (None, Some(shared)) => shared.stale(&id).await.map(Arc::new),
                        (known, _) => known,
                    };
                    self.metrics.stale.inc_by(known.is_some().into());
                    let unsettled = known.is_none() && self.cache.is_unsettled(&id);
                    known.map(Some).ok_or_else(|| if unsettled { StoreError::Unsettled(error.to_string()) } else { error })
                }
            }
        })
    }

    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>> {
        Box::pin(async move {
            let (asked_at, epoch) = (Instant::now(), self.cache.epoch());
            let row = self.ask(self.authority.latch(first)).await;
            self.writability.note(&row);
            let row = row?;
            Ok(self.remember(row, asked_at, epoch))
        })
    }

    fn adopt(&self, id: KeyId, previous: Vec<KeyId>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async move {
            for from in previous {
                let (asked_at, epoch) = (Instant::now(), self.cache.epoch());
                // A look first: most keys have never had another id, and looks are cheap.
                if self.ask(self.authority.get(from)).await?.is_none() {
                    continue;
                }
                if let Some(row) = self.ask(self.authority.adopt(id, from)).await? {
                    return Ok(Some(self.remember(row, asked_at, epoch)));
                }
            }
            Ok(None)
        })
    }

    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async move {
            let (asked_at, epoch) = (Instant::now(), self.cache.epoch());
            let known = self.cache.just_read(&id, asked_at);
            // Whoever hammers from elsewhere asks nobody.
            let elsewhere = |known: &Arc<Binding>| !known.has_room(network, at) && !known.networks.iter().any(|one| one.contains(&network));
            if let Some(known) = known.filter(elsewhere) {
                return Ok(Some(known));
            }
            let row = self.ask(self.authority.roam(id, network, at)).await?;
            Ok(row.map(|row| self.remember(row, asked_at, epoch)))
        })
    }

    fn stream_cancellation(&self, id: KeyId, client: IpAddr) -> Arc<CancellationHandle> {
        let cancellation = self.stream_registry.register(id, client);
        // A change that came after the request was admitted has found no stream to end.
        if !self.cache.fresh(&id, Instant::now()).is_some_and(|known| !known.banned && known.covers(client)) {
            self.look_after(vec![id]);
        }
        cancellation
    }

    fn confirm(&self, binding: &Binding) {
        self.cache.confirmed(&binding.id, binding.version);
        self.settle(binding, true);
    }

    fn release(&self, binding: &Binding) {
        // Another answer may have confirmed it meanwhile.
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
