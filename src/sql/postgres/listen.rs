//! Events of other processes, by `NOTIFY` of the database's triggers. A pooler that shares sessions
//! accepts `LISTEN` and delivers nothing, so a channel is used only after a probe has arrived on
//! it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::{KeyId, StoreError};
use sqlx::Executor;
use sqlx::postgres::{PgListener, PgNotification};
use tokio::time::timeout;

use super::connect::kind;
use super::failed;
use super::pools::Pools;
use super::server::Server;
use crate::sql::{OnStoreEvent, StoreEvent};

/// After this time without an event the connection is tested.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// The period of probes.
const PROBED_EVERY: Duration = Duration::from_secs(15);
/// The time limit of a probe.
const PROBE_TIME_MAX: Duration = Duration::from_secs(3);
/// The pause after a lost probe. Each new attempt invalidates the caches.
const LOST_PAUSE: Duration = Duration::from_secs(30);
/// Past this share of its queue the database leaves out notifications: see the migration
/// `0011_notify`.
const QUEUE_USAGE_MAX: f64 = 0.9;
const CHANNEL: &str = "keylatch_bindings";
const SETTINGS: &str = "keylatch_settings";
const MAIL: &str = "keylatch_mail";

/// The reason why notifications do not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The connection failed. It is made again soon.
    #[error("the listening connection failed: {0}")]
    Connection(#[from] sqlx::Error),
    /// The connection or the server did not answer.
    #[error("the listening connection does not answer")]
    Silent,
    /// The database accepted the probe but did not deliver it.
    #[error(
        "PostgreSQL notifications do not arrive: a pooler in transaction mode does not deliver them. \
         Set storage.postgres.listen_url to the server itself, or use the pooler in session mode"
    )]
    Lost,
    /// The server's notification queue is full.
    #[error(
        "the notification queue of PostgreSQL is full: a client listens and does not read; \
         find it by its age in pg_stat_activity and end its session"
    )]
    Full,
    /// The server refused the probe.
    #[error("PostgreSQL notifications cannot be sent: {0}")]
    Refused(StoreError),
}

impl ListenError {
    /// What makes a failure the same as another.
    fn kind(&self) -> String {
        match self {
            Self::Connection(error) => kind(error),
            other => other.to_string(),
        }
    }
}

/// The listener for events.
pub struct Listening {
    pools: Arc<Pools>,
    /// The servers of `listen_url`; empty: the server of the pool.
    servers: Vec<Server>,
}

impl Listening {
    pub fn new(pools: Arc<Pools>, servers: Vec<Server>) -> Arc<Self> {
        Arc::new(Self { pools, servers })
    }

    /// Listens as long as the process lives. Reports [`StoreEvent::EventsLost`] whenever events may
    /// have been lost.
    pub async fn follow(self: Arc<Self>, on_event: OnStoreEvent) {
        let mut logged = String::new();
        loop {
            let failure = self.follow_once(&on_event, &mut logged).await.err();
            on_event(StoreEvent::EventsLost);
            let mut pause = Duration::from_secs(1);
            if let Some(failure) = failure {
                on_event(StoreEvent::NotificationsWork(false));
                if matches!(failure, ListenError::Lost | ListenError::Full | ListenError::Refused(_)) {
                    pause = LOST_PAUSE;
                }
                let cause = failure.kind();
                if logged != cause {
                    tracing::warn!("changes made by other processes take up to 30 s: {failure}");
                    logged = cause;
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn follow_once(&self, on_event: &OnStoreEvent, logged: &mut String) -> Result<(), ListenError> {
        let channel = format!("keylatch_probe_{}", uuid::Uuid::now_v7().simple());
        let mut listener = self.probed(&channel).await?;
        timeout(self.patience(), listener.listen_all([CHANNEL, SETTINGS, MAIL])).await.map_err(|_| ListenError::Silent)??;
        on_event(StoreEvent::EventsLost);
        on_event(StoreEvent::NotificationsWork(true));
        if !logged.is_empty() {
            tracing::info!("changes made by other processes arrive at once again");
            logged.clear();
        }
        let (mut probed_at, mut outstanding) = (Instant::now(), false);
        loop {
            if outstanding && probed_at.elapsed() >= PROBE_TIME_MAX {
                return Err(ListenError::Lost);
            }
            if !outstanding && probed_at.elapsed() >= PROBED_EVERY {
                probed_at = Instant::now();
                // A server that is away says nothing about its notifications; the connection is
                // tested below.
                outstanding = match self.send(&channel).await {
                    Err(ListenError::Refused(StoreError::Away(_))) => false,
                    sent => sent.map(|()| true)?,
                };
            }
            let patience = if outstanding { PROBE_TIME_MAX } else { SILENCE_MAX };
            let notification = match timeout(patience, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => notification,
                // The connection was lost. The listener would reconnect silently.
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    timeout(self.patience(), (&mut listener).execute("SELECT 1")).await.map_err(|_| ListenError::Silent)??;
                    continue;
                }
            };
            match notification.channel() == channel {
                true => outstanding = false,
                false => report(&notification, on_event),
            }
        }
    }

    /// Tests whether a notification arrives.
    pub async fn test(&self) -> Result<(), ListenError> {
        let channel = format!("keylatch_probe_{}", uuid::Uuid::now_v7().simple());
        self.probed(&channel).await.map(|_| ())
    }

    /// A connection on which a probe has arrived, and which listens to no other channel yet.
    async fn probed(&self, channel: &str) -> Result<PgListener, ListenError> {
        let mut listener = self.connect().await?;
        // A reconnect loses events, so it must not happen silently.
        listener.eager_reconnect(false);
        timeout(self.patience(), listener.listen(channel)).await.map_err(|_| ListenError::Silent)??;
        self.send(channel).await?;
        let heard = timeout(PROBE_TIME_MAX, async {
            while let Ok(Some(notification)) = listener.try_recv().await {
                if notification.channel() == channel {
                    return true;
                }
            }
            false
        });
        if heard.await != Ok(true) {
            // The pooler may give the session to another client next.
            let _ = timeout(self.patience(), listener.unlisten_all()).await;
            return Err(ListenError::Lost);
        }
        Ok(listener)
    }

    async fn connect(&self) -> Result<PgListener, ListenError> {
        let mut servers = self.servers.clone();
        if servers.is_empty() {
            servers.extend(self.pools.server());
        }
        let mut last = ListenError::Silent;
        for server in servers {
            let connected = timeout(self.patience(), async { PgListener::connect_with(&server.listener().await?).await });
            match connected.await {
                Ok(Ok(listener)) => return Ok(listener),
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = ListenError::Silent,
            }
        }
        Err(last)
    }

    /// Sends a probe on the connection that changes use.
    async fn send(&self, channel: &str) -> Result<(), ListenError> {
        let sent = self.pools.run(async |pool| {
            // As the triggers do: they leave out notifications when the queue is this full.
            let usage: f64 = sqlx::query_scalar("SELECT pg_notification_queue_usage()").fetch_one(&pool).await.map_err(failed)?;
            if usage >= QUEUE_USAGE_MAX {
                return Ok(Err(ListenError::Full));
            }
            match sqlx::query("SELECT pg_notify($1, '')").bind(channel).execute(&pool).await {
                // The notification was delivered to the sending session, which does not listen.
                Ok(_) | Err(sqlx::Error::Protocol(_)) => Ok(Ok(())),
                Err(error) => Err(failed(error)),
            }
        });
        sent.await.map_err(ListenError::Refused)?
    }

    fn patience(&self) -> Duration {
        self.pools.timeout() * 5
    }
}

fn report(notification: &PgNotification, on_event: &OnStoreEvent) {
    match (notification.channel(), parse(notification.payload())) {
        (SETTINGS, _) => on_event(StoreEvent::SettingsChanged),
        (MAIL, _) => on_event(StoreEvent::MailChanged),
        (_, Some((id, version))) => on_event(StoreEvent::BindingChanged(id, version)),
        (_, None) => tracing::warn!("a malformed notification arrived on {CHANNEL}"),
    }
}

/// Parses `hex version`.
fn parse(payload: &str) -> Option<(KeyId, i64)> {
    let (hex, version) = payload.split_once(' ')?;
    Some((KeyId::from_hex(hex)?, version.parse().ok()?))
}
