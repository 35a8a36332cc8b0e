//! Live settings in either database. The statements are the same; this file is compiled once for
//! each.

use std::time::SystemTime;

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;
use sqlx::{Database, Row};

use super::{Db, Own, audit, begin, failed};
use crate::sql::audit::{Actor, AuditLine};
use crate::sql::settings::{SettingsStore, Stored};
use crate::util::time::{millis, time};

type DbRow = <Db as Database>::Row;

fn stored(row: &DbRow) -> sqlx::Result<Stored> {
    let text: String = row.try_get(1)?;
    Ok(Stored {
        name: row.try_get(0)?,
        value: serde_json::from_str(&text).unwrap_or_default(),
        changed_by: row.try_get(2)?,
        changed_at: time(row.try_get(3)?),
    })
}

#[async_trait]
impl SettingsStore for Own {
    async fn settings(&self) -> Result<(Vec<Stored>, i64), StoreError> {
        self.with(async |pool| {
            // The version is read before the rows: a change in between makes the caller's next
            // write fail and be repeated.
            let version = sqlx::query_scalar::<_, String>("SELECT value FROM meta WHERE name = 'settings'");
            let version = version.fetch_optional(&pool).await.map_err(failed)?.and_then(|text| text.parse().ok()).unwrap_or(0);
            let rows = sqlx::query("SELECT name, value, changed_by, changed_ms FROM settings ORDER BY name");
            let rows = rows.fetch_all(&pool).await.map_err(failed)?;
            let all: Result<Vec<Stored>, StoreError> = rows.iter().map(|row| stored(row).map_err(failed)).collect();
            Ok((all?, version))
        })
        .await
    }

    async fn set_settings(&self, changes: &[(String, Option<Value>)], expects: Option<i64>, actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = begin(self).await?;
        // The version row is locked first, so that changes are serialized.
        let version: String = sqlx::query_scalar(
            "INSERT INTO meta (name, value) VALUES ('settings', '1')
             ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(meta.value AS bigint) + 1 AS text) RETURNING value",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if expects.is_some_and(|expects| version.parse() != Ok(expects + 1)) {
            return Ok(false);
        }
        let mut changed = false;
        for (name, value) in changes {
            let before = sqlx::query_scalar::<_, String>("SELECT value FROM settings WHERE name = $1").bind(name.clone());
            let before = before.fetch_optional(&mut *tx).await.map_err(failed)?.and_then(|text| serde_json::from_str(&text).ok());
            let Some(line) = AuditLine::setting_changed(name, before.as_ref(), value.as_ref()) else { continue };
            let statement = match value {
                Some(value) => sqlx::query(
                    "INSERT INTO settings (name, value, changed_by, changed_ms) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO UPDATE
                     SET value = excluded.value, changed_by = excluded.changed_by, changed_ms = excluded.changed_ms",
                )
                .bind(name.clone())
                .bind(value.to_string())
                .bind(actor.who.clone())
                .bind(millis(SystemTime::now())),
                None => sqlx::query("DELETE FROM settings WHERE name = $1").bind(name.clone()),
            };
            statement.execute(&mut *tx).await.map_err(failed)?;
            audit::write(&mut tx, actor, line).await?;
            changed = true;
        }
        if changed {
            tx.commit().await.map_err(failed)?;
        }
        Ok(true)
    }
}
