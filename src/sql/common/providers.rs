//! OpenID Connect providers in either database. The statements are the same; this file is compiled
//! once for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::{Value, json};
use sqlx::{Database, Row};

use super::accounts::{begin_serialized, line};
use super::{Db, Own, Tx, audit, failed};
use crate::sql::accounts::WriteOutcome;
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

/// The provider as the audit log shows it, without the client secret.
fn audited(provider: &Provider) -> Value {
    let mut settings = provider.settings.clone();
    if let Some(fields) = settings.as_object_mut() {
        fields.insert("client_secret".into(), json!(provider.secret.is_some()));
    }
    settings
}

async fn locked(tx: &mut Tx, name: &str) -> Result<Option<Provider>, StoreError> {
    let query = sqlx::query(sqlx::AssertSqlSafe(format!("{PROVIDER} WHERE name = $1"))).bind(name.to_owned());
    let row = query.fetch_optional(&mut **tx).await.map_err(failed)?;
    row.as_ref().map(provider).transpose().map_err(failed)
}

#[async_trait]
impl Providers for Own {
    async fn providers(&self) -> Result<Vec<Provider>, StoreError> {
        let query = sqlx::query(sqlx::AssertSqlSafe(format!("{PROVIDER} ORDER BY name")));
        let rows = self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await?;
        rows.iter().map(|row| provider(row).map_err(failed)).collect()
    }

    async fn provider(&self, name: &str) -> Result<Option<Provider>, StoreError> {
        let query = sqlx::query(sqlx::AssertSqlSafe(format!("{PROVIDER} WHERE name = $1"))).bind(name.to_owned());
        let row = self.with(async |pool| query.fetch_optional(&pool).await.map_err(failed)).await?;
        row.as_ref().map(provider).transpose().map_err(failed)
    }

    async fn put_provider(&self, provider: &Provider, expects: Expects, actor: &Actor) -> Result<WriteOutcome, StoreError> {
        let mut tx = begin_serialized(self).await?;
        let before = locked(&mut tx, &provider.name).await?;
        match (&before, expects) {
            (None, Expects::Version(_)) => return Ok(WriteOutcome::Missing),
            (Some(_), Expects::Nothing) => return Ok(WriteOutcome::Exists),
            (Some(before), Expects::Version(version)) if before.version != version => return Ok(WriteOutcome::Newer),
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
        audit::write(&mut tx, actor, line("provider.set", &provider.name, before.as_ref().map(audited), Some(audited(provider)))).await?;
        tx.commit().await.map_err(failed)?;
        Ok(WriteOutcome::Done)
    }

    async fn remove_provider(&self, name: &str, expects: Option<i64>, actor: &Actor) -> Result<WriteOutcome, StoreError> {
        let mut tx = begin_serialized(self).await?;
        let Some(before) = locked(&mut tx, name).await? else { return Ok(WriteOutcome::Missing) };
        if expects.is_some_and(|expects| before.version != expects) {
            return Ok(WriteOutcome::Newer);
        }
        let accounts = sqlx::query_scalar("SELECT name FROM accounts WHERE provider = $1 ORDER BY name").bind(name.to_owned());
        let accounts: Vec<String> = accounts.fetch_all(&mut *tx).await.map_err(failed)?;
        sqlx::query("DELETE FROM providers WHERE name = $1").bind(name.to_owned()).execute(&mut *tx).await.map_err(failed)?;
        let mut removed = audited(&before);
        if let Some(fields) = removed.as_object_mut() {
            fields.insert("accounts".into(), json!(accounts));
        }
        audit::write(&mut tx, actor, line("provider.removed", name, Some(removed), None)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(WriteOutcome::Done)
    }
}
