//! The rows of a batch in each table, sorted by primary key: processes that write at the same time
//! lock rows in the same order. Knows the columns that both databases share, but executes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use keylatch_filters::contract::{Currency, KeyId};

use super::batch::{RequestRow, UsageBatch, UsageGroup, UsageSums};
use crate::util::time::millis;

/// Sums by minute.
pub const MINUTE_S: i64 = 60;
/// Sums by hour.
pub const HOUR_S: i64 = 3600;
/// Sums by day (UTC).
pub const DAY_S: i64 = 24 * HOUR_S;
/// The days that a row of the tables `usage_recent_…` has: one column for each, used as a ring. See
/// the migration.
pub const RECENT_DAYS: i64 = 32;
/// A value of sums.
pub type Amount = fn(&UsageSums) -> i64;

/// The tables `usage_recent_…`, with the value of each.
pub const RECENT: [(&str, Amount); 3] = [
    ("usage_recent_cost", |sums| sums.cost_micros),
    ("usage_recent_tokens", |sums| sums.input.saturating_add(sums.output)),
    ("usage_recent_requests", |sums| sums.requests),
];

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number, or none.
    Int(Option<i64>),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// Rows to insert into one table, or to add to those that exist.
#[derive(Clone, Debug)]
pub struct Upsert {
    /// The table.
    pub table: &'static str,
    /// The columns.
    pub columns: Vec<String>,
    /// What to do with rows that exist: the text after `ON CONFLICT`. The table's alias is `t`.
    pub conflict: String,
    /// The rows, in the order of the columns.
    pub rows: Vec<Vec<Value>>,
}

/// The rows of a batch, by table. Each has one row for each primary key.
pub fn upserts(batch: &UsageBatch) -> Vec<Upsert> {
    let mut all = vec![sums(batch), keys(batch), models(batch)];
    all.extend(recent(batch));
    all.push(latency(batch));
    all.push(requests(batch));
    all.retain(|upsert| !upsert.rows.is_empty());
    all
}

/// The bytes of a key id; empty without a key.
pub fn key_bytes(key: Option<KeyId>) -> Vec<u8> {
    key.map(|key| key.0.to_vec()).unwrap_or_default()
}

fn text(text: Option<&str>) -> Value {
    Value::Text(text.unwrap_or_default().to_owned())
}

fn int(number: i64) -> Value {
    Value::Int(Some(number))
}

fn currency(currency: Option<Currency>) -> Value {
    text(currency.as_ref().map(Currency::as_str))
}

fn sums(batch: &UsageBatch) -> Upsert {
    let rows = rolled(batch, &[MINUTE_S, HOUR_S, DAY_S], |group| Some(group.clone()));
    let values = |group: &UsageGroup| {
        vec![
            Value::Bytes(key_bytes(group.key)),
            text(group.subject.as_deref()),
            text(group.model.as_deref()),
            text(Some(&group.route)),
            text(Some(&group.upstream)),
            int(group.status.into()),
            currency(group.currency),
        ]
    };
    adding("usage_sums", &["key_id", "subject", "model", "route", "upstream", "status", "currency"], rows, values)
}

fn keys(batch: &UsageBatch) -> Upsert {
    let rows = rolled(batch, &[HOUR_S, DAY_S], |group| Some((group.key, group.currency)));
    adding("usage_keys", &["key_id", "currency"], rows, |(key, of)| vec![Value::Bytes(key_bytes(*key)), currency(*of)])
}

fn models(batch: &UsageBatch) -> Upsert {
    let rows = rolled(batch, &[HOUR_S, DAY_S], |group| {
        Some((group.model.clone(), group.route.clone(), group.upstream.clone(), group.status, group.currency))
    });
    adding("usage_models", &["model", "route", "upstream", "status", "currency"], rows, |(model, route, upstream, status, of)| {
        vec![text(model.as_deref()), text(Some(route)), text(Some(upstream)), int((*status).into()), currency(*of)]
    })
}

/// The sums of each start of a step and part of a group.
fn rolled<K: Ord>(batch: &UsageBatch, steps: &[i64], part: impl Fn(&UsageGroup) -> Option<K>) -> BTreeMap<(i64, i64, K), UsageSums> {
    let mut rows: BTreeMap<(i64, i64, K), UsageSums> = BTreeMap::new();
    for ((minute_s, group), sums) in &batch.sums {
        for step_s in steps {
            if let Some(part) = part(group) {
                rows.entry((*step_s, minute_s - minute_s.rem_euclid(*step_s), part)).or_default().add(sums);
            }
        }
    }
    rows
}

fn adding<K>(table: &'static str, key: &[&str], rows: BTreeMap<(i64, i64, K), UsageSums>, values: impl Fn(&K) -> Vec<Value>) -> Upsert {
    let key: Vec<&str> = ["step_s", "at_s"].into_iter().chain(key.iter().copied()).collect();
    let columns = key.iter().chain(UsageSums::COLUMNS).map(|name| (*name).to_owned()).collect();
    let rows = rows.iter().map(|((step_s, at_s, part), sums)| {
        let mut row = vec![int(*step_s), int(*at_s)];
        row.extend(values(part));
        row.extend(sums.values().into_iter().map(int));
        row
    });
    Upsert { table, columns, conflict: add_up(&key, UsageSums::COLUMNS), rows: rows.collect() }
}

fn add_up(key: &[&str], sums: &[&str]) -> String {
    let sums: Vec<String> = sums.iter().map(|name| format!("{name} = t.{name} + excluded.{name}")).collect();
    format!("({}) DO UPDATE SET {}", key.join(", "), sums.join(", "))
}

/// The column of a day in the tables `usage_recent_…`.
pub fn recent_column(day: i64) -> String {
    format!("d{}", day.rem_euclid(RECENT_DAYS))
}

/// One upsert for each day and table: the day is part of the statement.
fn recent(batch: &UsageBatch) -> Vec<Upsert> {
    let mut days: BTreeMap<i64, BTreeMap<Option<KeyId>, UsageSums>> = BTreeMap::new();
    for ((minute_s, group), sums) in &batch.sums {
        days.entry(minute_s.div_euclid(DAY_S)).or_default().entry(group.key).or_default().add(sums);
    }
    let of_day = |(day, keys): (&i64, &BTreeMap<Option<KeyId>, UsageSums>)| {
        let upsert = |(table, value): &(&'static str, Amount)| Upsert {
            table,
            columns: vec!["key_id".into(), "day".into(), "total".into()],
            conflict: recent_conflict(*day),
            rows: keys.iter().map(|(key, sums)| vec![Value::Bytes(key_bytes(*key)), int(*day), int(value(sums))]).collect(),
        };
        RECENT.iter().map(upsert).collect::<Vec<_>>()
    };
    days.iter().flat_map(of_day).collect()
}

/// The first use of a later day records the running total for the ends of the days since the last
/// use. A late use of an earlier day counts at the ends of that day and of those after it.
fn recent_conflict(day: i64) -> String {
    let column = |before: i64| {
        let (name, end) = (recent_column(day - before), day - before);
        let late = end + RECENT_DAYS;
        format!("{name} = CASE WHEN t.day <= {end} THEN t.total WHEN t.day > {late} THEN t.{name} + excluded.total ELSE t.{name} END")
    };
    let columns: Vec<String> = (1..=RECENT_DAYS).map(column).collect();
    let last = format!("day = CASE WHEN t.day < {day} THEN {day} ELSE t.day END");
    format!("(key_id) DO UPDATE SET {}, {last}, total = t.total + excluded.total", columns.join(", "))
}

fn latency(batch: &UsageBatch) -> Upsert {
    let mut rows: BTreeMap<(i64, i64, &str, &str, usize), i64> = BTreeMap::new();
    for (group, counts) in &batch.latency {
        for (step_s, (bucket, count)) in
            [HOUR_S, DAY_S].into_iter().flat_map(|step_s| counts.iter().enumerate().map(move |of| (step_s, of)))
        {
            if *count > 0 {
                let at_s = group.minute_s - group.minute_s.rem_euclid(step_s);
                *rows.entry((step_s, at_s, group.model.as_deref().unwrap_or_default(), &group.route, bucket)).or_default() +=
                    i64::from(*count);
            }
        }
    }
    let key = ["step_s", "at_s", "model", "route", "bucket"];
    let row = |((step_s, at_s, model, route, bucket), count): (&(i64, i64, &str, &str, usize), &i64)| {
        let bucket = i64::try_from(*bucket).unwrap_or_default();
        vec![int(*step_s), int(*at_s), text(Some(model)), text(Some(route)), int(bucket), int(*count)]
    };
    Upsert {
        table: "usage_latency",
        columns: key.iter().chain(&["count"]).map(|name| (*name).to_owned()).collect(),
        conflict: add_up(&key, &["count"]),
        rows: rows.iter().map(row).collect(),
    }
}

/// The columns of the request log.
pub const REQUEST_COLUMNS: [&str; 22] = [
    "at_ms",
    "id",
    "key_id",
    "subject",
    "model",
    "route",
    "upstream",
    "status",
    "input",
    "cached_input",
    "cache_write",
    "output",
    "reasoning",
    "images",
    "audio_ms",
    "characters",
    "cost_micros",
    "currency",
    "source",
    "first_token_ms",
    "duration_ms",
    "streamed",
];

fn requests(batch: &UsageBatch) -> Upsert {
    let count = |number: u64| int(i64::try_from(number).unwrap_or(i64::MAX));
    let duration_ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let row = |RequestRow { id, usage }: &RequestRow| {
        let (tokens, units) = (&usage.tokens, &usage.units);
        let cost_micros = usage.cost.map(|cost| i64::try_from(cost.micros).unwrap_or(i64::MAX));
        vec![
            int(millis(usage.at)),
            Value::Bytes(id.as_bytes().to_vec()),
            Value::Bytes(key_bytes(usage.key)),
            text(usage.subject.as_deref()),
            text(usage.model.as_deref()),
            text(Some(&usage.route)),
            text(Some(&usage.upstream)),
            int(usage.status.into()),
            count(tokens.input),
            count(tokens.cached_input),
            count(tokens.cache_write),
            count(tokens.output),
            count(tokens.reasoning),
            count(units.images),
            count(units.audio_ms),
            count(units.characters),
            Value::Int(cost_micros),
            currency(usage.cost.map(|cost| cost.currency)),
            text(Some(usage.source.as_str())),
            Value::Int(usage.first_token.map(duration_ms)),
            int(duration_ms(usage.duration)),
            int(usage.streamed.into()),
        ]
    };
    Upsert {
        table: "usage_requests",
        columns: REQUEST_COLUMNS.iter().map(|name| (*name).to_owned()).collect(),
        conflict: "(at_ms, id) DO NOTHING".into(),
        rows: batch.requests.iter().map(row).collect(),
    }
}
