//! What services have said of tokens, remembered for a while, and asked for once where many want to know at once.

use std::time::Duration;

use quick_cache::sync::{Cache, EntryAction, EntryResult};

use super::verdict::Verdict;

#[derive(Clone)]
struct Remembered {
    verdict: Verdict,
    until_s: u64,
}

/// Bounded by a number of tokens.
pub struct Memo {
    cache: Cache<[u8; 32], Remembered>,
    accepted: Duration,
    refused: Duration,
    /// Also that nobody could be asked: those who wait for the same answer do not ask one after the other.
    unasked: Duration,
}

impl Memo {
    /// How long acceptance and refusal are remembered; zero: not. `patience` is how long asking takes at most.
    pub fn new(entries_max: usize, accepted: Duration, refused: Duration, patience: Duration) -> Self {
        Self { cache: Cache::new(entries_max.max(1)), accepted, refused, unasked: patience + Duration::from_secs(1) }
    }

    /// What is remembered under `key`, or else what comes of asking. What was accepted is never remembered past its end.
    pub async fn get(&self, key: [u8; 32], now_s: u64, ask: impl Future<Output = Verdict>) -> Verdict {
        if self.accepted.is_zero() && self.refused.is_zero() {
            return ask.await;
        }
        let known = |_: &[u8; 32], known: &mut Remembered| {
            if known.until_s > now_s { EntryAction::Retain(known.verdict.clone()) } else { EntryAction::ReplaceWithGuard }
        };
        let guard = match self.cache.entry_async(&key, known).await {
            EntryResult::Retained(verdict) => return verdict,
            EntryResult::Vacant(guard) | EntryResult::Replaced(guard, _) => guard,
            // Neither is asked for.
            EntryResult::Removed(..) | EntryResult::Timeout => return ask.await,
        };
        let verdict = ask.await;
        let until_s = now_s.saturating_add(self.lifetime(&verdict).as_secs());
        let until_s = match &verdict {
            Verdict::Accepted(verified) => until_s.min(verified.expires_s.unwrap_or(u64::MAX)),
            _ => until_s,
        };
        if until_s > now_s {
            // It fails where the place was taken by somebody who did not wait: what he has put there is as good.
            let _ = guard.insert(Remembered { verdict: verdict.clone(), until_s });
        }
        verdict
    }

    fn lifetime(&self, verdict: &Verdict) -> Duration {
        match verdict {
            Verdict::Accepted(_) => self.accepted,
            Verdict::Rejected(_) | Verdict::Refused(_) => self.refused,
            Verdict::Unasked(_) => self.unasked,
        }
    }
}
