//! What nobody waits for: last uses and intercepts, coalesced and bounded until they are written.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use ipnet::IpNet;
use keylatch_filters::contract::{Intercept, KeyId};

/// Entries of each kind that wait at most; past it, new ones are dropped and counted.
const WAITING_MAX: usize = 100_000;

/// What makes two intercepts one row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Same {
    id: KeyId,
    client: std::net::IpAddr,
    method: String,
    path: String,
    route: String,
    banned: bool,
}

/// Intercepts that are the same but for their time.
#[derive(Clone, Debug)]
pub struct Repeated {
    pub first: Intercept,
    pub last_at: SystemTime,
    pub count: u64,
}

/// Everything that waits.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub used: HashMap<KeyId, SystemTime>,
    pub confirmed: HashSet<KeyId>,
    pub intercepts: HashMap<Same, Repeated>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.used.is_empty() && self.confirmed.is_empty() && self.intercepts.is_empty()
    }

    /// False: dropped.
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

    /// False: dropped.
    pub fn confirmed(&mut self, id: KeyId) -> bool {
        let room = self.confirmed.len() < WAITING_MAX || self.confirmed.contains(&id);
        if room {
            self.confirmed.insert(id);
        }
        room
    }

    /// False: dropped.
    pub fn intercepted(&mut self, intercept: Intercept) -> bool {
        let at = intercept.at;
        self.repeated(Repeated { first: intercept, last_at: at, count: 1 })
    }

    fn repeated(&mut self, new: Repeated) -> bool {
        let first = &new.first;
        let same = Same {
            id: first.id,
            client: first.client,
            method: first.method.clone(),
            path: first.path.clone(),
            route: first.route.clone(),
            banned: first.banned,
        };
        let full = self.intercepts.len() >= WAITING_MAX;
        match self.intercepts.entry(same) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.count += new.count;
                known.last_at = known.last_at.max(new.last_at);
                true
            }
            Entry::Vacant(slot) if !full => {
                slot.insert(new);
                true
            }
            Entry::Vacant(_) => false,
        }
    }

    /// Puts back what could not be written. Returns how many entries found no room.
    pub fn put_back(&mut self, unwritten: Batch) -> usize {
        let lost_uses = unwritten.used.into_iter().filter(|(id, at)| !self.used(*id, *at)).count();
        let lost_intercepts = unwritten.intercepts.into_values().filter(|repeated| !self.repeated(repeated.clone())).count();
        let lost_confirmed = unwritten.confirmed.into_iter().filter(|id| !self.confirmed(*id)).count();
        lost_uses + lost_confirmed + lost_intercepts
    }
}

/// Networks as a row holds them.
pub fn networks(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
