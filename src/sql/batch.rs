//! Write-behind queue for last-use times, confirmations and intercepts, coalesced and bounded.
//! Contains no SQL and no timer; `bindings` decides when it is written.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use ipnet::IpNet;
use keylatch_filters::contract::{Intercept, KeyId};

/// The maximum number of queued entries of each kind. Further ones are dropped and counted.
const WAITING_MAX: usize = 100_000;

/// Distinct queued intercepts of one key. Further ones are merged under path and method `*`, and
/// past twice this number also under the client `0.0.0.0`. A client controls these values and must
/// not control the amount of writes.
const DIFFERENT_MAX: u32 = 20;

/// The maximum number of entries in one write.
const PIECE_MAX: usize = 1000;

/// The fields by which intercepts are merged into one row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterceptMergeKey {
    id: KeyId,
    client: std::net::IpAddr,
    method: String,
    path: String,
    route: String,
    banned: bool,
    shadow: bool,
}

impl InterceptMergeKey {
    fn of(intercept: &Intercept) -> Self {
        Self {
            id: intercept.id,
            client: intercept.client,
            method: intercept.method.clone(),
            path: intercept.path.clone(),
            route: intercept.route.clone(),
            banned: intercept.banned,
            shadow: intercept.shadow,
        }
    }
}

/// Intercepts that differ in their time only.
#[derive(Clone, Debug)]
pub struct MergedIntercept {
    /// The first intercept.
    pub first: Intercept,
    /// The time of the last intercept.
    pub last_at: SystemTime,
    /// The number of intercepts.
    pub count: u64,
}

/// The queued entries.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The last use of each key.
    pub used: HashMap<KeyId, SystemTime>,
    /// The bindings to confirm, each with the version that the upstream accepted.
    pub confirmed: HashSet<(KeyId, i64)>,
    /// The merged intercepts.
    pub intercepts: HashMap<InterceptMergeKey, MergedIntercept>,
    /// The number of distinct intercepts of each key.
    different: HashMap<KeyId, u32>,
}

impl Batch {
    /// Queues a last use. False: dropped.
    pub fn used(&mut self, id: KeyId, at: SystemTime) -> bool {
        let full = self.used.len() >= WAITING_MAX;
        match self.used.entry(id) {
            Entry::Occupied(mut last) => {
                *last.get_mut() = at.max(*last.get());
                true
            }
            Entry::Vacant(slot) if !full => {
                slot.insert(at);
                true
            }
            Entry::Vacant(_) => false,
        }
    }

    /// Queues a confirmation. False: dropped.
    pub fn confirmed(&mut self, id: KeyId, version: i64) -> bool {
        let room = self.confirmed.len() < WAITING_MAX || self.confirmed.contains(&(id, version));
        if room {
            self.confirmed.insert((id, version));
        }
        room
    }

    /// Queues an intercept. False: dropped.
    pub fn intercepted(&mut self, intercept: Intercept) -> bool {
        let at = intercept.at;
        self.repeated(MergedIntercept { first: intercept, last_at: at, count: 1 })
    }

    fn repeated(&mut self, mut new: MergedIntercept) -> bool {
        let mut same = InterceptMergeKey::of(&new.first);
        let different = self.different.get(&same.id).copied().unwrap_or(0);
        for most in [DIFFERENT_MAX, 2 * DIFFERENT_MAX] {
            if different < most || self.intercepts.contains_key(&same) {
                break;
            }
            if most == DIFFERENT_MAX {
                (new.first.method, new.first.path) = ("*".into(), "*".into());
            } else {
                new.first.client = std::net::Ipv4Addr::UNSPECIFIED.into();
            }
            same = InterceptMergeKey::of(&new.first);
        }
        let full = self.intercepts.len() >= WAITING_MAX;
        match self.intercepts.entry(same) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.count += new.count;
                known.last_at = known.last_at.max(new.last_at);
                true
            }
            Entry::Vacant(slot) if !full => {
                *self.different.entry(new.first.id).or_default() += 1;
                slot.insert(new);
                true
            }
            Entry::Vacant(_) => false,
        }
    }

    /// Splits the batch, so that no single write delays first uses for long.
    pub fn pieces(self) -> Vec<Batch> {
        let used = pieces(self.used).into_iter().map(|used| Batch { used, ..Batch::default() });
        let confirmed = pieces(self.confirmed).into_iter().map(|confirmed| Batch { confirmed, ..Batch::default() });
        let intercepts = pieces(self.intercepts).into_iter().map(|intercepts| Batch { intercepts, ..Batch::default() });
        confirmed.chain(used).chain(intercepts).collect()
    }

    /// Queues a batch again that could not be written. Returns the number of dropped entries.
    pub fn put_back(&mut self, unwritten: Batch) -> usize {
        let lost_uses = unwritten.used.into_iter().filter(|(id, at)| !self.used(*id, *at)).count();
        let lost_intercepts = unwritten.intercepts.into_values().filter(|repeated| !self.repeated(repeated.clone())).count();
        let lost_confirmed = unwritten.confirmed.into_iter().filter(|(id, version)| !self.confirmed(*id, *version)).count();
        lost_uses + lost_confirmed + lost_intercepts
    }
}

fn pieces<T, C: FromIterator<T>>(all: impl IntoIterator<Item = T>) -> Vec<C> {
    let mut rest = all.into_iter().peekable();
    let mut pieces = Vec::new();
    while rest.peek().is_some() {
        pieces.push(rest.by_ref().take(PIECE_MAX).collect());
    }
    pieces
}

/// Networks as a row stores them: joined by commas.
pub fn networks(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_cannot_fill_the_queue() {
        let mut batch = Batch::default();
        for n in 0..10_000_u32 {
            let intercept = Intercept {
                id: KeyId([1; 32]),
                hint: String::new(),
                client: std::net::Ipv4Addr::from_bits(n % 5000).into(),
                networks: Vec::new(),
                method: "GET".into(),
                path: format!("/{n}"),
                user_agent: String::new(),
                route: "r".into(),
                banned: false,
                shadow: false,
                at: SystemTime::UNIX_EPOCH,
            };
            assert!(batch.intercepted(intercept));
        }
        assert!(batch.intercepts.len() as u32 <= 2 * DIFFERENT_MAX + 1, "{}", batch.intercepts.len());
        assert_eq!(batch.intercepts.values().map(|repeated| repeated.count).sum::<u64>(), 10_000, "the counts are complete");
    }

    #[test]
    fn pieces_contain_each_entry_once() {
        let id = |n: u64| KeyId(std::array::from_fn(|at| n.to_be_bytes().get(at).copied().unwrap_or(0)));
        let mut batch = Batch::default();
        (0..2500).for_each(|n| assert!(batch.used(id(n), SystemTime::UNIX_EPOCH) && batch.confirmed(id(n), 1)));
        let pieces = batch.pieces();
        assert_eq!(pieces.len(), 6);
        assert!(pieces.iter().all(|piece| piece.used.len() + piece.confirmed.len() <= PIECE_MAX));
        let mut again = Batch::default();
        assert_eq!(pieces.into_iter().map(|piece| again.put_back(piece)).sum::<usize>(), 0);
        assert_eq!((again.used.len(), again.confirmed.len()), (2500, 2500));
        assert_eq!(Batch::default().pieces().len(), 0);
    }
}
