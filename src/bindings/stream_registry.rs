//! The open streams of each key, so that those of a banned or unbound key can be ended. Keeps weak
//! references only: a stream ends without telling the registry.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use keylatch_filters::contract::{Binding, CancelReason, CancellationHandle, KeyId};
use parking_lot::Mutex;

type OpenStreams = Vec<(IpAddr, Weak<CancellationHandle>)>;

/// Cancellation handles by key. A stream that has ended is removed when its key is checked next, or
/// in a sweep once the number of handles has doubled.
#[derive(Default)]
pub struct StreamRegistry(Mutex<State>);

#[derive(Default)]
struct State {
    by_key: HashMap<KeyId, OpenStreams>,
    added: usize,
    swept: usize,
}

impl StreamRegistry {
    /// Registers a stream of this key to this client, and returns its cancellation handle.
    pub fn register(&self, id: KeyId, client: IpAddr) -> Arc<CancellationHandle> {
        let cancellation = Arc::new(CancellationHandle::default());
        let mut state = self.0.lock();
        state.by_key.entry(id).or_default().push((client, Arc::downgrade(&cancellation)));
        state.added += 1;
        if state.added > 1000 + 2 * state.swept {
            state.by_key.retain(|_, open| {
                open.retain(|(_, cancellation)| cancellation.strong_count() > 0);
                !open.is_empty()
            });
            state.swept = state.by_key.values().map(Vec::len).sum();
            state.added = state.swept;
        }
        cancellation
    }

    /// The keys that may have open streams.
    pub fn keys(&self) -> Vec<KeyId> {
        self.0.lock().by_key.keys().copied().collect()
    }

    /// Whether the key may have open streams.
    pub fn has(&self, id: &KeyId) -> bool {
        self.0.lock().by_key.contains_key(id)
    }

    /// Ends the key's streams that the binding `holds` refuses. Returns their number.
    pub fn end_refused(&self, id: &KeyId, holds: Option<&Binding>) -> usize {
        let mut state = self.0.lock();
        let Some(open) = state.by_key.get_mut(id) else { return 0 };
        let mut ended = 0;
        open.retain(|(client, cancellation)| {
            let Some(cancellation) = cancellation.upgrade() else { return false };
            let stays = holds.is_some_and(|binding| !binding.banned && binding.covers(*client));
            if !stays {
                cancellation.cancel(CancelReason::Binding);
                ended += 1;
            }
            stays
        });
        if open.is_empty() {
            state.by_key.remove(id);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use keylatch_filters::contract::Rule;

    use super::*;

    #[test]
    fn ended_streams_are_removed() {
        let (streams, id, client) = (StreamRegistry::default(), KeyId([1; 32]), IpAddr::from([127, 0, 0, 1]));
        for n in 0..=255 {
            drop(streams.register(KeyId([n; 32]), client));
        }
        let kept = streams.register(id, client);
        (0..1000).for_each(|_| drop(streams.register(KeyId([2; 32]), client)));
        assert!(streams.keys().len() <= 2, "{}", streams.keys().len());
        let networks = vec![client.into()];
        let binding = Binding {
            id,
            rule: Rule::Single,
            networks,
            roaming: None,
            seen: Vec::new(),
            banned: false,
            labels: Vec::new(),
            by_first_use: true,
            confirmed: true,
            version: 1,
        };
        assert_eq!(streams.end_refused(&id, Some(&binding)), 0);
        assert_eq!(streams.end_refused(&id, Some(&Binding { banned: true, ..binding })), 1);
        assert!(!streams.has(&id));
        drop(kept);
    }
}
