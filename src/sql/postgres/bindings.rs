//! Bindings in PostgreSQL on the request path: batched look-ups and first uses, and the
//! write-behind batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, FirstUse, Intercept, KeyId, StoreError};
use sqlx::postgres::PgRow;
use sqlx::{Executor, Postgres as Pg, Row};

use super::failed;
use super::pools::Pools;
use super::session::{Pool, Session};
use crate::sql::batch::{self, Batch};
use crate::sql::intercepts::SHADOW;
use crate::sql::record::{BindingRow, FIRST_USE, key_id, roaming_columns, seen_ms};
use crate::util::time::millis;

/// Answers all requests of a batch by one run of `work`, or all with its error.
pub async fn run_batch<Q, A, W>(
    pools: Arc<Pools>,
    most: Duration,
    requests: Vec<Q>,
    work: fn(Pool, Arc<Vec<Q>>) -> W,
) -> Vec<Result<A, StoreError>>
where
    W: Future<Output = Result<Vec<Result<A, StoreError>>, StoreError>>,
{
    let requests = Arc::new(requests);
    match pools.run_for(most, async |pool| work(pool, Arc::clone(&requests)).await).await {
        Ok(answers) => answers,
        Err(error) => requests.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// The columns that requests are judged by. A network is read as text: `cidr` has forms that
/// `IpNet` does not.
pub const JUDGED: &str = "key_id, rule, networks::text[], banned, confirmed, version, networks_max, window_s, seen_ms, made_by, labels";

pub fn judged(row: &PgRow) -> Result<Binding, StoreError> {
    let read = || -> sqlx::Result<BindingRow> {
        Ok(BindingRow {
            id: row.try_get(0)?,
            rule: row.try_get(1)?,
            networks: row.try_get(2)?,
            banned: row.try_get(3)?,
            confirmed: row.try_get(4)?,
            version: row.try_get(5)?,
            networks_max: row.try_get(6)?,
            window_s: row.try_get(7)?,
            seen_ms: row.try_get(8)?,
            by_first_use: row.try_get::<&str, _>(9)? == FIRST_USE,
            labels: row.try_get(10)?,
        })
    };
    read().map_err(failed)?.checked()
}

type Rows = HashMap<KeyId, Result<Binding, StoreError>>;

fn by_id(rows: &[PgRow]) -> Result<Rows, StoreError> {
    let id = |row: &PgRow| key_id(row.try_get::<&[u8], _>(0).map_err(failed)?);
    rows.iter().map(|row| Ok((id(row)?, judged(row)))).collect()
}

async fn rows_of<'e>(executor: impl Executor<'e, Database = Pg>, ids: &[KeyId]) -> Result<Rows, StoreError> {
    let ids: Vec<&[u8]> = ids.iter().map(|id| id.0.as_slice()).collect();
    let statement = format!("SELECT {JUDGED} FROM bindings WHERE key_id = ANY($1)");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(ids).fetch_all(executor).await.map_err(failed)?;
    by_id(&rows)
}

type Answers<A> = Result<Vec<Result<A, StoreError>>, StoreError>;

pub async fn read(pool: Pool, ids: Arc<Vec<KeyId>>) -> Answers<Option<Binding>> {
    let rows = rows_of(&pool, &ids).await?;
    Ok(ids.iter().map(|id| rows.get(id).cloned().transpose()).collect())
}

/// Inserts first uses. The first in the queue binds unless the key has a row; all get the row that
/// is stored then.
pub async fn bind(pool: Pool, uses: Arc<Vec<FirstUse>>) -> Answers<Binding> {
    let rows = bind_all(&pool, &uses).await?;
    let gone = || Err(StoreError::Useless("the binding was removed while it was created; try again".into()));
    Ok(uses.iter().map(|first| rows.get(&first.id).cloned().unwrap_or_else(gone)).collect())
}

async fn bind_all(pool: &Pool, uses: &[FirstUse]) -> Result<Rows, StoreError> {
    let mut first: HashMap<KeyId, &FirstUse> = HashMap::new();
    for one in uses {
        first.entry(one.id).or_insert(one);
    }
    // All processes insert in the same order, so that they cannot deadlock.
    let mut first: Vec<&FirstUse> = first.into_values().collect();
    first.sort_by_key(|one| one.id);
    let statement = format!(
        "INSERT INTO bindings
             (key_id, hint, rule, networks, networks_max, window_s, seen_ms, confirmed, version, made_by, created_at, last_used_at)
         SELECT id, hint, CASE WHEN most IS NULL THEN 'single' ELSE 'roaming' END, ARRAY[network::cidr], most, window_s,
             CASE WHEN most IS NULL THEN '{{}}'::bigint[] ELSE ARRAY[ms::bigint] END, confirmed, keylatch_version(0), 'first_use',
             to_timestamp(ms / 1e3), to_timestamp(ms / 1e3)
         FROM unnest($1::bytea[], $2::text[], $3::text[], $4::bool[], $5::float8[], $6::bigint[], $7::bigint[])
             AS u (id, hint, network, confirmed, ms, most, window_s)
         ON CONFLICT (key_id) DO NOTHING RETURNING {JUDGED}"
    );
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a double for 285,000 years")]
    let at: Vec<f64> = first.iter().map(|one| millis(one.at) as f64).collect();
    let made = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(first.iter().map(|one| one.id.0.as_slice()).collect::<Vec<_>>())
        .bind(first.iter().map(|one| one.hint.as_str()).collect::<Vec<_>>())
        .bind(first.iter().map(|one| one.network.to_string()).collect::<Vec<_>>())
        .bind(first.iter().map(|one| one.confirmed).collect::<Vec<_>>())
        .bind(at)
        .bind(first.iter().map(|one| roaming_columns(one.roaming).0).collect::<Vec<_>>())
        .bind(first.iter().map(|one| roaming_columns(one.roaming).1).collect::<Vec<_>>())
        .fetch_all(pool)
        .await
        .map_err(failed)?;
    let mut rows = by_id(&made)?;
    let taken: Vec<KeyId> = first.iter().map(|one| one.id).filter(|id| !rows.contains_key(id)).collect();
    if !taken.is_empty() {
        rows.extend(rows_of(pool, &taken).await?);
    }
    Ok(rows)
}

/// Inserts a binding with a random key id and rolls back.
pub async fn try_write(pool: Pool) -> Result<(), StoreError> {
    let mut id = [0; 32];
    getrandom::fill(&mut id).map_err(|e| StoreError::Away(format!("the system has no random numbers: {e}")))?;
    let mut tx = pool.begin().await.map_err(failed)?;
    sqlx::query(
        "INSERT INTO bindings (key_id, hint, rule, networks, version, made_by, created_at, last_used_at)
         VALUES ($1, 'probe', 'all', '{}', 0, 'probe', now(), now())",
    )
    .bind(id.as_slice())
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    tx.rollback().await.map_err(failed)
}

pub async fn roam(pool: &Pool, id: KeyId, network: IpNet, at: SystemTime) -> Result<Option<Binding>, StoreError> {
    let mut tx = pool.begin().await.map_err(failed)?;
    let statement = format!("SELECT {JUDGED} FROM bindings WHERE key_id = $1 FOR UPDATE");
    let row = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id.0).fetch_optional(&mut *tx).await.map_err(failed)?;
    let Some(mut binding) = row.as_ref().map(judged).transpose()? else { return Ok(None) };
    if binding.roam(network, at) {
        let networks: Vec<String> = binding.networks.iter().map(ToString::to_string).collect();
        let version: i64 = sqlx::query_scalar(
            "UPDATE bindings SET networks = $2::text[]::cidr[], seen_ms = $3, version = keylatch_version(version) WHERE key_id = $1 RETURNING version",
        )
        .bind(id.0)
        .bind(networks)
        .bind(seen_ms(&binding))
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        binding.version = version;
        tx.commit().await.map_err(failed)?;
    }
    Ok(Some(binding))
}

/// Applies confirmations before releases: a confirmation keeps what a release would remove.
pub async fn settle(pool: Pool, verdicts: Arc<Vec<(KeyId, i64, bool)>>) -> Answers<bool> {
    let mut tx = pool.begin().await.map_err(failed)?;
    tx.execute("SET LOCAL statement_timeout = '5s'").await.map_err(failed)?;
    for (accepted, statement) in [(true, CONFIRM), (false, RELEASE)] {
        let of: Vec<_> = verdicts.iter().filter(|verdict| verdict.2 == accepted).collect();
        if !of.is_empty() {
            let (ids, versions): (Vec<&[u8]>, Vec<i64>) = of.iter().map(|(id, version, _)| (id.0.as_slice(), *version)).unzip();
            sqlx::query(statement).bind(ids).bind(versions).execute(&mut *tx).await.map_err(failed)?;
        }
    }
    let ids: Vec<KeyId> = verdicts.iter().map(|(id, _, _)| *id).collect();
    let rows = rows_of(&mut *tx, &ids).await?;
    tx.commit().await.map_err(failed)?;
    Ok(verdicts.iter().map(|(id, _, _)| Ok(rows.contains_key(id))).collect())
}

/// All processes lock rows in the order of key ids, here and below.
const CONFIRM: &str = "UPDATE bindings SET confirmed = true WHERE key_id IN
    (SELECT b.key_id FROM bindings b JOIN unnest($1::bytea[], $2::bigint[]) AS u (id, version) ON b.key_id = u.id AND b.version = u.version
     WHERE NOT b.confirmed ORDER BY b.key_id FOR UPDATE OF b)";
const RELEASE: &str = "DELETE FROM bindings WHERE key_id IN
    (SELECT b.key_id FROM bindings b JOIN unnest($1::bytea[], $2::bigint[]) AS u (id, version) ON b.key_id = u.id AND b.version = u.version
     WHERE NOT b.confirmed ORDER BY b.key_id FOR UPDATE OF b)";

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a double for 285,000 years")]
pub async fn write(pool: &Pool, replica: &str, batch: &Batch) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    tx.execute("SET LOCAL statement_timeout = '5s'").await?;
    if !batch.used.is_empty() {
        let mut used: Vec<_> = batch.used.iter().collect();
        // All processes lock rows in the same order.
        used.sort();
        sqlx::query(
            "UPDATE bindings b SET last_used_at = greatest(b.last_used_at, to_timestamp(u.ms / 1e3))
             FROM (SELECT b.key_id, u.ms FROM bindings b JOIN unnest($1::bytea[], $2::float8[]) AS u (id, ms) ON b.key_id = u.id
                   ORDER BY b.key_id FOR UPDATE OF b) u
             WHERE b.key_id = u.key_id",
        )
        .bind(used.iter().map(|(id, _)| id.0.as_slice()).collect::<Vec<_>>())
        .bind(used.iter().map(|(_, at)| millis(**at) as f64).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
    }
    if !batch.confirmed.is_empty() {
        let (ids, versions): (Vec<&[u8]>, Vec<i64>) = batch.confirmed.iter().map(|(id, version)| (id.0.as_slice(), *version)).unzip();
        sqlx::query(CONFIRM).bind(ids).bind(versions).execute(&mut *tx).await?;
    }
    if !batch.intercepts.is_empty() {
        write_intercepts(&mut tx, replica, batch).await?;
    }
    tx.commit().await
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a double for 285,000 years")]
async fn write_intercepts(tx: &mut Session, replica: &str, batch: &Batch) -> sqlx::Result<()> {
    let rows: Vec<_> = batch.intercepts.values().collect();
    let text = |field: fn(&Intercept) -> String| rows.iter().map(|row| field(&row.first)).collect::<Vec<_>>();
    sqlx::query(
        "INSERT INTO intercepts AS i
             (minute, key_id, client, method, path, route, replica, banned, hint, networks, user_agent, count, first_at, last_at,
             shadow)
         SELECT date_trunc('minute', to_timestamp(last_ms / 1e3)), id, client::inet, method, path, route,
             $13 || CASE WHEN shadow THEN $15 ELSE '' END, banned, hint,
             string_to_array(networks, ',')::cidr[], user_agent, count, to_timestamp(first_ms / 1e3), to_timestamp(last_ms / 1e3),
             shadow
         FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bool[], $7::text[], $8::text[], $9::text[],
             $10::bigint[], $11::float8[], $12::float8[], $14::bool[])
             AS u (id, client, method, path, route, banned, hint, networks, user_agent, count, first_ms, last_ms, shadow)
         ON CONFLICT (minute, key_id, client, method, path, route, replica, banned)
         DO UPDATE SET count = i.count + excluded.count, first_at = least(i.first_at, excluded.first_at),
             last_at = greatest(i.last_at, excluded.last_at)",
    )
    .bind(rows.iter().map(|row| row.first.id.0.as_slice()).collect::<Vec<_>>())
    .bind(text(|first| first.client.to_string()))
    .bind(text(|first| first.method.clone()))
    .bind(text(|first| first.path.clone()))
    .bind(text(|first| first.route.clone()))
    .bind(rows.iter().map(|row| row.first.banned).collect::<Vec<_>>())
    .bind(text(|first| first.hint.clone()))
    .bind(text(|first| batch::networks(&first.networks)))
    .bind(text(|first| first.user_agent.clone()))
    .bind(rows.iter().map(|row| i64::try_from(row.count).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| millis(row.first.at) as f64).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| millis(row.last_at) as f64).collect::<Vec<_>>())
    .bind(replica)
    .bind(rows.iter().map(|row| row.first.shadow).collect::<Vec<_>>())
    .bind(SHADOW)
    .execute(tx)
    .await
    .map(|_| ())
}
