//! What this process remembers of the bindings, in bounded space.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::{Binding, KeyId};
use quick_cache::sync::Cache as Quick;

/// For how long an entry is believed: changes made to the database by others are seen within this.
const FRESH: Duration = Duration::from_secs(30);
/// A refusal asks the authority anew, but not more often than this for one key: whoever hammers with a
/// key that is not his must not be able to hammer the database.
const RECHECKED: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Entry {
    binding: Arc<Binding>,
    read_at: Instant,
}

/// Bindings by key id. Of two reads that overlapped, the older version never takes the place of the newer;
/// a read that began after the known one was made wins, whatever its version: the row may be another.
pub struct Cache {
    entries: Quick<KeyId, Entry>,
    /// Fills compare and replace in one step.
    filling: parking_lot::Mutex<()>,
}

impl Cache {
    pub fn new(entries_max: usize) -> Self {
        Self { entries: Quick::new(entries_max), filling: parking_lot::Mutex::default() }
    }

    /// The binding, if it was read not long ago.
    pub fn fresh(&self, id: &KeyId, now: Instant) -> Option<Arc<Binding>> {
        self.within(id, now, FRESH)
    }

    /// The binding, if it was read just now.
    pub fn just_read(&self, id: &KeyId, now: Instant) -> Option<Arc<Binding>> {
        self.within(id, now, RECHECKED)
    }

    fn within(&self, id: &KeyId, now: Instant, age: Duration) -> Option<Arc<Binding>> {
        self.entries.get(id).filter(|entry| now.saturating_duration_since(entry.read_at) < age).map(|entry| entry.binding)
    }

    /// Remembers what was read at `read_at`; answers with what is remembered then.
    pub fn put(&self, binding: Binding, read_at: Instant) -> Arc<Binding> {
        let _filling = self.filling.lock();
        if let Some(known) = self.entries.get(&binding.id)
            && known.binding.version > binding.version
            && known.read_at >= read_at
        {
            return known.binding;
        }
        let binding = Arc::new(binding);
        self.entries.insert(binding.id, Entry { binding: Arc::clone(&binding), read_at });
        binding
    }

    /// Whether anything is remembered of the key, however old.
    pub fn knows(&self, id: &KeyId) -> bool {
        self.entries.peek(id).is_some()
    }

    /// Forgets a key that is not bound any more.
    pub fn forget(&self, id: &KeyId) {
        self.entries.remove(id);
    }
}
