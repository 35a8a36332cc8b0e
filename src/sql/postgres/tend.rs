//! What goes with time. Whichever process comes first does it, once each period.

use std::time::SystemTime;

use super::session::Pool;
use super::trim;
use crate::sql::outbox::AGE_MAX;
use crate::sql::record::{Tended, Tending};
use crate::util::time::millis;

/// Rows in one statement: none holds its locks for long.
const AT_ONCE: i64 = 1000;

pub async fn tend(pool: &Pool, tending: &Tending) -> sqlx::Result<Option<Tended>> {
    let turn = sqlx::query(
        "INSERT INTO meta AS m (name, value) VALUES ('tended', extract(epoch FROM now())::text)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE excluded.value::float8 - m.value::float8 >= $1",
    )
    .bind(tending.every.as_secs_f64())
    .execute(pool)
    .await?;
    if turn.rows_affected() == 0 {
        return Ok(None);
    }
    let mut tended = Tended::default();
    // Locked rows are being used: they are not what is looked for, or come next time.
    tended.archived += batches(
        pool,
        "WITH gone AS (DELETE FROM bindings WHERE key_id IN
             (SELECT key_id FROM bindings WHERE last_used_at < now() - make_interval(secs => $1) AND NOT banned AND made_by = 'first_use' LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING *)
         INSERT INTO bindings_archive SELECT *, now() FROM gone",
        tending.archive_after.as_secs_f64(),
    )
    .await?;
    tended.unconfirmed += batches(
        pool,
        "DELETE FROM bindings WHERE key_id IN (SELECT key_id FROM bindings WHERE NOT confirmed
             AND created_at < now() - make_interval(secs => $1) LIMIT $2 FOR UPDATE SKIP LOCKED)",
        tending.unconfirmed.as_secs_f64(),
    )
    .await?;
    tended.trimmed += batches(
        pool,
        "DELETE FROM intercepts WHERE ctid = ANY (ARRAY(SELECT ctid FROM intercepts WHERE minute < now() - make_interval(secs => $1) LIMIT $2))",
        tending.intercepts.as_secs_f64(),
    )
    .await?;
    tended.trimmed += batches(
        pool,
        "DELETE FROM bindings_archive WHERE ctid = ANY (ARRAY(SELECT ctid FROM bindings_archive WHERE archived_at < now() - make_interval(secs => $1) LIMIT $2))",
        tending.archive.as_secs_f64(),
    )
    .await?;
    tended.trimmed += batches(
        pool,
        "DELETE FROM alerts WHERE ctid = ANY (ARRAY(SELECT ctid FROM alerts WHERE raised_at < now() - make_interval(secs => $1) LIMIT $2))",
        tending.intercepts.as_secs_f64(),
    )
    .await?;
    tended.trimmed += batches(
        pool,
        "DELETE FROM outbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM outbox WHERE raised_at < now() - make_interval(secs => $1) LIMIT $2))",
        AGE_MAX.as_secs_f64(),
    )
    .await?;
    tended.trimmed += batches(
        pool,
        "DELETE FROM audit WHERE id = ANY (ARRAY(SELECT id FROM audit WHERE at < now() - make_interval(secs => $1) LIMIT $2))",
        tending.audit.as_secs_f64(),
    )
    .await?;
    let now_ms = millis(SystemTime::now());
    let audit_ms = now_ms - i64::try_from(tending.audit.as_millis()).unwrap_or(i64::MAX);
    tended.trimmed += trim::trim(pool, now_ms, audit_ms).await?;
    Ok(Some(tended))
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
