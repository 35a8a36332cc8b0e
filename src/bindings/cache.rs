//! The process cache of bindings, of bounded size. Knows no store; the caller reads the authority
//! and reports changes. What a cached row may decide is in [`freshness`](super::freshness).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keylatch_filters::contract::{Binding, KeyId};
use quick_cache::sync::Cache as Quick;

use super::freshness::Provenance;

#[derive(Clone)]
struct Entry {
    /// `None`: the row was changed or removed at `version`, and older rows must not be cached.
    binding: Option<Arc<Binding>>,
    version: i64,
    provenance: Provenance,
}

/// Bindings by key id. An older version never replaces a newer one.
pub struct Cache {
    entries: Quick<KeyId, Entry>,
    /// Makes compare and replace one step.
    filling: parking_lot::Mutex<()>,
    /// Entries of earlier epochs are stale, whatever their age.
    epoch: AtomicU64,
}

impl Cache {
    pub fn new(entries_max: usize) -> Self {
        Self { entries: Quick::new(entries_max), filling: parking_lot::Mutex::default(), epoch: AtomicU64::new(0) }
    }

    /// The binding, if it may admit a client.
    pub fn fresh(&self, id: &KeyId, now: Instant) -> Option<Arc<Binding>> {
        self.get_if(id, |provenance| provenance.may_admit(now, self.epoch()))
    }

    /// The binding, if it counts as an answer of the authority.
    pub fn just_read(&self, id: &KeyId, now: Instant) -> Option<Arc<Binding>> {
        self.get_if(id, |provenance| provenance.is_authoritative(now, self.epoch()))
    }

    /// Whether the row is known to have changed and has not been read since.
    pub fn is_invalidated(&self, id: &KeyId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.binding.is_none())
    }

    /// The last known binding, if it was read within `grace`.
    pub fn stale(&self, id: &KeyId, now: Instant, grace: Duration) -> Option<Arc<Binding>> {
        self.get_if(id, |provenance| provenance.is_within(now, grace))
    }

    fn get_if(&self, id: &KeyId, suffices: impl FnOnce(Provenance) -> bool) -> Option<Arc<Binding>> {
        self.entries.get(id).filter(|entry| suffices(entry.provenance))?.binding
    }

    /// The present epoch, for a later [`Self::put`] of what is read from now on.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Caches what was read at `read_at` in `epoch`. Returns the newest known binding.
    pub fn put(&self, binding: Binding, read_at: Instant, epoch: u64) -> Arc<Binding> {
        self.fill(binding, Provenance { read_at, epoch, unverified: false })
    }

    fn fill(&self, mut binding: Binding, provenance: Provenance) -> Arc<Binding> {
        let _filling = self.filling.lock();
        let known = self.entries.get(&binding.id);
        // A confirmation may still be in the write-behind queue.
        binding.confirmed |= known
            .as_ref()
            .is_some_and(|known| known.version == binding.version && known.binding.as_ref().is_some_and(|known| known.confirmed));
        // A row read after events were lost is right whatever its version: it may be a restored
        // backup.
        match known.filter(|known| known.version > binding.version && known.provenance.epoch >= provenance.epoch) {
            Some(Entry { binding: Some(newer), .. }) => newer,
            // Read before the change: used for this request only.
            Some(Entry { binding: None, .. }) => Arc::new(binding),
            None => {
                let (id, version) = (binding.id, binding.version);
                let binding = Arc::new(binding);
                self.entries.insert(id, Entry { binding: Some(Arc::clone(&binding)), version, provenance });
                binding
            }
        }
    }

    /// Caches a binding from the shared cache, unless a newer change is known. Returns the binding
    /// to use.
    pub fn put_unverified(&self, binding: Binding, heard_at: Instant, epoch: u64) -> Option<Arc<Binding>> {
        let outdated = |known: Entry| known.version > binding.version && known.binding.is_none();
        if self.epoch() != epoch || self.entries.get(&binding.id).is_some_and(outdated) {
            return None;
        }
        Some(self.fill(binding, Provenance { read_at: heard_at, epoch, unverified: true }))
    }

    /// Records that the row was changed or removed as of this version. Returns whether it was
    /// cached.
    pub fn changed(&self, id: KeyId, version: i64) -> bool {
        let _filling = self.filling.lock();
        let known = self.entries.get(&id);
        if known.as_ref().is_some_and(|known| known.version >= version) {
            return false;
        }
        let provenance = Provenance { read_at: Instant::now(), epoch: self.epoch(), unverified: false };
        self.entries.insert(id, Entry { binding: None, version, provenance });
        known.is_some_and(|known| known.binding.is_some())
    }

    /// Whether the cached binding of this version is confirmed.
    pub fn is_confirmed(&self, id: &KeyId, version: i64) -> bool {
        let entry = self.entries.get(id).filter(|entry| entry.version == version);
        entry.and_then(|entry| entry.binding).is_some_and(|binding| binding.confirmed)
    }

    /// Marks the cached binding of this version as confirmed.
    pub fn confirmed(&self, id: &KeyId, version: i64) {
        let _filling = self.filling.lock();
        if let Some(entry) = self.entries.get(id).filter(|entry| entry.version == version)
            && let Some(binding) = &entry.binding
        {
            let binding = Arc::new(Binding { confirmed: true, ..Binding::clone(binding) });
            self.entries.insert(*id, Entry { binding: Some(binding), ..entry });
        }
    }

    /// Removes a key that has no binding.
    pub fn forget(&self, id: &KeyId) {
        let _filling = self.filling.lock();
        // The record of a change stays, because a read may be in progress.
        if self.entries.get(id).is_some_and(|entry| entry.binding.is_some()) {
            self.entries.remove(id);
        }
    }

    /// Begins a new epoch after events may have been lost: all entries are revalidated, and stale
    /// ones are used only while the authority is away.
    pub fn invalidate_all(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use keylatch_filters::contract::Rule;

    use super::*;
    use crate::bindings::freshness::FRESH;

    const ID: KeyId = KeyId([7; 32]);

    fn row(version: i64) -> Binding {
        Binding {
            id: ID,
            rule: Rule::All,
            networks: Vec::new(),
            roaming: None,
            seen: Vec::new(),
            banned: version == 2,
            labels: Vec::new(),
            by_first_use: true,
            confirmed: false,
            version,
        }
    }

    #[test]
    fn an_older_version_never_replaces_a_newer_one() {
        let (cache, now) = (Cache::new(16), Instant::now());
        cache.put(row(2), now, 0);
        assert!(cache.put(row(1), now, 0).banned, "a ban that raced a fill wins");
        assert!(cache.fresh(&ID, now).unwrap().banned);
        cache.changed(ID, 1);
        assert!(cache.fresh(&ID, now).is_some(), "an old event");
        cache.changed(ID, 3);
        assert!(cache.fresh(&ID, now).is_none());
        assert!(cache.put(row(2), now, 0).banned, "the answer to this request");
        assert!(cache.stale(&ID, now, FRESH).is_none(), "but not cached");
        cache.forget(&ID);
        cache.put(row(1), now, 0);
        assert!(cache.stale(&ID, now, FRESH).is_none(), "nor after the row is known to be removed");
        cache.put(row(3), now, 0);
        assert_eq!(cache.fresh(&ID, now).unwrap().version, 3);
        cache.confirmed(&ID, 3);
        assert!(cache.is_confirmed(&ID, 3) && !cache.is_confirmed(&ID, 2));
        assert!(cache.put(row(3), now, 0).confirmed, "the confirmation is still queued");
        assert!(cache.fresh(&ID, now).unwrap().confirmed);
    }

    #[test]
    fn rows_read_before_events_were_lost_are_stale() {
        let (cache, now) = (Cache::new(16), Instant::now());
        let reading = cache.epoch();
        cache.invalidate_all();
        cache.put(row(1), now, reading);
        assert!(cache.fresh(&ID, now).is_none() && cache.just_read(&ID, now).is_none());
        assert!(cache.stale(&ID, now, FRESH).is_some());
        cache.put(row(1), now, cache.epoch());
        assert!(cache.fresh(&ID, now).is_some() && cache.fresh(&ID, now + FRESH).is_none());
    }

    #[test]
    fn unverified_rows_admit_and_never_refuse() {
        let (cache, now) = (Cache::new(16), Instant::now());
        cache.put_unverified(row(1), now, 0);
        assert!(cache.fresh(&ID, now).is_some() && cache.just_read(&ID, now).is_none());
        cache.put(row(1), now, 0);
        assert!(cache.just_read(&ID, now).is_some());
        assert!(!cache.is_invalidated(&ID) && cache.changed(ID, 2) && cache.is_invalidated(&ID) && !cache.changed(ID, 3));
    }
}
