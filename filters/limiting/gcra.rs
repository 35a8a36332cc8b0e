//! The generic cell rate algorithm (GCRA) over a table of bounded size. It reads no clock: callers pass the time.
//!
//! The table keeps one number per subject, the theoretical arrival time (TAT): the time at which the subject has its
//! whole burst again. A hit moves the TAT forward by one interval. A hit that would move it further ahead than the burst
//! allows is refused and changes nothing. The result is exact: there are no windows and no rounding.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::contract::{Outcome, Quota, nanos};

const SHARDS: usize = 64;

/// A TAT with the interval in force when it was written. A reload may change the interval later.
#[derive(Clone, Copy)]
struct Entry {
    tat: u64,
    interval_ns: u64,
    /// A block (`block_for`) is active. Further refusals do not start another one.
    blocked: bool,
}

type Shard = HashMap<u128, Entry>;

/// The TATs of all subjects of one limit, in bounded memory.
pub struct GcraTable {
    base: Instant,
    shards: Vec<Mutex<Shard>>,
    entries_max_per_shard: usize,
    seeds: SlotSeeds,
}

/// Two secret random seeds that hash a subject to a 128-bit slot. Clients cannot construct two subjects with the same
/// slot.
#[derive(Default)]
pub struct SlotSeeds([RandomState; 2]);

impl SlotSeeds {
    /// The slot of a subject.
    pub fn slot(&self, subject: &impl Hash) -> u128 {
        let [high, low] = &self.0;
        u128::from(high.hash_one(subject)) << 64 | u128::from(low.hash_one(subject))
    }
}

impl GcraTable {
    /// An empty table for about `entries_max` subjects. A full table evicts the subjects that have used the least of
    /// their limit.
    pub fn new(entries_max: usize) -> Self {
        Self {
            base: Instant::now(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            entries_max_per_shard: entries_max.div_ceil(SHARDS).max(8),
            seeds: SlotSeeds::default(),
        }
    }

    /// The slot in which a subject is counted.
    pub fn slot(&self, subject: &impl Hash) -> u128 {
        self.seeds.slot(subject)
    }

    /// Counts a hit of `cost`. The first refusal starts a block: further hits are refused for at least `block`.
    pub fn hit(&self, slot: u128, quota: Quota, cost: u32, block: Duration, now: Instant) -> Outcome {
        let now_ns = self.since_base(now);
        let mut shard = self.shard(slot).lock();
        let known = shard.get(&slot).copied();
        let tat = known.map_or(0, |entry| entry.under(quota, now_ns)).max(now_ns);
        let room_ns = now_ns.saturating_add(quota.tolerance_ns);
        let more_ns = quota.interval_ns.saturating_mul(u64::from(cost.max(1)) - 1);
        if tat.saturating_add(more_ns) > room_ns {
            let starts = !block.is_zero() && !known.is_some_and(|entry| entry.blocked);
            let tat = if starts { room_ns.saturating_add(nanos(block)).max(tat) } else { tat };
            if let Some(entry) = shard.get_mut(&slot).filter(|_| starts) {
                *entry = Entry { tat, interval_ns: quota.interval_ns, blocked: true };
            }
            return quota.outcome(false, tat - now_ns, cost);
        }
        let next = tat.saturating_add(quota.interval_ns.saturating_mul(u64::from(cost.max(1))));
        if shard.len() >= self.entries_max_per_shard && known.is_none() {
            make_room(&mut shard, now_ns);
        }
        shard.insert(slot, Entry { tat: next, interval_ns: quota.interval_ns, blocked: false });
        quota.outcome(true, next - now_ns, cost)
    }

    /// Reverts a hit of `cost`, for a request that another limit refused.
    pub fn refund(&self, slot: u128, quota: Quota, cost: u32) {
        if let Some(entry) = self.shard(slot).lock().get_mut(&slot) {
            entry.tat = entry.tat.saturating_sub(quota.interval_ns.saturating_mul(u64::from(cost)));
        }
    }

    /// The outcome that one more hit would have. Counts nothing.
    pub fn peek(&self, slot: u128, quota: Quota, now: Instant) -> Outcome {
        let now_ns = self.since_base(now);
        let known = self.shard(slot).lock().get(&slot).copied();
        let ahead_ns = known.map_or(0, |entry| entry.under(quota, now_ns)).saturating_sub(now_ns);
        quota.outcome(ahead_ns <= quota.tolerance_ns, ahead_ns, 1)
    }

    /// Removes the subject's usage and its block.
    pub fn forget(&self, slot: u128) {
        self.shard(slot).lock().remove(&slot);
    }

    fn shard(&self, slot: u128) -> &Mutex<Shard> {
        let index = usize::try_from(slot % SHARDS as u128).unwrap_or(0);
        &self.shards[index]
    }

    fn since_base(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.base))
    }
}

impl Entry {
    /// The TAT as if all hits had been counted under this quota. The number of used hits stays: 3 of 3/h become 3 of 5/h.
    fn under(self, quota: Quota, now_ns: u64) -> u64 {
        if self.interval_ns == quota.interval_ns {
            return self.tat;
        }
        let ahead = u128::from(self.tat.saturating_sub(now_ns)) * u128::from(quota.interval_ns) / u128::from(self.interval_ns);
        now_ns.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }
}

/// Evicts at least an eighth of the entries: expired ones first, then those with the least usage. Evicting a fixed
/// share makes the amortised cost of an insertion constant.
fn make_room(shard: &mut Shard, now_ns: u64) {
    let before = shard.len();
    shard.retain(|_, entry| entry.tat > now_ns);
    let wanted = before - before / 8;
    if shard.len() > wanted {
        let mut tats: Vec<u64> = shard.values().map(|entry| entry.tat).collect();
        let drop_count = shard.len() - wanted;
        let at = drop_count.min(tats.len() - 1);
        let pivot = *tats.select_nth_unstable(at).1;
        let mut left_to_drop = drop_count;
        shard.retain(|_, entry| {
            let keep = entry.tat > pivot || left_to_drop == 0;
            left_to_drop -= usize::from(!keep);
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    const NEVER: Duration = Duration::ZERO;

    #[test]
    fn higher_cost_uses_more_of_the_quota() {
        let table = GcraTable::new(1000);
        let (quota, start) = (sixty_a_minute(10), Instant::now());
        let hit = |cost, after| table.hit(1, quota, cost, NEVER, start + Duration::from_secs(after));
        assert_eq!((hit(4, 0).remaining, hit(4, 0).remaining), (6, 2));
        let refused = hit(4, 0);
        assert!(!refused.allowed && refused.retry_in == Duration::from_secs(2), "{refused:?}");
        assert!(hit(2, 0).allowed && !hit(1, 0).allowed && !hit(4, 3).allowed && hit(4, 4).allowed);
        assert!(!hit(11, 1000).allowed, "the cost exceeds the burst");
    }

    #[test]
    fn block_lasts_exactly_its_duration() {
        let table = GcraTable::new(1000);
        let (quota, start, block) = (sixty_a_minute(2), Instant::now(), Duration::from_secs(300));
        let hit = |after_s| table.hit(1, quota, 1, block, start + Duration::from_secs(after_s));
        assert!(hit(0).allowed && hit(0).allowed);
        assert_eq!(hit(0).retry_in, block);
        assert_eq!(hit(100).retry_in, Duration::from_secs(200), "further attempts do not extend the block");
        assert!(!hit(299).allowed && hit(300).allowed, "the block has ended");
        let peek = |after_s| table.peek(1, quota, start + Duration::from_secs(after_s));
        assert!(!peek(300).allowed && peek(301).allowed && peek(301).remaining == 1 && peek(302).remaining == 2);
        assert!(!hit(300).allowed, "no quota accumulates during the block");
        table.forget(1);
        assert_eq!((peek(300).remaining, peek(300).full_in), (2, Duration::ZERO));
    }

    fn sixty_a_minute(burst: u32) -> Quota {
        Quota::new(Duration::from_secs(1), burst)
    }

    #[test]
    fn timeline_of_hits() {
        let table = GcraTable::new(1000);
        let (slot, quota) = (table.slot(&"key"), sixty_a_minute(3));
        let start = Instant::now();
        let at = |ms: u64| table.hit(slot, quota, 1, NEVER, start + Duration::from_millis(ms));
        assert_eq!((at(0).remaining, at(0).remaining), (2, 1));
        let third = at(0);
        assert_eq!((third.allowed, third.remaining), (true, 0));
        let refused = at(0);
        assert!(!refused.allowed && refused.retry_in > Duration::from_millis(999) && refused.retry_in <= Duration::from_secs(1));
        assert!(!at(999).allowed, "a refusal costs nothing, and 1 ms is still missing");
        assert!(at(1000).allowed);
        assert!(!at(1000).allowed);
        assert_eq!(at(60_000).remaining, 2, "after a long pause the whole burst is available and no more");
    }

    #[test]
    fn concurrent_hits_pass_exactly_the_limit() {
        let table = Arc::new(GcraTable::new(1000));
        let (quota, now, passed) = (sixty_a_minute(100), Instant::now(), Arc::new(AtomicU32::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        passed.fetch_add(u32::from(table.hit(7, quota, 1, NEVER, now).allowed), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(passed.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn full_table_evicts_the_least_used_subjects() {
        let table = GcraTable::new(10_000);
        let (quota, now) = (sixty_a_minute(2), Instant::now());
        let busy = table.slot(&"busy");
        assert!(table.hit(busy, quota, 1, NEVER, now).allowed && table.hit(busy, quota, 1, NEVER, now).allowed);
        for client in 0..1_000_000_u32 {
            table.hit(table.slot(&client), quota, 1, NEVER, now);
        }
        let remembered: usize = table.shards.iter().map(|shard| shard.lock().len()).sum();
        assert!(remembered <= 10_000 + SHARDS * 8, "{remembered}");
        assert!(!table.hit(busy, quota, 1, NEVER, now).allowed, "a flood of new subjects does not evict a refused one");
    }

    #[test]
    fn new_quota_applies_to_the_next_hit() {
        let table = GcraTable::new(1000);
        let now = Instant::now();
        let daily = Quota::new(Duration::from_secs(86_400), 1);
        assert!(table.hit(1, daily, 1, NEVER, now).allowed && !table.hit(1, daily, 1, NEVER, now).allowed);
        assert_eq!(table.hit(1, sixty_a_minute(5), 1, NEVER, now).remaining, 3, "one hit under the old quota, one under the new");
    }

    #[test]
    fn refund_reverts_exactly_one_hit() {
        let table = GcraTable::new(1000);
        let (quota, now) = (sixty_a_minute(1), Instant::now());
        assert!(table.hit(1, quota, 1, NEVER, now).allowed);
        table.refund(1, quota, 1);
        assert!(table.hit(1, quota, 1, NEVER, now).allowed && !table.hit(1, quota, 1, NEVER, now).allowed);
    }
}
