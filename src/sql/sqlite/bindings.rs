//! Bindings in SQLite on the request path: batched look-ups and first uses, and the write-behind
//! batch.

use std::collections::HashMap;
use std::time::SystemTime;

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, FirstUse, KeyId, StoreError};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use super::{failed, json, numbers};
use crate::sql::batch::{Batch, networks};
use crate::sql::record::{BindingRow, FIRST_USE, key_id, roaming_columns, seen_ms, version_now};
use crate::util::time::millis;

/// The columns that requests are judged by.
pub const JUDGED: &str = "key_id, rule, networks, banned, confirmed, version, networks_max, window_s, seen_ms, made_by, labels";

/// Reads and validates these columns.
pub fn judged(row: &SqliteRow) -> Result<Binding, StoreError> {
    let list = |index: usize| row.try_get::<String, _>(index).map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>());
    let read = || -> sqlx::Result<BindingRow> {
        Ok(BindingRow {
            id: row.try_get(0)?,
            rule: row.try_get(1)?,
            networks: list(2)?,
            banned: row.try_get(3)?,
            confirmed: row.try_get(4)?,
            version: row.try_get(5)?,
            networks_max: row.try_get(6)?,
            window_s: row.try_get(7)?,
            seen_ms: list(8)?.iter().map(|number| number.parse().unwrap_or(0)).collect(),
            by_first_use: row.try_get::<&str, _>(9)? == FIRST_USE,
            labels: list(10)?.into_iter().filter(|label| !label.is_empty()).collect(),
        })
    };
    read().map_err(failed)?.checked()
}

type Rows = HashMap<KeyId, Result<Binding, StoreError>>;

fn by_id(rows: &[SqliteRow]) -> Result<Rows, StoreError> {
    let id = |row: &SqliteRow| key_id(row.try_get::<&[u8], _>(0).map_err(failed)?);
    rows.iter().map(|row| Ok((id(row)?, judged(row)))).collect()
}

async fn rows_of<'e>(executor: impl sqlx::SqliteExecutor<'e>, ids: &[KeyId]) -> Result<Rows, StoreError> {
    let ids: Vec<_> = ids.iter().map(KeyId::hex).collect();
    let statement = format!("SELECT {JUDGED} FROM bindings WHERE key_id IN (SELECT unhex(value) FROM json_each(?))");
    by_id(&sqlx::query(AssertSqlSafe(statement)).bind(json(&ids)).fetch_all(executor).await.map_err(failed)?)
}

/// Returns the bindings of these keys, in their order.
pub async fn read(pool: SqlitePool, ids: Vec<KeyId>) -> Vec<Result<Option<Binding>, StoreError>> {
    match rows_of(&pool, &ids).await {
        Ok(rows) => ids.iter().map(|id| rows.get(id).cloned().transpose()).collect(),
        Err(error) => ids.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// Inserts all queued first uses in one transaction. Each caller gets the row that is stored then.
pub async fn bind(pool: SqlitePool, pages_max: i64, uses: Vec<FirstUse>) -> Vec<Result<Binding, StoreError>> {
    match bind_all(&pool, pages_max, &uses).await {
        Ok(rows) => uses
            .iter()
            .map(|first| {
                rows.get(&first.id)
                    .cloned()
                    .unwrap_or_else(|| Err(StoreError::Useless("the binding was removed while it was created; try again".into())))
            })
            .collect(),
        Err(error) => uses.iter().map(|_| Err(error.clone())).collect(),
    }
}

async fn bind_all(pool: &SqlitePool, pages_max: i64, uses: &[FirstUse]) -> Result<Rows, StoreError> {
    let rows: Vec<_> = uses
        .iter()
        .map(|first| {
            let (networks_max, window_s) = roaming_columns(first.roaming);
            (first.id.hex(), &first.hint, first.network.to_string(), first.confirmed, millis(first.at), networks_max, window_s)
        })
        .collect();
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    refuse_past(&mut tx, pages_max).await?;
    // Without `WHERE true` the parser takes ON CONFLICT for the condition of a join.
    let statement = format!(
        "INSERT INTO bindings
             (key_id, hint, rule, networks, networks_max, window_s, seen_ms, confirmed, version, made_by, created_ms, last_used_ms)
         SELECT unhex(value ->> 0), value ->> 1, iif(value ->> 5 IS NULL, 'single', 'roaming'), value ->> 2, value ->> 5, value ->> 6,
             iif(value ->> 5 IS NULL, '', value ->> 4), value ->> 3, $2, 'first_use', value ->> 4, value ->> 4
         FROM json_each($1) WHERE true ON CONFLICT DO NOTHING RETURNING {JUDGED}"
    );
    let made = sqlx::query(AssertSqlSafe(statement)).bind(json(&rows)).bind(version_now(0)).fetch_all(&mut *tx).await.map_err(failed)?;
    let mut rows = by_id(&made)?;
    let taken: Vec<KeyId> = uses.iter().map(|first| first.id).filter(|id| !rows.contains_key(id)).collect();
    if !taken.is_empty() {
        rows.extend(rows_of(&mut *tx, &taken).await?);
    }
    tx.commit().await.map_err(failed)?;
    Ok(rows)
}

/// Writes a row as a first use does, with a commit: only a commit writes to the disk.
pub async fn try_write(pool: &SqlitePool, pages_max: i64) -> Result<(), StoreError> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    refuse_past(&mut tx, pages_max).await?;
    let write = "INSERT INTO meta (name, value) VALUES ('written_ms', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    sqlx::query(write).bind(millis(SystemTime::now()).to_string()).execute(&mut *tx).await.map_err(failed)?;
    tx.commit().await.map_err(failed)
}

/// Refuses writes that would grow an in-memory database past its limit.
pub async fn refuse_past(tx: &mut sqlx::SqliteConnection, pages_max: i64) -> Result<(), StoreError> {
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(tx).await.map_err(failed)?;
    if pages > pages_max {
        return Err(StoreError::Full("the in-memory database is full; use storage.sqlite".into()));
    }
    Ok(())
}

/// Adds a network to a roaming binding. Returns the binding after that; `None`: the key has none.
pub async fn roam(pool: &SqlitePool, id: KeyId, network: IpNet, at: SystemTime) -> Result<Option<Binding>, StoreError> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let statement = format!("SELECT {JUDGED} FROM bindings WHERE key_id = ?");
    let row = sqlx::query(AssertSqlSafe(statement)).bind(id.0.as_slice()).fetch_optional(&mut *tx).await.map_err(failed)?;
    let Some(mut binding) = row.as_ref().map(judged).transpose()? else { return Ok(None) };
    if binding.roam(network, at) {
        binding.version = version_now(binding.version);
        sqlx::query("UPDATE bindings SET networks = ?, seen_ms = ?, version = ? WHERE key_id = ?")
            .bind(networks(&binding.networks))
            .bind(numbers(&seen_ms(&binding)))
            .bind(binding.version)
            .bind(id.0.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
    }
    Ok(Some(binding))
}

const CONFIRM: &str =
    "UPDATE bindings SET confirmed = 1 FROM (SELECT unhex(value ->> 0) AS id, value ->> 1 AS version FROM json_each(?)) AS c
    WHERE NOT confirmed AND key_id = c.id AND bindings.version = c.version";

/// Applies the upstream's verdicts on unconfirmed bindings of these versions: confirms or removes
/// them. Each answer says whether the binding exists after that.
pub async fn settle(pool: SqlitePool, verdicts: Vec<(KeyId, i64, bool)>) -> Vec<Result<bool, StoreError>> {
    match settle_all(&pool, &verdicts).await {
        Ok(rows) => verdicts.iter().map(|(id, _, _)| Ok(rows.contains_key(id))).collect(),
        Err(error) => verdicts.iter().map(|_| Err(error.clone())).collect(),
    }
}

async fn settle_all(pool: &SqlitePool, verdicts: &[(KeyId, i64, bool)]) -> Result<Rows, StoreError> {
    let of = |wanted: bool| {
        let rows: Vec<_> = verdicts.iter().filter(|verdict| verdict.2 == wanted).map(|(id, version, _)| (id.hex(), *version)).collect();
        json(&rows)
    };
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    sqlx::query(CONFIRM).bind(of(true)).execute(&mut *tx).await.map_err(failed)?;
    sqlx::query(
        "DELETE FROM bindings WHERE NOT confirmed AND (key_id, version) IN (SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?))",
    )
    .bind(of(false))
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    let ids: Vec<KeyId> = verdicts.iter().map(|(id, _, _)| *id).collect();
    let rows = rows_of(&mut *tx, &ids).await?;
    tx.commit().await.map_err(failed)?;
    Ok(rows)
}

/// Writes a batch, all or nothing.
pub async fn write(pool: &SqlitePool, batch: &Batch) -> sqlx::Result<()> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    if !batch.used.is_empty() {
        let used: Vec<_> = batch.used.iter().map(|(id, at)| (id.hex(), millis(*at))).collect();
        sqlx::query(
            "UPDATE bindings SET last_used_ms = max(last_used_ms, u.ms)
             FROM (SELECT unhex(value ->> 0) AS id, value ->> 1 AS ms FROM json_each(?)) AS u WHERE key_id = u.id",
        )
        .bind(json(&used))
        .execute(&mut *tx)
        .await?;
    }
    if !batch.confirmed.is_empty() {
        let confirmed: Vec<_> = batch.confirmed.iter().map(|(id, version)| (id.hex(), *version)).collect();
        sqlx::query(CONFIRM).bind(json(&confirmed)).execute(&mut *tx).await?;
    }
    write_intercepts(&mut tx, batch).await?;
    tx.commit().await
}

async fn write_intercepts(tx: &mut sqlx::SqliteConnection, batch: &Batch) -> sqlx::Result<()> {
    for repeated in batch.intercepts.values() {
        let first = &repeated.first;
        let (first_ms, last_ms) = (millis(first.at), millis(repeated.last_at));
        sqlx::query(
            "INSERT INTO intercepts
                 (minute_ms, key_id, client, method, path, route, banned, hint, networks, user_agent, count, first_ms, last_ms,
                 shadow)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET count = count + excluded.count, first_ms = min(first_ms, excluded.first_ms),
                 last_ms = max(last_ms, excluded.last_ms)",
        )
        .bind(last_ms - last_ms % 60_000)
        .bind(first.id.0.as_slice())
        .bind(first.client.to_string())
        .bind(&first.method)
        .bind(&first.path)
        .bind(&first.route)
        .bind(first.banned)
        .bind(&first.hint)
        .bind(networks(&first.networks))
        .bind(&first.user_agent)
        .bind(i64::try_from(repeated.count).unwrap_or(i64::MAX))
        .bind(first_ms)
        .bind(last_ms)
        .bind(first.shadow)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}
