//! Replica states and counts in either database. The statements are the same; this file is compiled
//! once for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;
use sqlx::{Database, Row};

use super::{Db, Own, failed};
use crate::sql::samples::{Replica, Sample, SampleKind, Samples};

type DbRow = <Db as Database>::Row;

fn table(kind: SampleKind) -> &'static str {
    match kind {
        SampleKind::Counts => "samples",
        SampleKind::TopRequesters => "tops",
    }
}

fn json(row: &DbRow, at: usize) -> sqlx::Result<Value> {
    let text: String = row.try_get(at)?;
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

#[async_trait]
impl Samples for Own {
    async fn put_replica(&self, replica: &Replica) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO replicas (name, seen_ms, state) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET seen_ms = excluded.seen_ms, state = excluded.state",
        );
        let insert = insert.bind(replica.name.clone()).bind(replica.seen_ms).bind(replica.state.to_string());
        self.with(async |pool| insert.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn replicas(&self, since_ms: i64) -> Result<Vec<Replica>, StoreError> {
        let query = sqlx::query("SELECT name, seen_ms, state FROM replicas WHERE seen_ms >= $1 ORDER BY name").bind(since_ms);
        let rows = self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await?;
        let read = |row: &DbRow| -> sqlx::Result<Replica> {
            Ok(Replica { name: row.try_get(0)?, seen_ms: row.try_get(1)?, state: json(row, 2)? })
        };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }

    async fn put_sample(&self, kind: SampleKind, step_s: i64, sample: &Sample) -> Result<(), StoreError> {
        let insert = sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO {} (step_s, at_ms, replica, counted) VALUES ($1, $2, $3, $4)
             ON CONFLICT (step_s, at_ms, replica) DO UPDATE SET counted = excluded.counted",
            table(kind)
        )));
        let insert = insert.bind(step_s).bind(sample.at_ms).bind(sample.replica.clone()).bind(sample.counted.to_string());
        self.with(async |pool| insert.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn samples(&self, kind: SampleKind, step_s: i64, since_ms: i64) -> Result<Vec<Sample>, StoreError> {
        let statement =
            format!("SELECT at_ms, replica, counted FROM {} WHERE step_s = $1 AND at_ms >= $2 ORDER BY at_ms, replica", table(kind));
        let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(step_s).bind(since_ms);
        let rows = self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await?;
        let read = |row: &DbRow| -> sqlx::Result<Sample> {
            Ok(Sample { at_ms: row.try_get(0)?, replica: row.try_get(1)?, counted: json(row, 2)? })
        };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }
}
