//! Tests of usage from the record to the report, with SQLite in memory and in files.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use jiff::tz::TimeZone;
use keylatch_filters::contract::{Cost, CountSource, Currency, KeyHasher, KeyId, OtherUnits, TokenCounts};

use super::*;
use crate::sql::audit::Actor;
use crate::sql::record::{BindingTerms, Change, Creation, RetentionPolicy, UsageRetention};
use crate::sql::sqlite::Sqlite;
use crate::sql::usage::{RequestQuery, UsageCursor, UsageDimension, UsageFilter, UsageQuery, UsageRow, UsageSort, UsageStep};

/// 2026-10-29 10:00 UTC.
const NOW_S: i64 = 1_793_268_000;
const DAY_S: i64 = 86_400;

async fn store() -> Arc<dyn Authority> {
    Arc::new(Sqlite::in_memory().await.unwrap())
}

fn accounts(authority: &Arc<dyn Authority>) -> Arc<Accounts> {
    Accounts::new(Arc::clone(authority), &UsageOptions::default(), &Registry::new())
}

fn key(n: u64) -> KeyId {
    KeyHasher::new(b"test").id(&n.to_string())
}

fn time(at_s: i64) -> SystemTime {
    crate::util::time::time(at_s * 1000)
}

fn record(at_s: i64) -> UsageRecord {
    UsageRecord {
        at: time(at_s),
        key: Some(key(1)),
        subject: None,
        model: Some("m".into()),
        route: "r".into(),
        upstream: "u".into(),
        status: 200,
        tokens: TokenCounts { input: 10, output: 5, ..TokenCounts::default() },
        units: OtherUnits::default(),
        source: CountSource::Reported,
        cost: Some(Cost { micros: 7, currency: Currency(*b"USD") }),
        streamed: false,
        first_token: None,
        duration: Duration::from_millis(100),
    }
}

/// A small generator of numbers: tests are repeatable.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Records of the last 20 days.
fn random(count: usize) -> Vec<UsageRecord> {
    let mut numbers = Numbers(7);
    let mut one = || {
        let mut below = |end| numbers.below(end);
        let at_s = NOW_S - i64::try_from(below(20 * 86_400)).unwrap();
        let source = [CountSource::Reported, CountSource::Estimated, CountSource::None][below(3) as usize];
        let counts = source != CountSource::None;
        let currency = Currency(*[b"USD", b"EUR"][below(2) as usize]);
        UsageRecord {
            key: Some(key(below(9))).filter(|_| below(10) > 0),
            subject: Some(format!("s{}", below(3)).into()).filter(|_| below(2) > 0),
            model: Some(format!("m{}", below(5)).into()).filter(|_| below(10) > 0),
            route: format!("r{}", below(2)).into(),
            upstream: format!("u{}", below(2)).into(),
            status: [0, 200, 204, 404, 429, 500][below(6) as usize],
            tokens: TokenCounts { input: below(1000), cached_input: 3, cache_write: 2, output: below(100), reasoning: 1 },
            units: OtherUnits { images: below(2), audio_ms: below(100), characters: below(50) },
            source,
            cost: Some(Cost { micros: below(10_000), currency }).filter(|_| counts && below(3) > 0),
            first_token: Some(Duration::from_millis(below(5000))).filter(|_| counts),
            duration: Duration::from_secs(6),
            streamed: below(2) > 0,
            ..record(at_s)
        }
    };
    (0..count).map(|_| one()).collect()
}

fn query(from_s: i64, to_s: i64) -> UsageQuery {
    let horizon = UsageHorizon { now_s: NOW_S, minutes_since_s: NOW_S - 2 * DAY_S, hours_since_s: NOW_S - 35 * DAY_S };
    UsageQuery::new(from_s, to_s, horizon)
}

async fn rows(store: &Arc<dyn Authority>, query: &UsageQuery) -> Vec<UsageRow> {
    store.admin_store().usage_report(query).await.unwrap().rows
}

type Values = (i64, i64, i64);

/// Requests, tokens and cost of each group.
fn truth(records: &[UsageRecord], range: (i64, i64), group: impl Fn(&UsageRecord) -> Vec<String>) -> BTreeMap<Vec<String>, Values> {
    let mut all: BTreeMap<Vec<String>, Values> = BTreeMap::new();
    for record in records.iter().filter(|record| (range.0..range.1).contains(&seconds(record.at))) {
        let sums = all.entry(group(record)).or_default();
        sums.0 += 1;
        sums.1 += record.tokens.total() as i64;
        sums.2 += record.cost.map_or(0, |cost| cost.micros as i64);
    }
    all
}

fn values(rows: &[UsageRow]) -> BTreeMap<Vec<String>, Values> {
    let value = |row: &UsageRow| {
        assert_eq!(row.costs.iter().map(|cost| cost.micros as i64).sum::<i64>(), row.sums.cost_micros);
        (row.group.clone(), (row.sums.requests, row.sums.input + row.sums.output, row.sums.cost_micros))
    };
    rows.iter().map(value).collect()
}

fn text(text: Option<&Arc<str>>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

#[tokio::test]
async fn reports_equal_the_records() {
    let store = store().await;
    let accounts = accounts(&store);
    let records = random(5000);
    for part in records.chunks(1700) {
        part.iter().for_each(|record| accounts.record(record));
        accounts.flush().await;
    }
    let today = NOW_S - NOW_S % DAY_S;
    let hex = |record: &UsageRecord| record.key.map(|key| key.hex()).unwrap_or_default();
    // The last days from the table of recent keys, whole days, hours, and minutes.
    let last_minutes = (NOW_S - 7200 - 60, NOW_S - 60);
    for range in [(today - 25 * DAY_S, NOW_S), (today - 9 * DAY_S, today), (NOW_S - 11 * DAY_S, NOW_S - 7200), last_minutes] {
        let of = |group: &[UsageDimension]| UsageQuery { group: group.to_vec(), limit: 1000, ..query(range.0, range.1) };
        for sort in [UsageSort::Cost, UsageSort::Tokens, UsageSort::Requests, UsageSort::Time] {
            let found = rows(&store, &UsageQuery { sort, ..of(&[UsageDimension::Key]) }).await;
            assert_eq!(values(&found), truth(&records, range, |record| vec![hex(record)]), "{range:?} {sort:?}");
            if sort == UsageSort::Cost {
                assert!(found.is_sorted_by(|a, b| a.sums.cost_micros >= b.sums.cost_micros));
            }
        }
        let found = rows(&store, &of(&[UsageDimension::Key, UsageDimension::Model])).await;
        assert_eq!(values(&found), truth(&records, range, |record| vec![hex(record), text(record.model.as_ref())]));
        let found = rows(&store, &of(&[UsageDimension::Upstream, UsageDimension::Status])).await;
        let status = |record: &UsageRecord| vec![record.upstream.to_string(), (record.status / 100).to_string()];
        assert_eq!(values(&found), truth(&records, range, status));
        let found = rows(&store, &of(&[UsageDimension::Subject])).await;
        assert_eq!(values(&found), truth(&records, range, |record| vec![text(record.subject.as_ref())]));
        let filter = UsageFilter { key: Some(key(3)), model: Some("m1".into()), ..UsageFilter::default() };
        let some: Vec<_> = records.iter().filter(|r| r.key == Some(key(3)) && r.model.as_deref() == Some("m1")).cloned().collect();
        let found = rows(&store, &UsageQuery { filter, ..of(&[UsageDimension::Route]) }).await;
        assert_eq!(values(&found), truth(&some, range, |record| vec![record.route.to_string()]));
        assert_eq!(values(&rows(&store, &of(&[])).await), truth(&records, range, |_| Vec::new()));
    }
    let all = rows(&store, &query(NOW_S - 30 * DAY_S, NOW_S)).await[0].sums;
    let count = |of: fn(&UsageRecord) -> bool| records.iter().filter(|record| of(record)).count() as i64;
    assert_eq!(all.estimated, count(|record| record.source == CountSource::Estimated));
    assert_eq!(all.unpriced, count(|record| record.source != CountSource::None && record.cost.is_none()));
    assert_eq!(all.first_tokens, count(|record| record.first_token.is_some()));
    assert_eq!((all.cached_input, all.cache_write, all.reasoning), (15_000, 10_000, 5000));
    assert_eq!(
        all.generation_ms,
        records
            .iter()
            .filter(|r| r.tokens.output > 0)
            .filter_map(|r| r.first_token)
            .map(|first| 6000 - first.as_millis() as i64)
            .sum::<i64>()
    );
}

#[tokio::test]
async fn labels_count_under_each_key_that_has_them() {
    let store = store().await;
    let accounts = accounts(&store);
    for (n, labels) in [(1, vec!["a", "b"]), (2, vec!["b"]), (3, vec![])] {
        let change = Change {
            rule: Some(BindingTerms { rule: keylatch_filters::contract::Rule::All, networks: Vec::new(), roaming: None }),
            labels: Some(labels.into_iter().map(str::to_owned).collect()),
            make: Some(Creation::now(String::new(), "admin".into())),
            ..Change::default()
        };
        store.change(key(n), change, Actor { who: "test".into(), origin: "test".into() }).await.unwrap();
        accounts.record(&UsageRecord { key: Some(key(n)), ..record(NOW_S - 30) });
    }
    accounts.flush().await;
    let of =
        |group: Vec<UsageDimension>, filter| UsageQuery { group, filter, sort: UsageSort::Requests, ..query(NOW_S - 30 * DAY_S, NOW_S) };
    let found = rows(&store, &of(vec![UsageDimension::Label], UsageFilter::default())).await;
    assert_eq!(found.iter().map(|row| (row.group[0].as_str(), row.sums.requests)).collect::<Vec<_>>(), [("b", 2), ("a", 1)]);
    let found = rows(&store, &of(vec![UsageDimension::Label, UsageDimension::Model], UsageFilter::default())).await;
    assert_eq!(found.iter().map(|row| row.sums.requests).collect::<Vec<_>>(), [2, 1]);
    let filter = UsageFilter { label: Some("b".into()), ..UsageFilter::default() };
    assert_eq!(rows(&store, &of(vec![UsageDimension::Key], filter.clone())).await.len(), 2);
    assert_eq!(rows(&store, &of(vec![], filter)).await[0].sums.requests, 2);
}

/// A writer that fails before or after the commit.
struct Failing {
    store: Arc<dyn Authority>,
    before: AtomicBool,
    after: AtomicBool,
    refuses: AtomicUsize,
}

#[async_trait]
impl BatchWriter for Arc<Failing> {
    async fn write(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        if self.before.load(Ordering::Relaxed) {
            return Err(StoreError::Away("before".into()));
        }
        if self.refuses.load(Ordering::Relaxed) > 0 {
            self.refuses.fetch_sub(1, Ordering::Relaxed);
            return Err(StoreError::Useless("refused".into()));
        }
        self.store.admin_store().write_usage(batch).await?;
        if self.after.load(Ordering::Relaxed) { Err(StoreError::Away("after".into())) } else { Ok(()) }
    }
}

async fn total(store: &Arc<dyn Authority>) -> i64 {
    rows(store, &query(NOW_S - 30 * DAY_S, NOW_S)).await.first().map_or(0, |row| row.sums.requests)
}

#[tokio::test]
async fn failures_lose_and_repeat_nothing() {
    let store = store().await;
    let writer = Arc::new(Failing { store: Arc::clone(&store), before: true.into(), after: false.into(), refuses: AtomicUsize::new(0) });
    let accounts = Accounts::with(Box::new(Arc::clone(&writer)), &UsageOptions::default(), &Registry::new());
    let add = |count: i64| (0..count).for_each(|n| accounts.record(&record(NOW_S - 60 * n)));
    add(2500);
    accounts.flush().await;
    add(10);
    accounts.flush().await;
    assert_eq!(total(&store).await, 0);
    // The commit succeeds, and its answer is lost.
    writer.before.store(false, Ordering::Relaxed);
    writer.after.store(true, Ordering::Relaxed);
    accounts.flush().await;
    accounts.flush().await;
    assert_eq!(total(&store).await, 1000, "one batch, once");
    writer.after.store(false, Ordering::Relaxed);
    writer.refuses.store(1, Ordering::Relaxed);
    accounts.flush().await;
    assert_eq!(total(&store).await, 2500, "a refused batch, which was written before, does not stop the others");
    accounts.flush().await;
    assert_eq!(total(&store).await, 2510);
    accounts.finish().await;
    assert_eq!((total(&store).await, accounts.queued.as_ref().unwrap().get()), (2510, 0));
}

#[tokio::test]
async fn a_crash_loses_unflushed_usage_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.db");
    {
        let store: Arc<dyn Authority> = Arc::new(Sqlite::open(&path, true).await.unwrap());
        let accounts = accounts(&store);
        (0..30).for_each(|_| accounts.record(&record(NOW_S - 60)));
        accounts.flush().await;
        (0..5).for_each(|_| accounts.record(&record(NOW_S - 60)));
    }
    let store: Arc<dyn Authority> = Arc::new(Sqlite::open(&path, true).await.unwrap());
    assert_eq!(total(&store).await, 30);
}

#[tokio::test]
async fn models_and_groups_are_bounded() {
    let store = store().await;
    let options = UsageOptions { models_max: 3, ..UsageOptions::default() };
    let accounts = Accounts::new(Arc::clone(&store), &options, &Registry::new());
    for n in 0..10 {
        accounts.record(&UsageRecord { model: Some(format!("m{n}").into()), ..record(NOW_S - DAY_S) });
    }
    accounts.record(&UsageRecord { model: Some(format!("{}é and more\0", "x".repeat(127)).into()), ..record(NOW_S) });
    accounts.record(&UsageRecord { model: Some("".into()), source: CountSource::None, cost: None, status: 403, ..record(NOW_S) });
    accounts.flush().await;
    let by_model = UsageQuery { group: vec![UsageDimension::Model], sort: UsageSort::Requests, ..query(NOW_S - 9 * DAY_S, NOW_S + 60) };
    let found: Vec<_> = rows(&store, &by_model).await.into_iter().map(|row| (row.group[0].clone(), row.sums.requests)).collect();
    let single = ["x".repeat(127), "m2".into(), "m1".into(), "m0".into(), String::new()];
    let expected: Vec<_> = [("other".to_owned(), 7)].into_iter().chain(single.map(|model| (model, 1))).collect();
    assert_eq!(found, expected);

    let mut pending = Pending::default();
    let mut add = |n: u64, subject: &str| {
        pending.add(&UsageRecord { key: Some(key(n)), subject: Some(subject.into()), ..record(NOW_S) }, 10, false, 109_990)
    };
    assert_eq!((0..10).filter(|n| add(*n, "ann").sums).count(), 0, "merged");
    assert!(add(11, "ann").sums && !add(5, "bob").sums, "lost, unless its group exists");
    let batches = pending.take(time(NOW_S));
    assert!(batches[0].sums.iter().all(|((_, group), _)| group.subject.as_deref() == Some("other")));
}

#[tokio::test]
async fn pages_are_complete_and_stable() {
    let store = store().await;
    let accounts = accounts(&store);
    random(2000).iter().for_each(|record| accounts.record(record));
    accounts.flush().await;
    let today = NOW_S - NOW_S % DAY_S;
    for (group, step, range) in [
        (vec![UsageDimension::Key], None, (today - 28 * DAY_S, NOW_S)),
        (vec![UsageDimension::Key], None, (today - 28 * DAY_S, today)),
        (vec![UsageDimension::Model, UsageDimension::Status], Some(UsageStep::Week), (today - 28 * DAY_S, NOW_S)),
        (vec![], Some(UsageStep::Day), (today - 28 * DAY_S, NOW_S)),
    ] {
        for (sort, descending) in [(UsageSort::Cost, true), (UsageSort::Requests, false), (UsageSort::Time, true), (UsageSort::Time, false)]
        {
            let all = UsageQuery { group: group.clone(), step, sort, descending, limit: 5000, ..query(range.0, range.1) };
            let whole = store.admin_store().usage_report(&all).await.unwrap();
            assert!(whole.next.is_none() && whole.rows.len() > 5);
            let (mut paged, mut after): (Vec<UsageRow>, Option<UsageCursor>) = (Vec::new(), None);
            loop {
                let page = store.admin_store().usage_report(&UsageQuery { limit: 3, after, ..all.clone() }).await.unwrap();
                paged.extend(page.rows);
                let Some(next) = page.next else { break };
                after = Some(serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap());
            }
            assert_eq!(paged, whole.rows, "{group:?} {step:?} {sort:?} {descending}");
        }
    }
    let wrong = UsageQuery { group: vec![UsageDimension::Key; 2], ..query(0, NOW_S) };
    assert!(store.admin_store().usage_report(&wrong).await.is_err());
}

#[tokio::test]
async fn steps_follow_the_time_zone_over_a_change_of_its_offset() {
    let store = store().await;
    let accounts = accounts(&store);
    // One request in each hour from Friday 2026-10-23 22:00 UTC on, midnight in Berlin.
    let first_s = 1_792_792_800;
    (0..4 * 24).for_each(|hour| accounts.record(&record(first_s + hour * 3600)));
    accounts.flush().await;
    let in_zone = |zone: &str, step, to_s| UsageQuery {
        zone: TimeZone::get(zone).unwrap(),
        step: Some(step),
        sort: UsageSort::Time,
        descending: false,
        ..query(first_s, to_s)
    };
    let counts = |rows: Vec<UsageRow>| rows.iter().map(|row| (row.start_s - first_s, row.sums.requests)).collect::<Vec<_>>();
    let days = rows(&store, &in_zone("Europe/Berlin", UsageStep::Day, NOW_S)).await;
    assert_eq!(counts(days), [(0, 24), (DAY_S, 25), (2 * DAY_S + 3600, 24), (3 * DAY_S + 3600, 23)]);
    let hours = rows(&store, &in_zone("Europe/Berlin", UsageStep::Hour, NOW_S)).await;
    assert_eq!(counts(hours), (0..4 * 24).map(|hour| (hour * 3600, 1)).collect::<Vec<_>>(), "the repeated hour is two hours");
    let weeks = rows(&store, &in_zone("Europe/Berlin", UsageStep::Week, NOW_S)).await;
    assert_eq!(counts(weeks), [(-5 * DAY_S, 49), (2 * DAY_S + 3600, 47)]);
    let months = rows(&store, &in_zone("Europe/Berlin", UsageStep::Month, NOW_S)).await;
    assert_eq!(counts(months), [(-23 * DAY_S, 96)]);
    let days = rows(&store, &in_zone("UTC", UsageStep::Day, NOW_S)).await;
    assert_eq!(days.iter().map(|row| row.sums.requests).collect::<Vec<_>>(), [2, 24, 24, 24, 22]);
    let ending = rows(&store, &in_zone("Asia/Tokyo", UsageStep::Day, first_s + 3600)).await;
    assert_eq!(counts(ending), [(-7 * 3600, 1)]);
    // Before the sums by hour begin, each day of UTC counts in the local day that it has most of.
    let horizon = UsageHorizon { hours_since_s: NOW_S, minutes_since_s: NOW_S, now_s: NOW_S };
    let old = UsageQuery { horizon, ..in_zone("America/New_York", UsageStep::Day, first_s + 2 * DAY_S) };
    assert_eq!(rows(&store, &old).await.iter().map(|row| row.sums.requests).collect::<Vec<_>>(), [2, 24, 24]);
}

#[tokio::test]
async fn latency_is_a_histogram() {
    let store = store().await;
    let accounts = accounts(&store);
    for n in 1..=1000 {
        accounts.record(&UsageRecord { first_token: Some(Duration::from_millis(n)), ..record(NOW_S - DAY_S * (n as i64 % 2)) });
    }
    accounts.flush().await;
    let all = store.admin_store().usage_latency(&query(NOW_S - 9 * DAY_S, NOW_S + 1)).await.unwrap();
    assert_eq!((all.len(), all[0].count), (1, 1000));
    assert!((450.0..550.0).contains(&all[0].p50_ms) && (860.0..1300.0).contains(&all[0].p95_ms), "{all:?}");
    let by_day = UsageQuery { step: Some(UsageStep::Day), ..query(NOW_S - 9 * DAY_S, NOW_S + 1) };
    let by_day = store.admin_store().usage_latency(&by_day).await.unwrap();
    assert_eq!(by_day.iter().map(|day| (day.start_s, day.count)).collect::<Vec<_>>(), [(NOW_S - 34 * 3600, 500), (NOW_S - 10 * 3600, 500)]);
    let filter = UsageFilter { model: Some("another".into()), ..UsageFilter::default() };
    assert_eq!(store.admin_store().usage_latency(&UsageQuery { filter, ..query(0, NOW_S) }).await.unwrap(), []);
}

#[tokio::test]
async fn the_request_log_has_each_request_once() {
    let store = store().await;
    let options = UsageOptions { requests: Some(Default::default()), ..UsageOptions::default() };
    let accounts = Accounts::new(Arc::clone(&store), &UsageOptions::default(), &Registry::new());
    accounts.record(&record(NOW_S));
    accounts.set_options(&options);
    let records = random(1500);
    records.iter().for_each(|record| accounts.record(record));
    accounts.flush().await;
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let query = RequestQuery { from_ms: 0, to_ms: i64::MAX, after, limit: 400, ..RequestQuery::default() };
        let page = store.admin_store().usage_requests(&query).await.unwrap();
        found.extend(page.rows);
        let Some(next) = page.next else { break };
        after = Some(next);
    }
    assert_eq!(found.len(), 1500);
    assert!(found.is_sorted_by_key(|row| std::cmp::Reverse(row.usage.at)));
    let tokens = |sum: u64, tokens: TokenCounts| sum + tokens.total();
    assert_eq!(found.iter().map(|row| row.usage.tokens).fold(0, tokens), records.iter().map(|record| record.tokens).fold(0, tokens));
    let filter = UsageFilter { key: Some(key(2)), ..UsageFilter::default() };
    let query = RequestQuery { from_ms: 0, to_ms: i64::MAX, filter, limit: 5000, ..RequestQuery::default() };
    let of_key = store.admin_store().usage_requests(&query).await.unwrap().rows;
    let expected: Vec<_> = records.iter().filter(|record| record.key == Some(key(2))).collect();
    assert_eq!(of_key.len(), expected.len());
    let same = |row: &crate::sql::usage::RequestRow| {
        expected.iter().any(|r| {
            seconds(r.at) == seconds(row.usage.at)
                && r.cost == row.usage.cost
                && r.source == row.usage.source
                && r.streamed == row.usage.streamed
                && r.status == row.usage.status
        })
    };
    assert!(of_key.iter().all(same));
}

#[tokio::test]
async fn old_usage_is_deleted() {
    let store = store().await;
    let options = UsageOptions { requests: Some(Default::default()), ..UsageOptions::default() };
    let accounts = Accounts::new(Arc::clone(&store), &options, &Registry::new());
    let now_s = seconds(SystemTime::now());
    let days = [0, 1, 3, 40, 410];
    days.iter()
        .for_each(|day| (0..3).for_each(|n| accounts.record(&UsageRecord { key: Some(key(n)), ..record(now_s - day * DAY_S - 60) })));
    accounts.flush().await;
    let day = |days: u64| Duration::from_secs(days * 86_400);
    let usage = UsageRetention { minute: day(2), hour: day(35), day: day(400), requests: day(2) };
    let policy = RetentionPolicy { every: Duration::ZERO, usage, ..RetentionPolicy::new(&Default::default(), &options) };
    let trimmed = store.apply_retention(policy).await.unwrap().unwrap().trimmed;
    // Of each key: 3 minutes, 2 hours and a day twice (with the narrow table), 3 rows of the log. Of
    // the model: 2 hours and a day. Recent rows keep the latest day.
    assert_eq!(trimmed, 3 * (3 + 2 * 3 + 3) + 3);
    let horizon = accounts.horizon(time(now_s));
    assert_eq!(rows(&store, &UsageQuery::new(0, now_s, horizon)).await[0].sums.requests, 4 * 3);
    let log = RequestQuery { from_ms: 0, to_ms: i64::MAX, limit: 100, ..RequestQuery::default() };
    assert_eq!(store.admin_store().usage_requests(&log).await.unwrap().rows.len(), 6);
    let twice = store.apply_retention(policy).await.unwrap().unwrap().trimmed;
    assert_eq!(twice, 0);
}
