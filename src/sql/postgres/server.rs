//! One server of PostgreSQL: how to connect to it, and whether it takes writes.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Error, Row};

use super::session::{Pool, code};

/// How the server is asked what it is. Without arguments: a pooler may serve each message by another connection.
const PROBE: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
    (SELECT setting FROM pg_settings WHERE name = 'statement_timeout')";

/// What a server answered to the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// It follows another server.
    pub is_standby: bool,
    /// It refuses writes.
    pub is_read_only: bool,
    /// Its sessions keep the limits that are sent when a connection starts.
    keeps_limits: bool,
}

impl Probe {
    /// Why it takes no writes.
    pub fn refusal(&self) -> Option<&'static str> {
        match (self.is_standby, self.is_read_only) {
            (true, _) => Some("the server is a standby and takes no writes; name the primary, or all servers separated by `,`"),
            (_, true) => Some("the server is read-only (default_transaction_read_only) and takes no writes"),
            _ => None,
        }
    }
}

/// A server, and the limits of what is done on it.
#[derive(Clone)]
pub struct Server {
    options: PgConnectOptions,
    timeout: Duration,
    connections_max: u32,
}

impl Server {
    pub fn new(options: PgConnectOptions, timeout: Duration, connections_max: u32) -> Self {
        // Poolers refuse this parameter of the driver's; the server's default is as exact.
        Self { options: options.extra_float_digits(None), timeout, connections_max }
    }

    fn limits(&self) -> [(&'static str, String); 3] {
        let (timeout_ms, idle_ms) = (self.timeout.as_millis(), self.timeout.as_millis() * 5);
        [
            // The server ends what the client has stopped waiting for.
            ("statement_timeout", timeout_ms.to_string()),
            ("lock_timeout", timeout_ms.to_string()),
            // It forgets sessions whose client has vanished, with the locks they hold.
            ("idle_in_transaction_session_timeout", idle_ms.to_string()),
        ]
    }

    /// What connections to the server itself start with.
    fn direct(&self) -> PgConnectOptions {
        let keepalives = ["tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"];
        let keepalives = keepalives.into_iter().zip(["10", "5", "3"].map(str::to_owned));
        self.options.clone().options(self.limits().into_iter().chain(keepalives))
    }

    /// A pool of the one connection that listens.
    pub async fn listener(&self) -> Result<PgPool, Error> {
        let (options, connection) = self.connect().await?;
        let _ = tokio::time::timeout(self.timeout, connection.close()).await;
        let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        Ok(pool.acquire_timeout(self.timeout * 2).connect_lazy_with(options))
    }

    /// What connections through a pooler start with: nothing it could refuse, and no statement that has to stay prepared.
    fn pooled(&self) -> PgConnectOptions {
        self.options.clone().statement_cache_capacity(0)
    }

    /// Connects once and says how the server is used from now on.
    pub async fn probe(&self) -> Result<(Pool, Probe), Error> {
        let (options, mut connection) = self.connect().await?;
        let probe = probe(&mut connection, self.timeout).await?;
        let _ = tokio::time::timeout(self.timeout, connection.close()).await;
        let (options, limits) = match probe.keeps_limits {
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
            // PgBouncer and others refuse start-up parameters that they do not know, by these codes.
            Err(error) if code(&error).is_some_and(|code| code == "08P01" || code == "0A000") => {
                let pooled = self.pooled();
                let connection = tokio::time::timeout(patience, pooled.connect()).await.map_err(timed_out)??;
                Ok((pooled, connection))
            }
            connection => connection.map(|connection| (direct, connection)),
        }
    }

    /// Begins a transaction with the limits that the session does not keep.
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
            // Whoever waits for a connection gives up before: that is how a pool that has gone bad is noticed.
            .acquire_timeout(self.timeout * 2)
            .idle_timeout(Duration::from_secs(600))
            .max_lifetime(Duration::from_secs(3600))
            .connect_lazy_with(options);
        Pool::new(pool, limits, self.timeout * 2)
    }

    /// A pool on which nothing is known of the server yet: for one that hangs.
    pub fn again(&self, before: &Pool) -> Pool {
        let options = if before.limits().is_some() { self.pooled() } else { self.direct() };
        self.pool(options, before.limits())
    }
}

/// Asks a connection what it leads to.
async fn probe(connection: &mut PgConnection, timeout: Duration) -> Result<Probe, Error> {
    let asked = sqlx::raw_sql(PROBE).fetch_one(&mut *connection);
    let row = tokio::time::timeout(timeout * 2, asked).await.map_err(|_| Error::PoolTimedOut)??;
    let statement_timeout_ms: String = row.try_get(2)?;
    Ok(Probe {
        is_standby: row.try_get(0)?,
        is_read_only: row.try_get(1)?,
        keeps_limits: statement_timeout_ms == timeout.as_millis().to_string(),
    })
}
