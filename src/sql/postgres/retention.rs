//! Retention in PostgreSQL: archives and deletes old rows. One process of all runs it, once in each
//! period.

use std::time::SystemTime;

use super::common;
use super::session::Pool;
use crate::sql::outbox::AGE_MAX;
use crate::sql::record::{RetentionPolicy, RetentionResult};
use crate::util::time::millis;

/// The number of rows in one statement, which bounds the time of its locks.
const AT_ONCE: i64 = 1000;

pub async fn apply(pool: &Pool, policy: &RetentionPolicy) -> sqlx::Result<Option<RetentionResult>> {
    let turn = sqlx::query(
        "INSERT INTO meta AS m (name, value) VALUES ('tended', extract(epoch FROM now())::text)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value::float8 - m.value::float8 >= $1",
    )
    .bind(policy.every.as_secs_f64())
    .execute(pool)
    .await?;
    if turn.rows_affected() == 0 {
        return Ok(None);
    }
    let mut result = RetentionResult::default();
    // Locked rows are in use; the next run takes them.
    result.archived += batches(
        pool,
        "WITH gone AS (DELETE FROM bindings WHERE key_id IN
             (SELECT key_id FROM bindings WHERE last_used_at < now() - make_interval(secs => $1) AND NOT banned AND made_by = 'first_use' LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING *)
         INSERT INTO bindings_archive SELECT *, now() FROM gone",
        policy.archive_after.as_secs_f64(),
    )
    .await?;
    result.unconfirmed += batches(
        pool,
        "DELETE FROM bindings WHERE key_id IN (SELECT key_id FROM bindings WHERE NOT confirmed
             AND created_at < now() - make_interval(secs => $1) LIMIT $2 FOR UPDATE SKIP LOCKED)",
        policy.unconfirmed.as_secs_f64(),
    )
    .await?;
    result.trimmed += batches(
        pool,
        "DELETE FROM intercepts WHERE ctid = ANY (ARRAY(SELECT ctid FROM intercepts WHERE minute < now() - make_interval(secs => $1) LIMIT $2))",
        policy.intercepts.as_secs_f64(),
    )
    .await?;
    result.trimmed += batches(
        pool,
        "DELETE FROM bindings_archive WHERE ctid = ANY (ARRAY(SELECT ctid FROM bindings_archive WHERE archived_at < now() - make_interval(secs => $1) LIMIT $2))",
        policy.archive.as_secs_f64(),
    )
    .await?;
    result.trimmed += batches(
        pool,
        "DELETE FROM alerts WHERE ctid = ANY (ARRAY(SELECT ctid FROM alerts WHERE raised_at < now() - make_interval(secs => $1) LIMIT $2))",
        policy.intercepts.as_secs_f64(),
    )
    .await?;
    result.trimmed += batches(
        pool,
        "DELETE FROM outbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM outbox WHERE raised_at < now() - make_interval(secs => $1) LIMIT $2))",
        AGE_MAX.as_secs_f64(),
    )
    .await?;
    result.trimmed += batches(
        pool,
        "DELETE FROM audit WHERE id = ANY (ARRAY(SELECT id FROM audit WHERE at < now() - make_interval(secs => $1) LIMIT $2))",
        policy.audit.as_secs_f64(),
    )
    .await?;
    let now_ms = millis(SystemTime::now());
    let audit_ms = now_ms - i64::try_from(policy.audit.as_millis()).unwrap_or(i64::MAX);
    result.trimmed += common::trim::trim(pool, now_ms, audit_ms).await?;
    result.trimmed += common::trim::trim_usage(pool, now_ms, &policy.usage).await?;
    Ok(Some(result))
}

async fn batches(pool: &Pool, statement: &'static str, older_s: f64) -> sqlx::Result<u64> {
    let mut all = 0;
    loop {
        let rows = sqlx::query(statement).bind(older_s).bind(AT_ONCE).execute(pool).await?.rows_affected();
        all += rows;
        if rows < AT_ONCE.unsigned_abs() {
            return Ok(all);
        }
    }
}
