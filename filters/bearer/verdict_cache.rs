//! A cache of the verdicts of a service. Concurrent lookups of the same key share one call. It does not make calls itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, EntryAction, EntryResult};

use super::verdict::Verdict;

/// The maximum memory of the cached verdicts of one mode.
const BYTES_MAX: u64 = 64 << 20;
/// The time for which a failed call is cached.
const UNAVAILABLE: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct CachedVerdict {
    verdict: Verdict,
    until_s: u64,
    /// The sequence number of the answer.
    answer: u64,
    bytes: u64,
}

#[derive(Clone)]
struct Bytes {
    /// The minimum weight of an entry. It bounds the number of entries.
    least: u64,
}

impl Weighter<[u8; 32], CachedVerdict> for Bytes {
    fn weight(&self, _: &[u8; 32], cached: &CachedVerdict) -> u64 {
        cached.bytes.max(self.least)
    }
}

/// The cache; bounded by a number of entries and by memory.
pub struct VerdictCache {
    cache: Cache<[u8; 32], CachedVerdict, Bytes>,
    accepted: Duration,
    refused: Duration,
    answers: AtomicU64,
}

impl VerdictCache {
    /// `accepted` and `refused` are the lifetimes of verdicts. Zero: a verdict is shared only with lookups that wait for it.
    pub fn new(entries_max: usize, accepted: Duration, refused: Duration) -> Self {
        let entries = entries_max.max(1);
        let bytes = Bytes { least: BYTES_MAX / entries as u64 };
        Self { cache: Cache::with_weighter(entries.min(10_000), BYTES_MAX, bytes), accepted, refused, answers: AtomicU64::new(0) }
    }

    /// The cached verdict under `key`, or else that of `ask`, which also returns the duration of the call. An accepted token
    /// is never cached past its expiry.
    pub async fn get(&self, key: [u8; 32], now_s: u64, ask: impl Future<Output = (Verdict, Duration)>) -> Verdict {
        let before = self.answers.load(Ordering::Acquire);
        let lookup = |_: &[u8; 32], cached: &mut CachedVerdict| {
            // An answer that arrived while this lookup waited is fresh, whatever its lifetime.
            if cached.until_s > now_s || cached.answer > before {
                EntryAction::Retain(cached.verdict.clone())
            } else {
                EntryAction::ReplaceWithGuard
            }
        };
        let guard = match self.cache.entry_async(&key, lookup).await {
            EntryResult::Retained(verdict) => return verdict,
            EntryResult::Vacant(guard) | EntryResult::Replaced(guard, _) => guard,
            // Neither can occur: the closure removes nothing, and there is no timeout.
            EntryResult::Removed(..) | EntryResult::Timeout => return ask.await.0,
        };
        let (verdict, took) = ask.await;
        let answered_s = now_s.saturating_add(took.as_secs());
        let until_s = answered_s.saturating_add(self.lifetime(&verdict).as_secs());
        let until_s = match &verdict {
            Verdict::Accepted(verified) => until_s.min(verified.expires_s.unwrap_or(u64::MAX)),
            _ => until_s,
        };
        let answer = self.answers.fetch_add(1, Ordering::AcqRel) + 1;
        let cached = CachedVerdict { bytes: verdict.memory_bytes(), verdict: verdict.clone(), until_s, answer };
        // Fails if another call has inserted a verdict meanwhile, which is as recent.
        let _ = guard.insert(cached);
        verdict
    }

    fn lifetime(&self, verdict: &Verdict) -> Duration {
        match verdict {
            Verdict::Accepted(_) => self.accepted,
            Verdict::Rejected(_) | Verdict::Refused(_) => self.refused,
            Verdict::Away(_) | Verdict::Unclear(_) => UNAVAILABLE,
        }
    }
}
