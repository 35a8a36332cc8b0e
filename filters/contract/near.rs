//! Who has used up much of a limit: noted by filters as it happens, for operators to look at and to forgive. Who is far
//! from his limits costs nothing here.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{BoxFuture, KeyId, Now, Outcome, StoreError};

/// So many are known at once at most. Past it, those of whom nothing was heard for longest make room.
const KNOWN_MAX: usize = 4000;
/// From four fifths on somebody is near.
const NEAR: (u64, u64) = (4, 5);

/// How much of a limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// So much is used.
    pub used: u32,
    /// Of so much that there is at once.
    pub most: u32,
    /// The last request was refused.
    pub over: bool,
    /// Nobody was refused because of it.
    pub shadow: bool,
    /// It comes back bit by bit; otherwise all at once.
    pub rolling: bool,
    /// Until all of it is there again.
    pub full_in: Duration,
    /// Until the next request can be allowed.
    pub retry_in: Duration,
}

impl Standing {
    /// What an outcome says of a limit of so much at once.
    pub fn of(outcome: &Outcome, most: u32, rolling: bool) -> Self {
        let used = if outcome.allowed { most.saturating_sub(outcome.remaining) } else { most };
        Self { used, most, over: !outcome.allowed, shadow: false, rolling, full_in: outcome.full_in, retry_in: outcome.retry_in }
    }

    /// Whether it is worth telling.
    pub fn is_near(&self) -> bool {
        self.over || u64::from(self.used) * NEAR.1 >= u64::from(self.most) * NEAR.0
    }

    /// After so long in which nothing more was used.
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

/// Whom a limit counts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct About {
    /// The limit's name.
    pub limit: String,
    /// Where its filter stands, such as `routes.api.rate_limit[0]`.
    pub place: String,
    /// What is counted: `key=…`, `client=…`, or several of them.
    pub subject: String,
    /// The key in it, if there is one.
    pub key: Option<KeyId>,
    /// The client's network in it, if there is one.
    pub client: Option<IpAddr>,
    /// The claim's value in it, as JSON, if there is one.
    pub claim: Option<String>,
    /// Replicas count it together.
    pub shared: bool,
}

/// What is counted of one of them.
pub trait Counted: Send + Sync {
    /// How much is used now. `None`: that cannot be told; what was noted last holds, less what has come back since.
    fn stands(&self, now: Now) -> BoxFuture<'_, Option<Standing>>;
    /// Whether what is used can be forgotten.
    fn can_forget(&self) -> bool {
        true
    }
    /// Forgets what is used.
    fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// A limit that is in force, held by its filter: once no configuration has it as it is, nobody is told of it.
#[derive(Debug, Default)]
pub struct InForce;

struct Entry {
    limit: Weak<InForce>,
    about: Arc<About>,
    counted: Arc<dyn Counted>,
    noted: Standing,
    at: Instant,
}

/// Whoever was noted since there was no more room last, and those from before who have not been noted since.
#[derive(Default)]
struct Known {
    young: HashMap<u128, Entry>,
    old: HashMap<u128, Entry>,
}

impl Known {
    /// One of them, who is young from now on.
    fn get(&mut self, slot: u128) -> Option<&mut Entry> {
        if let Some(entry) = self.old.remove(&slot) {
            self.insert(slot, entry);
        }
        self.young.get_mut(&slot)
    }

    fn insert(&mut self, slot: u128, entry: Entry) {
        if self.young.len() >= KNOWN_MAX / 2 {
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

/// See the module.
#[derive(Default)]
pub struct Near {
    known: Mutex<Known>,
    seeds: [RandomState; 2],
}

/// One of them, as he was noted last.
#[derive(Clone)]
pub struct Shown {
    /// Who.
    pub about: Arc<About>,
    /// How much, less what has come back since.
    pub standing: Standing,
    /// What more can be asked.
    pub counted: Arc<dyn Counted>,
}

impl Near {
    /// Notes how somebody stands with a limit. Does nothing where he is far from it.
    pub fn note(
        &self,
        limit: &Arc<InForce>,
        who: &impl Hash,
        standing: Standing,
        now: Instant,
        make: impl FnOnce() -> (About, Arc<dyn Counted>),
    ) {
        if !standing.is_near() {
            return;
        }
        let [high, low] = &self.seeds;
        let who = (Arc::as_ptr(limit) as usize, who);
        let slot = u128::from(high.hash_one(who)) << 64 | u128::from(low.hash_one(who));
        let mut known = self.known.lock();
        if let Some(entry) = known.get(slot).filter(|entry| entry.limit.strong_count() > 0) {
            (entry.noted, entry.at) = (standing, now);
            return;
        }
        let (about, counted) = make();
        known.insert(slot, Entry { limit: Arc::downgrade(limit), about: Arc::new(about), counted, noted: standing, at: now });
    }

    /// Those who were near or over a limit when they asked last, as far as they may still be.
    pub fn list(&self, now: Instant) -> Vec<Shown> {
        let mut known = self.known.lock();
        known.retain(|entry| entry.limit.strong_count() > 0);
        let shown = |entry: &Entry| Shown {
            about: Arc::clone(&entry.about),
            standing: entry.noted.after(now.saturating_duration_since(entry.at)),
            counted: Arc::clone(&entry.counted),
        };
        known.all().map(shown).collect()
    }

    /// Those who turned out to be far from it are not asked for again.
    pub fn drop_all(&self, far: &[Arc<About>]) {
        let far: std::collections::HashSet<*const About> = far.iter().map(Arc::as_ptr).collect();
        self.known.lock().retain(|entry| !far.contains(&Arc::as_ptr(&entry.about)));
    }

    /// Forgets what these have used, here and where replicas count together. How many there were.
    pub async fn forget(&self, place: &str, limit: &str, subject: &str) -> Result<usize, StoreError> {
        let is_meant = |about: &About| about.place == place && about.limit == limit && about.subject == subject;
        let meant: Vec<(Arc<About>, Arc<dyn Counted>)> = {
            let known = self.known.lock();
            let meant = known.all().filter(|entry| is_meant(&entry.about) && entry.counted.can_forget());
            meant.map(|entry| (Arc::clone(&entry.about), Arc::clone(&entry.counted))).collect()
        };
        for (_, counted) in &meant {
            counted.forget().await?;
        }
        let forgotten: Vec<Arc<About>> = meant.into_iter().map(|(about, _)| about).collect();
        self.drop_all(&forgotten);
        Ok(forgotten.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Counted for Nothing {
        fn stands(&self, _: Now) -> BoxFuture<'_, Option<Standing>> {
            Box::pin(async { None })
        }
        fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn standing(used: u32, over: bool) -> Standing {
        let full_in = Duration::from_secs(u64::from(used));
        let retry_in = if over { Duration::from_secs(1) } else { Duration::ZERO };
        Standing { used, most: 10, over, shadow: false, rolling: true, full_in, retry_in }
    }

    fn note(near: &Near, limit: &Arc<InForce>, who: u32, standing: Standing, now: Instant) {
        let about = About { subject: format!("client={who}"), ..About::default() };
        near.note(limit, &who, standing, now, || (about, Arc::new(Nothing)));
    }

    fn subjects(near: &Near, now: Instant) -> Vec<String> {
        let mut all: Vec<String> =
            near.list(now).iter().filter(|shown| shown.standing.is_near()).map(|shown| shown.about.subject.clone()).collect();
        all.sort();
        all
    }

    #[test]
    fn who_is_near_is_shown_until_he_is_not() {
        let (near, limit, now) = (Near::default(), Arc::default(), Instant::now());
        for (who, used, over) in [(1, 7, false), (2, 8, false), (3, 9, false), (4, 10, true)] {
            note(&near, &limit, who, standing(used, over), now);
        }
        let seconds = Duration::from_secs;
        assert_eq!(subjects(&near, now), ["client=2", "client=3", "client=4"]);
        assert_eq!(
            standing(10, true).after(seconds(1)),
            Standing { used: 9, over: false, full_in: seconds(9), retry_in: Duration::ZERO, ..standing(10, true) }
        );
        assert_eq!(subjects(&near, now + seconds(1)), ["client=3", "client=4"], "what is used comes back");
        assert!(subjects(&near, now + seconds(60)).is_empty());
        let window = Standing { rolling: false, ..standing(9, false) };
        assert_eq!((window.after(seconds(8)).used, window.after(seconds(9)).used), (9, 0), "all at once");
        // A limit that is in force no more is told of no more, and another one is another one.
        let other = Arc::default();
        note(&near, &other, 4, standing(9, false), now);
        drop(limit);
        assert_eq!(subjects(&near, now), ["client=4"]);
        assert_eq!(near.list(now)[0].standing.used, 9);
    }

    #[test]
    fn strangers_make_room_for_one_another_and_not_who_asks_on() {
        let (near, limit, now) = (Near::default(), Arc::default(), Instant::now());
        for who in 0..100_000_u32 {
            let at = now + Duration::from_millis(u64::from(who));
            note(&near, &limit, who + 10, standing(10, true), at);
            if who % 100 == 0 {
                note(&near, &limit, 1, standing(10, true), at);
            }
        }
        let all = near.list(now + Duration::from_secs(100));
        assert!((KNOWN_MAX / 2..=KNOWN_MAX).contains(&all.len()), "{}", all.len());
        assert!(all.iter().any(|shown| shown.about.subject == "client=1"));
    }
}
