//! Who has used up much of a limit: noted by filters as it happens, for operators to look at and to forgive. Who is far
//! from his limits costs nothing here.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{BoxFuture, KeyId, Outcome, StoreError};

/// So many are known at once; past it, only those that are over their limits are added, and past that nobody.
const KNOWN_MAX: usize = 2000;
/// Where there is no room, it is looked for it once in so long.
const TIDIED_EVERY: Duration = Duration::from_secs(1);
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
        Self { used, most, over: !outcome.allowed, rolling, full_in: outcome.full_in, retry_in: outcome.retry_in }
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
    /// It refuses nobody.
    pub shadow: bool,
}

/// What is counted of one of them.
pub trait Counted: Send + Sync {
    /// As it stands now, where that can be told without asking anybody.
    fn stands(&self) -> Option<Standing> {
        None
    }
    /// Whether what is used can be forgotten.
    fn can_forget(&self) -> bool {
        true
    }
    /// Forgets what is used.
    fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

struct Entry {
    about: Arc<About>,
    counted: Arc<dyn Counted>,
    noted: Standing,
    at: Instant,
}

impl Entry {
    fn stands(&self, now: Instant) -> Standing {
        self.counted.stands().unwrap_or_else(|| self.noted.after(now.saturating_duration_since(self.at)))
    }
}

#[derive(Default)]
struct Known {
    entries: HashMap<u128, Entry>,
    tidied: Option<Instant>,
}

/// See the module.
#[derive(Default)]
pub struct Near {
    known: Mutex<Known>,
    seeds: [RandomState; 2],
}

/// One of them, as it stands.
#[derive(Clone)]
pub struct Shown {
    /// Who.
    pub about: Arc<About>,
    /// How much.
    pub standing: Standing,
    /// What can be forgotten.
    pub counted: Arc<dyn Counted>,
}

impl Near {
    /// Notes how somebody stands with a limit; `who`: whoever he is and whichever limit it is. Does nothing where he is far
    /// from it.
    pub fn note(&self, who: &impl Hash, standing: Standing, now: Instant, make: impl FnOnce() -> (About, Arc<dyn Counted>)) {
        if !standing.is_near() {
            return;
        }
        let [high, low] = &self.seeds;
        let slot = u128::from(high.hash_one(who)) << 64 | u128::from(low.hash_one(who));
        let mut known = self.known.lock();
        if let Some(entry) = known.entries.get_mut(&slot) {
            (entry.noted, entry.at) = (standing, now);
            return;
        }
        if known.entries.len() >= KNOWN_MAX && known.tidied.is_none_or(|last| now.saturating_duration_since(last) >= TIDIED_EVERY) {
            known.tidied = Some(now);
            known.entries.retain(|_, entry| entry.stands(now).is_near());
        }
        // Who was refused is what is asked for; who is only near must leave room for him.
        if known.entries.len() < if standing.over { KNOWN_MAX * 2 } else { KNOWN_MAX } {
            let (about, counted) = make();
            known.entries.insert(slot, Entry { about: Arc::new(about), counted, noted: standing, at: now });
        }
    }

    /// Those who are near or over a limit, those first who have used most of it.
    pub fn list(&self, now: Instant) -> Vec<Shown> {
        let mut known = self.known.lock();
        known.entries.retain(|_, entry| entry.stands(now).is_near());
        let shown =
            |entry: &Entry| Shown { about: Arc::clone(&entry.about), standing: entry.stands(now), counted: Arc::clone(&entry.counted) };
        let mut all: Vec<Shown> = known.entries.values().map(shown).collect();
        drop(known);
        all.sort_by_cached_key(|shown| {
            let Standing { over, used, most, .. } = shown.standing;
            let share = u64::from(used) * 1000 / u64::from(most.max(1));
            (!over, std::cmp::Reverse(share), shown.about.place.clone(), shown.about.subject.clone())
        });
        all
    }

    /// Forgets what these have used, here and where replicas count together. How many there were.
    pub async fn forget(&self, place: &str, limit: &str, subject: &str) -> Result<usize, StoreError> {
        let is_meant = |about: &About| about.place == place && about.limit == limit && about.subject == subject;
        let meant: Vec<Arc<dyn Counted>> = {
            let known = self.known.lock();
            let meant = known.entries.values().filter(|entry| is_meant(&entry.about) && entry.counted.can_forget());
            meant.map(|entry| Arc::clone(&entry.counted)).collect()
        };
        for counted in &meant {
            counted.forget().await?;
        }
        self.known.lock().entries.retain(|_, entry| !(is_meant(&entry.about) && entry.counted.can_forget()));
        Ok(meant.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Counted for Nothing {
        fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn standing(used: u32, over: bool) -> Standing {
        let full_in = Duration::from_secs(u64::from(used));
        let retry_in = if over { Duration::from_secs(1) } else { Duration::ZERO };
        Standing { used, most: 10, over, rolling: true, full_in, retry_in }
    }

    fn note(near: &Near, who: u32, standing: Standing, now: Instant) {
        let about = About { subject: format!("client={who}"), ..About::default() };
        near.note(&who, standing, now, || (about, Arc::new(Nothing)));
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn who_is_near_is_shown_until_he_is_not() {
        let (near, now) = (Near::default(), Instant::now());
        for (who, used, over) in [(1, 7, false), (2, 8, false), (3, 9, false), (4, 10, true)] {
            note(&near, who, standing(used, over), now);
        }
        let shown = |after| near.list(now + seconds(after)).iter().map(|shown| shown.about.subject.clone()).collect::<Vec<_>>();
        assert_eq!(shown(0), ["client=4", "client=3", "client=2"]);
        assert_eq!(
            near.list(now + seconds(1))[0].standing,
            Standing { used: 9, over: false, full_in: seconds(9), retry_in: Duration::ZERO, ..standing(10, true) }
        );
        assert_eq!(shown(1), ["client=4", "client=3"], "what is used comes back");
        assert!(shown(60).is_empty() && near.known.lock().entries.is_empty());
        let window = Standing { rolling: false, ..standing(9, false) };
        assert_eq!((window.after(seconds(8)).used, window.after(seconds(9)).used), (9, 0), "all at once");
    }

    #[test]
    fn there_is_an_end_to_what_is_known() {
        let (near, now) = (Near::default(), Instant::now());
        (0..100_000).for_each(|who| note(&near, who, standing(9, false), now));
        assert_eq!(near.list(now).len(), KNOWN_MAX);
        (100_000..200_000).for_each(|who| note(&near, who, standing(10, true), now));
        assert_eq!(near.list(now).len(), 2 * KNOWN_MAX);
        assert!(near.list(now)[0].standing.over);
        let later = now + seconds(60);
        note(&near, 7, standing(9, false), later);
        assert_eq!(near.list(later).len(), 1, "there is room again");
    }
}
