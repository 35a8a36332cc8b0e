//! One PostgreSQL server: connection options, session limits and the probe. Choosing a server
//! belongs to `pools`.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Error, Row};

use super::session::{Pool, code};

/// The probe. It has no arguments: a pooler may send each message to another connection.
const PROBE: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
    (SELECT setting FROM pg_settings WHERE name = 'statement_timeout'), current_setting('keylatch.session', true)";

/// A start-up parameter of our own. PostgreSQL keeps it. A pooler drops it, also one that knows the
/// limits and sets them for each transaction (Odyssey): its sessions do not keep prepared
/// statements.
const MARK: (&str, &str) = ("keylatch.session", "own");

/// The server's answer to the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Whether the server is a standby.
    pub is_standby: bool,
    /// Whether the server refuses writes.
    pub is_read_only: bool,
    /// Whether sessions are those of the server, which keep limits and prepared statements.
    owns_session: bool,
}

impl Probe {
    /// The reason why the server takes no writes.
    pub fn refusal(&self) -> Option<&'static str> {
        match (self.is_standby, self.is_read_only) {
            (true, _) => Some("the server is a standby and takes no writes; configure the primary, or all servers separated by `,`"),
            (_, true) => Some("the server is read-only (default_transaction_read_only) and takes no writes"),
            _ => None,
        }
    }
}

/// A server, with the limits of its sessions.
#[derive(Clone)]
pub struct Server {
    options: PgConnectOptions,
    timeout: Duration,
    connections_max: u32,
}

impl Server {
    pub fn new(options: PgConnectOptions, timeout: Duration, connections_max: u32) -> Self {
        // Poolers refuse this start-up parameter of the driver; the server's default is as exact.
        Self { options: options.extra_float_digits(None), timeout, connections_max }
    }

    fn limits(&self) -> [(&'static str, String); 3] {
        let (timeout_ms, idle_ms) = (self.timeout.as_millis(), self.timeout.as_millis() * 5);
        [
            // The server cancels statements that the client no longer waits for.
            ("statement_timeout", timeout_ms.to_string()),
            ("lock_timeout", timeout_ms.to_string()),
            // The server ends sessions of vanished clients, and releases their locks.
            ("idle_in_transaction_session_timeout", idle_ms.to_string()),
        ]
    }

    /// Options for direct connections.
    fn direct(&self) -> PgConnectOptions {
        let keepalives = ["tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"];
        let keepalives = keepalives.into_iter().zip(["10", "5", "3"].map(str::to_owned));
        // The mark comes last: a pooler may read no further than the first unknown parameter.
        let mark = [(MARK.0, MARK.1.to_owned())];
        self.options.clone().options(self.limits().into_iter().chain(keepalives).chain(mark))
    }

    /// A pool with the single connection that listens.
    pub async fn listener(&self) -> Result<PgPool, Error> {
        let (options, connection) = self.connect().await?;
        let _ = tokio::time::timeout(self.timeout, connection.close()).await;
        let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        Ok(pool.acquire_timeout(self.timeout * 2).connect_lazy_with(options))
    }

    /// Options for connections through a pooler: no start-up parameter that it could refuse, and no
    /// prepared statements.
    fn pooled(&self) -> PgConnectOptions {
        self.options.clone().statement_cache_capacity(0)
    }

    /// Connects once, and returns the pool that fits the server.
    pub async fn probe(&self) -> Result<(Pool, Probe), Error> {
        let (options, mut connection) = self.connect().await?;
        let probe = probe(&mut connection, self.timeout).await?;
        let _ = tokio::time::timeout(self.timeout, connection.close()).await;
        let (options, limits) = match probe.owns_session {
            true => (options, None),
            false => (self.pooled(), Some(self.begin())),
        };
        Ok((self.pool(options, limits), probe))
    }

    async fn connect(&self) -> Result<(PgConnectOptions, PgConnection), Error> {
        let patience = self.timeout * 2;
        let timed_out = |_| Error::PoolTimedOut;
        let direct = self.direct();
        match tokio::time::timeout(patience, direct.connect()).await.map_err(timed_out)? {
            // PgBouncer and others refuse unknown start-up parameters with these codes.
            Err(error) if code(&error).is_some_and(|code| code == "08P01" || code == "0A000") => {
                let pooled = self.pooled();
                let connection = tokio::time::timeout(patience, pooled.connect()).await.map_err(timed_out)??;
                Ok((pooled, connection))
            }
            connection => connection.map(|connection| (direct, connection)),
        }
    }

    /// `BEGIN` with the limits that the session does not keep.
    fn begin(&self) -> Arc<str> {
        let mut statement = String::from("BEGIN");
        for (name, value) in self.limits() {
            statement.push_str(&format!("; SET LOCAL {name} = {value}"));
        }
        statement.into()
    }

    fn pool(&self, options: PgConnectOptions, limits: Option<Arc<str>>) -> Pool {
        let pool = PgPoolOptions::new()
            .max_connections(self.connections_max)
            // Longer than any caller waits: the callers' time-outs show that a pool is broken.
            .acquire_timeout(self.timeout * 2)
            .idle_timeout(Duration::from_secs(600))
            .max_lifetime(Duration::from_secs(3600))
            .connect_lazy_with(options);
        Pool::new(pool, limits, self.timeout * 2)
    }

    /// A new pool for the same server, in place of one with hanging connections.
    pub fn again(&self, before: &Pool) -> Pool {
        let options = if before.limits().is_some() { self.pooled() } else { self.direct() };
        self.pool(options, before.limits())
    }
}

/// Runs the probe on a connection.
async fn probe(connection: &mut PgConnection, timeout: Duration) -> Result<Probe, Error> {
    let query = sqlx::raw_sql(PROBE).fetch_one(&mut *connection);
    let row = tokio::time::timeout(timeout * 2, query).await.map_err(|_| Error::PoolTimedOut)??;
    let (statement_timeout_ms, mark): (String, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
    Ok(Probe {
        is_standby: row.try_get(0)?,
        is_read_only: row.try_get(1)?,
        owns_session: statement_timeout_ms == timeout.as_millis().to_string() && mark.as_deref() == Some(MARK.1),
    })
}
