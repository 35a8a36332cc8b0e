//! What this process remembers of the bindings, in bounded space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keylatch_filters::contract::{Binding, KeyId};
use quick_cache::sync::Cache as Quick;

/// For how long an entry is believed: where news of a change was lost, the change is seen within this.
pub const FRESH: Duration = Duration::from_secs(30);
/// A refusal asks the authority anew, but not more often than this for one key: whoever hammers with a
/// key that is not his must not be able to hammer the database.
const RECHECKED: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Entry {
    /// Without one, the row was changed or removed at `version`, and what is older must not be remembered.
    binding: Option<Arc<Binding>>,
    version: i64,
    read_at: Instant,
    /// The time of forgetting everything at which it was read.
    epoch: u64,
    /// What others remember: good enough to let somebody pass, and never to refuse him.
    hearsay: bool,
}

/// Bindings by key id. An older version never takes the place of a newer one.
pub struct Cache {
    entries: Quick<KeyId, Entry>,
    /// Fills compare and replace in one step.
    filling: parking_lot::Mutex<()>,
    /// Entries of earlier epochs are old, however young.
    epoch: AtomicU64,
}

impl Cache {
    pub fn new(entries_max: usize) -> Self {
        Self { entries: Quick::new(entries_max), filling: parking_lot::Mutex::default(), epoch: AtomicU64::new(0) }
    }

    /// The binding, if it was read not long ago.
    pub fn fresh(&self, id: &KeyId, now: Instant) -> Option<Arc<Binding>> {
        self.within(id, now, FRESH, true)
    }

    /// The binding, if it was read just now.
    pub fn just_read(&self, id: &KeyId, now: Instant) -> Option<Arc<Binding>> {
        self.entries.get(id).filter(|entry| !entry.hearsay)?;
        self.within(id, now, RECHECKED, true)
    }

    /// Whether the row is known to have changed, and not how.
    pub fn is_unsettled(&self, id: &KeyId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.binding.is_none())
    }

    /// The binding as it was, if that is no longer ago than `grace`.
    pub fn stale(&self, id: &KeyId, now: Instant, grace: Duration) -> Option<Arc<Binding>> {
        self.within(id, now, grace, false)
    }

    fn within(&self, id: &KeyId, now: Instant, age: Duration, this_epoch: bool) -> Option<Arc<Binding>> {
        let entry = self.entries.get(id)?;
        let young = now.saturating_duration_since(entry.read_at) < age;
        let heard = !this_epoch || entry.epoch == self.epoch.load(Ordering::Relaxed);
        (young && heard).then_some(entry.binding).flatten()
    }

    /// Now, for a later [`Self::put`] of what is about to be read.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Remembers what was read at `read_at` in `epoch`; answers with the newest that is known.
    pub fn put(&self, binding: Binding, read_at: Instant, epoch: u64) -> Arc<Binding> {
        self.fill(binding, read_at, epoch, false)
    }

    fn fill(&self, mut binding: Binding, read_at: Instant, epoch: u64, hearsay: bool) -> Arc<Binding> {
        let _filling = self.filling.lock();
        let known = self.entries.get(&binding.id);
        // A confirmation may not have been written yet.
        binding.confirmed |= known
            .as_ref()
            .is_some_and(|known| known.version == binding.version && known.binding.as_ref().is_some_and(|known| known.confirmed));
        // What was read after news may have been lost is right, whatever the versions: it may be a restored backup.
        match known.filter(|known| known.version > binding.version && known.epoch >= epoch) {
            Some(Entry { binding: Some(newer), .. }) => newer,
            // Read before it was changed: good for the request that asked, and for no other.
            Some(Entry { binding: None, .. }) => Arc::new(binding),
            None => {
                let (id, version) = (binding.id, binding.version);
                let binding = Arc::new(binding);
                self.entries.insert(id, Entry { binding: Some(Arc::clone(&binding)), version, read_at, epoch, hearsay });
                binding
            }
        }
    }

    /// Remembers what others remembered: good for nobody if anything newer is known. Answers with what holds.
    pub fn put_hearsay(&self, binding: Binding, heard_at: Instant, epoch: u64) -> Option<Arc<Binding>> {
        let outdated = |known: Entry| known.version > binding.version && known.binding.is_none();
        if self.epoch() != epoch || self.entries.get(&binding.id).is_some_and(outdated) {
            return None;
        }
        Some(self.fill(binding, heard_at, epoch, true))
    }

    /// The row has changed, or is gone, as of this version. Whether it was remembered.
    pub fn changed(&self, id: KeyId, version: i64) -> bool {
        let _filling = self.filling.lock();
        let known = self.entries.get(&id);
        if known.as_ref().is_some_and(|known| known.version >= version) {
            return false;
        }
        self.entries.insert(id, Entry { binding: None, version, read_at: Instant::now(), epoch: self.epoch(), hearsay: false });
        known.is_some_and(|known| known.binding.is_some())
    }

    /// Whether the key was confirmed, as far as is remembered.
    pub fn is_confirmed(&self, id: &KeyId, version: i64) -> bool {
        let entry = self.entries.get(id).filter(|entry| entry.version == version);
        entry.and_then(|entry| entry.binding).is_some_and(|binding| binding.confirmed)
    }

    /// The key was confirmed: the same row, in the same version.
    pub fn confirmed(&self, id: &KeyId, version: i64) {
        let _filling = self.filling.lock();
        if let Some(entry) = self.entries.get(id).filter(|entry| entry.version == version)
            && let Some(binding) = &entry.binding
        {
            let binding = Arc::new(Binding { confirmed: true, ..Binding::clone(binding) });
            self.entries.insert(*id, Entry { binding: Some(binding), ..entry });
        }
    }

    /// Forgets a key that is not bound any more.
    pub fn forget(&self, id: &KeyId) {
        let _filling = self.filling.lock();
        // A note of a change must stay for as long as fills may be under way.
        if self.entries.get(id).is_some_and(|entry| entry.binding.is_some()) {
            self.entries.remove(id);
        }
    }

    /// News may have been lost: everything is asked for anew, and serves only where nobody can be asked.
    pub fn doubt_everything(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use keylatch_filters::contract::Rule;

    use super::*;

    const ID: KeyId = KeyId([7; 32]);

    fn row(version: i64) -> Binding {
        Binding {
            id: ID,
            rule: Rule::All,
            networks: Vec::new(),
            roaming: None,
            seen: Vec::new(),
            banned: version == 2,
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
        assert!(cache.fresh(&ID, now).is_some(), "old news");
        cache.changed(ID, 3);
        assert!(cache.fresh(&ID, now).is_none());
        assert!(cache.put(row(2), now, 0).banned, "the answer for whoever asked");
        assert!(cache.stale(&ID, now, FRESH).is_none(), "but not remembered");
        cache.forget(&ID);
        cache.put(row(1), now, 0);
        assert!(cache.stale(&ID, now, FRESH).is_none(), "nor after it is known to be gone");
        cache.put(row(3), now, 0);
        assert_eq!(cache.fresh(&ID, now).unwrap().version, 3);
        cache.confirmed(&ID, 3);
        assert!(cache.is_confirmed(&ID, 3) && !cache.is_confirmed(&ID, 2));
        assert!(cache.put(row(3), now, 0).confirmed, "not written yet, all the same");
        assert!(cache.fresh(&ID, now).unwrap().confirmed);
    }

    #[test]
    fn what_was_read_before_news_was_lost_is_old() {
        let (cache, now) = (Cache::new(16), Instant::now());
        let reading = cache.epoch();
        cache.doubt_everything();
        cache.put(row(1), now, reading);
        assert!(cache.fresh(&ID, now).is_none() && cache.just_read(&ID, now).is_none());
        assert!(cache.stale(&ID, now, FRESH).is_some());
        cache.put(row(1), now, cache.epoch());
        assert!(cache.fresh(&ID, now).is_some() && cache.fresh(&ID, now + FRESH).is_none());
    }

    #[test]
    fn what_others_say_is_good_for_passing_only() {
        let (cache, now) = (Cache::new(16), Instant::now());
        cache.put_hearsay(row(1), now, 0);
        assert!(cache.fresh(&ID, now).is_some() && cache.just_read(&ID, now).is_none());
        cache.put(row(1), now, 0);
        assert!(cache.just_read(&ID, now).is_some());
        assert!(!cache.is_unsettled(&ID) && cache.changed(ID, 2) && cache.is_unsettled(&ID) && !cache.changed(ID, 3));
    }
}
