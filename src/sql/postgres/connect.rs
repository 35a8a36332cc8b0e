//! Reaching the database: TLS, the pool, the schema, the secret it belongs to.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::SecretRef;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::pools::Pools;
use super::server::Server;
use super::session::code;
use crate::config::Files;
use crate::config::model::{Postgres as Config, PostgresTls};
use crate::config::store_url::{Host, PostgresUrl};

/// An error of the driver's for an operator. The driver names no password.
pub fn wrong(what: &str, error: &sqlx::Error) -> String {
    format!("storage.postgres: {what}: {error}")
}

/// Connects once, so that a mistake is told at the start. With several servers, to the first that takes writes.
pub async fn pools(config: &Config, files: &Files) -> Result<Arc<Pools>, String> {
    let servers = servers(config, files, &config.url, "url")?;
    // What is known can be judged by a server that takes no writes.
    let mut readable = None;
    // Longer than a request would wait: a server may just be starting, or being promoted.
    let patient = tokio::time::timeout(config.connect_timeout.0, async {
        let mut told = HashSet::new();
        loop {
            for (index, server) in servers.iter().enumerate() {
                match server.probe().await {
                    Ok((pool, probe)) => match probe.refusal() {
                        None => return Ok((index, pool)),
                        Some(refusal) => {
                            if told.insert(refusal.to_owned()) {
                                tracing::warn!(server = index + 1, "postgres: {refusal}");
                            }
                            readable = Some((index, pool));
                        }
                    },
                    Err(error) if is_certificate(&error) => {
                        let advice =
                            "its certificate is not accepted; see storage.postgres.tls and ca_file, and the host's name in the URL";
                        return Err(wrong(advice, &error));
                    }
                    // No server there, or one that is starting or stopping (class 57): another moment. The rest does not heal.
                    Err(error) if is_absent(&error) => {
                        if told.insert(error.to_string()) {
                            tracing::warn!(%error, server = index + 1, "postgres is not there yet");
                        }
                    }
                    Err(error) => return Err(wrong(advice(&error), &error)),
                }
            }
            if servers.len() == 1
                && let Some(readable) = readable.take()
            {
                return Ok(readable);
            }
            // A server that is starting needs a moment; nothing says when it is ready.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let made = |(server, pool)| Pools::new(servers.clone(), server, pool, config.timeout.0);
    match (patient.await, readable) {
        (Ok(connected), _) => connected.map(made),
        (Err(_), Some(readable)) => Ok(made(readable)),
        (Err(_), None) => Err(format!("storage.postgres: no server answered within {:?}", config.connect_timeout.0)),
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

/// What an operator may do about an error (PostgreSQL, appendix A).
pub fn advice(error: &sqlx::Error) -> &'static str {
    match code(error).as_deref() {
        Some("28P01" | "28000") => "the server refuses the user or the password",
        Some("3D000") => "there is no such database; make it with `createdb`",
        Some("42501") => "the user may not do that; grant it, or let its owner run `keylatch migrate`",
        Some("42P01") => "the schema is not there; run `keylatch migrate`",
        Some("25006") => "the server is read-only: it is a standby, or default_transaction_read_only is on",
        Some("53100") => "the server's disk is full",
        _ => match error {
            sqlx::Error::PoolTimedOut => "no connection was free in time: the server or the pooler before it is exhausted",
            sqlx::Error::Tls(_) => "no trusted TLS connection could be made; see ca_file and tls",
            _ => "cannot be used",
        },
    }
}

/// The servers of a URL, in the order in which they are tried.
pub fn servers(config: &Config, files: &Files, url: &SecretRef, name: &str) -> Result<Vec<Server>, String> {
    let wrong = |error: String| format!("storage.postgres.{name} {error}");
    let text = files.secret(url).map_err(|e| format!("storage.postgres.{name}: {e}"))?;
    let url = PostgresUrl::parse(&text).map_err(wrong)?;
    let mode = match url.verification(config.tls).map_err(wrong)? {
        PostgresTls::VerifyFull => PgSslMode::VerifyFull,
        PostgresTls::VerifyCa => PgSslMode::VerifyCa,
        PostgresTls::Off => PgSslMode::Disable,
    };
    let server = |host: &Host| {
        let mut options = PgConnectOptions::new_without_pgpass().port(host.port).ssl_mode(mode).application_name("keylatch");
        options = match host.name.starts_with('/') {
            true => options.socket(&host.name),
            false => options.host(&host.name),
        };
        if let Some(user) = &url.user {
            options = options.username(user);
        }
        if let Some(password) = &url.password {
            options = options.password(password);
        }
        if let Some(database) = &url.database {
            options = options.database(database);
        }
        if let Some(path) = &config.ca_file {
            options = options.ssl_root_cert(files.path(path));
        }
        Server::new(options, config.timeout.0, config.connections_max)
    };
    Ok(url.hosts.iter().map(server).collect())
}

/// A statement of the start or of a command: behind a pooler without a free server it would wait without end.
pub async fn within<T>(pools: &Pools, statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(pools.timeout() * 4, statement).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// See [`crate::sql::Authority::owner`].
pub async fn owner(pools: &Pools) -> Result<Option<String>, String> {
    let pool = pools.get();
    let known = within(pools, sqlx::query_scalar("SELECT value FROM meta WHERE name = 'key_hmac'").fetch_optional(&pool)).await;
    known.map_err(|e| wrong(advice(&e), &e))
}

/// See [`crate::sql::Authority::own`].
pub async fn own(pools: &Pools, fingerprint: &str, before: Option<&str>) -> Result<(), String> {
    let statement = match before {
        Some(before) => sqlx::query("UPDATE meta SET value = $1 WHERE name = 'key_hmac' AND value = $2").bind(fingerprint).bind(before),
        None => sqlx::query("INSERT INTO meta (name, value) VALUES ('key_hmac', $1) ON CONFLICT DO NOTHING").bind(fingerprint),
    };
    let pool = pools.get();
    within(pools, statement.execute(&pool)).await.map(|_| ()).map_err(|e| wrong(advice(&e), &e))
}
