//! Connects to PostgreSQL: server URLs, TLS, the first pool and the fingerprint of the secret.
//! Reconnecting belongs to `pools`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::SecretRef;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::pools::Pools;
use super::server::Server;
use super::session::code;
use crate::config::Files;
use crate::config::model::{Postgres as PostgresConfig, PostgresTls};
use crate::config::store_url::{Host, PostgresUrl};

/// An error of the driver, for an operator. The driver's text contains no password.
pub fn wrong(what: &str, error: &sqlx::Error) -> String {
    format!("storage.postgres: {what}: {error}")
}

/// Connects once, so that a wrong configuration fails at the start. Of several servers, the first
/// that takes writes is used.
pub async fn pools(config: &PostgresConfig, files: &Files) -> Result<Arc<Pools>, String> {
    let servers = servers(config, files, &config.url, "url")?;
    // A server that takes no writes can still judge known keys.
    let mut readable = None;
    let mut last_error = None;
    // Longer than a request waits: the server may be starting, or being promoted.
    let connected = tokio::time::timeout(config.connect_timeout.0, async {
        let mut logged = HashSet::new();
        loop {
            for (index, server) in servers.iter().enumerate() {
                match server.probe().await {
                    Ok((pool, probe)) => match probe.refusal() {
                        None => return Ok((index, pool)),
                        Some(refusal) => {
                            if logged.insert(refusal.to_owned()) {
                                tracing::warn!(server = index + 1, "postgres: {refusal}");
                            }
                            readable = Some((index, pool));
                        }
                    },
                    Err(error) if is_certificate(&error) => {
                        let advice =
                            "the server's certificate is not accepted; check storage.postgres.tls, ca_file and the host name in the URL";
                        return Err(wrong(advice, &error));
                    }
                    // No server, one that is starting or stopping, or a pooler without a server:
                    // retry. Other errors are permanent.
                    Err(error) if is_absent(&error) => {
                        if logged.insert(format!("{index} {}", kind(&error))) {
                            tracing::warn!(%error, server = index + 1, "postgres: no connection yet; trying again");
                        }
                        last_error = Some(error);
                    }
                    Err(error) => return Err(wrong(advice(&error), &error)),
                }
            }
            if servers.len() == 1
                && let Some(readable) = readable.take()
            {
                return Ok(readable);
            }
            // No event says when the server is ready.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let made = |(server, pool)| Pools::new(servers.clone(), server, pool, config.timeout.0);
    match (connected.await, readable) {
        (Ok(server), _) => server.map(made),
        (Err(_), Some(readable)) => Ok(made(readable)),
        (Err(_), None) => {
            let last = last_error.map(|error| format!("; the last error: {error}")).unwrap_or_default();
            Err(format!("storage.postgres: no server answered within {:?}{last}", config.connect_timeout.0))
        }
    }
}

/// No server, one that is starting or stopping (class 57), or a pooler without a server (class
/// 08). PgBouncer reports everything as 08P01, also what is permanent.
fn is_absent(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut)
        || code(error).is_some_and(|code| match &*code {
            "08P01" => error.to_string().ends_with("(server_login_retry)"),
            code => code.starts_with("57") || code.starts_with("08"),
        })
}

/// What makes an error the same as another: its code, because Odyssey's texts contain the ids of connections. PgBouncer has
/// one code for everything.
pub fn kind(error: &sqlx::Error) -> String {
    code(error).filter(|code| code != "08P01").map_or_else(|| error.to_string(), |code| code.into_owned())
}

/// The driver reports it as an I/O error caused by an error of rustls.
fn is_certificate(error: &sqlx::Error) -> bool {
    let cause = match error {
        sqlx::Error::Io(error) => error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

/// What to do about an error (PostgreSQL, appendix A).
pub fn advice(error: &sqlx::Error) -> &'static str {
    match code(error).as_deref() {
        Some("28P01" | "28000") => "the server refuses the user or the password",
        Some("3D000") => "the database does not exist; create it with `createdb`",
        Some("42501") => "the user lacks a privilege; grant it, or let the owner of the schema run `keylatch migrate`",
        Some("42P01") => "the schema does not exist; run `keylatch migrate`",
        Some("25006") => "the server is read-only: it is a standby, or default_transaction_read_only is on",
        Some("53100") => "the server's disk is full",
        _ => match error {
            sqlx::Error::PoolTimedOut => "no connection was free in time: the server or the pooler before it is exhausted",
            sqlx::Error::Tls(_) => "no trusted TLS connection is possible; check ca_file and tls",
            _ => "cannot be used",
        },
    }
}

/// The servers of a URL, in the order in which they are tried.
pub fn servers(config: &PostgresConfig, files: &Files, url: &SecretRef, name: &str) -> Result<Vec<Server>, String> {
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

/// Runs a statement of the start or of a command with a time limit: a pooler without a free server
/// would delay it forever.
pub async fn within<T>(pools: &Pools, statement: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(pools.timeout() * 4, statement).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// See [`crate::sql::Authority::owner`].
pub async fn owner(pools: &Pools) -> Result<Option<String>, String> {
    let pool = pools.get();
    let stored = within(pools, sqlx::query_scalar("SELECT value FROM meta WHERE name = 'key_hmac'").fetch_optional(&pool)).await;
    stored.map_err(|e| wrong(advice(&e), &e))
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
