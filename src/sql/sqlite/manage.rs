//! Operators' changes of bindings in SQLite, each in one transaction with its audit entry, and
//! retention.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{KeyId, StoreError};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};

use super::bindings::{JUDGED, judged};
use super::{Sqlite, audit, common, failed, numbers};
use crate::sql::audit::{Actor, AuditLine};
use crate::sql::batch::networks as joined;
use crate::sql::outbox::AGE_MAX;
use crate::sql::record::{Change, Changed, Record, RetentionPolicy, RetentionResult, roaming_columns, version_now};
use crate::util::time::{millis, time};

pub const MORE: &str = "hint, note, created_ms, last_used_ms";

impl Sqlite {
    pub(super) async fn delete(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> Result<Changed<()>, StoreError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let Some(before) = one(&mut tx, id).await? else { return Ok(Changed::Missing) };
        if expects.is_some_and(|expects| expects != before.binding.version) {
            return Ok(Changed::Newer(before.binding.version));
        }
        sqlx::query("DELETE FROM bindings WHERE key_id = ?").bind(id.0.as_slice()).execute(&mut *tx).await.map_err(failed)?;
        audit::write(&mut tx, &actor, AuditLine::binding_changed(id, Some(&before), None)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Changed::Done(()))
    }

    pub(super) async fn update(&self, id: KeyId, change: Change, actor: Actor) -> Result<Changed<Record>, StoreError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let before = one(&mut tx, id).await?;
        match (change.expects, &before) {
            (Some(_), None) => return Ok(Changed::Missing),
            (Some(expects), Some(before)) if expects != before.binding.version => return Ok(Changed::Newer(before.binding.version)),
            _ => {}
        }
        let rule = change.rule.as_ref().map(|terms| terms.rule.as_str());
        let networks = change.rule.as_ref().map(|terms| joined(&terms.networks));
        let (networks_max, window_s) = roaming_columns(change.rule.as_ref().and_then(|terms| terms.roaming));
        let now_ms = millis(SystemTime::now());
        if let (Some(make), Some(rule)) = (&change.make, rule) {
            sqlx::query(
                "INSERT INTO bindings (key_id, hint, rule, networks, networks_max, window_s, version, made_by, created_ms, last_used_ms)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )
            .bind(id.0.as_slice())
            .bind(&make.hint)
            .bind(rule)
            .bind(&networks)
            .bind(networks_max)
            .bind(window_s)
            .bind(version_now(0))
            .bind(&make.made_by)
            .bind(millis(make.created_at))
            .bind(now_ms)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        // A change by an operator confirms the binding: a refusal by the upstream must not remove it.
        let statement = format!(
            "UPDATE bindings SET rule = coalesce($2, rule), networks = coalesce($3, networks),
                 networks_max = iif($2 IS NULL, networks_max, $8), window_s = iif($2 IS NULL, window_s, $9),
                 seen_ms = iif($2 IS NULL, seen_ms, $10), banned = coalesce($4, banned),
                 note = coalesce($5, note), labels = coalesce($6, labels), made_by = coalesce($11, made_by), confirmed = 1,
                 version = max(version + 1, $7)
             WHERE key_id = $1 RETURNING {JUDGED}, {MORE}"
        );
        let row = sqlx::query(AssertSqlSafe(statement))
            .bind(id.0.as_slice())
            .bind(rule)
            .bind(networks)
            .bind(change.banned)
            .bind(&change.note)
            .bind(change.labels.as_ref().map(|labels| labels.join(",")))
            .bind(version_now(0))
            .bind(networks_max)
            .bind(window_s)
            .bind(numbers(&vec![now_ms; change.rule.as_ref().map_or(0, |terms| terms.networks.len())]))
            .bind(change.made_by())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        let Some(after) = row.as_ref().map(record).transpose()? else { return Ok(Changed::Missing) };
        audit::write(&mut tx, &actor, AuditLine::binding_changed(id, before.as_ref(), Some(&after))).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Changed::Done(after))
    }

    pub(super) async fn trim(&self, policy: &RetentionPolicy) -> sqlx::Result<Option<RetentionResult>> {
        let now_ms = millis(SystemTime::now());
        let before = |age: Duration| now_ms - i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let turn = sqlx::query(
            "INSERT INTO meta (name, value) VALUES ('tended', $1)
             ON CONFLICT DO UPDATE SET value = excluded.value WHERE CAST(value AS INTEGER) <= $2",
        )
        .bind(now_ms.to_string())
        .bind(before(policy.every))
        .execute(&mut *tx)
        .await?;
        if turn.rows_affected() == 0 {
            return Ok(None);
        }
        let oldest = before(policy.archive_after);
        sqlx::query(
            "INSERT INTO bindings_archive SELECT key_id, hint, rule, networks, networks_max, window_s, seen_ms, banned, confirmed, version, made_by, note, labels, created_ms,
                 last_used_ms, $2 FROM bindings WHERE last_used_ms < $1 AND NOT banned AND made_by = 'first_use'",
        )
        .bind(oldest)
        .bind(now_ms)
        .execute(&mut *tx)
        .await?;
        let mut gone = Vec::new();
        for (statement, oldest) in [
            ("DELETE FROM bindings WHERE last_used_ms < ? AND NOT banned AND made_by = 'first_use'", oldest),
            ("DELETE FROM bindings WHERE NOT confirmed AND created_ms < ?", before(policy.unconfirmed)),
            ("DELETE FROM intercepts WHERE minute_ms < ?", before(policy.intercepts)),
            ("DELETE FROM bindings_archive WHERE archived_ms < ?", before(policy.archive)),
            ("DELETE FROM alerts WHERE raised_ms < ?", before(policy.intercepts)),
            ("DELETE FROM outbox WHERE raised_ms < ?", before(AGE_MAX)),
            ("DELETE FROM audit WHERE at_ms < ?", before(policy.audit)),
        ] {
            gone.push(sqlx::query(statement).bind(oldest).execute(&mut *tx).await?.rows_affected());
        }
        tx.commit().await?;
        let rows = |index: usize| gone.get(index).copied().unwrap_or_default();
        let mut trimmed = (2..7).map(rows).sum::<u64>() + common::trim::trim(&self.pool, now_ms, before(policy.audit)).await?;
        trimmed += common::trim::trim_usage(&self.pool, now_ms, &policy.usage).await?;
        Ok(Some(RetentionResult { archived: rows(0), unconfirmed: rows(1), trimmed }))
    }
}

async fn one(tx: &mut sqlx::SqliteConnection, id: KeyId) -> Result<Option<Record>, StoreError> {
    let statement = format!("SELECT {JUDGED}, {MORE} FROM bindings WHERE key_id = ?");
    let row = sqlx::query(AssertSqlSafe(statement)).bind(id.0.as_slice()).fetch_optional(tx).await.map_err(failed)?;
    row.as_ref().map(record).transpose()
}

pub fn record(row: &SqliteRow) -> Result<Record, StoreError> {
    Ok(Record {
        binding: judged(row)?,
        hint: row.try_get(11).map_err(failed)?,
        made_by: row.try_get(9).map_err(failed)?,
        note: row.try_get(12).map_err(failed)?,
        created_at: time(row.try_get(13).map_err(failed)?),
        last_used_at: time(row.try_get(14).map_err(failed)?),
    })
}
