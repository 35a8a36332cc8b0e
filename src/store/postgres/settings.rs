//! The settings' table.

use keylatch_filters::contract::StoreError;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::{PgPool, PgRow};

use super::{audit, failed};
use crate::store::audit::{Actor, Line};
use crate::store::record::time;
use crate::store::settings::Stored;

pub async fn list(pool: &PgPool) -> Result<Vec<Stored>, StoreError> {
    let statement = "SELECT name, value::text, changed_by, (extract(epoch FROM changed_at) * 1e3)::bigint FROM settings ORDER BY name";
    let rows = sqlx::query(statement).fetch_all(pool).await.map_err(failed)?;
    let read = |row: &PgRow| -> sqlx::Result<Stored> {
        let text: String = row.try_get(1)?;
        Ok(Stored {
            name: row.try_get(0)?,
            value: serde_json::from_str(&text).unwrap_or_default(),
            changed_by: row.try_get(2)?,
            changed_at: time(row.try_get(3)?),
        })
    };
    rows.iter().map(|row| read(row).map_err(failed)).collect()
}

/// With its line in the audit.
pub async fn set(pool: &PgPool, name: &str, value: Option<&Value>, actor: &Actor) -> Result<(), StoreError> {
    let mut tx = pool.begin().await.map_err(failed)?;
    let before = sqlx::query_scalar::<_, String>("SELECT value::text FROM settings WHERE name = $1 FOR UPDATE");
    let before: Option<String> = before.bind(name).fetch_optional(&mut *tx).await.map_err(failed)?;
    let before = before.and_then(|text| serde_json::from_str(&text).ok());
    let Some(line) = Line::of_setting(name, before.as_ref(), value) else { return Ok(()) };
    let statement = match value {
        Some(value) => sqlx::query(
            "INSERT INTO settings (name, value, changed_by) VALUES ($1, $2::jsonb, $3) ON CONFLICT (name) DO UPDATE
             SET value = excluded.value, changed_by = excluded.changed_by, changed_at = clock_timestamp()",
        )
        .bind(name)
        .bind(value.to_string())
        .bind(&actor.who),
        None => sqlx::query("DELETE FROM settings WHERE name = $1").bind(name),
    };
    statement.execute(&mut *tx).await.map_err(failed)?;
    audit::write(&mut tx, actor, line).await?;
    tx.commit().await.map_err(failed)
}
