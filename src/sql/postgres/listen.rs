//! Changes made by other processes: the database tells every process (`NOTIFY`, sent by triggers).
//!
//! A pooler that shares sessions accepts `LISTEN` and delivers nothing, so a channel is trusted only after a probe was heard on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::{KeyId, StoreError};
use sqlx::Executor;
use sqlx::postgres::{PgListener, PgNotification};
use tokio::time::timeout;

use super::failed;
use super::pools::Pools;
use super::server::Server;
use crate::sql::{News, OnChange};

/// After so long without news the connection is tested.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often a probe is sent.
const PROBED_EVERY: Duration = Duration::from_secs(15);
/// How long a probe may take.
const PROBE_TIME_MAX: Duration = Duration::from_secs(3);
/// The pause after a probe that was not heard: what is remembered is doubted each time.
const DEAF_PAUSE: Duration = Duration::from_secs(30);
/// Past this share of its queue the database leaves notifications out: see the migration `0011_notify`.
const QUEUE_USAGE_MAX: f64 = 0.9;
const CHANNEL: &str = "keylatch_bindings";
const SETTINGS: &str = "keylatch_settings";
const MAIL: &str = "keylatch_mail";

/// Why notifications do not arrive.
#[derive(Debug, thiserror::Error)]
pub enum Deaf {
    /// The connection failed: it is made again soon.
    #[error("the connection that listens failed: {0}")]
    Connection(#[from] sqlx::Error),
    /// The connection or the server did not answer.
    #[error("the connection that listens does not answer")]
    Silent,
    /// The database took the probe, and it was not delivered.
    #[error(
        "notifications of PostgreSQL do not arrive: a pooler in transaction mode does not deliver them. \
         Set storage.postgres.listen_url to the server itself, or use the pooler in session mode"
    )]
    Lost,
    /// The server has no room for notifications.
    #[error(
        "the notification queue of PostgreSQL is full: a client of the server listens and does not read; \
         find it by its age in pg_stat_activity and end its session"
    )]
    Full,
    /// The probe was refused.
    #[error("notifications of PostgreSQL cannot be sent: {0}")]
    Refused(StoreError),
}

/// Where changes are heard of.
pub struct Listening {
    pools: Arc<Pools>,
    /// The servers of `listen_url`; none: the server that the pool leads to.
    servers: Vec<Server>,
}

impl Listening {
    pub fn new(pools: Arc<Pools>, servers: Vec<Server>) -> Arc<Self> {
        Arc::new(Self { pools, servers })
    }

    /// Listens for as long as the process lives. Whenever news may have been lost, that is told.
    pub async fn follow(self: Arc<Self>, on_change: OnChange) {
        let mut told = String::new();
        loop {
            let deaf = self.follow_once(&on_change, &mut told).await.err();
            on_change(News::Lost);
            let mut pause = Duration::from_secs(1);
            if let Some(deaf) = deaf {
                on_change(News::Hears(false));
                if matches!(deaf, Deaf::Lost | Deaf::Full | Deaf::Refused(_)) {
                    pause = DEAF_PAUSE;
                }
                let says = deaf.to_string();
                if told != says {
                    tracing::warn!("changes made by other processes take up to 30 s: {says}");
                    told = says;
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn follow_once(&self, on_change: &OnChange, told: &mut String) -> Result<(), Deaf> {
        let channel = format!("keylatch_probe_{}", uuid::Uuid::now_v7().simple());
        let mut listener = self.probed(&channel).await?;
        timeout(self.patience(), listener.listen_all([CHANNEL, SETTINGS, MAIL])).await.map_err(|_| Deaf::Silent)??;
        on_change(News::Hears(true));
        on_change(News::Lost);
        if !told.is_empty() {
            tracing::info!("changes made by other processes are heard of at once again");
            told.clear();
        }
        let (mut probed_at, mut outstanding) = (Instant::now(), false);
        loop {
            if outstanding && probed_at.elapsed() >= PROBE_TIME_MAX {
                return Err(Deaf::Lost);
            }
            if !outstanding && probed_at.elapsed() >= PROBED_EVERY {
                probed_at = Instant::now();
                // A server that is away says nothing about its notifications; the connection itself is tested below.
                outstanding = match self.send(&channel).await {
                    Err(Deaf::Refused(StoreError::Away(_))) => false,
                    sent => sent.map(|()| true)?,
                };
            }
            let patience = if outstanding { PROBE_TIME_MAX } else { SILENCE_MAX };
            let said = match timeout(patience, listener.try_recv()).await {
                Ok(Ok(Some(said))) => said,
                // The connection was lost. The listener would make it again silently.
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    timeout(self.patience(), (&mut listener).execute("SELECT 1")).await.map_err(|_| Deaf::Silent)??;
                    continue;
                }
            };
            match said.channel() == channel {
                true => outstanding = false,
                false => hear(&said, on_change),
            }
        }
    }

    /// Whether a notification arrives now.
    pub async fn test(&self) -> Result<(), Deaf> {
        let channel = format!("keylatch_probe_{}", uuid::Uuid::now_v7().simple());
        self.probed(&channel).await.map(|_| ())
    }

    /// A connection on which a probe was heard, which listens to nothing else yet.
    async fn probed(&self, channel: &str) -> Result<PgListener, Deaf> {
        let mut listener = self.connect().await?;
        // A connection that was made again has lost news, so it is never made again silently.
        listener.eager_reconnect(false);
        timeout(self.patience(), listener.listen(channel)).await.map_err(|_| Deaf::Silent)??;
        self.send(channel).await?;
        let heard = timeout(PROBE_TIME_MAX, async {
            while let Ok(Some(said)) = listener.try_recv().await {
                if said.channel() == channel {
                    return true;
                }
            }
            false
        });
        if heard.await != Ok(true) {
            // The session may be another client's next.
            let _ = timeout(self.patience(), listener.unlisten_all()).await;
            return Err(Deaf::Lost);
        }
        Ok(listener)
    }

    async fn connect(&self) -> Result<PgListener, Deaf> {
        let mut servers = self.servers.clone();
        if servers.is_empty() {
            servers.extend(self.pools.server());
        }
        let mut last = Deaf::Silent;
        for server in servers {
            let connected = timeout(self.patience(), async { PgListener::connect_with(&server.listener().await?).await });
            match connected.await {
                Ok(Ok(listener)) => return Ok(listener),
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = Deaf::Silent,
            }
        }
        Err(last)
    }

    /// Sends a probe by the way that changes take.
    async fn send(&self, channel: &str) -> Result<(), Deaf> {
        let sent = self.pools.run(async |pool| {
            // As the triggers do: they leave notifications out when the queue is this full.
            let usage: f64 = sqlx::query_scalar("SELECT pg_notification_queue_usage()").fetch_one(&pool).await.map_err(failed)?;
            if usage >= QUEUE_USAGE_MAX {
                return Ok(Err(Deaf::Full));
            }
            match sqlx::query("SELECT pg_notify($1, '')").bind(channel).execute(&pool).await {
                // It was delivered to the session that sent it: to no one who listens.
                Ok(_) | Err(sqlx::Error::Protocol(_)) => Ok(Ok(())),
                Err(error) => Err(failed(error)),
            }
        });
        sent.await.map_err(Deaf::Refused)?
    }

    fn patience(&self) -> Duration {
        self.pools.timeout() * 5
    }
}

fn hear(said: &PgNotification, on_change: &OnChange) {
    match (said.channel(), parse(said.payload())) {
        (SETTINGS, _) => on_change(News::Settings),
        (MAIL, _) => on_change(News::Mail),
        (_, Some((id, version))) => on_change(News::Changed(id, version)),
        (_, None) => tracing::warn!("a malformed notification arrived on {CHANNEL}"),
    }
}

/// `hex version`
fn parse(payload: &str) -> Option<(KeyId, i64)> {
    let (hex, version) = payload.split_once(' ')?;
    Some((KeyId::from_hex(hex)?, version.parse().ok()?))
}
