//! Alerts in PostgreSQL: keys over the threshold, and the outbox of events.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{Intercept, KeyId, StoreError};
use sqlx::postgres::PgRow;
use sqlx::{Executor, Row};

use super::failed;
use super::session::{Pool, Session};
use crate::sql::intercepts::SHADOW;
use crate::sql::outbox::{AT_ONCE, Attempted, Delivery, KeyOverThreshold, LOOKED_BACK_MAX, Threshold};
use crate::sql::record::{key_id, parsed_networks};
use crate::util::time::{millis, time};

/// No request waits for it, and a key may have very many intercepts.
const TIME_MAX: &str = "SET LOCAL statement_timeout = '5s'";

pub async fn intercepted_since(pool: &Pool, at: SystemTime) -> Result<Vec<KeyId>, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT key_id FROM intercepts
         WHERE minute >= to_timestamp($1::float8 / 1e3) - interval '1 minute' AND last_at >= to_timestamp($1::float8 / 1e3) LIMIT $2",
    );
    let rows = rows.bind(millis(at)).bind(LOOKED_BACK_MAX).fetch_all(pool).await.map_err(failed)?;
    rows.iter().map(|row| key_id(row.try_get::<&[u8], _>(0).map_err(failed)?)).collect()
}

pub async fn keys_over_threshold(pool: &Pool, ids: &[KeyId], threshold: Threshold) -> Result<Vec<KeyOverThreshold>, StoreError> {
    let mut tx = pool.begin().await.map_err(failed)?;
    tx.execute(TIME_MAX).await.map_err(failed)?;
    let rows = sqlx::query(
        "WITH hot AS (
             SELECT i.key_id, sum(i.count)::bigint AS intercepts, count(DISTINCT i.client) AS clients,
                 coalesce(sum(i.count) FILTER (WHERE i.shadow), 0)::bigint AS shadow
             FROM intercepts i LEFT JOIN alerts a USING (key_id)
             WHERE i.key_id = ANY($1) AND (NOT i.shadow OR $4) AND i.last_at > now() - make_interval(secs => $2)
               AND (a.raised_at IS NULL OR a.raised_at <= now() - make_interval(secs => $2))
             GROUP BY i.key_id HAVING sum(i.count) >= $3)
         SELECT h.key_id, h.intercepts, h.clients, l.hint, host(l.client), l.networks::text[], l.method, l.path, l.user_agent, l.route, l.banned,
             (extract(epoch FROM l.last_at) * 1e3)::bigint, l.replica, l.shadow, h.shadow
         FROM hot h, LATERAL (SELECT * FROM intercepts i
             WHERE i.key_id = h.key_id AND (NOT i.shadow OR $4) ORDER BY i.last_at DESC LIMIT 1) l",
    )
    .bind(ids.iter().map(|id| id.0.as_slice()).collect::<Vec<_>>())
    .bind(threshold.window.as_secs_f64())
    .bind(i64::try_from(threshold.count).unwrap_or(i64::MAX))
    .bind(threshold.shadow)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(read).collect()
}

fn read(row: &PgRow) -> Result<KeyOverThreshold, StoreError> {
    let id = key_id(row.try_get::<&[u8], _>(0).map_err(failed)?)?;
    let count = |index: usize| row.try_get::<i64, _>(index).map(i64::unsigned_abs).map_err(failed);
    let text = |index: usize| row.try_get::<String, _>(index).map_err(failed);
    let client = text(4)?
        .parse()
        .map_err(|_| StoreError::Useless(format!("an intercept of {id} has a malformed client address in the database")))?;
    let networks: Vec<String> = row.try_get(5).map_err(failed)?;
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
        shadow: row.try_get(13).map_err(failed)?,
        at: time(row.try_get(11).map_err(failed)?),
    };
    let replica = text(12)?.trim_end_matches(SHADOW).to_owned();
    Ok(KeyOverThreshold { intercepts: count(1)?, shadow: count(14)?, clients: count(2)?, last, replica })
}

/// Records an alert and its deliveries. False: another process was first.
pub async fn raise(pool: &Pool, id: KeyId, window: Duration, events: &[(String, String, String)]) -> Result<bool, StoreError> {
    let mut tx = pool.begin().await.map_err(failed)?;
    let recorded = sqlx::query(
        "INSERT INTO alerts AS a VALUES ($1, now())
         ON CONFLICT (key_id) DO UPDATE SET raised_at = excluded.raised_at WHERE a.raised_at <= now() - make_interval(secs => $2)",
    )
    .bind(id.0)
    .bind(window.as_secs_f64())
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

/// Queues deliveries: id, webhook and event of each.
pub async fn enqueue(tx: &mut Session, events: &[(String, String, String)]) -> sqlx::Result<()> {
    for (id, webhook, event) in events {
        let put = sqlx::query("INSERT INTO outbox (id, webhook, event) VALUES ($1, $2, $3)");
        put.bind(id).bind(webhook).bind(event).execute(&mut *tx).await?;
    }
    Ok(())
}

/// Leases due deliveries: no other process takes them within `lease`.
pub async fn due(pool: &Pool, webhooks: &[String], lease: Duration) -> Result<Vec<Delivery>, StoreError> {
    let rows = sqlx::query(
        "UPDATE outbox SET attempts = attempts + 1, due_at = now() + make_interval(secs => $2)
         WHERE id IN (SELECT id FROM outbox WHERE due_at <= now() AND webhook = ANY($1) ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED)
         RETURNING id, webhook, event, attempts::bigint, (extract(epoch FROM raised_at) * 1e3)::bigint",
    )
    .bind(webhooks)
    .bind(lease.as_secs_f64())
    .bind(AT_ONCE)
    .fetch_all(pool)
    .await
    .map_err(failed)?;
    let read = |row: &PgRow| -> sqlx::Result<Delivery> {
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

pub async fn attempted(pool: &Pool, id: &str, what: Attempted) -> Result<(), StoreError> {
    let done = match what {
        Attempted::Done => sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id).execute(pool).await,
        Attempted::Again(after) => {
            let again = sqlx::query("UPDATE outbox SET due_at = now() + make_interval(secs => $2) WHERE id = $1");
            again.bind(id).bind(after.as_secs_f64()).execute(pool).await
        }
    };
    done.map(|_| ()).map_err(failed)
}
