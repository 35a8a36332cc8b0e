//! Migrations of the schema in PostgreSQL. All run in one transaction, so that a pooler may be in
//! between.

use sqlx::migrate::Migration;
use sqlx::{Error, Row};

use super::connect::{advice, within, wrong};
use super::pools::Pools;
use super::session::Session;
use crate::sql::migrations::POSTGRES as MIGRATIONS;

/// One process at a time migrates. The lock ends with the transaction; the driver's own lock
/// belongs to the session.
const LOCK: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;
    SELECT pg_advisory_xact_lock(7310594871)";
/// The driver's own definition of the table.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL,
    installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL)";
const APPLIED: &str = "SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version";

type Applied = Vec<(i64, Vec<u8>)>;

/// Migrates the schema. Of several processes that start at once, one does it.
pub async fn migrate(pools: &Pools) -> Result<(), String> {
    // A user without the right to change the schema needs none where nothing is missing.
    let pool = pools.get();
    let applied = within(pools, sqlx::query_as(APPLIED).fetch_all(&pool)).await;
    if applied.is_ok_and(|applied: Applied| missing(&applied).is_ok_and(|missing| missing.is_empty())) {
        return Ok(());
    }
    let failed = |error: Error| wrong(advice(&error), &error);
    let mut tx = pool.begin().await.map_err(failed)?;
    sqlx::raw_sql(LOCK).execute(&mut *tx).await.map_err(failed)?;
    sqlx::raw_sql(TABLE).execute(&mut *tx).await.map_err(failed)?;
    let rows = sqlx::query(APPLIED).fetch_all(&mut *tx).await.map_err(failed)?;
    let applied: Result<Applied, Error> = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect();
    for migration in missing(&applied.map_err(failed)?)? {
        apply(&mut tx, migration).await.map_err(failed)?;
    }
    tx.commit().await.map_err(failed)
}

/// The migrations to apply. An error: the schema was not made by this program.
fn missing(applied: &[(i64, Vec<u8>)]) -> Result<Vec<&'static Migration>, String> {
    for (version, checksum) in applied {
        match MIGRATIONS.iter().find(|migration| migration.version == *version) {
            None => {
                return Err(format!(
                    "storage.postgres: the schema is newer than this program: it has migration {version}; install a newer version of Keylatch"
                ));
            }
            Some(known) if known.checksum != *checksum => {
                return Err(format!(
                    "storage.postgres: migration {version} of the schema differs from the one in this program; restore the database from a backup"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(MIGRATIONS.iter().filter(|migration| applied.iter().all(|(version, _)| *version != migration.version)).collect())
}

async fn apply(tx: &mut Session, migration: &Migration) -> Result<(), Error> {
    sqlx::raw_sql(migration.sql.clone()).execute(&mut *tx).await?;
    sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ($1, $2, true, $3, -1)")
        .bind(migration.version)
        .bind(&*migration.description)
        .bind(&*migration.checksum)
        .execute(tx)
        .await
        .map(|_| ())
}
