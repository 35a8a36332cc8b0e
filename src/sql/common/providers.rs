//! Providers of OpenID Connect in either database: the statements are the same, and this file is compiled for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::{Value, json};
use sqlx::{Database, Row};

use super::accounts::{line, my_turn};
use super::{Db, Own, Tx, audit, failed};
use crate::sql::accounts::Made;
use crate::sql::audit::Actor;
use crate::sql::providers::{Expects, Provider, Providers};
use crate::sql::record::version_now;

type DbRow = <Db as Database>::Row;

const PROVIDER: &str = "SELECT name, settings, secret, version FROM providers";

fn provider(row: &DbRow) -> sqlx::Result<Provider> {
    let settings: String = row.try_get(1)?;
    Ok(Provider {
        name: row.try_get(0)?,
        settings: serde_json::from_str(&settings).unwrap_or_default(),
        secret: row.try_get(2)?,
        version: row.try_get(3)?,
    })
}

/// How it stands in the audit.
fn told(provider: &Provider) -> Value {
    let mut told = provider.settings.clone();
    if let Some(fields) = told.as_object_mut() {
        fields.insert("client_secret".into(), json!(provider.secret.is_some()));
    }
    told
}

async fn held(tx: &mut Tx, name: &str) -> Result<Option<Provider>, StoreError> {
    let asked = sqlx::query(sqlx::AssertSqlSafe(format!("{PROVIDER} WHERE name = $1"))).bind(name.to_owned());
    let row = asked.fetch_optional(&mut **tx).await.map_err(failed)?;
    row.as_ref().map(provider).transpose().map_err(failed)
}

#[async_trait]
impl Providers for Own {
    async fn providers(&self) -> Result<Vec<Provider>, StoreError> {
        let asked = sqlx::query(sqlx::AssertSqlSafe(format!("{PROVIDER} ORDER BY name")));
        let rows = self.with(async |pool| asked.fetch_all(&pool).await.map_err(failed)).await?;
        rows.iter().map(|row| provider(row).map_err(failed)).collect()
    }

    async fn provider(&self, name: &str) -> Result<Option<Provider>, StoreError> {
        let asked = sqlx::query(sqlx::AssertSqlSafe(format!("{PROVIDER} WHERE name = $1"))).bind(name.to_owned());
        let row = self.with(async |pool| asked.fetch_optional(&pool).await.map_err(failed)).await?;
        row.as_ref().map(provider).transpose().map_err(failed)
    }

    async fn put_provider(&self, provider: &Provider, expects: Expects, actor: &Actor) -> Result<Made, StoreError> {
        let mut tx = my_turn(self).await?;
        let before = held(&mut tx, &provider.name).await?;
        match (&before, expects) {
            (None, Expects::Version(_)) => return Ok(Made::Missing),
            (Some(_), Expects::Nothing) => return Ok(Made::Exists),
            (Some(before), Expects::Version(version)) if before.version != version => return Ok(Made::Newer),
            _ => {}
        }
        sqlx::query(
            "INSERT INTO providers (name, settings, secret, version) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO UPDATE SET settings = excluded.settings, secret = excluded.secret, version = excluded.version",
        )
        .bind(provider.name.clone())
        .bind(provider.settings.to_string())
        .bind(provider.secret.clone())
        .bind(version_now(before.as_ref().map_or(0, |before| before.version)))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        audit::write(&mut tx, actor, line("provider.set", &provider.name, before.as_ref().map(told), Some(told(provider)))).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Made::Yes)
    }

    async fn remove_provider(&self, name: &str, expects: Option<i64>, actor: &Actor) -> Result<Made, StoreError> {
        let mut tx = my_turn(self).await?;
        let Some(before) = held(&mut tx, name).await? else { return Ok(Made::Missing) };
        if expects.is_some_and(|expects| before.version != expects) {
            return Ok(Made::Newer);
        }
        let accounts = sqlx::query_scalar("SELECT name FROM accounts WHERE provider = $1 ORDER BY name").bind(name.to_owned());
        let accounts: Vec<String> = accounts.fetch_all(&mut *tx).await.map_err(failed)?;
        sqlx::query("DELETE FROM providers WHERE name = $1").bind(name.to_owned()).execute(&mut *tx).await.map_err(failed)?;
        let mut told = told(&before);
        if let Some(fields) = told.as_object_mut() {
            fields.insert("accounts".into(), json!(accounts));
        }
        audit::write(&mut tx, actor, line("provider.removed", name, Some(told), None)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Made::Yes)
    }
}
