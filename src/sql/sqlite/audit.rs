//! The audit log in SQLite.

use std::time::SystemTime;

use keylatch_filters::contract::StoreError;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};

use super::failed;
use crate::sql::audit::{Actor, AuditEntry, AuditLine, AuditQuery};
use crate::util::time::{millis, time};

/// Writes an entry in the transaction of the change.
pub async fn write(tx: &mut SqliteConnection, actor: &Actor, line: AuditLine) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (at_ms, actor, origin, action, target, before, after) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(millis(SystemTime::now()))
        .bind(&actor.who)
        .bind(&actor.origin)
        .bind(line.action)
        .bind(line.target)
        .bind(line.before)
        .bind(line.after)
        .execute(tx)
        .await
        .map(|_| ())
        .map_err(failed)
}

pub async fn list(pool: &SqlitePool, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, at_ms, actor, origin, action, target, before, after FROM audit
         WHERE id < $1 AND ($2 IS NULL OR target = $2) AND ($4 IS NULL OR actor = $4)
             AND ($5 IS NULL OR action = $5 OR substr(action, 1, length($5) + 1) = $5 || '.')
             AND (NOT $6 OR NOT (action LIKE 'account.%' OR action LIKE 'session.%' OR action LIKE 'token.%' OR action LIKE 'provider.%')) ORDER BY id DESC LIMIT $3",
    )
    .bind(query.before.unwrap_or(i64::MAX))
    .bind(query.target)
    .bind(i64::from(query.limit))
    .bind(query.actor)
    .bind(query.action)
    .bind(query.without_accounts)
    .fetch_all(pool)
    .await
    .map_err(failed)?;
    let read = |row: &SqliteRow| -> sqlx::Result<AuditEntry> {
        let json =
            |index: usize| row.try_get::<Option<String>, _>(index).map(|text| text.and_then(|text| serde_json::from_str(&text).ok()));
        Ok(AuditEntry {
            id: row.try_get(0)?,
            at: time(row.try_get(1)?),
            actor: row.try_get(2)?,
            origin: row.try_get(3)?,
            action: row.try_get(4)?,
            target: row.try_get(5)?,
            before: json(6)?,
            after: json(7)?,
        })
    };
    rows.iter().map(|row| read(row).map_err(failed)).collect()
}
