//! Servers whose connections fail are left out for a while.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Counts failures in a row, for each address that has any.
pub struct Passive {
    failures_max: u32,
    eject_for: Duration,
    troubled: Mutex<HashMap<SocketAddr, Trouble>>,
    /// The size of the map, so that the usual case, no trouble anywhere, takes no lock.
    count: AtomicUsize,
}

struct Trouble {
    failures: u32,
    out_until: Option<Instant>,
}

impl Passive {
    /// After `failures_max` failures in a row (0: never) an address is out for `eject_for`.
    pub fn new(failures_max: u32, eject_for: Duration) -> Self {
        Self { failures_max, eject_for, troubled: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// Whether the address is not left out.
    pub fn admits(&self, address: SocketAddr, now: Instant) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let troubled = self.troubled.lock();
        troubled.get(&address).and_then(|trouble| trouble.out_until).is_none_or(|until| now >= until)
    }

    /// All is well with it again.
    pub fn succeeded(&self, address: SocketAddr) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut troubled = self.troubled.lock();
            troubled.remove(&address);
            self.count.store(troubled.len(), Ordering::Relaxed);
        }
    }

    /// One more failure. True if the address is left out from now on.
    pub fn failed(&self, address: SocketAddr, now: Instant) -> bool {
        if self.failures_max == 0 {
            return false;
        }
        let mut troubled = self.troubled.lock();
        let trouble = troubled.entry(address).or_insert(Trouble { failures: 0, out_until: None });
        trouble.failures = trouble.failures.saturating_add(1);
        let out = trouble.failures >= self.failures_max;
        if out {
            trouble.out_until = Some(now + self.eject_for);
        }
        self.count.store(troubled.len(), Ordering::Relaxed);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_after_three_and_back_after_a_while() {
        let (passive, now) = (Passive::new(3, Duration::from_secs(10)), Instant::now());
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        assert!(!passive.failed(address, now) && !passive.failed(address, now) && passive.admits(address, now));
        assert!(passive.failed(address, now));
        assert!(!passive.admits(address, now + Duration::from_secs(9)));
        assert!(passive.admits(address, now + Duration::from_secs(10)), "tried again");
        assert!(passive.failed(address, now + Duration::from_secs(10)), "one more failure is enough then");
        passive.succeeded(address);
        assert!(passive.admits(address, now) && !passive.failed(address, now));
    }
}
