//! Writes usage to SQLite. Queries are in `common`.

use keylatch_filters::contract::StoreError;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, QueryBuilder, SqlSafeStr, Sqlite as Db, query::Query};

use super::bindings::refuse_past;
use super::{Sqlite, failed};
use crate::sql::usage::UsageBatch;
use crate::sql::usage::tables::{Upsert, Value, upserts};

/// The rows of one statement. Full statements have the same text and are prepared once.
const ROWS_MAX: usize = 40;

pub async fn write_usage(own: &Sqlite, batch: &UsageBatch) -> Result<(), StoreError> {
    let upserts = upserts(batch);
    let mut tx = own.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    refuse_past(&mut tx, own.pages_max).await?;
    let first = sqlx::query("INSERT INTO usage_batches (id, made_s) VALUES (?, ?) ON CONFLICT DO NOTHING");
    let first = first.bind(batch.id.as_bytes().to_vec()).bind(batch.made_s).execute(&mut *tx).await.map_err(failed)?;
    if first.rows_affected() == 0 {
        return Ok(());
    }
    for upsert in &upserts {
        for rows in upsert.rows.chunks(ROWS_MAX) {
            let statement = AssertSqlSafe(statement(upsert, rows.len())).into_sql_str();
            let mut query = sqlx::query(statement);
            for value in rows.iter().flatten() {
                query = bound(query, value);
            }
            query.execute(&mut *tx).await.map_err(failed)?;
        }
    }
    tx.commit().await.map_err(failed)
}

fn statement(upsert: &Upsert, rows: usize) -> String {
    let row = format!("({})", vec!["?"; upsert.columns.len()].join(", "));
    let (table, columns, conflict) = (upsert.table, upsert.columns.join(", "), &upsert.conflict);
    format!("INSERT INTO {table} AS t ({columns}) VALUES {} ON CONFLICT {conflict}", vec![row; rows].join(", "))
}

fn bound<'q>(query: Query<'q, Db, SqliteArguments>, value: &Value) -> Query<'q, Db, SqliteArguments> {
    match value {
        Value::Int(number) => query.bind(*number),
        Value::Text(text) => query.bind(text.clone()),
        Value::Bytes(bytes) => query.bind(bytes.clone()),
    }
}

/// The rows of a report.
pub async fn fetch_report(own: &Sqlite, mut statement: QueryBuilder<Db>) -> Result<Vec<SqliteRow>, StoreError> {
    statement.build().fetch_all(&own.pool).await.map_err(failed)
}

/// What follows the alias of a table for rows of few keys. Without it, the planner prefers the range
/// of the primary key, which has all keys.
pub fn key_index(table: &str) -> String {
    format!(" INDEXED BY {table}_by_key")
}

/// The query of keys with a label.
pub fn filter_label(statement: &mut QueryBuilder<Db>, label: &str) {
    statement.push("SELECT key_id FROM bindings WHERE labels <> '' AND instr(',' || labels || ',', ',' || ");
    statement.push_bind(label.to_owned()).push(" || ',') > 0");
}

/// Joins the labels of the key in `u.key_id`, as `l.label`. Labels have no quotes and no commas.
pub fn join_labels(statement: &mut QueryBuilder<Db>) {
    statement.push(
        " JOIN bindings AS b ON b.key_id = u.key_id AND b.labels <> ''
          JOIN (SELECT key_id, j.value AS label FROM bindings, json_each('[\"' || replace(labels, ',', '\",\"') || '\"]') AS j WHERE labels <> '') AS l
              ON l.key_id = b.key_id",
    );
}
