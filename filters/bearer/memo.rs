//! What services have said of tokens, remembered for a while, and asked for once where many want to know at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, EntryAction, EntryResult};

use super::verdict::Verdict;

/// The memory that one mode's answers may take.
const BYTES_MAX: u64 = 64 << 20;
/// How long it is remembered that nobody could be asked.
const UNASKED: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Remembered {
    verdict: Verdict,
    until_s: u64,
    /// The how manyeth answer this is.
    answer: u64,
    bytes: u64,
}

#[derive(Clone)]
struct Bytes {
    /// So that there are never more entries than are allowed, however small they are.
    least: u64,
}

impl Weighter<[u8; 32], Remembered> for Bytes {
    fn weight(&self, _: &[u8; 32], remembered: &Remembered) -> u64 {
        remembered.bytes.max(self.least)
    }
}

/// Bounded by a number of tokens, and by memory.
pub struct Memo {
    cache: Cache<[u8; 32], Remembered, Bytes>,
    accepted: Duration,
    refused: Duration,
    answers: AtomicU64,
}

impl Memo {
    /// How long acceptance and refusal are remembered; zero: only for those who wait for the same answer.
    pub fn new(entries_max: usize, accepted: Duration, refused: Duration) -> Self {
        let entries = entries_max.max(1);
        let bytes = Bytes { least: BYTES_MAX / entries as u64 };
        Self { cache: Cache::with_weighter(entries.min(10_000), BYTES_MAX, bytes), accepted, refused, answers: AtomicU64::new(0) }
    }

    /// What is remembered under `key`, or else what comes of asking, with how long that took. What was accepted is never
    /// remembered past its end.
    pub async fn get(&self, key: [u8; 32], now_s: u64, ask: impl Future<Output = (Verdict, Duration)>) -> Verdict {
        let before = self.answers.load(Ordering::Acquire);
        let known = |_: &[u8; 32], known: &mut Remembered| {
            // An answer that came while this one waited for it is fresh, however short it is remembered.
            if known.until_s > now_s || known.answer > before {
                EntryAction::Retain(known.verdict.clone())
            } else {
                EntryAction::ReplaceWithGuard
            }
        };
        let guard = match self.cache.entry_async(&key, known).await {
            EntryResult::Retained(verdict) => return verdict,
            EntryResult::Vacant(guard) | EntryResult::Replaced(guard, _) => guard,
            // Neither is asked for.
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
        let remembered = Remembered { bytes: verdict.bytes(), verdict: verdict.clone(), until_s, answer };
        // It fails where the place was taken by somebody who did not wait: what he has put there is as good.
        let _ = guard.insert(remembered);
        verdict
    }

    fn lifetime(&self, verdict: &Verdict) -> Duration {
        match verdict {
            Verdict::Accepted(_) => self.accepted,
            Verdict::Rejected(_) | Verdict::Refused(_) => self.refused,
            Verdict::Away(_) | Verdict::Unclear(_) => UNASKED,
        }
    }
}
