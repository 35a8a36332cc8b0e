//! Freshness: which copy of a binding may decide about a request. Changes no binding, and leaves
//! the rule of a binding to [`Binding::admits`].
//!
//! A copy is in the process cache or in the cache that replicas share (Redis); the authority has
//! the binding itself. The rules:
//!
//! 1. A copy in the process cache may admit a client for [`FRESH`]. It never refuses one.
//! 2. After a miss in the process cache, an entry of the shared cache may admit a client, for
//!    `redis.cache_ttl`. It enters the process cache as *unverified*, and admits there by rule 1.
//! 3. Anything else needs the authority: a refusal, a first use, an operator. A copy that was read
//!    from the authority within [`RECHECKED`] counts as its answer; an unverified one never does.
//! 4. While the authority does not answer, the last known copy decides, also on a refusal: a key
//!    that is known to be bound or banned must not be treated as unknown. The order is the process
//!    cache and then the shared cache, both for `stale_grace`, then the copy of rule 1 or 2.
//! 5. Without a copy the read fails: with [`StoreError::Unsettled`] if the row is known to have
//!    changed, so that no failure policy lets the key pass.
//! 6. A notified change removes older copies at once (`cache`, by version), and the row is read
//!    again (`revalidate`). After notifications may have been lost, all copies serve rule 4 only.
//! 7. What the authority returns enters both caches, unless a newer version is known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::{Binding, KeyId, KeyUse, StoreError};

use super::Store;

/// The age up to which a copy admits without revalidation. If an event is lost, the change takes
/// effect within this time.
pub const FRESH: Duration = Duration::from_secs(30);
/// The shortest period between two reads of one key before a refusal. A client with a foreign key
/// must not be able to load the database.
pub const RECHECKED: Duration = Duration::from_secs(1);

/// The origin of a copy in the process cache.
#[derive(Clone, Copy)]
pub struct Provenance {
    /// When its read began.
    pub read_at: Instant,
    /// The epoch in which it was read. Epochs end when notifications may have been lost.
    pub epoch: u64,
    /// Whether it comes from the shared cache and not from the authority.
    pub unverified: bool,
}

impl Provenance {
    /// Whether the copy may admit a client (rule 1).
    pub fn may_admit(&self, now: Instant, epoch: u64) -> bool {
        self.epoch == epoch && self.is_within(now, FRESH)
    }

    /// Whether the copy counts as an answer of the authority (rule 3).
    pub fn is_authoritative(&self, now: Instant, epoch: u64) -> bool {
        !self.unverified && self.epoch == epoch && self.is_within(now, RECHECKED)
    }

    /// Whether the copy may decide while the authority does not answer (rule 4).
    pub fn is_within(&self, now: Instant, grace: Duration) -> bool {
        now.saturating_duration_since(self.read_at) < grace
    }
}

impl Store {
    /// Rule 1: the copy in the process cache, if it may admit.
    pub(super) fn read_cached(&self, id: &KeyId) -> Option<Arc<Binding>> {
        let copy = self.cache.fresh(id, Instant::now());
        if copy.is_some() {
            self.metrics.hits.inc();
        } else {
            self.metrics.misses.inc();
        }
        copy
    }

    /// Rules 1 to 5: a copy that admits this use, or the answer of the authority.
    pub(super) async fn read(&self, id: KeyId, key_use: Option<KeyUse>) -> Result<Option<Arc<Binding>>, StoreError> {
        let Some(KeyUse { client, at }) = key_use else { return self.read_authority(id).await };
        let copy = match self.cache.fresh(&id, Instant::now()) {
            None => self.read_shared(&id).await,
            fresh => fresh,
        };
        if copy.as_ref().is_some_and(|copy| copy.admits(client, at)) {
            return Ok(copy);
        }
        match self.read_authority(id).await {
            Err(_) if copy.is_some() => Ok(copy),
            answer => answer,
        }
    }

    /// Rule 2: the entry of the shared cache. It does not fail: `None` says only that there is none.
    async fn read_shared(&self, id: &KeyId) -> Option<Arc<Binding>> {
        let shared = self.shared.as_ref().filter(|shared| shared.is_there())?;
        let (read_at, epoch) = (Instant::now(), self.cache.epoch());
        let copy = self.cache.put_unverified(shared.get(id).await?, read_at, epoch)?;
        self.metrics.shared.inc();
        Some(copy)
    }

    /// Rule 3, and rules 4 and 5 if the authority does not answer.
    async fn read_authority(&self, id: KeyId) -> Result<Option<Arc<Binding>>, StoreError> {
        let (read_at, epoch) = (Instant::now(), self.cache.epoch());
        if let Some(copy) = self.cache.just_read(&id, read_at) {
            return Ok(Some(copy));
        }
        match self.query(self.authority.get(id)).await {
            Ok(Some(row)) => Ok(Some(self.remember(row, read_at, epoch))),
            Ok(None) => {
                self.cache.forget(&id);
                Ok(None)
            }
            Err(error) => {
                let copy = match (self.cache.stale(&id, read_at, self.stale_grace), &self.shared) {
                    (None, Some(shared)) => shared.stale(&id).await.map(Arc::new),
                    (copy, _) => copy,
                };
                self.metrics.stale.inc_by(copy.is_some().into());
                let invalidated = copy.is_none() && self.cache.is_invalidated(&id);
                copy.map(Some).ok_or_else(|| if invalidated { StoreError::Unsettled(error.to_string()) } else { error })
            }
        }
    }

    /// Rule 7: caches a row of the authority. A row that is known to be outdated is returned but
    /// not shared.
    pub(super) fn remember(&self, row: Binding, read_at: Instant, epoch: u64) -> Arc<Binding> {
        let holds = self.cache.put(row, read_at, epoch);
        let is_current = self.cache.fresh(&holds.id, read_at).is_some_and(|fresh| Arc::ptr_eq(&fresh, &holds));
        if let Some(shared) = self.shared.as_ref().filter(|_| is_current) {
            shared.put(&holds);
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_the_origin_and_the_epoch_decide() {
        let now = Instant::now();
        let read = Provenance { read_at: now, epoch: 3, unverified: false };
        let decides = |copy: Provenance, age: Duration, epoch| (copy.may_admit(now + age, epoch), copy.is_authoritative(now + age, epoch));
        assert_eq!(decides(read, Duration::ZERO, 3), (true, true));
        assert_eq!(decides(read, RECHECKED, 3), (true, false));
        assert_eq!(decides(read, FRESH, 3), (false, false));
        assert_eq!(decides(Provenance { unverified: true, ..read }, Duration::ZERO, 3), (true, false), "it never refuses");
        assert_eq!(decides(read, Duration::ZERO, 4), (false, false), "notifications may have been lost");
        assert!(read.is_within(now + FRESH, FRESH * 2) && !read.is_within(now + FRESH, FRESH));
    }
}
