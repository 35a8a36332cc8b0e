//! Alerts in SQLite: keys over the threshold, and the outbox of events.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{Intercept, KeyId, StoreError};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{Sqlite, failed, json};
use crate::sql::outbox::{AT_ONCE, Attempted, Delivery, KeyOverThreshold, LOOKED_BACK_MAX, Threshold};
use crate::sql::record::{key_id, parsed_networks};
use crate::util::time::{millis, time};

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn now_ms() -> i64 {
    millis(SystemTime::now())
}

impl Sqlite {
    pub(super) async fn keys_intercepted_since(&self, at: SystemTime) -> Result<Vec<KeyId>, StoreError> {
        let rows = sqlx::query("SELECT DISTINCT key_id FROM intercepts WHERE minute_ms >= ? AND last_ms >= ? LIMIT ?");
        let (minute_ms, at_ms) = (millis(at) - 60_000, millis(at));
        let rows = rows.bind(minute_ms).bind(at_ms).bind(LOOKED_BACK_MAX).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| key_id(row.try_get::<&[u8], _>(0).map_err(failed)?)).collect()
    }

    pub(super) async fn hot_keys(&self, ids: &[KeyId], threshold: Threshold) -> Result<Vec<KeyOverThreshold>, StoreError> {
        let ids: Vec<_> = ids.iter().map(KeyId::hex).collect();
        // With max(), SQLite takes the other columns from the row with the maximum.
        let rows = sqlx::query(
            "SELECT i.key_id, sum(i.count), count(DISTINCT i.client), i.hint, i.client, i.networks, i.method, i.path, i.user_agent, i.route,
                 i.banned, max(i.last_ms), i.shadow, sum(iif(i.shadow, i.count, 0))
             FROM intercepts i LEFT JOIN alerts a ON a.key_id = i.key_id
             WHERE i.key_id IN (SELECT unhex(value) FROM json_each($1)) AND (NOT i.shadow OR $4) AND i.last_ms > $2
                 AND (a.raised_ms IS NULL OR a.raised_ms <= $2)
             GROUP BY i.key_id HAVING sum(i.count) >= $3",
        )
        .bind(json(&ids))
        .bind(now_ms() - ms(threshold.window))
        .bind(i64::try_from(threshold.count).unwrap_or(i64::MAX))
        .bind(threshold.shadow)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(read).collect()
    }

    pub(super) async fn raise_alert(&self, id: KeyId, window: Duration, events: &[(String, String, String)]) -> Result<bool, StoreError> {
        let now_ms = now_ms();
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let recorded = sqlx::query(
            "INSERT INTO alerts (key_id, raised_ms) VALUES ($1, $2)
             ON CONFLICT DO UPDATE SET raised_ms = excluded.raised_ms WHERE raised_ms <= $3",
        )
        .bind(id.0.as_slice())
        .bind(now_ms)
        .bind(now_ms - ms(window))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if recorded.rows_affected() == 0 {
            return Ok(false);
        }
        enqueue(&mut tx, events).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    pub(super) async fn take_due(&self, webhooks: &[String], lease: Duration) -> Result<Vec<Delivery>, StoreError> {
        let now_ms = now_ms();
        // Most of the time nothing is due, and a read takes no write lock.
        let any = sqlx::query("SELECT 1 FROM outbox WHERE due_ms <= ? LIMIT 1").bind(now_ms).fetch_optional(&self.pool).await;
        if any.map_err(failed)?.is_none() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "UPDATE outbox SET attempts = attempts + 1, due_ms = $3
             WHERE id IN (SELECT id FROM outbox WHERE due_ms <= $2 AND webhook IN (SELECT value FROM json_each($1)) ORDER BY due_ms LIMIT $4)
             RETURNING id, webhook, event, attempts, raised_ms",
        )
        .bind(json(webhooks))
        .bind(now_ms)
        .bind(now_ms + ms(lease))
        .bind(AT_ONCE)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        let read = |row: &SqliteRow| -> sqlx::Result<Delivery> {
            Ok(Delivery {
                id: row.try_get(0)?,
                webhook: row.try_get(1)?,
                event: row.try_get(2)?,
                attempts: u32::try_from(row.try_get::<i64, _>(3)?).unwrap_or(u32::MAX),
                raised_at: time(row.try_get(4)?),
            })
        };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }

    pub(super) async fn note_attempt(&self, id: &str, what: Attempted) -> Result<(), StoreError> {
        let done = match what {
            Attempted::Done => sqlx::query("DELETE FROM outbox WHERE id = ?").bind(id).execute(&self.pool).await,
            Attempted::Again(after) => {
                let again = sqlx::query("UPDATE outbox SET due_ms = ? WHERE id = ?");
                again.bind(now_ms() + ms(after)).bind(id).execute(&self.pool).await
            }
        };
        done.map(|_| ()).map_err(failed)
    }
}

/// Queues deliveries: id, webhook and event of each.
pub async fn enqueue(tx: &mut SqliteConnection, events: &[(String, String, String)]) -> sqlx::Result<()> {
    let now_ms = now_ms();
    for (id, webhook, event) in events {
        let put = sqlx::query("INSERT INTO outbox (id, webhook, event, raised_ms, due_ms) VALUES (?, ?, ?, ?, ?)");
        put.bind(id).bind(webhook).bind(event).bind(now_ms).bind(now_ms).execute(&mut *tx).await?;
    }
    Ok(())
}

fn read(row: &SqliteRow) -> Result<KeyOverThreshold, StoreError> {
    let id = key_id(row.try_get::<&[u8], _>(0).map_err(failed)?)?;
    let count = |index: usize| row.try_get::<i64, _>(index).map(i64::unsigned_abs).map_err(failed);
    let text = |index: usize| row.try_get::<String, _>(index).map_err(failed);
    let client = text(4)?
        .parse()
        .map_err(|_| StoreError::Useless(format!("an intercept of {id} has a malformed client address in the database")))?;
    let networks: Vec<String> = text(5)?.split(',').map(str::to_owned).collect();
    let last = Intercept {
        id,
        hint: text(3)?,
        client,
        networks: parsed_networks(id, &networks)?,
        method: text(6)?,
        path: text(7)?,
        user_agent: text(8)?,
        route: text(9)?,
        banned: row.try_get(10).map_err(failed)?,
        shadow: row.try_get(12).map_err(failed)?,
        at: time(row.try_get(11).map_err(failed)?),
    };
    Ok(KeyOverThreshold { intercepts: count(1)?, shadow: count(13)?, clients: count(2)?, last, replica: String::new() })
}
