//! Open streams by their keys, so that those of a key that is banned or unbound can be ended.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use keylatch_filters::contract::{Binding, CancelReason, CancellationHandle, KeyId};
use parking_lot::Mutex;

type StreamsOfKey = Vec<(IpAddr, Weak<CancellationHandle>)>;

/// See the module. A stream that has ended is forgotten when its key is looked at next, or with the others
/// when there are twice as many as after the last tidying.
#[derive(Default)]
pub struct StreamRegistry(Mutex<State>);

#[derive(Default)]
struct State {
    by_key: HashMap<KeyId, StreamsOfKey>,
    added: usize,
    tidied: usize,
}

impl StreamRegistry {
    /// For a stream of this key to this client that begins.
    pub fn register(&self, id: KeyId, client: IpAddr) -> Arc<CancellationHandle> {
        let cancellation = Arc::new(CancellationHandle::default());
        let mut state = self.0.lock();
        state.by_key.entry(id).or_default().push((client, Arc::downgrade(&cancellation)));
        state.added += 1;
        if state.added > 1000 + 2 * state.tidied {
            state.by_key.retain(|_, streams| {
                streams.retain(|(_, cancellation)| cancellation.strong_count() > 0);
                !streams.is_empty()
            });
            state.tidied = state.by_key.values().map(Vec::len).sum();
            state.added = state.tidied;
        }
        cancellation
    }

    /// The keys of which streams may be open.
    pub fn keys(&self) -> Vec<KeyId> {
        self.0.lock().by_key.keys().copied().collect()
    }

    /// Whether the key may have open streams.
    pub fn has(&self, id: &KeyId) -> bool {
        self.0.lock().by_key.contains_key(id)
    }

    /// Ends the key's streams that the binding that holds now would not let begin. How many.
    pub fn cancel(&self, id: &KeyId, holds: Option<&Binding>) -> usize {
        let mut state = self.0.lock();
        let Some(streams) = state.by_key.get_mut(id) else { return 0 };
        let mut cancelled = 0;
        streams.retain(|(client, cancellation)| {
            let Some(cancellation) = cancellation.upgrade() else { return false };
            let stays = holds.is_some_and(|binding| !binding.banned && binding.covers(*client));
            if !stays {
                cancellation.cancel(CancelReason::Binding);
                cancelled += 1;
            }
            stays
        });
        if streams.is_empty() {
            state.by_key.remove(id);
        }
        cancelled
    }
}

#[cfg(test)]
mod tests {
    use keylatch_filters::contract::Rule;

    use super::*;

    #[test]
    fn streams_that_ended_are_forgotten() {
        let (registry, id, client) = (StreamRegistry::default(), KeyId([1; 32]), IpAddr::from([127, 0, 0, 1]));
        for n in 0..=255 {
            drop(registry.register(KeyId([n; 32]), client));
        }
        let kept = registry.register(id, client);
        (0..1000).for_each(|_| drop(registry.register(KeyId([2; 32]), client)));
        assert!(registry.keys().len() <= 2, "{}", registry.keys().len());
        let networks = vec![client.into()];
        let binding = Binding {
            id,
            rule: Rule::Single,
            networks,
            roaming: None,
            seen: Vec::new(),
            banned: false,
            by_first_use: true,
            confirmed: true,
            version: 1,
        };
        assert_eq!(registry.cancel(&id, Some(&binding)), 0);
        assert_eq!(registry.cancel(&id, Some(&Binding { banned: true, ..binding })), 1);
        assert!(!registry.has(&id));
        drop(kept);
    }
}
