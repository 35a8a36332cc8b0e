//! Retention of sessions, tokens, sign-in counters, replica states and counts in either database.
//! Compiled once for each. Each database has a retention of its own for bindings, intercepts and the audit log.

use super::DbPool;
use crate::sql::accounts::FORGOTTEN_MS;
use crate::sql::record::UsageRetention;
use crate::sql::samples::{HOUR_S, MINUTE_S, MINUTES_KEPT_MS};
use crate::sql::usage::tables::{DAY_S, RECENT, RECENT_DAYS};

/// Expired tokens and silent replicas are listed for this long.
const SHOWN_MS: i64 = 7 * 24 * 3600 * 1000;

/// Deletes old rows and returns their number. Hourly counts older than `audit_ms` are deleted, as
/// the audit log is.
pub async fn trim(pool: &DbPool, now_ms: i64, audit_ms: i64) -> sqlx::Result<u64> {
    let mut gone = 0;
    for (statement, oldest) in [
        ("DELETE FROM sessions WHERE expires_ms < $1", now_ms),
        ("DELETE FROM tokens WHERE expires_ms < $1", now_ms - SHOWN_MS),
        ("DELETE FROM login_failures WHERE last_ms < $1", now_ms - FORGOTTEN_MS),
        ("DELETE FROM replicas WHERE seen_ms < $1", now_ms - SHOWN_MS),
    ] {
        gone += sqlx::query(statement).bind(oldest).execute(pool).await?.rows_affected();
    }
    for (step_s, oldest) in [(MINUTE_S, now_ms - MINUTES_KEPT_MS), (HOUR_S, audit_ms)] {
        for statement in ["DELETE FROM samples WHERE step_s = $1 AND at_ms < $2", "DELETE FROM tops WHERE step_s = $1 AND at_ms < $2"] {
            gone += sqlx::query(statement).bind(step_s).bind(oldest).execute(pool).await?.rows_affected();
        }
    }
    Ok(gone)
}

/// The rows of usage that one statement deletes, which bounds the time of its locks.
const USAGE_AT_ONCE: i64 = 1000;
/// The ids of written batches are kept for this long.
const BATCHES_KEPT_S: i64 = DAY_S;

/// Deletes old usage and returns the number of rows.
pub async fn trim_usage(pool: &DbPool, now_ms: i64, kept: &UsageRetention) -> sqlx::Result<u64> {
    let now_s = now_ms / 1000;
    let seconds = |age: std::time::Duration| i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
    let mut gone = 0;
    for (step_s, age) in [(MINUTE_S, kept.minute), (HOUR_S, kept.hour), (DAY_S, kept.day)] {
        let oldest_s = now_s.saturating_sub(seconds(age));
        for (table, key) in [
            ("usage_sums", "step_s, at_s, key_id, subject, model, route, upstream, status, currency"),
            ("usage_keys", "step_s, at_s, key_id, currency"),
            ("usage_models", "step_s, at_s, model, route, upstream, status, currency"),
            ("usage_latency", "step_s, at_s, model, route, bucket"),
        ] {
            gone += pieces(pool, table, key, &format!("step_s = {step_s} AND at_s < {oldest_s}")).await?;
        }
    }
    let oldest_ms = now_ms.saturating_sub(seconds(kept.requests).saturating_mul(1000));
    gone += pieces(pool, "usage_requests", "at_ms, id", &format!("at_ms < {oldest_ms}")).await?;
    gone += pieces(pool, "usage_batches", "id", &format!("made_s < {}", now_s - BATCHES_KEPT_S)).await?;
    gone += pieces(pool, "budget_ledger", "name, period", &format!("period_end_s < {}", now_s - RECENT_DAYS * DAY_S)).await?;
    for (table, _) in RECENT {
        gone += pieces(pool, table, "key_id", &format!("day < {}", now_s / DAY_S - RECENT_DAYS)).await?;
    }
    Ok(gone)
}

async fn pieces(pool: &DbPool, table: &str, key: &str, condition: &str) -> sqlx::Result<u64> {
    let statement = format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {condition} LIMIT {USAGE_AT_ONCE})");
    let mut all = 0;
    loop {
        let rows = sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(pool).await?.rows_affected();
        all += rows;
        if rows < USAGE_AT_ONCE.unsigned_abs() {
            return Ok(all);
        }
    }
}
