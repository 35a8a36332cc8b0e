//! Writes usage to PostgreSQL. Queries are in `common`.

use std::time::Duration;

use keylatch_filters::contract::StoreError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, QueryBuilder};

use super::session::{Pool, Session};
use super::{Pg, Postgres, failed};
use crate::sql::usage::UsageBatch;
use crate::sql::usage::tables::{Upsert, Value, upserts};

/// The time limit of a batch. It waits for the locks of other replicas.
const WRITE_TIME_MAX: Duration = Duration::from_secs(15);

pub async fn write_usage(own: &Postgres, batch: &UsageBatch) -> Result<(), StoreError> {
    own.pools.run_for(WRITE_TIME_MAX, async |pool| write(&pool, batch).await.map_err(failed)).await
}

async fn write(pool: &Pool, batch: &UsageBatch) -> sqlx::Result<()> {
    let upserts = upserts(batch);
    let mut tx = pool.begin().await?;
    tx.execute("SET LOCAL statement_timeout = '10s'").await?;
    let first = sqlx::query("INSERT INTO usage_batches (id, made_s) VALUES ($1, $2) ON CONFLICT DO NOTHING");
    let first = first.bind(batch.id.as_bytes().to_vec()).bind(batch.made_s).execute(&mut *tx).await?;
    if first.rows_affected() == 0 {
        return tx.rollback().await;
    }
    for upsert in &upserts {
        insert(&mut tx, upsert).await?;
    }
    tx.commit().await
}

/// One array for each column; the rows keep their order, so that all processes lock them in the
/// same order.
async fn insert(tx: &mut Session, upsert: &Upsert) -> sqlx::Result<()> {
    let kinds = upsert.rows.first().into_iter().flatten().enumerate().map(|(index, value)| {
        let kind = match value {
            Value::Int(_) => "bigint",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytea",
        };
        format!("${}::{kind}[]", index + 1)
    });
    let (table, columns, conflict) = (upsert.table, upsert.columns.join(", "), &upsert.conflict);
    let arrays = kinds.collect::<Vec<_>>().join(", ");
    let statement = format!("INSERT INTO {table} AS t ({columns}) SELECT * FROM unnest({arrays}) ON CONFLICT {conflict}");
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for index in 0..upsert.columns.len() {
        query = bound(query, upsert, index);
    }
    query.execute(tx).await.map(|_| ())
}

fn bound<'q>(query: Query<'q, Pg, PgArguments>, upsert: &Upsert, index: usize) -> Query<'q, Pg, PgArguments> {
    let values = || upsert.rows.iter().filter_map(move |row| row.get(index));
    match values().next() {
        Some(Value::Text(_)) => query
            .bind(values().filter_map(|value| if let Value::Text(text) = value { Some(text.clone()) } else { None }).collect::<Vec<_>>()),
        Some(Value::Bytes(_)) => query.bind(
            values().filter_map(|value| if let Value::Bytes(bytes) = value { Some(bytes.clone()) } else { None }).collect::<Vec<_>>(),
        ),
        _ => query.bind(values().map(|value| if let Value::Int(number) = value { *number } else { None }).collect::<Vec<_>>()),
    }
}

/// The rows of a report. It may take longer than a request may, and group many keys in memory.
pub async fn fetch_report(own: &Postgres, statement: QueryBuilder<Pg>) -> Result<Vec<PgRow>, StoreError> {
    own.with(async move |pool| read(&pool, statement).await.map_err(failed)).await
}

async fn read(pool: &Pool, mut statement: QueryBuilder<Pg>) -> sqlx::Result<Vec<PgRow>> {
    let mut tx = pool.begin().await?;
    tx.execute("SET LOCAL statement_timeout = '120s'").await?;
    tx.execute("SET LOCAL work_mem = '64MB'").await?;
    let rows = statement.build().fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// What follows the alias of a table for rows of few keys: nothing, the planner finds the index.
pub fn key_index(_table: &str) -> String {
    String::new()
}

/// The query of keys with a label.
pub fn filter_label(statement: &mut QueryBuilder<Pg>, label: &str) {
    statement.push("SELECT key_id FROM bindings WHERE labels @> ARRAY[").push_bind(label.to_owned()).push("]");
}

/// Joins the labels of the key in `u.key_id`, as `l.label`.
pub fn join_labels(statement: &mut QueryBuilder<Pg>) {
    statement.push(" JOIN (SELECT key_id, unnest(labels) AS label FROM bindings WHERE labels <> '{}') AS l ON l.key_id = u.key_id");
}
