//! Revalidation of changed keys: reads them again at once, so that the cache is right when the
//! store fails, and ends open streams that the new binding refuses. Reads the authority only, never
//! the caches.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use keylatch_filters::contract::{KeyId, StoreError};

use super::Store;

/// Keys to read again, and whether a task is doing so.
#[derive(Default)]
pub(super) struct RevalidationQueue {
    ids: HashSet<KeyId>,
    is_running: bool,
}

/// The authority did not answer.
struct AuthorityAway;

impl Store {
    /// Queues keys for revalidation.
    pub(super) fn revalidate(&self, ids: Vec<KeyId>) {
        if ids.is_empty() {
            return;
        }
        let mut queue = self.revalidation.lock();
        queue.ids.extend(ids);
        let begins = !std::mem::replace(&mut queue.is_running, true);
        if let Some(store) = self.me.upgrade().filter(|_| begins) {
            self.runtime.spawn(async move { store.revalidate_all().await });
        }
    }

    /// Retries until the authority has answered for each key.
    async fn revalidate_all(&self) {
        const AGAIN: Duration = Duration::from_millis(500);
        while let Some(ids) = self.next_keys() {
            let reads = ids.into_iter().map(|id| async move { self.revalidate_key(id).await.err().map(|AuthorityAway| id) });
            let unanswered: Vec<KeyId> = futures::future::join_all(reads).await.into_iter().flatten().collect();
            if !unanswered.is_empty() {
                self.revalidation.lock().ids.extend(unanswered);
                // No event says when the store is back.
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Takes keys out of the queue before they are read: a change meanwhile queues them again.
    fn next_keys(&self) -> Option<HashSet<KeyId>> {
        const AT_ONCE: usize = 256;
        let mut queue = self.revalidation.lock();
        let ids: HashSet<KeyId> = queue.ids.iter().take(AT_ONCE).copied().collect();
        queue.ids.retain(|id| !ids.contains(id));
        queue.is_running = !ids.is_empty();
        queue.is_running.then_some(ids)
    }

    /// Bypasses the circuit breaker and the caches.
    async fn revalidate_key(&self, id: KeyId) -> Result<(), AuthorityAway> {
        let (read_at, epoch) = (Instant::now(), self.cache.epoch());
        let holds = match self.authority.get(id).await {
            Ok(Some(row)) => Some(self.remember(row, read_at, epoch)),
            Ok(None) => None,
            Err(StoreError::Away(_)) => return Err(AuthorityAway),
            // A retry would fail again.
            Err(_) => return Ok(()),
        };
        let ended = self.streams.end_refused(&id, holds.as_deref());
        self.metrics.cut.inc_by(ended as u64);
        Ok(())
    }
}
