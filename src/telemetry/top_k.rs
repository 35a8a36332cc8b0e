//! The keys and client addresses with the most requests, in bounded memory: the Space-Saving algorithm (Metwally, Agrawal,
//! El Abbadi 2005).
//!
//! With more distinct keys than counters, the most frequent ones are still found, and no count exceeds the true one. The
//! counts are for the dashboard; limits do not use them.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;

use keylatch_filters::contract::{Key, KeyId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The number of shards, each with its own lock. A key always belongs to the same shard.
const SHARDS: usize = 8;
/// The number of counters in a shard.
const SHARD_ENTRIES_MAX: usize = 64;
/// The number of entries stored for a minute or an hour.
pub const STORED_MAX: usize = 20;
/// The number of entries kept in memory for the current minute or hour.
const KEPT_MAX: usize = 1000;

/// A counter. `inherited` of its `count` come from the entry that it replaced, and are an upper bound of its error.
struct Counter<V> {
    count: u64,
    inherited: u64,
    value: V,
}

struct Sketch<K, V>(Vec<Mutex<HashMap<K, Counter<V>>>>);

impl<K: Hash + Eq + Clone, V> Sketch<K, V> {
    fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    fn count(&self, hash: u64, key: K, value: impl FnOnce() -> V) {
        let mut shard = self.0[usize::try_from(hash % SHARDS as u64).unwrap_or(0)].lock();
        if let Some(counter) = shard.get_mut(&key) {
            counter.count += 1;
            return;
        }
        let mut inherited = 0;
        if shard.len() >= SHARD_ENTRIES_MAX
            && let Some(least) = shard.iter().min_by_key(|(_, counter)| counter.count).map(|(key, _)| key.clone())
            && let Some(counter) = shard.remove(&least)
        {
            inherited = counter.count;
        }
        shard.insert(key, Counter { count: inherited + 1, inherited, value: value() });
    }

    /// The guaranteed counts. Resets the sketch.
    fn take(&self) -> impl Iterator<Item = (K, V, u64)> {
        let counters = self.0.iter().flat_map(|shard| std::mem::take(&mut *shard.lock()));
        counters.map(|(key, counter)| (key, counter.value, counter.count - counter.inherited))
    }
}

/// Counts requests by key and client address.
pub struct TopRequesters {
    keys: Sketch<KeyId, String>,
    clients: Sketch<IpAddr, ()>,
    limited_keys: Sketch<KeyId, String>,
    limited_clients: Sketch<IpAddr, ()>,
    unauthorized_clients: Sketch<IpAddr, ()>,
    seeds: RandomState,
}

impl Default for TopRequesters {
    fn default() -> Self {
        Self {
            keys: Sketch::new(),
            clients: Sketch::new(),
            limited_keys: Sketch::new(),
            limited_clients: Sketch::new(),
            unauthorized_clients: Sketch::new(),
            seeds: RandomState::new(),
        }
    }
}

impl TopRequesters {
    /// Counts a request with the status of its response.
    pub fn count(&self, client: IpAddr, key: Option<&Key>, status: u16) {
        let client_hash = self.seeds.hash_one(client);
        self.clients.count(client_hash, client, || ());
        match status {
            401 => self.unauthorized_clients.count(client_hash, client, || ()),
            429 => self.limited_clients.count(client_hash, client, || ()),
            _ => {}
        }
        if let Some(key) = key {
            let hash = self.seeds.hash_one(key.id);
            self.keys.count(hash, key.id, || key.hint.clone());
            if status == 429 {
                self.limited_keys.count(hash, key.id, || key.hint.clone());
            }
        }
    }

    /// The counts since the last call.
    pub fn take(&self) -> TopCounts {
        let keys = |sketch: &Sketch<KeyId, String>| sketch.take().map(|(id, hint, count)| (id.hex(), TopEntry { hint, count })).collect();
        let clients = |sketch: &Sketch<IpAddr, ()>| {
            sketch.take().map(|(client, (), count)| (client.to_string(), TopEntry { hint: String::new(), count })).collect()
        };
        TopCounts {
            keys: keys(&self.keys),
            clients: clients(&self.clients),
            limited_keys: keys(&self.limited_keys),
            limited_clients: clients(&self.limited_clients),
            unauthorized_clients: clients(&self.unauthorized_clients),
        }
    }
}

/// The count of one key or address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopEntry {
    /// The hint of a key (`sk-…` and its last 4 characters); empty for an address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// The number of requests.
    pub count: u64,
}

/// Requests by key id (in hex) and by client address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopCounts {
    /// Requests by key.
    pub keys: HashMap<String, TopEntry>,
    /// Requests by address.
    pub clients: HashMap<String, TopEntry>,
    /// Requests that got 429, by key.
    pub limited_keys: HashMap<String, TopEntry>,
    /// Requests that got 429, by address.
    pub limited_clients: HashMap<String, TopEntry>,
    /// Requests that got 401, by address.
    pub unauthorized_clients: HashMap<String, TopEntry>,
}

impl TopCounts {
    /// Adds the counts of another replica or period. Beyond a limit the smallest entries are dropped.
    pub fn add(&mut self, other: Self) {
        let lists = [
            (&mut self.keys, other.keys),
            (&mut self.clients, other.clients),
            (&mut self.limited_keys, other.limited_keys),
            (&mut self.limited_clients, other.limited_clients),
            (&mut self.unauthorized_clients, other.unauthorized_clients),
        ];
        for (sums, added) in lists {
            for (name, entry) in added {
                let sum = sums.entry(name).or_default();
                sum.count += entry.count;
                sum.hint = entry.hint;
            }
            if sums.len() > 2 * KEPT_MAX {
                *sums = top(std::mem::take(sums), KEPT_MAX).into_iter().collect();
            }
        }
    }

    /// The largest entries of each list, as they are stored.
    pub fn largest(&self) -> Self {
        let largest = |all: &HashMap<String, TopEntry>| top(all.clone(), STORED_MAX).into_iter().collect();
        Self {
            keys: largest(&self.keys),
            clients: largest(&self.clients),
            limited_keys: largest(&self.limited_keys),
            limited_clients: largest(&self.limited_clients),
            unauthorized_clients: largest(&self.unauthorized_clients),
        }
    }
}

/// The `count_max` entries with the highest counts, sorted by count.
pub fn top(all: HashMap<String, TopEntry>, count_max: usize) -> Vec<(String, TopEntry)> {
    let mut all: Vec<(String, TopEntry)> = all.into_iter().collect();
    all.sort_by(|(name, entry), (other_name, other)| other.count.cmp(&entry.count).then_with(|| name.cmp(other_name)));
    all.truncate(count_max);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn the_most_frequent_clients_are_found_among_very_many() {
        let top_requesters = TopRequesters::default();
        for round in 0..100_000_u32 {
            top_requesters.count(address(round + 1000), None, 200);
            // One in ten, one in twenty.
            if round % 10 == 0 {
                top_requesters.count(address(1), None, 429);
            }
            if round % 20 == 0 {
                top_requesters.count(address(2), None, 401);
            }
        }
        let found = top(top_requesters.take().clients, 2);
        assert_eq!(found.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["0.0.0.1", "0.0.0.2"]);
        assert!((9_000..=10_000).contains(&found[0].1.count), "a count never exceeds the true one: {found:?}");
        assert_eq!(top_requesters.take(), TopCounts::default(), "taking resets the counts");
    }

    #[test]
    fn counts_add_up_within_a_limit() {
        let counts = |from: u32, count| TopCounts {
            clients: (from..from + 1500).map(|n| (n.to_string(), TopEntry { hint: String::new(), count: count + u64::from(n) })).collect(),
            ..TopCounts::default()
        };
        let mut all = counts(0, 1);
        all.add(counts(1000, 1));
        assert_eq!(all.clients.len(), KEPT_MAX);
        assert_eq!(all.clients["1499"].count, 3000);
        assert_eq!(top(all.largest().clients, 1), [("1499".to_owned(), TopEntry { hint: String::new(), count: 3000 })]);
        assert_eq!(all.largest().clients.len(), STORED_MAX);
    }
}
