//! The audit log in PostgreSQL.

use keylatch_filters::contract::StoreError;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::failed;
use super::session::{Pool, Session};
use crate::sql::audit::{Actor, AuditEntry, AuditLine, AuditQuery};
use crate::util::time::time;

/// Writes an entry in the transaction of the change.
pub async fn write(tx: &mut Session, actor: &Actor, line: AuditLine) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (actor, origin, action, target, before, after) VALUES ($1, $2, $3, $4, $5, $6)")
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

pub async fn list(pool: &Pool, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, (extract(epoch FROM at) * 1e3)::bigint, actor, origin, action, target, before, after FROM audit
         WHERE id < $1 AND ($2::text IS NULL OR target = $2) AND ($4::text IS NULL OR actor = $4)
             AND ($5::text IS NULL OR action = $5 OR substr(action, 1, length($5) + 1) = $5 || '.')
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
    let read = |row: &PgRow| -> sqlx::Result<AuditEntry> {
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
