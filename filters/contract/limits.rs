//! Limits in the terms of their algorithms, and the counts that replicas share.

use std::time::Duration;

use super::{BoxFuture, StoreError};

/// How often, in the terms of the generic cell rate algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The time between two hits at exactly the rate, in nanoseconds.
    pub interval_ns: u64,
    /// How far ahead of now the theoretical arrival time may be and still be hit: (burst − 1) intervals.
    pub tolerance_ns: u64,
}

impl Quota {
    /// One hit every `interval`, and up to `burst` (at least 1) at once.
    pub fn new(interval: Duration, burst: u32) -> Self {
        let interval_ns = nanos(interval).max(1);
        Self { interval_ns, tolerance_ns: interval_ns.saturating_mul(u64::from(burst.max(1)) - 1) }
    }

    /// How many there are at once.
    pub fn burst(&self) -> u32 {
        u32::try_from(self.tolerance_ns / self.interval_ns).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// What is to be said of a hit after which the theoretical arrival time is so far ahead of now.
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

/// What came of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it was within the limit.
    pub allowed: bool,
    /// How many more would be, right now.
    pub remaining: u32,
    /// Until all of the burst is there again, or a new window begins.
    pub full_in: Duration,
    /// Until more would be allowed than right now: after a refusal, the time after which it can be repeated.
    pub more_in: Duration,
    /// Until the next hit can be allowed; zero when this one was.
    pub retry_in: Duration,
}

/// How hits are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// By the generic cell rate algorithm; whoever is refused is refused for at least `block`.
    Rolling {
        /// How often.
        quota: Quota,
        /// Zero: not blocked.
        block: Duration,
    },
    /// So many in a window of the calendar.
    Window {
        /// How many.
        most: u32,
        /// Which: grows from one window to the next.
        number: i64,
        /// Until it ends.
        left: Duration,
    },
}

/// One hit of a request on one limit.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Limit and thing counted, the same on every replica.
    pub name: String,
    /// How it is counted.
    pub measure: Measure,
    /// How much it counts, at least 1.
    pub cost: u32,
    /// Its refusal does not keep the others from being counted.
    pub shadow: bool,
}

/// Counts that replicas share.
pub trait Counters: Send + Sync {
    /// Counts a request on all of its limits in one step; where one of them refuses it, it is counted on none. In
    /// the order of the hits.
    fn hit(&self, hits: Vec<Hit>) -> BoxFuture<'_, Result<Vec<Outcome>, StoreError>>;
    /// How it stands with what a hit counts, without counting it: whether one more would be allowed.
    fn look<'a>(&'a self, hit: &'a Hit) -> BoxFuture<'a, Result<Outcome, StoreError>>;
    /// Forgets what is counted of what a hit counts.
    fn forget<'a>(&'a self, hit: &'a Hit) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Takes one of at most `most` places under this name, for as long as what is returned lives. `None`: all are taken.
    fn lease(&self, name: String, most: u32) -> BoxFuture<'_, Result<Option<Lease>, StoreError>>;
}

/// A place that is held until this is dropped.
pub struct Lease(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Lease {
    /// `release` is called once, when it is dropped.
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

/// In nanoseconds, or as many as fit.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
