//! The settings' table.

use std::time::SystemTime;

use keylatch_filters::contract::StoreError;
use serde_json::Value;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::{audit, failed};
use crate::store::audit::{Actor, Line};
use crate::store::record::{millis, time};
use crate::store::settings::Stored;

pub async fn list(pool: &SqlitePool) -> Result<Vec<Stored>, StoreError> {
    let rows = sqlx::query("SELECT name, value, changed_by, changed_ms FROM settings ORDER BY name");
    let rows = rows.fetch_all(pool).await.map_err(failed)?;
    let read = |row: &SqliteRow| -> sqlx::Result<Stored> {
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
pub async fn set(pool: &SqlitePool, name: &str, value: Option<&Value>, actor: &Actor) -> Result<(), StoreError> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let before = sqlx::query_scalar::<_, String>("SELECT value FROM settings WHERE name = ?").bind(name);
    let before = before.fetch_optional(&mut *tx).await.map_err(failed)?.and_then(|text| serde_json::from_str(&text).ok());
    let Some(line) = Line::of_setting(name, before.as_ref(), value) else { return Ok(()) };
    let statement = match value {
        Some(value) => sqlx::query(
            "INSERT INTO settings (name, value, changed_by, changed_ms) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE
             SET value = excluded.value, changed_by = excluded.changed_by, changed_ms = excluded.changed_ms",
        )
        .bind(name)
        .bind(value.to_string())
        .bind(&actor.who)
        .bind(millis(SystemTime::now())),
        None => sqlx::query("DELETE FROM settings WHERE name = ?").bind(name),
    };
    statement.execute(&mut *tx).await.map_err(failed)?;
    audit::write(&mut tx, actor, line).await?;
    tx.commit().await.map_err(failed)
}
