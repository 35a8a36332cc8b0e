//! Quotas in terms of their algorithms, and the port to counters that replicas share. It stores no counts itself;
//! `src/redis` implements the port.

use std::time::Duration;

use super::{BoxFuture, StoreError};

/// A rate and burst as parameters of the generic cell rate algorithm (GCRA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The time between two hits at exactly the rate, in nanoseconds; at least 1.
    pub interval_ns: u64,
    /// How far ahead of now the theoretical arrival time may be for a hit to be allowed: (burst − 1) intervals.
    pub tolerance_ns: u64,
}

impl Quota {
    /// One hit every `interval`, and up to `burst` (at least 1) at once.
    pub fn new(interval: Duration, burst: u32) -> Self {
        let interval_ns = nanos(interval).max(1);
        Self { interval_ns, tolerance_ns: interval_ns.saturating_mul(u64::from(burst.max(1)) - 1) }
    }

    /// The burst: the number of hits allowed at once.
    pub fn burst(&self) -> u32 {
        u32::try_from(self.tolerance_ns / self.interval_ns).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// The outcome of a hit, after which the theoretical arrival time is `ahead_ns` ahead of now.
    pub fn outcome(&self, allowed: bool, ahead_ns: u64, cost: u32) -> Outcome {
        let left_ns = self.tolerance_ns.saturating_add(self.interval_ns).saturating_sub(ahead_ns);
        let needed_ns = self.interval_ns.saturating_mul(u64::from(cost.max(1)) - 1);
        let refused_for = Duration::from_nanos(ahead_ns.saturating_add(needed_ns).saturating_sub(self.tolerance_ns));
        Outcome {
            allowed,
            remaining: if allowed { u32::try_from(left_ns / self.interval_ns).unwrap_or(u32::MAX) } else { 0 },
            full_in: Duration::from_nanos(ahead_ns),
            more_in: if allowed {
                Duration::from_nanos((self.interval_ns - left_ns % self.interval_ns).min(ahead_ns))
            } else {
                refused_for
            },
            retry_in: if allowed { Duration::ZERO } else { refused_for },
        }
    }
}

/// The outcome of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the hit was within the limit.
    pub allowed: bool,
    /// How many more hits would be allowed now.
    pub remaining: u32,
    /// The time until the full burst is available again, or a new window starts.
    pub full_in: Duration,
    /// The time until more hits are allowed than now. After a refusal: the time until the request can be repeated.
    pub more_in: Duration,
    /// The time until the next hit can be allowed; zero if this hit was allowed.
    pub retry_in: Duration,
}

/// The algorithm that counts hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The generic cell rate algorithm. A refused subject stays refused for at least `block`.
    Rolling {
        /// The rate and burst.
        quota: Quota,
        /// The minimum time of a refusal; zero for none.
        block: Duration,
    },
    /// A maximum count in a calendar window.
    Window {
        /// The maximum count.
        most: u32,
        /// The number of the window; it increases from one window to the next.
        number: i64,
        /// The time until the window ends.
        left: Duration,
    },
}

/// One hit of a request on one limit.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The limit and the subject; the same on every replica.
    pub name: String,
    /// The algorithm.
    pub measure: Measure,
    /// The cost of the hit, at least 1.
    pub cost: u32,
    /// The limit is in shadow mode: its refusal does not prevent counting on the other limits.
    pub shadow: bool,
}

/// Counters that replicas share.
pub trait Counters: Send + Sync {
    /// Counts a request on all of its limits atomically. If one limit refuses it, it is counted on none. The outcomes are in
    /// the order of the hits.
    fn hit(&self, hits: Vec<Hit>) -> BoxFuture<'_, Result<Vec<Outcome>, StoreError>>;
    /// The outcome that a hit would have now, without counting it.
    fn peek<'a>(&'a self, hit: &'a Hit) -> BoxFuture<'a, Result<Outcome, StoreError>>;
    /// Resets the count of the limit and subject of this hit.
    fn forget<'a>(&'a self, hit: &'a Hit) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Acquires one of at most `most` leases of this name, held until the returned value is dropped. `None`: all are taken.
    fn lease(&self, name: String, most: u32) -> BoxFuture<'_, Result<Option<Lease>, StoreError>>;
}

/// A lease, released when it is dropped.
pub struct Lease(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Lease {
    /// `release` is called once, when the lease is dropped.
    pub fn new(release: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(release)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

/// The duration in nanoseconds; `u64::MAX` if it does not fit.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
