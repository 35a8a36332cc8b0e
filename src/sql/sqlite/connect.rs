//! Opens the SQLite file, migrates it, and reads the fingerprint of its secret.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_WRLCK, SEEK_SET, flock};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use super::BUSY_MAX;
use crate::sql::migrations::SQLITE as MIGRATIONS;
use crate::util::secure_fs;

fn newer(path: &Path, version: i64) -> String {
    let path = path.display();
    format!("the database {path} is newer than this program: it has migration {version}; install a newer version of Keylatch")
}

/// Opens the file. With `makes`, the file and its folder are created if missing, and the schema is
/// migrated. Without, both must exist and be up to date.
pub async fn pool(path: &Path, makes: bool) -> Result<SqlitePool, String> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("the database {} {what}: {e}", path.display());
    if !makes && !path.exists() {
        return Err(format!("the database {} does not exist; `keylatch run` creates it, and so does `keylatch migrate`", path.display()));
    }
    if makes {
        secure_fs::make_folder(secure_fs::folder_of(path)).map_err(|e| wrong("has a folder that cannot be created", &e))?;
        if restoring(path).exists() {
            let says = format!(
                "has an interrupted restore: run `keylatch restore --replace` again, or remove {} to keep the database as it is",
                restoring(path).display()
            );
            return Err(format!("the database {} {says}", path.display()));
        }
        // An empty file is an empty database. SQLite creates the files beside it with the same
        // mode.
        let there = || path.symlink_metadata().is_ok();
        let target = if there() && !path.exists() {
            secure_fs::folder_of(path).join(std::fs::read_link(path).unwrap_or_default())
        } else {
            path.to_owned()
        };
        match secure_fs::make(&target) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(wrong("cannot be created", &e)),
            _ => {}
        }
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_MAX);
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        // One connection stays open, so that other processes can see that the file is in use.
        .min_connections(1)
        .acquire_timeout(BUSY_MAX)
        // On a full or failing disk SQLite ends the transaction itself, and sqlx would keep it as
        // open.
        .before_acquire(|connection, _| Box::pin(std::future::ready(Ok(!connection.is_in_transaction()))))
        .connect_with(options)
        .await;
    let pool = pool.map_err(|e| wrong("cannot be opened", &e))?;
    schema(&pool, path, makes).await?;
    Ok(pool)
}

/// The marker file of a restore. The database's path may be empty for a moment while it exists.
pub fn restoring(database: &Path) -> PathBuf {
    secure_fs::beside(database, ".restoring")
}

/// An exclusive lock on the database file: no process has it open, and none can open it.
///
/// A process that has a database in WAL mode open holds a shared lock on bytes past the first
/// gigabyte (`SHARED_FIRST` and `SHARED_SIZE` of the [locking of
/// SQLite](https://www.sqlite.org/lockingv3.html)).
pub struct ExclusiveFileLock {
    // Closing the file releases the lock.
    _file: File,
}

/// Takes the exclusive lock, if no process has the file open.
pub fn alone(path: &Path) -> Result<ExclusiveFileLock, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("the database {}: {e}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| wrong(&e))?;
    let lock = flock { l_type: F_WRLCK as _, l_whence: SEEK_SET as _, l_start: (1 << 30) + 2, l_len: 510, l_pid: 0 };
    match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
        Ok(_) => Ok(ExclusiveFileLock { _file: file }),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(wrong(&"a process has it open; stop that process first")),
        Err(e) => Err(wrong(&e)),
    }
}

/// Opens an in-memory database, for trials and tests. It lives as long as its single connection,
/// which is never closed.
pub async fn in_memory() -> Result<SqlitePool, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("the in-memory database cannot be created: {e}");
    let pool = SqlitePoolOptions::new().max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None);
    let options = SqliteConnectOptions::new().in_memory(true);
    let pool = pool.acquire_timeout(BUSY_MAX).connect_with(options).await.map_err(|e| wrong(&e))?;
    MIGRATIONS.run(&pool).await.map_err(|e| wrong(&e))?;
    Ok(pool)
}

/// Migrates the schema, or checks that it is up to date.
async fn schema(pool: &SqlitePool, path: &Path, makes: bool) -> Result<(), String> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("the database {} {what}: {e}", path.display());
    if makes {
        return MIGRATIONS.run(pool).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(version) => newer(path, version),
            other => wrong("cannot be migrated", &other),
        });
    }
    let found: i64 = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(pool)
        .await
        .map_err(|e| wrong("is not a Keylatch database, or was never migrated; run `keylatch migrate`", &e))?;
    let wanted = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    match found.cmp(&wanted) {
        std::cmp::Ordering::Less => Err(wrong("is older than this program", &"run `keylatch migrate`")),
        std::cmp::Ordering::Greater => Err(newer(path, found)),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// See [`crate::sql::Authority::owner`].
pub async fn owner(pool: &SqlitePool) -> Result<Option<String>, String> {
    let stored = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'key_hmac'").fetch_optional(pool).await;
    stored.map_err(|e| format!("the database cannot be read: {e}"))
}

/// See [`crate::sql::Authority::own`].
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
    async fn a_transaction_that_sqlite_ended_closes_one_connection() {
        let folder = tempfile::tempdir().unwrap();
        let pool = pool(&folder.path().join("t.db"), true).await.unwrap();
        for _ in 0..8 {
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
            sqlx::query("ROLLBACK").execute(&mut *tx).await.unwrap();
        }
        assert_eq!(owner(&pool).await.unwrap(), None);
    }
}
