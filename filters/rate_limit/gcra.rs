//! The generic cell rate algorithm over a bounded table.
//!
//! For each thing counted one number is kept: the theoretical arrival time (TAT), when it would have
//! used up nothing. A hit moves it on by one interval; a hit that would move it further than the burst
//! allows is refused and moves nothing. That is exact: no windows, no rounding.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::contract::{Outcome, Quota, nanos};

const SHARDS: usize = 64;

/// A TAT, and the interval its hits were counted by: a reload may have changed it since.
#[derive(Clone, Copy)]
struct Entry {
    tat: u64,
    interval_ns: u64,
    /// Refused for a time, whatever it does.
    blocked: bool,
}

type Shard = HashMap<u128, Entry>;

/// The TATs of everything counted, in bounded memory.
pub struct Table {
    base: Instant,
    shards: Vec<Mutex<Shard>>,
    entries_max_per_shard: usize,
    seeds: Seeds,
}

/// Names things by 128 bits under secret seeds, so that nobody can make two things share a count.
#[derive(Default)]
pub struct Seeds([RandomState; 2]);

impl Seeds {
    /// The name of a thing.
    pub fn slot(&self, thing: &impl Hash) -> u128 {
        let [high, low] = &self.0;
        u128::from(high.hash_one(thing)) << 64 | u128::from(low.hash_one(thing))
    }
}

impl Table {
    /// At most `entries_max` things are remembered. Past that, those that have used least of their
    /// limit are forgotten first: what is lost is what matters least.
    pub fn new(entries_max: usize) -> Self {
        Self {
            base: Instant::now(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            entries_max_per_shard: entries_max.div_ceil(SHARDS).max(8),
            seeds: Seeds::default(),
        }
    }

    /// The name under which a thing is counted.
    pub fn slot(&self, thing: &impl Hash) -> u128 {
        self.seeds.slot(thing)
    }

    /// Hits, counting `cost`. A thing that is refused is refused for at least `block` from then on.
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

    /// Takes a hit back: another limit refused the request.
    pub fn refund(&self, slot: u128, quota: Quota, cost: u32) {
        if let Some(entry) = self.shard(slot).lock().get_mut(&slot) {
            entry.tat = entry.tat.saturating_sub(quota.interval_ns.saturating_mul(u64::from(cost)));
        }
    }

    /// How it stands with a thing: whether one more hit would be allowed.
    pub fn look(&self, slot: u128, quota: Quota, now: Instant) -> Outcome {
        let now_ns = self.since_base(now);
        let known = self.shard(slot).lock().get(&slot).copied();
        let ahead_ns = known.map_or(0, |entry| entry.under(quota, now_ns)).saturating_sub(now_ns);
        quota.outcome(ahead_ns <= quota.tolerance_ns, ahead_ns, 1)
    }

    /// Forgets what was used, and a block with it.
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
    /// The TAT as if all hits had been counted under this quota: three of three an hour are three of five.
    fn under(self, quota: Quota, now_ns: u64) -> u64 {
        if self.interval_ns == quota.interval_ns {
            return self.tat;
        }
        let ahead = u128::from(self.tat.saturating_sub(now_ns)) * u128::from(quota.interval_ns) / u128::from(self.interval_ns);
        now_ns.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }
}

/// Forgets at least an eighth: what has expired, and then what has used least. An eighth at once makes
/// the sweep's cost a constant for each entry that made it necessary.
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
    fn what_costs_more_uses_up_more() {
        let table = Table::new(1000);
        let (quota, start) = (sixty_a_minute(10), Instant::now());
        let hit = |cost, after| table.hit(1, quota, cost, NEVER, start + Duration::from_secs(after));
        assert_eq!((hit(4, 0).remaining, hit(4, 0).remaining), (6, 2));
        let refused = hit(4, 0);
        assert!(!refused.allowed && refused.retry_in == Duration::from_secs(2), "{refused:?}");
        assert!(hit(2, 0).allowed && !hit(1, 0).allowed && !hit(4, 3).allowed && hit(4, 4).allowed);
        assert!(!hit(11, 1000).allowed, "more than there ever is at once");
    }

    #[test]
    fn a_block_lasts_its_time_and_no_longer() {
        let table = Table::new(1000);
        let (quota, start, block) = (sixty_a_minute(2), Instant::now(), Duration::from_secs(300));
        let hit = |after_s| table.hit(1, quota, 1, block, start + Duration::from_secs(after_s));
        assert!(hit(0).allowed && hit(0).allowed);
        assert_eq!(hit(0).retry_in, block);
        assert_eq!(hit(100).retry_in, Duration::from_secs(200), "trying does not prolong it");
        assert!(!hit(299).allowed && hit(300).allowed, "and then it is over");
        let look = |after_s| table.look(1, quota, start + Duration::from_secs(after_s));
        assert!(!look(300).allowed && look(301).allowed && look(301).remaining == 1 && look(302).remaining == 2);
        assert!(!hit(300).allowed, "but nothing was saved up meanwhile");
        table.forget(1);
        assert_eq!((look(300).remaining, look(300).full_in), (2, Duration::ZERO));
    }

    fn sixty_a_minute(burst: u32) -> Quota {
        Quota::new(Duration::from_secs(1), burst)
    }

    #[test]
    fn a_timeline() {
        let table = Table::new(1000);
        let (slot, quota) = (table.slot(&"key"), sixty_a_minute(3));
        let start = Instant::now();
        let at = |ms: u64| table.hit(slot, quota, 1, NEVER, start + Duration::from_millis(ms));
        assert_eq!((at(0).remaining, at(0).remaining), (2, 1));
        let third = at(0);
        assert_eq!((third.allowed, third.remaining), (true, 0));
        let refused = at(0);
        assert!(!refused.allowed && refused.retry_in > Duration::from_millis(999) && refused.retry_in <= Duration::from_secs(1));
        assert!(!at(999).allowed, "a refusal costs nothing, and early is early");
        assert!(at(1000).allowed);
        assert!(!at(1000).allowed);
        assert_eq!(at(60_000).remaining, 2, "all of the burst, and no more, after a long rest");
    }

    #[test]
    fn exactly_the_limit_passes_from_many_threads() {
        let table = Arc::new(Table::new(1000));
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
    fn memory_is_bounded_and_the_busiest_are_remembered() {
        let table = Table::new(10_000);
        let (quota, now) = (sixty_a_minute(2), Instant::now());
        let busy = table.slot(&"busy");
        assert!(table.hit(busy, quota, 1, NEVER, now).allowed && table.hit(busy, quota, 1, NEVER, now).allowed);
        for client in 0..1_000_000_u32 {
            table.hit(table.slot(&client), quota, 1, NEVER, now);
        }
        let remembered: usize = table.shards.iter().map(|shard| shard.lock().len()).sum();
        assert!(remembered <= 10_000 + SHARDS * 8, "{remembered}");
        assert!(!table.hit(busy, quota, 1, NEVER, now).allowed, "a flood of strangers does not free whom it stopped");
    }

    #[test]
    fn a_new_limit_holds_at_once() {
        let table = Table::new(1000);
        let now = Instant::now();
        let daily = Quota::new(Duration::from_secs(86_400), 1);
        assert!(table.hit(1, daily, 1, NEVER, now).allowed && !table.hit(1, daily, 1, NEVER, now).allowed);
        assert_eq!(table.hit(1, sixty_a_minute(5), 1, NEVER, now).remaining, 3, "one was used before, one now");
    }

    #[test]
    fn a_refund_gives_back_exactly_one() {
        let table = Table::new(1000);
        let (quota, now) = (sixty_a_minute(1), Instant::now());
        assert!(table.hit(1, quota, 1, NEVER, now).allowed);
        table.refund(1, quota, 1);
        assert!(table.hit(1, quota, 1, NEVER, now).allowed && !table.hit(1, quota, 1, NEVER, now).allowed);
    }
}
