//! Redis 6 or later, for state that replicas share beside the authority. A request waits at most
//! `redis.timeout` for it, and not at all while it is away: all users of this module can do
//! without.
//!
//! One task keeps the connection: it connects, probes it every few seconds, and reconnects after an
//! error. Contains no policy of limits or bindings.

pub mod cache;
mod connect;
mod faults;
pub mod ledger;
pub mod limits;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use keylatch_filters::contract::{Counters, StoreError};
use parking_lot::Mutex;
use prometheus::{IntGauge, Registry};
use redis::{FromRedisValue, Script, ScriptInvocation};
use tokio::sync::Notify;

use crate::config::Files;
use crate::config::model::Redis as RedisConfig;
use crate::sql::ServerInfo;
use connect::{Link, Target, first_line};
use faults::{Faults, Kind};

/// Shared counters in a Redis.
pub fn counters(redis: &Arc<Redis>) -> Arc<dyn Counters> {
    limits::SharedLimits::new(Arc::clone(redis))
}

/// The first pause before a reconnect. It doubles up to the longest one.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The period of probes.
const PROBED_EVERY: Duration = Duration::from_secs(5);

/// A Redis connection that may be away.
pub struct Redis {
    /// The connection and its number, counted from the first.
    link: Mutex<(Option<Link>, u64)>,
    /// Wakes the task that keeps the connection.
    lost: Notify,
    timeout: Duration,
    prefix: String,
    is_cluster: bool,
    away: IntGauge,
    faults: Faults,
}

impl Redis {
    /// Connects. An unreachable server is no error: the connection is retried. A server that
    /// refuses the user is one.
    pub async fn open(config: &RedisConfig, files: &Files, metrics: &Registry) -> Result<Arc<Self>, String> {
        let mut target = Target::from_config(config, files)?;
        let away = IntGauge::new("keylatch_redis_away", "1 while Redis does not answer and requests do without it.");
        let away = away.unwrap_or_else(|_| unreachable!("the name is a valid one"));
        let _ = metrics.register(Box::new(away.clone()));
        let faults = Faults::new(metrics);
        let is_cluster = matches!(target, Target::Cluster(_));
        let (timeout, prefix) = (config.timeout.0, config.prefix.clone());
        let redis = Arc::new(Self { link: Mutex::default(), lost: Notify::new(), timeout, prefix, is_cluster, away, faults });
        if let Err(error) = redis.connect(&mut target).await {
            if redis.faults.note(&error) == Kind::Permission {
                let says = first_line(&error);
                return Err(format!("redis: the server refuses the user: {says}; docs/how-to/redis.md lists the rights that it needs"));
            }
            tracing::warn!("redis is away; continuing without it until it is back");
        }
        tokio::spawn(keep(Arc::downgrade(&redis), target));
        Ok(redis)
    }

    /// The full name of a key.
    pub fn key(&self, kind: &str, name: &str) -> String {
        format!("{}:{kind}:{name}", self.prefix)
    }

    /// Runs a script, within `redis.timeout`.
    pub async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let (link, number) = self.link.lock().clone();
        let Some(mut link) = link else { return Err(StoreError::Away("redis is away".into())) };
        let answer = async {
            match &mut link {
                Link::One(connection) => script.invoke_async(connection).await,
                Link::Cluster(connection) => script.invoke_async(connection).await,
            }
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let says = format!("redis: {}", first_line(&error));
                match self.faults.note(&error) {
                    Kind::Connection | Kind::Timeout | Kind::ReadOnly => {
                        self.leave(&link, number);
                        Err(StoreError::Away(says))
                    }
                    _ => Err(StoreError::Useless(says)),
                }
            }
            Err(_) => {
                self.faults.late();
                self.leave(&link, number);
                Err(StoreError::Away(format!("redis did not answer within {:?}", self.timeout)))
            }
        }
    }

    /// The version and the clock of the server.
    pub async fn server_info(&self) -> Result<ServerInfo, StoreError> {
        static INFO: LazyLock<Script> = LazyLock::new(|| {
            Script::new("local t = redis.call('TIME') return {t[1] * 1000 + math.floor(t[2] / 1000), redis.call('INFO', 'server')}")
        });
        let (now_ms, info): (i64, String) = self.run(&INFO.key(self.key("about", "it"))).await?;
        let line = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        let version = line("redis_version:").unwrap_or_default();
        let major = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default();
        let version = match line("valkey_version:") {
            Some(valkey) => format!("Valkey {valkey}"),
            None => format!("Redis {version}"),
        };
        Ok(ServerInfo { version, major, now_ms })
    }

    /// Whether keys may be on several nodes.
    pub fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Whether it is connected.
    pub fn is_there(&self) -> bool {
        self.link.lock().0.is_some()
    }

    /// The kinds of recent errors.
    pub fn faults(&self) -> Vec<&'static str> {
        self.faults.lasting()
    }

    /// Drops a connection after an error. A cluster connection keeps its nodes itself: a single
    /// failed node does not drop it.
    fn leave(&self, link: &Link, number: u64) {
        let mut current = self.link.lock();
        if matches!(link, Link::One(_)) && current.1 == number {
            current.0 = None;
            self.away.set(1);
            self.lost.notify_one();
        }
    }

    async fn connect(&self, target: &mut Target) -> redis::RedisResult<()> {
        self.away.set(1);
        let mut link = target.connect(self.timeout).await?;
        self.probe(&mut link, Duration::from_secs(2)).await?;
        let mut current = self.link.lock();
        *current = (Some(link), current.1 + 1);
        self.away.set(0);
        self.faults.works();
        Ok(())
    }

    /// Writes a key as requests do: a replica, a full server and a user without rights still answer
    /// `PING`.
    async fn probe(&self, link: &mut Link, most: Duration) -> redis::RedisResult<()> {
        static WRITE: LazyLock<Script> =
            LazyLock::new(|| Script::new("redis.call('SET', KEYS[1], redis.call('TIME')[1], 'PX', 1) return redis.call('GET', KEYS[1])"));
        let key = self.key("probe", "it");
        let mut script = WRITE.prepare_invoke();
        script.key(key);
        let answer = async {
            match link {
                Link::One(connection) => script.invoke_async::<redis::Value>(connection).await,
                Link::Cluster(connection) => script.invoke_async::<redis::Value>(connection).await,
            }
        };
        let late = |_| Err((redis::ErrorKind::Io, "no answer in time").into());
        tokio::time::timeout(most, answer).await.unwrap_or_else(late).map(|_| ())
    }
}

async fn keep(redis: std::sync::Weak<Redis>, mut target: Target) {
    let mut failures = 0_u32;
    loop {
        let Some(redis) = redis.upgrade() else { return };
        let (link, _) = redis.link.lock().clone();
        match link {
            Some(mut link) => {
                if let Err(error) = redis.probe(&mut link, redis.timeout.max(Duration::from_secs(1))).await {
                    redis.faults.note(&error);
                    // A cluster connection, too, is dropped when the probe fails.
                    redis.link.lock().0 = None;
                    redis.away.set(1);
                    continue;
                }
                redis.faults.works();
                let lost = redis.lost.notified();
                let _ = tokio::time::timeout(PROBED_EVERY, lost).await;
            }
            None => match redis.connect(&mut target).await {
                Ok(()) => {
                    tracing::info!("redis is connected");
                    failures = 0;
                }
                Err(error) => {
                    redis.faults.note(&error);
                    if failures == 0 {
                        tracing::warn!("redis is away; continuing without it until it is back");
                    }
                    failures = failures.saturating_add(1);
                    let pause = PAUSE.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
                    // The pause grows as long as Redis is away.
                    tokio::time::sleep(crate::util::breaker::with_jitter(pause)).await;
                }
            },
        }
    }
}
