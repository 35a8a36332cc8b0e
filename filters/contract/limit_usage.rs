//! Tracks the clients and keys that have used most of a limit, so that operators can list and reset them.
//!
//! Filters record usage as requests arrive; usage far below a limit costs nothing. Nothing here refuses a request.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{BoxFuture, KeyId, Now, Outcome, StoreError};

/// The most subjects tracked at once. When the table is full, the entries recorded longest ago are dropped.
const TRACKED_MAX: usize = 4000;
/// A subject is near its limit from this share (numerator, denominator) on.
const NEAR: (u64, u64) = (4, 5);

/// How much of a limit one subject has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitUsage {
    /// The amount used.
    pub used: u32,
    /// The amount available at once: the burst, or the size of a window.
    pub most: u32,
    /// The last request was refused.
    pub over: bool,
    /// The limit is in shadow mode: no request was refused.
    pub shadow: bool,
    /// The amount used is restored gradually; otherwise all at once at the end of a window.
    pub rolling: bool,
    /// The time until all of it is restored.
    pub full_in: Duration,
    /// The time until the next request can be allowed.
    pub retry_in: Duration,
}

impl LimitUsage {
    /// The usage after an outcome, for a limit that allows `most` at once.
    pub fn from_outcome(outcome: &Outcome, most: u32, rolling: bool) -> Self {
        let used = if outcome.allowed { most.saturating_sub(outcome.remaining) } else { most };
        Self { used, most, over: !outcome.allowed, shadow: false, rolling, full_in: outcome.full_in, retry_in: outcome.retry_in }
    }

    /// Whether four fifths of the limit are used, or the last request was refused.
    pub fn is_near(&self) -> bool {
        self.over || u64::from(self.used) * NEAR.1 >= u64::from(self.most) * NEAR.0
    }

    /// The usage after `time` has passed without further use.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let full_in = self.full_in.saturating_sub(time);
        let used = match (self.rolling, full_in.is_zero()) {
            (_, true) => 0,
            (false, false) => self.used,
            (true, false) => {
                let left = u128::from(self.used) * full_in.as_nanos();
                u32::try_from(left.div_ceil(self.full_in.as_nanos().max(1))).unwrap_or(u32::MAX)
            }
        };
        let retry_in = self.retry_in.saturating_sub(time);
        Self { used, over: self.over && !retry_in.is_zero(), full_in, retry_in, ..self }
    }
}

/// The subject of a limit: the client, key or claim value that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CountedSubject {
    /// The name of the limit.
    pub limit: String,
    /// The place of the filter, such as `routes.api.rate_limit[0]`.
    pub place: String,
    /// The subject as text: `key=…`, `client=…`, or several such parts.
    pub subject: String,
    /// The key, if it is part of the subject.
    pub key: Option<KeyId>,
    /// The network of the client, if it is part of the subject.
    pub client: Option<IpAddr>,
    /// The value of the claim as JSON, if it is part of the subject.
    pub claim: Option<String>,
    /// The count is shared by all replicas.
    pub shared: bool,
}

/// The counter behind a tracked subject.
pub trait UsageSource: Send + Sync {
    /// The current usage. `None`: it cannot be determined; the last recorded usage applies, less the amount restored since.
    fn current_usage(&self, now: Now) -> BoxFuture<'_, Option<LimitUsage>>;
    /// Whether the usage can be reset.
    fn can_forget(&self) -> bool {
        true
    }
    /// Resets the usage.
    fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Held by the filter of a limit. Once it is dropped, because no configuration has the limit unchanged, the tracker
/// forgets the entries of the limit.
#[derive(Debug, Default)]
pub struct ActiveLimit;

struct Entry {
    limit: Weak<ActiveLimit>,
    subject: Arc<CountedSubject>,
    source: Arc<dyn UsageSource>,
    recorded: LimitUsage,
    at: Instant,
}

/// Entries in two generations. When `young` is full it becomes `old`, and the entries that were in `old` are dropped.
#[derive(Default)]
struct Generations {
    young: HashMap<u128, Entry>,
    old: HashMap<u128, Entry>,
}

impl Generations {
    /// Finds an entry and moves it into the young generation.
    fn get(&mut self, slot: u128) -> Option<&mut Entry> {
        if let Some(entry) = self.old.remove(&slot) {
            self.insert(slot, entry);
        }
        self.young.get_mut(&slot)
    }

    fn insert(&mut self, slot: u128, entry: Entry) {
        if self.young.len() >= TRACKED_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(slot, entry);
    }

    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.young.values().chain(self.old.values())
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.young.retain(|_, entry| keep(entry));
        self.old.retain(|_, entry| keep(entry));
    }
}

/// The subjects near or over a limit, in this process.
#[derive(Default)]
pub struct UsageTracker {
    entries: Mutex<Generations>,
    seeds: [RandomState; 2],
}

/// One tracked subject with its estimated usage.
#[derive(Clone)]
pub struct TrackedUsage {
    /// The subject.
    pub subject: Arc<CountedSubject>,
    /// The recorded usage, less the amount restored since.
    pub usage: LimitUsage,
    /// The counter, for the exact usage and for a reset.
    pub source: Arc<dyn UsageSource>,
}

impl UsageTracker {
    /// Records the usage of a subject. Does nothing if the usage is not near the limit. `make` runs for a new subject only.
    pub fn note(
        &self,
        limit: &Arc<ActiveLimit>,
        subject: &impl Hash,
        usage: LimitUsage,
        now: Instant,
        make: impl FnOnce() -> (CountedSubject, Arc<dyn UsageSource>),
    ) {
        if !usage.is_near() {
            return;
        }
        let [high, low] = &self.seeds;
        let hashed = (Arc::as_ptr(limit) as usize, subject);
        let slot = u128::from(high.hash_one(hashed)) << 64 | u128::from(low.hash_one(hashed));
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(slot).filter(|entry| entry.limit.strong_count() > 0) {
            (entry.recorded, entry.at) = (usage, now);
            return;
        }
        let (subject, source) = make();
        entries.insert(slot, Entry { limit: Arc::downgrade(limit), subject: Arc::new(subject), source, recorded: usage, at: now });
    }

    /// All tracked subjects. Some may no longer be near their limit: the caller checks [`LimitUsage::is_near`].
    pub fn list(&self, now: Instant) -> Vec<TrackedUsage> {
        let mut entries = self.entries.lock();
        entries.retain(|entry| entry.limit.strong_count() > 0);
        let tracked = |entry: &Entry| TrackedUsage {
            subject: Arc::clone(&entry.subject),
            usage: entry.recorded.after(now.saturating_duration_since(entry.at)),
            source: Arc::clone(&entry.source),
        };
        entries.all().map(tracked).collect()
    }

    /// Stops tracking these subjects, which are no longer near their limit.
    pub fn drop_all(&self, far: &[Arc<CountedSubject>]) {
        let far: std::collections::HashSet<*const CountedSubject> = far.iter().map(Arc::as_ptr).collect();
        self.entries.lock().retain(|entry| !far.contains(&Arc::as_ptr(&entry.subject)));
    }

    /// Resets the usage of the matching subjects, including shared counts. Returns the number of subjects.
    pub async fn forget(&self, place: &str, limit: &str, subject: &str) -> Result<usize, StoreError> {
        let matches = |one: &CountedSubject| one.place == place && one.limit == limit && one.subject == subject;
        let found: Vec<(Arc<CountedSubject>, Arc<dyn UsageSource>)> = {
            let entries = self.entries.lock();
            let found = entries.all().filter(|entry| matches(&entry.subject) && entry.source.can_forget());
            found.map(|entry| (Arc::clone(&entry.subject), Arc::clone(&entry.source))).collect()
        };
        for (_, source) in &found {
            source.forget().await?;
        }
        let forgotten: Vec<Arc<CountedSubject>> = found.into_iter().map(|(subject, _)| subject).collect();
        self.drop_all(&forgotten);
        Ok(forgotten.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoCounter;
    impl UsageSource for NoCounter {
        fn current_usage(&self, _: Now) -> BoxFuture<'_, Option<LimitUsage>> {
            Box::pin(async { None })
        }
        fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn usage(used: u32, over: bool) -> LimitUsage {
        let full_in = Duration::from_secs(u64::from(used));
        let retry_in = if over { Duration::from_secs(1) } else { Duration::ZERO };
        LimitUsage { used, most: 10, over, shadow: false, rolling: true, full_in, retry_in }
    }

    fn note(tracker: &UsageTracker, limit: &Arc<ActiveLimit>, client: u32, usage: LimitUsage, now: Instant) {
        let subject = CountedSubject { subject: format!("client={client}"), ..CountedSubject::default() };
        tracker.note(limit, &client, usage, now, || (subject, Arc::new(NoCounter)));
    }

    fn subjects(tracker: &UsageTracker, now: Instant) -> Vec<String> {
        let mut all: Vec<String> =
            tracker.list(now).iter().filter(|tracked| tracked.usage.is_near()).map(|tracked| tracked.subject.subject.clone()).collect();
        all.sort();
        all
    }

    #[test]
    fn subjects_are_listed_while_they_are_near_the_limit() {
        let (tracker, limit, now) = (UsageTracker::default(), Arc::default(), Instant::now());
        for (client, used, over) in [(1, 7, false), (2, 8, false), (3, 9, false), (4, 10, true)] {
            note(&tracker, &limit, client, usage(used, over), now);
        }
        let seconds = Duration::from_secs;
        assert_eq!(subjects(&tracker, now), ["client=2", "client=3", "client=4"]);
        assert_eq!(
            usage(10, true).after(seconds(1)),
            LimitUsage { used: 9, over: false, full_in: seconds(9), retry_in: Duration::ZERO, ..usage(10, true) }
        );
        assert_eq!(subjects(&tracker, now + seconds(1)), ["client=3", "client=4"], "usage is restored over time");
        assert!(subjects(&tracker, now + seconds(60)).is_empty());
        let window = LimitUsage { rolling: false, ..usage(9, false) };
        assert_eq!((window.after(seconds(8)).used, window.after(seconds(9)).used), (9, 0), "a window is restored all at once");
        // The entries of a dropped limit disappear; those of another limit stay.
        let other = Arc::default();
        note(&tracker, &other, 4, usage(9, false), now);
        drop(limit);
        assert_eq!(subjects(&tracker, now), ["client=4"]);
        assert_eq!(tracker.list(now)[0].usage.used, 9);
    }

    #[test]
    fn a_full_tracker_drops_stale_subjects_and_keeps_active_ones() {
        let (tracker, limit, now) = (UsageTracker::default(), Arc::default(), Instant::now());
        for client in 0..100_000_u32 {
            let at = now + Duration::from_millis(u64::from(client));
            note(&tracker, &limit, client + 10, usage(10, true), at);
            if client % 100 == 0 {
                note(&tracker, &limit, 1, usage(10, true), at);
            }
        }
        let all = tracker.list(now + Duration::from_secs(100));
        assert!((TRACKED_MAX / 2..=TRACKED_MAX).contains(&all.len()), "{}", all.len());
        assert!(all.iter().any(|tracked| tracked.subject.subject == "client=1"));
    }
}
