//! Passive health: a server is ejected after failures in a row, until a connection succeeds. It
//! starts no task and writes no log.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Address;

/// With `failures: 0` no server is ejected; after this many failures it is still reported as
/// failing.
const REPORTED_AFTER: u32 = 3;

/// The connection failures by address.
pub struct Passive {
    failures_max: u32,
    eject_for: Duration,
    failing: Mutex<HashMap<Address, Failures>>,
    /// The size of the map, so that the usual case, no failures, takes no lock.
    count: AtomicUsize,
}

struct Failures {
    in_a_row: u32,
    since: Instant,
    /// Set from the ejection until a connection succeeds.
    ejected: bool,
    /// When the server is retried.
    retry_at: Instant,
    /// The failure was in TLS, which a TCP probe cannot test: only a request retries.
    by_request: bool,
    /// The retry has been reported.
    retried: bool,
}

impl Passive {
    /// After `failures_max` failures in a row (0: never) an address is ejected for `eject_for`.
    pub fn new(failures_max: u32, eject_for: Duration) -> Self {
        Self { failures_max, eject_for, failing: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// The failures in a row after which an address is ejected or reported.
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

    /// Whether the address is not failing.
    pub fn is_working(&self, address: &Address) -> bool {
        self.is_quiet() || self.failing.lock().get(address).is_none_or(|one| !one.ejected)
    }

    /// Notes a success. Returns how long the address had failed, if it was ejected.
    pub fn succeeded(&self, address: &Address, now: Instant) -> Option<Duration> {
        if self.is_quiet() {
            return None;
        }
        let mut failing = self.failing.lock();
        let before = failing.remove(address);
        self.count.store(failing.len(), Ordering::Relaxed);
        before.filter(|one| one.ejected).map(|one| now.saturating_duration_since(one.since))
    }

    /// Notes a failure. Returns true if it ejects the address.
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

    /// True the first time that an ejected address is due for a retry.
    pub fn retries(&self, address: &Address, now: Instant) -> bool {
        if self.is_quiet() {
            return false;
        }
        match self.failing.lock().get_mut(address) {
            Some(one) if one.ejected && now >= one.retry_at => !std::mem::replace(&mut one.retried, true),
            _ => false,
        }
    }

    /// The ejected addresses that a TCP probe must retry now.
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
    fn ejected_after_three_failures_until_a_connection_succeeds() {
        let (passive, now, one) = (Passive::new(3, 10 * S), Instant::now(), address());
        assert!(!passive.failed(&one, false, now) && !passive.failed(&one, false, now));
        assert!(passive.admits(&one, now) && passive.is_working(&one));
        assert!(passive.failed(&one, false, now + S), "reported once");
        assert!(!passive.failed(&one, false, now + S), "and not again");
        assert!(!passive.admits(&one, now + 60 * S) && !passive.is_working(&one));
        assert!(passive.due(now + 10 * S).is_empty());
        assert_eq!(passive.due(now + 11 * S), std::slice::from_ref(&one));
        assert!(passive.retries(&one, now + 11 * S) && !passive.retries(&one, now + 12 * S), "reported once");
        assert!(!passive.failed(&one, false, now + 12 * S) && passive.due(now + 13 * S).is_empty(), "ejected for longer");
        assert_eq!(passive.succeeded(&one, now + 30 * S), Some(30 * S));
        assert!(passive.admits(&one, now) && passive.is_working(&one));
        assert_eq!(passive.succeeded(&one, now), None);
        assert!(!passive.failed(&one, false, now), "counted anew");
    }

    #[test]
    fn a_failed_handshake_is_retried_by_a_request() {
        let (passive, now, one) = (Passive::new(1, 10 * S), Instant::now(), address());
        assert!(passive.failed(&one, true, now) && !passive.admits(&one, now + 9 * S));
        assert!(passive.admits(&one, now + 10 * S) && passive.due(now + 10 * S).is_empty());
        assert!(!passive.is_working(&one), "until one succeeds");
    }

    #[test]
    fn zero_ejects_no_server_and_still_reports() {
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
