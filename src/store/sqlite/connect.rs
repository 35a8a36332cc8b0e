//! Opening the file, and which secret it goes with.

use std::path::Path;

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use super::BUSY_MAX;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./src/store/migrations/sqlite");

fn newer(path: &Path, version: i64) -> String {
    let path = path.display();
    format!("the database {path} is newer than this program: it has migration {version}; install the newer one again")
}

/// Opens the file. With `makes`, it and its folder are made if they are not there, and its schema is brought up to
/// date; without, they must be there and be so.
pub async fn pool(path: &Path, makes: bool) -> Result<SqlitePool, String> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("the database {} {what}: {e}", path.display());
    if !makes && !path.exists() {
        return Err(format!(
            "there is no database {}: it is made when Keylatch runs for the first time, or by `keylatch migrate`",
            path.display()
        ));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| wrong("cannot get its folder", &e))?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(makes)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_MAX);
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(BUSY_MAX)
        // Where the disk is full or fails, SQLite itself ends the transaction, and sqlx holds it for open ever after.
        .before_acquire(|connection, _| Box::pin(std::future::ready(Ok(!connection.is_in_transaction()))))
        .connect_with(options)
        .await;
    let pool = pool.map_err(|e| wrong("cannot be opened", &e))?;
    schema(&pool, path, makes).await?;
    Ok(pool)
}

/// A database in memory, for trials and tests. It lives as long as its one connection, so that is never given up.
pub async fn in_memory() -> Result<SqlitePool, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("no database can be made in memory: {e}");
    let pool = SqlitePoolOptions::new().max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None);
    let options = SqliteConnectOptions::new().in_memory(true);
    let pool = pool.acquire_timeout(BUSY_MAX).connect_with(options).await.map_err(|e| wrong(&e))?;
    MIGRATIONS.run(&pool).await.map_err(|e| wrong(&e))?;
    Ok(pool)
}

/// Brings it up to date, or says that it is not.
async fn schema(pool: &SqlitePool, path: &Path, makes: bool) -> Result<(), String> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("the database {} {what}: {e}", path.display());
    if makes {
        return MIGRATIONS.run(pool).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(version) => newer(path, version),
            other => wrong("cannot be brought up to date", &other),
        });
    }
    let found: i64 = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(pool)
        .await
        .map_err(|e| wrong("is not one of Keylatch's, or was never brought up to date; run `keylatch migrate`", &e))?;
    let wanted = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    match found.cmp(&wanted) {
        std::cmp::Ordering::Less => Err(wrong("is older than this program", &"run `keylatch migrate`")),
        std::cmp::Ordering::Greater => Err(newer(path, found)),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// See [`crate::store::Authority::owner`].
pub async fn owner(pool: &SqlitePool) -> Result<Option<String>, String> {
    let known = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'key_hmac'").fetch_optional(pool).await;
    known.map_err(|e| format!("the database cannot be read: {e}"))
}

/// See [`crate::store::Authority::own`].
pub async fn own(pool: &SqlitePool, fingerprint: &str, before: Option<&str>) -> Result<(), String> {
    let statement = match before {
        Some(before) => sqlx::query("UPDATE meta SET value = ? WHERE name = 'key_hmac' AND value = ?").bind(fingerprint).bind(before),
        None => sqlx::query("INSERT INTO meta (name, value) VALUES ('key_hmac', ?) ON CONFLICT DO NOTHING").bind(fingerprint),
    };
    statement.execute(pool).await.map(|_| ()).map_err(|e| format!("the database cannot be written: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_transaction_that_sqlite_ended_by_itself_costs_one_connection() {
        let folder = tempfile::tempdir().unwrap();
        let pool = pool(&folder.path().join("t.db"), true).await.unwrap();
        for _ in 0..8 {
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
            sqlx::query("ROLLBACK").execute(&mut *tx).await.unwrap();
        }
        assert_eq!(owner(&pool).await.unwrap(), None);
    }
}
