//! Shared secrets and leases in either database. The statements are the same; this file is compiled
//! once for each.

use std::time::Duration;

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;

use super::{NOW_MS, Own, failed};
use crate::sql::shared_secrets::SharedSecrets;

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2)
}

#[async_trait]
impl SharedSecrets for Own {
    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let statement = format!("SELECT kept FROM vault WHERE name = $1 AND until_ms > {NOW_MS}");
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).bind(name.to_owned());
        self.with(async |pool| query.fetch_optional(&pool).await.map_err(failed)).await
    }

    async fn secrets(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let statement = format!("SELECT name, kept FROM vault WHERE substr(name, 1, length($1)) = $1 AND until_ms > {NOW_MS}");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(statement)).bind(prefix.to_owned());
        self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await
    }

    async fn delete_secret(&self, name: &str) -> Result<(), StoreError> {
        let gone = sqlx::query("DELETE FROM vault WHERE name = $1").bind(name.to_owned());
        self.with(async |pool| gone.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn put_secret(&self, name: &str, kept: &[u8], time: Duration) -> Result<(), StoreError> {
        let statement = format!(
            "INSERT INTO vault (name, kept, until_ms) VALUES ($1, $2, {NOW_MS} + $3)
             ON CONFLICT (name) DO UPDATE SET kept = excluded.kept, until_ms = excluded.until_ms"
        );
        let keep = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(name.to_owned()).bind(kept.to_vec()).bind(ms(time));
        let sweep = format!("DELETE FROM vault WHERE until_ms < {NOW_MS}");
        self.with(async |pool| {
            keep.execute(&pool).await.map_err(failed)?;
            sqlx::query(sqlx::AssertSqlSafe(sweep)).execute(&pool).await.map(|_| ()).map_err(failed)
        })
        .await
    }

    async fn take_lease(&self, name: &str, holder: &str, time: Duration) -> Result<bool, StoreError> {
        let statement = format!(
            "INSERT INTO leases (name, holder, until_ms) VALUES ($1, $2, {NOW_MS} + $3)
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms
             WHERE leases.until_ms < {NOW_MS} OR leases.holder = excluded.holder"
        );
        let taken = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(name.to_owned()).bind(holder.to_owned()).bind(ms(time));
        self.with(async |pool| taken.execute(&pool).await.map(|done| done.rows_affected() == 1).map_err(failed)).await
    }

    async fn release_lease(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        let gone = sqlx::query("DELETE FROM leases WHERE name = $1 AND holder = $2").bind(name.to_owned()).bind(holder.to_owned());
        self.with(async |pool| gone.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }
}
