//! What replicas count, in either database: the statements are the same, and this file is compiled for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;
use sqlx::{Database, Row};

use super::{Db, Own, failed};
use crate::sql::samples::{Of, Replica, Sample, Samples};

type DbRow = <Db as Database>::Row;

fn table(of: Of) -> &'static str {
    match of {
        Of::Counts => "samples",
        Of::Tops => "tops",
    }
}

fn json(row: &DbRow, at: usize) -> sqlx::Result<Value> {
    let text: String = row.try_get(at)?;
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

#[async_trait]
impl Samples for Own {
    async fn say(&self, replica: &Replica) -> Result<(), StoreError> {
        let said = sqlx::query(
            "INSERT INTO replicas (name, seen_ms, state) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET seen_ms = excluded.seen_ms, state = excluded.state",
        );
        let said = said.bind(replica.name.clone()).bind(replica.seen_ms).bind(replica.state.to_string());
        self.with(async |pool| said.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn replicas(&self, since_ms: i64) -> Result<Vec<Replica>, StoreError> {
        let asked = sqlx::query("SELECT name, seen_ms, state FROM replicas WHERE seen_ms >= $1 ORDER BY name").bind(since_ms);
        let rows = self.with(async |pool| asked.fetch_all(&pool).await.map_err(failed)).await?;
        let read = |row: &DbRow| -> sqlx::Result<Replica> {
            Ok(Replica { name: row.try_get(0)?, seen_ms: row.try_get(1)?, state: json(row, 2)? })
        };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }

    async fn note(&self, of: Of, step_s: i64, sample: &Sample) -> Result<(), StoreError> {
        let noted = sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO {} (step_s, at_ms, replica, counted) VALUES ($1, $2, $3, $4)
             ON CONFLICT (step_s, at_ms, replica) DO UPDATE SET counted = excluded.counted",
            table(of)
        )));
        let noted = noted.bind(step_s).bind(sample.at_ms).bind(sample.replica.clone()).bind(sample.counted.to_string());
        self.with(async |pool| noted.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn samples(&self, of: Of, step_s: i64, since_ms: i64) -> Result<Vec<Sample>, StoreError> {
        let statement =
            format!("SELECT at_ms, replica, counted FROM {} WHERE step_s = $1 AND at_ms >= $2 ORDER BY at_ms, replica", table(of));
        let asked = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(step_s).bind(since_ms);
        let rows = self.with(async |pool| asked.fetch_all(&pool).await.map_err(failed)).await?;
        let read = |row: &DbRow| -> sqlx::Result<Sample> {
            Ok(Sample { at_ms: row.try_get(0)?, replica: row.try_get(1)?, counted: json(row, 2)? })
        };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }
}
