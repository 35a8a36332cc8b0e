//! Redis 6 or later, for what replicas share beside the authority. Nobody waits for it longer than its time
//! limit, and nobody at all while it is away: everything that uses it can do without.
//!
//! One task keeps the connection: it makes it, asks every few seconds whether anybody is there, and makes it
//! anew when something has failed on it.

pub mod cache;
mod connect;
mod faults;
pub mod limits;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use keylatch_filters::contract::{Counters, StoreError};
use parking_lot::Mutex;
use prometheus::{IntGauge, Registry};
use redis::{FromRedisValue, Script, ScriptInvocation};
use tokio::sync::Notify;

use crate::config::Files;
use crate::config::model::Redis as Config;
use crate::sql::About;
use connect::{Link, Target, plainly};
use faults::{Faults, Kind};

/// Counts that replicas share, in a Redis.
pub fn counters(redis: &Arc<Redis>) -> Arc<dyn Counters> {
    limits::Shared::new(Arc::clone(redis))
}

/// The pause before it is tried again; it doubles up to the longest one.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often it is asked whether it is there.
const LOOKED_AFTER: Duration = Duration::from_secs(5);

/// A Redis, there or not.
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
    /// Connects. That nobody is there is no error: it is tried on. That it refuses us is one.
    pub async fn open(config: &Config, files: &Files, metrics: &Registry) -> Result<Arc<Self>, String> {
        let mut target = Target::of(config, files)?;
        let away = IntGauge::new("keylatch_redis_away", "1 while Redis does not answer; requests do without it.");
        let away = away.unwrap_or_else(|_| unreachable!("the name is a valid one"));
        let _ = metrics.register(Box::new(away.clone()));
        let faults = Faults::new(metrics);
        let is_cluster = matches!(target, Target::Cluster(_));
        let (timeout, prefix) = (config.timeout.0, config.prefix.clone());
        let redis = Arc::new(Self { link: Mutex::default(), lost: Notify::new(), timeout, prefix, is_cluster, away, faults });
        if let Err(error) = redis.connect(&mut target).await {
            if redis.faults.note(&error) == Kind::Permission {
                let says = plainly(&error);
                return Err(format!("redis: the server refuses us: {says}; docs/how-to/redis.md lists what its user needs"));
            }
            tracing::warn!("redis is away; going on without it until it is there");
        }
        tokio::spawn(keep(Arc::downgrade(&redis), target));
        Ok(redis)
    }

    /// The whole name of a key.
    pub fn key(&self, kind: &str, name: &str) -> String {
        format!("{}:{kind}:{name}", self.prefix)
    }

    /// Runs a script, at most as long as a request may wait.
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
                let says = format!("redis: {}", plainly(&error));
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

    /// What the server says of itself.
    pub async fn about(&self) -> Result<About, StoreError> {
        static ASK: LazyLock<Script> = LazyLock::new(|| {
            Script::new("local t = redis.call('TIME') return {t[1] * 1000 + math.floor(t[2] / 1000), redis.call('INFO', 'server')}")
        });
        let (now_ms, info): (i64, String) = self.run(&ASK.key(self.key("about", "it"))).await?;
        let line = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        let version = line("redis_version:").unwrap_or_default();
        let major = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default();
        let version = match line("valkey_version:") {
            Some(valkey) => format!("Valkey {valkey}"),
            None => format!("Redis {version}"),
        };
        Ok(About { version, major, now_ms })
    }

    /// Whether keys may be on several nodes.
    pub fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// Whether it is there, as far as is known.
    pub fn is_there(&self) -> bool {
        self.link.lock().0.is_some()
    }

    /// The kinds of error of which there were some lately.
    pub fn faults(&self) -> Vec<&'static str> {
        self.faults.lasting()
    }

    /// Leaves a connection behind on which something has failed. A cluster's looks after its nodes by itself: one
    /// of them that is away is no reason to leave the others.
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

    /// Writes a key as requests do. A replica, a full server and a user without rights answer `PING` all the same.
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
        let late = |_| Err((redis::ErrorKind::Io, "it did not answer in time").into());
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
                    // Of a cluster none does.
                    redis.link.lock().0 = None;
                    redis.away.set(1);
                    continue;
                }
                redis.faults.works();
                let lost = redis.lost.notified();
                let _ = tokio::time::timeout(LOOKED_AFTER, lost).await;
            }
            None => match redis.connect(&mut target).await {
                Ok(()) => {
                    tracing::info!("redis is there");
                    failures = 0;
                }
                Err(error) => {
                    redis.faults.note(&error);
                    if failures == 0 {
                        tracing::warn!("redis is away; going on without it until it is there");
                    }
                    failures = failures.saturating_add(1);
                    let pause = PAUSE.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
                    // It is asked less and less often for as long as it is away.
                    tokio::time::sleep(crate::util::breaker::up_to_a_quarter_less(pause)).await;
                }
            },
        }
    }
}
