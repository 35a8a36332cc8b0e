//! Usage that is not in a batch yet: sums by minute and group, bounded. Knows no store and reads no
//! clock.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{CountSource, OtherUnits, UsageRecord};
use uuid::Uuid;

use crate::sql::usage::batch::latency_bucket;
use crate::sql::usage::tables::{DAY_S, MINUTE_S};
use crate::sql::usage::{LATENCY_BOUNDS_MS, LatencyGroup, RequestRow, UsageBatch, UsageGroup, UsageSums};
use crate::util::time::millis;

/// The maximum number of queued groups. Further ones are merged.
pub const GROUPS_MAX: usize = 100_000;
/// The maximum number of merged groups beyond [`GROUPS_MAX`].
const MERGED_MAX: usize = 10_000;
/// The maximum number of queued counters of times to first token.
const LATENCY_MAX: usize = 100_000;
/// The maximum number of queued rows of the request log.
const LOG_MAX: usize = 50_000;
/// The maximum number of groups in a batch, and of its rows of the request log: the transaction of a
/// batch delays other writes of SQLite.
const PIECE_MAX: usize = 1000;
/// The maximum length of a model's name and of a subject, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The largest count or amount of one request. Sums of such numbers stay in range.
const AMOUNT_MAX: u64 = 1 << 40;
/// The model and subject of merged groups.
pub const OTHER: &str = "other";

/// The parts of a record that were lost because the queue was full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub sums: bool,
    pub latency: bool,
    pub log: bool,
}

/// Usage that waits for the next flush.
#[derive(Default)]
pub struct Pending {
    sums: HashMap<(i64, UsageGroup), UsageSums>,
    latency: HashMap<LatencyGroup, [u32; LATENCY_BOUNDS_MS.len() + 1]>,
    log: Vec<RequestRow>,
    /// The models of the day (since 1970) in `models_day`.
    models: HashSet<Arc<str>>,
    models_day: i64,
}

fn amount(number: u64) -> i64 {
    i64::try_from(number.min(AMOUNT_MAX)).unwrap_or(i64::MAX)
}

fn duration_ms(duration: Duration) -> i64 {
    amount(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A name as it is stored: not empty, bounded, and without zero bytes, which PostgreSQL refuses.
fn name(name: &Arc<str>) -> Option<Arc<str>> {
    if name.len() <= NAME_BYTES_MAX && !name.contains('\0') {
        return Some(Arc::clone(name)).filter(|name| !name.is_empty());
    }
    let cut = name.get(..name.floor_char_boundary(NAME_BYTES_MAX)).unwrap_or_default();
    Some(cut.replace('\0', "\u{fffd}").into())
}

/// The sums of one request.
fn sums(record: &UsageRecord) -> UsageSums {
    let (tokens, units) = (&record.tokens, &record.units);
    let has_counts = record.source != CountSource::None && !(tokens.is_zero() && *units == OtherUnits::default());
    let (output, first_ms) = (amount(tokens.output), record.first_token.map(duration_ms));
    let generates = first_ms.filter(|_| output > 0);
    UsageSums {
        requests: 1,
        input: amount(tokens.input),
        cached_input: amount(tokens.cached_input),
        cache_write: amount(tokens.cache_write),
        output,
        reasoning: amount(tokens.reasoning),
        images: amount(units.images),
        audio_ms: amount(units.audio_ms),
        characters: amount(units.characters),
        cost_micros: record.cost.map_or(0, |cost| amount(cost.micros)),
        unpriced: (has_counts && record.cost.is_none()).into(),
        estimated: (record.source == CountSource::Estimated).into(),
        first_token_ms: first_ms.unwrap_or(0),
        first_tokens: first_ms.is_some().into(),
        generation_ms: generates.map_or(0, |first_ms| (duration_ms(record.duration) - first_ms).max(0)),
        generation_output: generates.map_or(0, |_| output),
    }
}

impl Pending {
    /// The number of groups.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Adds the usage of one request. `logs`: also to the request log. `unwritten`: the number of
    /// groups in batches that are not written yet.
    pub fn add(&mut self, record: &UsageRecord, models_max: usize, logs: bool, unwritten: usize) -> Lost {
        let at_ms = millis(record.at);
        let minute_s = at_ms / 1000 - (at_ms / 1000).rem_euclid(MINUTE_S);
        // Clients can make up names: models without counts take at most half of the places.
        let models_max = if record.source == CountSource::None { models_max / 2 } else { models_max };
        let group = UsageGroup {
            key: record.key,
            subject: record.subject.as_ref().and_then(name),
            model: record.model.as_ref().and_then(name).map(|model| self.model(model, minute_s / DAY_S, models_max)),
            route: Arc::clone(&record.route),
            upstream: Arc::clone(&record.upstream),
            status: u8::try_from(record.status / 100).unwrap_or(5).min(5),
            currency: record.cost.map(|cost| cost.currency),
        };
        let sums = sums(record);
        let latency = !self.add_latency(record, &group, minute_s);
        let log = logs && !self.add_log(record, &group);
        Lost { sums: !self.add_sums(minute_s, group, &sums, unwritten), latency, log }
    }

    /// The model, or `other` for one more than `models_max` on a day.
    fn model(&mut self, model: Arc<str>, day: i64, models_max: usize) -> Arc<str> {
        if day > self.models_day {
            self.models.clear();
            self.models_day = day;
        }
        if self.models.contains(&model) {
            return model;
        }
        if self.models.len() >= models_max {
            return OTHER.into();
        }
        self.models.insert(Arc::clone(&model));
        model
    }

    /// False: lost.
    fn add_sums(&mut self, minute_s: i64, group: UsageGroup, sums: &UsageSums, unwritten: usize) -> bool {
        let count = self.sums.len() + unwritten;
        let mut at = (minute_s, group);
        if count >= GROUPS_MAX && !self.sums.contains_key(&at) {
            (at.1.subject, at.1.model) = (at.1.subject.map(|_| OTHER.into()), at.1.model.map(|_| OTHER.into()));
            if count >= GROUPS_MAX + MERGED_MAX && !self.sums.contains_key(&at) {
                return false;
            }
        }
        self.sums.entry(at).or_default().add(sums);
        true
    }

    /// False: lost.
    fn add_latency(&mut self, record: &UsageRecord, group: &UsageGroup, minute_s: i64) -> bool {
        let Some(first) = record.first_token else { return true };
        let full = self.latency.len() >= LATENCY_MAX;
        let at = LatencyGroup { minute_s, model: group.model.clone(), route: Arc::clone(&group.route) };
        let counts = match self.latency.entry(at) {
            Entry::Occupied(counts) => counts.into_mut(),
            Entry::Vacant(_) if full => return false,
            Entry::Vacant(slot) => slot.insert_entry(Default::default()).into_mut(),
        };
        if let Some(count) = counts.get_mut(latency_bucket(duration_ms(first))) {
            *count = count.saturating_add(1);
        }
        true
    }

    /// False: lost.
    fn add_log(&mut self, record: &UsageRecord, group: &UsageGroup) -> bool {
        if self.log.len() >= LOG_MAX {
            return false;
        }
        let usage = UsageRecord { subject: group.subject.clone(), model: group.model.clone(), ..record.clone() };
        self.log.push(RequestRow { id: Uuid::now_v7(), usage });
        true
    }

    /// Takes everything, split into batches.
    pub fn take(&mut self, now: SystemTime) -> Vec<UsageBatch> {
        let made_s = millis(now) / 1000;
        let (mut sums, mut latency) = (std::mem::take(&mut self.sums).into_iter(), std::mem::take(&mut self.latency).into_iter());
        let mut log = std::mem::take(&mut self.log).into_iter();
        let mut batches = Vec::new();
        loop {
            let batch = UsageBatch {
                sums: sums.by_ref().take(PIECE_MAX).collect(),
                latency: latency.by_ref().take(PIECE_MAX).collect(),
                requests: log.by_ref().take(PIECE_MAX).collect(),
                ..UsageBatch::new(made_s)
            };
            if batch.sums.is_empty() && batch.latency.is_empty() && batch.requests.is_empty() {
                return batches;
            }
            batches.push(batch);
        }
    }
}
