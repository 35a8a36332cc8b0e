//! Operators' changes of bindings in PostgreSQL, each in one transaction with its audit entry.

use std::time::SystemTime;

use keylatch_filters::contract::{KeyId, StoreError};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, Row};

use super::bindings::{JUDGED, judged};
use super::session::{Pool, Session};
use super::{audit, failed};
use crate::sql::audit::{Actor, AuditLine};
use crate::sql::record::{Change, Changed, Record, roaming_columns};
use crate::util::time::{millis, time};

pub const MORE: &str = "hint, note, (extract(epoch FROM created_at) * 1e3)::bigint, (extract(epoch FROM last_used_at) * 1e3)::bigint";

pub fn record(row: &PgRow) -> Result<Record, StoreError> {
    let millis = |index: usize| row.try_get::<i64, _>(index).map(time).map_err(failed);
    Ok(Record {
        binding: judged(row)?,
        hint: row.try_get(11).map_err(failed)?,
        made_by: row.try_get(9).map_err(failed)?,
        note: row.try_get(12).map_err(failed)?,
        created_at: millis(13)?,
        last_used_at: millis(14)?,
    })
}

/// Operators wait for a lock longer than the server keeps a vanished replica's transaction.
pub const LOCK_WAIT: &str = "SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '60s'";

/// The row, locked until the end of the transaction.
async fn locked(tx: &mut Session, id: KeyId) -> Result<Option<Record>, StoreError> {
    let statement = format!("SELECT {JUDGED}, {MORE} FROM bindings WHERE key_id = $1 FOR UPDATE");
    let row = sqlx::query(AssertSqlSafe(statement)).bind(id.0).fetch_optional(tx).await.map_err(failed)?;
    row.as_ref().map(record).transpose()
}

pub async fn remove(pool: &Pool, id: KeyId, expects: Option<i64>, actor: &Actor) -> Result<Changed<()>, StoreError> {
    let mut tx = pool.begin().await.map_err(failed)?;
    tx.execute(LOCK_WAIT).await.map_err(failed)?;
    let Some(before) = locked(&mut tx, id).await? else { return Ok(Changed::Missing) };
    if expects.is_some_and(|expects| expects != before.binding.version) {
        return Ok(Changed::Newer(before.binding.version));
    }
    sqlx::query("DELETE FROM bindings WHERE key_id = $1").bind(id.0).execute(&mut *tx).await.map_err(failed)?;
    audit::write(&mut tx, actor, AuditLine::binding_changed(id, Some(&before), None)).await?;
    tx.commit().await.map_err(failed)?;
    Ok(Changed::Done(()))
}

pub async fn change(pool: &Pool, id: KeyId, change: Change, actor: &Actor) -> Result<Changed<Record>, StoreError> {
    let rule = change.rule.as_ref().map(|terms| terms.rule.as_str());
    let networks = change.rule.as_ref().map(|terms| terms.networks.iter().map(ToString::to_string).collect::<Vec<_>>());
    let (networks_max, window_s) = roaming_columns(change.rule.as_ref().and_then(|terms| terms.roaming));
    let seen = vec![millis(SystemTime::now()); networks.as_ref().map_or(0, Vec::len)];
    let mut tx = pool.begin().await.map_err(failed)?;
    tx.execute(LOCK_WAIT).await.map_err(failed)?;
    let before = locked(&mut tx, id).await?;
    match (change.expects, &before) {
        (Some(_), None) => return Ok(Changed::Missing),
        (Some(expects), Some(before)) if expects != before.binding.version => return Ok(Changed::Newer(before.binding.version)),
        _ => {}
    }
    if let (Some(make), Some(rule)) = (&change.make, rule) {
        sqlx::query(
            "INSERT INTO bindings (key_id, hint, rule, networks, networks_max, window_s, version, made_by, created_at, last_used_at)
             VALUES ($1, $2, $3, $4::text[]::cidr[], $6, $7, keylatch_version(0), $5, to_timestamp($8::float8 / 1e3), now()) ON CONFLICT (key_id) DO NOTHING",
        )
        .bind(id.0)
        .bind(&make.hint)
        .bind(rule)
        .bind(&networks)
        .bind(&make.made_by)
        .bind(networks_max)
        .bind(window_s)
        .bind(millis(make.created_at))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    }
    // A change by an operator confirms the binding: a refusal by the upstream must not remove it.
    let statement = format!(
        "UPDATE bindings SET rule = coalesce($2, rule), networks = coalesce($3::text[]::cidr[], networks),
             networks_max = CASE WHEN $2 IS NULL THEN networks_max ELSE $7 END,
             window_s = CASE WHEN $2 IS NULL THEN window_s ELSE $8 END,
             seen_ms = CASE WHEN $2 IS NULL THEN seen_ms WHEN $7 IS NULL THEN '{{}}' ELSE $9 END, banned = coalesce($4, banned),
             note = coalesce($5, note), labels = coalesce($6, labels), made_by = coalesce($10, made_by), confirmed = true,
             version = keylatch_version(version)
         WHERE key_id = $1 RETURNING {JUDGED}, {MORE}"
    );
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(id.0)
        .bind(rule)
        .bind(&networks)
        .bind(change.banned)
        .bind(&change.note)
        .bind(&change.labels)
        .bind(networks_max)
        .bind(window_s)
        .bind(seen)
        .bind(change.made_by())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
    let Some(after) = row.as_ref().map(record).transpose()? else { return Ok(Changed::Missing) };
    audit::write(&mut tx, actor, AuditLine::binding_changed(id, before.as_ref(), Some(&after))).await?;
    tx.commit().await.map_err(failed)?;
    Ok(Changed::Done(after))
}
