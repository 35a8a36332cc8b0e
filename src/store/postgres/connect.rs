//! Reaching the database: TLS, the pool, the schema, the secret it belongs to.

use std::net::IpAddr;
use std::str::FromStr;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};

use super::pools::Pools;
use crate::config::Files;
use crate::config::model::{Postgres as Config, PostgresTls};

static MIGRATIONS: Migrator = sqlx::migrate!("./src/store/migrations/postgres");

/// An error of the driver's for an operator. The driver names no password.
fn wrong(what: &str, error: &sqlx::Error) -> String {
    format!("storage.postgres: {what}: {error}")
}

/// Connects once, so that a mistake is told at the start.
pub async fn pools(config: &Config, files: &Files) -> Result<Pools, String> {
    let options = options(config, files)?;
    let (most, timeout) = (config.connections_max, config.timeout.0);
    let pools = Pools::new(timeout, move || {
        PgPoolOptions::new()
            .max_connections(most)
            // Whoever waits for a connection gives up before: that is how a pool that has gone bad is noticed.
            .acquire_timeout(timeout * 2)
            .idle_timeout(std::time::Duration::from_secs(600))
            .max_lifetime(std::time::Duration::from_secs(3600))
            .connect_lazy_with(options.clone())
    });
    let pool = pools.get();
    // Longer than a request would wait: a server may just be starting.
    let patient = tokio::time::timeout(config.connect_timeout.0, async {
        let mut told = String::new();
        loop {
            match pool.acquire().await {
                Ok(_) => return Ok(()),
                Err(error) if is_certificate(&error) => {
                    let advice = "its certificate is not accepted; see storage.postgres.tls and ca_file, and the host's name in the URL";
                    return Err(wrong(advice, &error));
                }
                // No server there, or one that is starting or stopping (class 57): another moment. The rest does not heal.
                Err(error) if is_absent(&error) => {
                    let says = error.to_string();
                    if says != told {
                        tracing::warn!(%error, "postgres is not there yet");
                        told = says;
                    }
                }
                Err(error) => return Err(wrong(advice(&error), &error)),
            }
            // A server that is starting needs a moment; nothing says when it is ready.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    match patient.await {
        Ok(connected) => connected.map(|()| pools),
        Err(_) => Err(format!("storage.postgres: no server answered within {:?}", config.connect_timeout.0)),
    }
}

fn is_absent(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) || code(error).is_some_and(|code| code.starts_with("57"))
}

/// The driver tells it as an error of the connection, of which rustls is the cause.
fn is_certificate(error: &sqlx::Error) -> bool {
    let cause = match error {
        sqlx::Error::Io(error) => error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

fn code(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error()?.code()
}

/// What an operator may do about an error (PostgreSQL, appendix A).
fn advice(error: &sqlx::Error) -> &'static str {
    match code(error).as_deref() {
        Some("28P01" | "28000") => "the server refuses the user or the password",
        Some("3D000") => "there is no such database; make it with `createdb`",
        Some("42501") => "the user may not do that; grant it, or let its owner run `keylatch migrate`",
        Some("42P01") => "the schema is not there; run `keylatch migrate`",
        Some("25006") => "the database is read-only: is it a standby?",
        Some("53100") => "the server's disk is full",
        _ => match error {
            sqlx::Error::Tls(_) => "no trusted TLS connection could be made; see ca_file and tls",
            _ => "cannot be used",
        },
    }
}

fn options(config: &Config, files: &Files) -> Result<PgConnectOptions, String> {
    let url = files.secret(&config.url).map_err(|e| format!("storage.postgres.url: {e}"))?;
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err("storage.postgres.url must begin with `postgres://`, such as `postgres://user:password@host:5432/keylatch`".into());
    }
    // Its parameters would be logged with their values where they are not known, and could undo what is said here.
    if url.split_once('?').is_some_and(|(_, parameters)| parameters.split('&').any(|one| !one.starts_with("host=/"))) {
        return Err(
            "storage.postgres.url takes no parameters behind `?` but `host=/FOLDER` of a Unix socket; say `tls` and `ca_file` beside it"
                .into(),
        );
    }
    // The parser's error may hold the URL, and with it the password.
    let options = PgConnectOptions::from_str(&url).map_err(|_| {
        "storage.postgres.url is malformed; characters such as `@`, `:`, `/` and `%` in the password are written as %40, %3A, %2F, %25"
            .to_owned()
    })?;
    let host = options.get_host().to_owned();
    let here = host == "localhost"
        || host.starts_with('/')
        || options.get_socket().is_some()
        || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let mode = match config.tls {
        Some(PostgresTls::VerifyFull) => PgSslMode::VerifyFull,
        Some(PostgresTls::VerifyCa) => PgSslMode::VerifyCa,
        Some(PostgresTls::Off) => PgSslMode::Disable,
        None if here => PgSslMode::Disable,
        None => PgSslMode::VerifyFull,
    };
    let mut options = options.ssl_mode(mode).application_name("keylatch");
    if let Some(path) = &config.ca_file {
        options = options.ssl_root_cert(files.path(path));
    }
    // The server ends what the client has stopped waiting for.
    let timeout_ms = config.timeout.0.as_millis().to_string();
    // And it forgets sessions whose client has vanished, with the locks they hold.
    let idle_ms = (config.timeout.0.as_millis() * 5).to_string();
    Ok(options.options([
        ("statement_timeout", timeout_ms.as_str()),
        ("lock_timeout", timeout_ms.as_str()),
        ("idle_in_transaction_session_timeout", idle_ms.as_str()),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ]))
}

/// Brings the schema up to date. Of several processes that start at once one does it, under the driver's lock.
pub async fn migrate(pool: &PgPool) -> Result<(), String> {
    // A user who may not change the schema need not, where there is nothing to change.
    let applied: sqlx::Result<Vec<i64>> =
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version").fetch_all(pool).await;
    if applied.is_ok_and(|applied| applied.iter().copied().eq(MIGRATIONS.iter().map(|migration| migration.version))) {
        return Ok(());
    }
    let mut connection = pool.acquire().await.map_err(|e| wrong("cannot be used", &e))?;
    // A migration may take longer than a request may wait.
    let patient = sqlx::query("SET statement_timeout = 0").execute(&mut *connection).await;
    patient.map_err(|e| wrong("cannot be used", &e))?;
    sqlx::query("SET lock_timeout = 0").execute(&mut *connection).await.map_err(|e| wrong("cannot be used", &e))?;
    let done = MIGRATIONS.run(&mut *connection).await;
    // Its settings are not for others.
    let _ = connection.close().await;
    done.map_err(|error| match error {
        sqlx::migrate::MigrateError::VersionMissing(version) => {
            format!("storage.postgres: the schema is newer than this program (it has migration {version}); install the newer one again")
        }
        sqlx::migrate::MigrateError::Execute(error) | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => {
            wrong(advice(&error), &error)
        }
        other => format!("storage.postgres: the schema cannot be brought up to date: {other}"),
    })
}

/// See [`crate::store::Authority::owner`].
pub async fn owner(pool: &PgPool) -> Result<Option<String>, String> {
    let known = sqlx::query_scalar("SELECT value FROM meta WHERE name = 'key_hmac'").fetch_optional(pool).await;
    known.map_err(|e| wrong(advice(&e), &e))
}

/// See [`crate::store::Authority::own`].
pub async fn own(pool: &PgPool, fingerprint: &str, before: Option<&str>) -> Result<(), String> {
    let statement = match before {
        Some(before) => sqlx::query("UPDATE meta SET value = $1 WHERE name = 'key_hmac' AND value = $2").bind(fingerprint).bind(before),
        None => sqlx::query("INSERT INTO meta (name, value) VALUES ('key_hmac', $1) ON CONFLICT DO NOTHING").bind(fingerprint),
    };
    statement.execute(pool).await.map(|_| ()).map_err(|e| wrong(advice(&e), &e))
}
