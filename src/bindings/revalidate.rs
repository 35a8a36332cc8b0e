//! Keys of which somebody has said that they have changed: they are read anew at once, so that what is known holds when
//! the store goes, and those of their open streams end that may not go on.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use keylatch_filters::contract::{KeyId, StoreError};

use super::Store;

/// Keys that are to be read anew, and whether somebody does.
#[derive(Default)]
pub(super) struct Unsettled {
    ids: HashSet<KeyId>,
    at_work: bool,
}

/// The authority could not be asked.
struct Unasked;

impl Store {
    /// Reads these keys anew, soon, and ends those of their streams that may not go on.
    pub(super) fn look_after(&self, ids: Vec<KeyId>) {
        if ids.is_empty() {
            return;
        }
        let mut unsettled = self.unsettled.lock();
        unsettled.ids.extend(ids);
        let begins = !std::mem::replace(&mut unsettled.at_work, true);
        if let Some(store) = self.me.upgrade().filter(|_| begins) {
            self.runtime.spawn(async move { store.settle_streams().await });
        }
    }

    /// Goes on until the authority has answered for each: while it is away nobody can be judged anew.
    async fn settle_streams(&self) {
        const AGAIN: Duration = Duration::from_millis(500);
        while let Some(ids) = self.next_unsettled() {
            let asked = ids.into_iter().map(|id| async move { self.settle_streams_of(id).await.err().map(|Unasked| id) });
            let unasked: Vec<KeyId> = futures::future::join_all(asked).await.into_iter().flatten().collect();
            if !unasked.is_empty() {
                self.unsettled.lock().ids.extend(unasked);
                // Nothing says when the store is back: it is asked.
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Taken out before they are asked for: what changes meanwhile is asked for once more.
    fn next_unsettled(&self) -> Option<HashSet<KeyId>> {
        const AT_ONCE: usize = 256;
        let mut unsettled = self.unsettled.lock();
        let ids: HashSet<KeyId> = unsettled.ids.iter().take(AT_ONCE).copied().collect();
        unsettled.ids.retain(|id| !ids.contains(id));
        unsettled.at_work = !ids.is_empty();
        unsettled.at_work.then_some(ids)
    }

    /// Not through the breaker, and not from what was known before.
    async fn settle_streams_of(&self, id: KeyId) -> Result<(), Unasked> {
        let (asked_at, epoch) = (Instant::now(), self.cache.epoch());
        let holds = match self.authority.get(id).await {
            Ok(Some(row)) => Some(self.remember(row, asked_at, epoch)),
            Ok(None) => None,
            Err(StoreError::Away(_)) => return Err(Unasked),
            // Asking again would not make it better.
            Err(_) => return Ok(()),
        };
        let ended = self.stream_registry.cancel(&id, holds.as_deref());
        self.metrics.cut.inc_by(ended as u64);
        Ok(())
    }
}
