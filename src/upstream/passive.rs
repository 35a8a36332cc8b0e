//! Passive health: servers that fail connections in a row are left out until one succeeds. Starts no task and writes no log.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Address;

/// With `failures: 0` no server is left out; after this many failures it is still reported as failing.
const REPORTED_AFTER: u32 = 3;

/// The connection failures of each address that has any.
pub struct Passive {
    failures_max: u32,
    eject_for: Duration,
    failing: Mutex<HashMap<Address, Failures>>,
    /// The size of the map, so that the usual case, no failure anywhere, takes no lock.
    count: AtomicUsize,
}

struct Failures {
    in_a_row: u32,
    since: Instant,
    /// Set from the ejection until a connection succeeds.
    ejected: bool,
    /// When the server is tried again.
    retry_at: Instant,
    /// A plain connection shows nothing where the failure is one of TLS: only a request tries again.
    by_request: bool,
    /// That it is tried again was reported.
    retried: bool,
}

impl Passive {
    /// After `failures_max` failures in a row (0: never) an address is left out for `eject_for`.
    pub fn new(failures_max: u32, eject_for: Duration) -> Self {
        Self { failures_max, eject_for, failing: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// Failures in a row after which an address is left out, or reported.
    pub fn failures_max(&self) -> u32 {
        if self.failures_max == 0 { REPORTED_AFTER } else { self.failures_max }
    }

    fn is_quiet(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Whether requests may go to the address.
    pub fn admits(&self, address: &Address, now: Instant) -> bool {
        if self.is_quiet() || self.failures_max == 0 {
            return true;
        }
        let failing = self.failing.lock();
        failing.get(address).is_none_or(|one| !one.ejected || (one.by_request && now >= one.retry_at))
    }

    /// Whether the last connections did not all fail.
    pub fn is_working(&self, address: &Address) -> bool {
        self.is_quiet() || self.failing.lock().get(address).is_none_or(|one| !one.ejected)
    }

    /// A connection succeeded. For how long connections had failed, if the address was left out.
    pub fn succeeded(&self, address: &Address, now: Instant) -> Option<Duration> {
        if self.is_quiet() {
            return None;
        }
        let mut failing = self.failing.lock();
        let before = failing.remove(address);
        self.count.store(failing.len(), Ordering::Relaxed);
        before.filter(|one| one.ejected).map(|one| now.saturating_duration_since(one.since))
    }

    /// A connection failed. True if the address is left out from now on, and was not before.
    pub fn failed(&self, address: &Address, by_request: bool, now: Instant) -> bool {
        let most = self.failures_max();
        let mut failing = self.failing.lock();
        let one = failing.entry(address.clone()).or_insert(Failures {
            in_a_row: 0,
            since: now,
            ejected: false,
            retry_at: now,
            by_request,
            retried: false,
        });
        one.in_a_row = one.in_a_row.saturating_add(1);
        one.by_request = by_request;
        let newly = !one.ejected && one.in_a_row >= most;
        if one.in_a_row >= most {
            one.ejected = true;
            one.retry_at = now + self.eject_for;
        }
        self.count.store(failing.len(), Ordering::Relaxed);
        newly
    }

    /// True the first time that a left-out address is about to be tried again.
    pub fn retries(&self, address: &Address, now: Instant) -> bool {
        if self.is_quiet() {
            return false;
        }
        match self.failing.lock().get_mut(address) {
            Some(one) if one.ejected && now >= one.retry_at => !std::mem::replace(&mut one.retried, true),
            _ => false,
        }
    }

    /// Left-out addresses that a plain connection is to try again now.
    pub fn due(&self, now: Instant) -> Vec<Address> {
        if self.is_quiet() {
            return Vec::new();
        }
        let failing = self.failing.lock();
        let due = failing.iter().filter(|(_, one)| one.ejected && !one.by_request && now >= one.retry_at);
        due.map(|(address, _)| address.clone()).collect()
    }

    /// Forgets addresses that are no longer in use.
    pub fn retain(&self, in_use: &BTreeSet<Address>) {
        if !self.is_quiet() {
            let mut failing = self.failing.lock();
            failing.retain(|address, _| in_use.contains(address));
            self.count.store(failing.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::Inet(([127, 0, 0, 1], 80).into())
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn left_out_after_three_until_a_connection_succeeds() {
        let (passive, now, one) = (Passive::new(3, 10 * S), Instant::now(), address());
        assert!(!passive.failed(&one, false, now) && !passive.failed(&one, false, now));
        assert!(passive.admits(&one, now) && passive.is_working(&one));
        assert!(passive.failed(&one, false, now + S), "reported once");
        assert!(!passive.failed(&one, false, now + S), "and not again");
        assert!(!passive.admits(&one, now + 60 * S) && !passive.is_working(&one));
        assert!(passive.due(now + 10 * S).is_empty());
        assert_eq!(passive.due(now + 11 * S), std::slice::from_ref(&one));
        assert!(passive.retries(&one, now + 11 * S) && !passive.retries(&one, now + 12 * S), "reported once");
        assert!(!passive.failed(&one, false, now + 12 * S) && passive.due(now + 13 * S).is_empty(), "left out for longer");
        assert_eq!(passive.succeeded(&one, now + 30 * S), Some(30 * S));
        assert!(passive.admits(&one, now) && passive.is_working(&one));
        assert_eq!(passive.succeeded(&one, now), None);
        assert!(!passive.failed(&one, false, now), "counted anew");
    }

    #[test]
    fn a_failed_handshake_is_tried_again_by_a_request() {
        let (passive, now, one) = (Passive::new(1, 10 * S), Instant::now(), address());
        assert!(passive.failed(&one, true, now) && !passive.admits(&one, now + 9 * S));
        assert!(passive.admits(&one, now + 10 * S) && passive.due(now + 10 * S).is_empty());
        assert!(!passive.is_working(&one), "until one succeeds");
    }

    #[test]
    fn zero_leaves_nothing_out_and_reports_all_the_same() {
        let (passive, now, one) = (Passive::new(0, 10 * S), Instant::now(), address());
        assert!(!passive.failed(&one, false, now) && !passive.failed(&one, false, now) && passive.failed(&one, false, now));
        assert!(passive.admits(&one, now) && !passive.is_working(&one));
    }

    #[test]
    fn addresses_no_longer_in_use_are_forgotten() {
        let (passive, now, one) = (Passive::new(1, S), Instant::now(), address());
        passive.failed(&one, false, now);
        passive.retain(&BTreeSet::new());
        assert!(passive.is_working(&one) && passive.is_quiet());
    }
}
