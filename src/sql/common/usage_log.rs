//! Times to first token and the request log in either database. The statements are the same; this
//! file is compiled once for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::{Cost, CountSource, Currency, KeyId, OtherUnits, StoreError, TokenCounts, UsageRecord};
use sqlx::{Database, QueryBuilder, Row};
use uuid::Uuid;

use super::usage_filter::filtered;
use super::{Db, Own, failed, fetch_report};
use crate::sql::intercepts::Page;
use crate::sql::usage::tables::{DAY_S, HOUR_S, REQUEST_COLUMNS};
use crate::sql::usage::time::{Steps, segments, steps};
use crate::sql::usage::{LATENCY_BOUNDS_MS, RequestCursor, RequestQuery, RequestRow, UsageFilter, UsageLatency, UsageQuery};
use crate::util::time::{millis, time};

type DbRow = <Db as Database>::Row;

/// See [`crate::sql::usage::Usage::usage_latency`].
pub async fn latency(own: &Own, query: &UsageQuery) -> Result<Vec<UsageLatency>, StoreError> {
    let (segments, steps) = (segments(query), steps(query));
    if segments.is_empty() {
        return Ok(Vec::new());
    }
    let step = steps.as_ref().map_or("CAST(0 AS bigint)".to_owned(), |steps| format!("CAST({} AS bigint)", steps.expression("u.at_s")));
    let mut statement = QueryBuilder::new(format!("SELECT {step} AS c0, u.bucket, CAST(sum(u.count) AS bigint) FROM ("));
    let filter = UsageFilter { model: query.filter.model.clone(), route: query.filter.route.clone(), ..UsageFilter::default() };
    for (index, segment) in segments.iter().enumerate() {
        // There are no sums by minute.
        let step_s = segment.step_s.max(HOUR_S);
        let shift_s = if step_s == DAY_S { steps.as_ref().map_or(0, Steps::day_shift_s) } else { 0 };
        statement.push(if index == 0 { "" } else { " UNION ALL " });
        statement.push(format!("SELECT at_s + {shift_s} AS at_s, bucket, count FROM usage_latency WHERE step_s = {step_s} AND at_s >= "));
        statement.push_bind(segment.from_s - segment.from_s.rem_euclid(step_s)).push(" AND at_s < ").push_bind(segment.to_s);
        filtered(&mut statement, &filter);
    }
    statement.push(") AS u GROUP BY 1, 2 ORDER BY 1, 2");
    let rows = fetch_report(own, statement).await?;
    let mut counts: BTreeMap<i64, [i64; LATENCY_BOUNDS_MS.len() + 1]> = BTreeMap::new();
    for row in &rows {
        let read = || -> sqlx::Result<(i64, i64, i64)> { Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)) };
        let (step, bucket, count) = read().map_err(failed)?;
        let bucket = usize::try_from(bucket).unwrap_or_default();
        if let Some(sum) = counts.entry(step).or_default().get_mut(bucket) {
            *sum += count;
        }
    }
    let of_step = |(step, counts): (i64, [i64; LATENCY_BOUNDS_MS.len() + 1])| UsageLatency {
        start_s: steps.as_ref().map_or(query.from_s, |steps| steps.start_s(step)),
        count: counts.iter().sum(),
        p50_ms: quantile(&counts, 0.5),
        p95_ms: quantile(&counts, 0.95),
    };
    Ok(counts.into_iter().map(of_step).collect())
}

/// The quantile, interpolated within its bucket. The last bucket, without an upper bound, is its
/// lower bound.
#[expect(clippy::cast_precision_loss, reason = "counts and milliseconds are far below 2^52")]
fn quantile(counts: &[i64; LATENCY_BOUNDS_MS.len() + 1], part: f64) -> f64 {
    let rank = counts.iter().sum::<i64>() as f64 * part;
    let (mut before, mut low) = (0.0, 0.0);
    for (count, bound) in counts.iter().zip(LATENCY_BOUNDS_MS) {
        let (count, high) = (*count as f64, bound as f64);
        if count > 0.0 && before + count >= rank {
            return low + (high - low) * (rank - before) / count;
        }
        (before, low) = (before + count, high);
    }
    low
}

/// See [`crate::sql::usage::Usage::usage_requests`].
pub async fn requests(own: &Own, query: &RequestQuery) -> Result<Page<RequestRow, RequestCursor>, StoreError> {
    let mut statement = QueryBuilder::new(format!("SELECT {} FROM usage_requests WHERE at_ms >= ", REQUEST_COLUMNS.join(", ")));
    statement.push_bind(query.from_ms).push(" AND at_ms < ").push_bind(query.to_ms);
    filtered(&mut statement, &query.filter);
    if let Some(after) = &query.after {
        let id = Uuid::parse_str(&after.id).map_err(|_| StoreError::Useless("the cursor does not belong to this query".into()))?;
        statement.push(" AND (at_ms, id) < (").push_bind(after.at_ms).push(", ").push_bind(id.as_bytes().to_vec()).push(")");
    }
    statement.push(" ORDER BY at_ms DESC, id DESC LIMIT ").push_bind(i64::from(query.limit));
    let rows = fetch_report(own, statement).await?;
    let rows = rows.iter().map(|row| request(row).map_err(failed)).collect::<Result<Vec<_>, _>>()?;
    let full = rows.len() >= query.limit as usize;
    let next = rows.last().filter(|_| full).map(|last| RequestCursor { at_ms: millis(last.usage.at), id: last.id.to_string() });
    Ok(Page { rows, next })
}

fn request(row: &DbRow) -> sqlx::Result<RequestRow> {
    let number = |index: usize| row.try_get::<i64, _>(index).map(|number| u64::try_from(number).unwrap_or_default());
    let text = |index: usize| row.try_get::<String, _>(index).map(Arc::from);
    let optional = |index: usize| text(index).map(|text: Arc<str>| Some(text).filter(|text| !text.is_empty()));
    let micros = row.try_get::<Option<i64>, _>(16)?.and_then(|micros| u64::try_from(micros).ok());
    let currency = Currency::parse(&row.try_get::<String, _>(17)?);
    let duration = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    let usage = UsageRecord {
        at: time(row.try_get(0)?),
        key: row.try_get::<Vec<u8>, _>(2)?.try_into().ok().map(KeyId),
        subject: optional(3)?,
        model: optional(4)?,
        route: text(5)?,
        upstream: text(6)?,
        status: u16::try_from(row.try_get::<i64, _>(7)?).unwrap_or_default(),
        tokens: TokenCounts {
            input: number(8)?,
            cached_input: number(9)?,
            cache_write: number(10)?,
            output: number(11)?,
            reasoning: number(12)?,
        },
        units: OtherUnits { images: number(13)?, audio_ms: number(14)?, characters: number(15)? },
        cost: micros.zip(currency).map(|(micros, currency)| Cost { micros, currency }),
        source: match row.try_get::<String, _>(18)?.as_str() {
            "reported" => CountSource::Reported,
            "estimated" => CountSource::Estimated,
            _ => CountSource::None,
        },
        first_token: row.try_get::<Option<i64>, _>(19)?.map(duration),
        duration: duration(row.try_get(20)?),
        streamed: row.try_get::<i64, _>(21)? != 0,
    };
    Ok(RequestRow { id: Uuid::from_slice(&row.try_get::<Vec<u8>, _>(1)?).unwrap_or_default(), usage })
}
