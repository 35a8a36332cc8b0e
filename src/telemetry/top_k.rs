//! Which keys and which addresses ask most, in bounded memory: Space-Saving (Metwally, Agrawal, El Abbadi 2005). Where more
//! are about than are remembered, those who ask most are found all the same, and no count is more than was seen.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;

use keylatch_filters::contract::{Key, KeyId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Whoever is the same is counted in the same one of so many.
const SHARDS: usize = 8;
/// So many are remembered in each.
const KNOWN_MAX: usize = 64;
/// So many are told of a minute or an hour.
pub const TOLD: usize = 20;
/// So many are kept while it goes on.
const KEPT: usize = 1000;

/// Seen so often; so much of it may have been somebody else whose place it took.
struct Seen<V> {
    count: u64,
    inherited: u64,
    value: V,
}

struct Sketch<K, V>(Vec<Mutex<HashMap<K, Seen<V>>>>);

impl<K: Hash + Eq + Clone, V> Sketch<K, V> {
    fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    fn count(&self, hash: u64, key: K, value: impl FnOnce() -> V) {
        let mut known = self.0[usize::try_from(hash % SHARDS as u64).unwrap_or(0)].lock();
        if let Some(seen) = known.get_mut(&key) {
            seen.count += 1;
            return;
        }
        let mut inherited = 0;
        if known.len() >= KNOWN_MAX
            && let Some(least) = known.iter().min_by_key(|(_, seen)| seen.count).map(|(key, _)| key.clone())
            && let Some(seen) = known.remove(&least)
        {
            inherited = seen.count;
        }
        known.insert(key, Seen { count: inherited + 1, inherited, value: value() });
    }

    /// Who was seen how often for certain; from here on it is counted anew.
    fn take(&self) -> impl Iterator<Item = (K, V, u64)> {
        self.0.iter().flat_map(|shard| std::mem::take(&mut *shard.lock())).map(|(key, seen)| (key, seen.value, seen.count - seen.inherited))
    }
}

/// Counts requests.
pub struct Tops {
    keys: Sketch<KeyId, String>,
    clients: Sketch<IpAddr, ()>,
    limited_keys: Sketch<KeyId, String>,
    limited_clients: Sketch<IpAddr, ()>,
    unauthorized_clients: Sketch<IpAddr, ()>,
    seeds: RandomState,
}

impl Default for Tops {
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

impl Tops {
    /// A request and the status of its response.
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

    /// What was counted since this was asked last.
    pub fn take(&self) -> Asked {
        let keys = |sketch: &Sketch<KeyId, String>| sketch.take().map(|(id, hint, count)| (id.hex(), Who { hint, count })).collect();
        let clients = |sketch: &Sketch<IpAddr, ()>| {
            sketch.take().map(|(client, (), count)| (client.to_string(), Who { hint: String::new(), count })).collect()
        };
        Asked {
            keys: keys(&self.keys),
            clients: clients(&self.clients),
            limited_keys: keys(&self.limited_keys),
            limited_clients: clients(&self.limited_clients),
            unauthorized_clients: clients(&self.unauthorized_clients),
        }
    }
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// What people recognise a key by; empty for an address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Requests.
    pub count: u64,
}

/// How often somebody has asked: keys by their ids in hex, and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// By key.
    pub keys: HashMap<String, Who>,
    /// By address.
    pub clients: HashMap<String, Who>,
    /// By key, of the requests that got 429.
    pub limited_keys: HashMap<String, Who>,
    /// By address, of the requests that got 429.
    pub limited_clients: HashMap<String, Who>,
    /// By address, of the requests that got 401.
    pub unauthorized_clients: HashMap<String, Who>,
}

impl Asked {
    /// Adds what was counted elsewhere or at another time; who asks least is forgotten where there are too many.
    pub fn add(&mut self, other: Self) {
        let lists = [
            (&mut self.keys, other.keys),
            (&mut self.clients, other.clients),
            (&mut self.limited_keys, other.limited_keys),
            (&mut self.limited_clients, other.limited_clients),
            (&mut self.unauthorized_clients, other.unauthorized_clients),
        ];
        for (mine, theirs) in lists {
            for (what, who) in theirs {
                let known = mine.entry(what).or_default();
                known.count += who.count;
                known.hint = who.hint;
            }
            if mine.len() > 2 * KEPT {
                *mine = top(std::mem::take(mine), KEPT).into_iter().collect();
            }
        }
    }

    /// Of it those who have asked most.
    pub fn told(&self) -> Self {
        let told = |all: &HashMap<String, Who>| top(all.clone(), TOLD).into_iter().collect();
        Self {
            keys: told(&self.keys),
            clients: told(&self.clients),
            limited_keys: told(&self.limited_keys),
            limited_clients: told(&self.limited_clients),
            unauthorized_clients: told(&self.unauthorized_clients),
        }
    }
}

/// Those who have asked most, by how often.
pub fn top(all: HashMap<String, Who>, most: usize) -> Vec<(String, Who)> {
    let mut all: Vec<(String, Who)> = all.into_iter().collect();
    all.sort_by(|(what, who), (other_what, other)| other.count.cmp(&who.count).then_with(|| what.cmp(other_what)));
    all.truncate(most);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn who_asks_most_is_found_among_very_many() {
        let tops = Tops::default();
        for round in 0..100_000_u32 {
            tops.count(address(round + 1000), None, 200);
            // One in ten, one in twenty.
            if round % 10 == 0 {
                tops.count(address(1), None, 429);
            }
            if round % 20 == 0 {
                tops.count(address(2), None, 401);
            }
        }
        let found = top(tops.take().clients, 2);
        assert_eq!(found.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["0.0.0.1", "0.0.0.2"]);
        assert!((9_000..=10_000).contains(&found[0].1.count), "never more than there were: {found:?}");
        assert_eq!(tops.take(), Asked::default(), "it is counted anew");
    }

    #[test]
    fn counts_add_up_and_have_an_end() {
        let of = |from: u32, count| Asked {
            clients: (from..from + 1500).map(|n| (n.to_string(), Who { hint: String::new(), count: count + u64::from(n) })).collect(),
            ..Asked::default()
        };
        let mut all = of(0, 1);
        all.add(of(1000, 1));
        assert_eq!(all.clients.len(), KEPT);
        assert_eq!(all.clients["1499"].count, 3000);
        assert_eq!(top(all.told().clients, 1), [("1499".to_owned(), Who { hint: String::new(), count: 3000 })]);
        assert_eq!(all.told().clients.len(), TOLD);
    }
}
