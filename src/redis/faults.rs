//! Errors of Redis by kind. Each kind is counted, logged once while it lasts, and reported in
//! `/health`. Reconnecting belongs to `redis`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts, Registry};

use super::connect::first_line;

/// A kind lasts for this long after its last error.
const LASTS: Duration = Duration::from_secs(30);

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The connection failed or could not be made.
    Connection,
    /// No answer in time.
    Timeout,
    /// The server is a replica and takes no writes: a failover has happened.
    ReadOnly,
    /// The user lacks the right to a command or a key.
    Permission,
    /// The server is full and evicts nothing.
    Memory,
    /// The server is loading, has lost its master, or its cluster is down.
    Unavailable,
    /// Any other error.
    Other,
}

impl Kind {
    /// The name in the metric and in `/health`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Connection => "connection",
            Kind::Timeout => "timeout",
            Kind::ReadOnly => "read_only",
            Kind::Permission => "permission",
            Kind::Memory => "memory",
            Kind::Unavailable => "unavailable",
            Kind::Other => "other",
        }
    }

    /// What the operator can do.
    fn advice(self) -> &'static str {
        match self {
            Kind::ReadOnly => "the server is a replica; reconnecting to find the master",
            Kind::Permission => "the user lacks the right to a command or a key; docs/how-to/redis.md lists what each feature needs",
            Kind::Memory => "the server is full; raise maxmemory or set a maxmemory-policy that evicts",
            _ => "shared limits are not counted until Redis works again",
        }
    }

    /// The kind of an error. The error of a script may contain that of a command in it.
    pub fn classify(error: &redis::RedisError) -> Self {
        let (code, text) = (error.code().unwrap_or_default(), error.to_string());
        let is = |codes: &[&str]| codes.contains(&code) || codes.iter().any(|code| text.contains(&format!("-{code} ")));
        if is(&["READONLY"]) {
            Kind::ReadOnly
        } else if is(&["NOPERM", "NOAUTH", "WRONGPASS"])
            || error.kind() == redis::ErrorKind::AuthenticationFailed
            || text.contains("can't run this command")
            || text.contains("ACL failure")
        {
            Kind::Permission
        } else if is(&["OOM"]) {
            Kind::Memory
        } else if is(&["LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN", "NOREPLICAS", "MISCONF"]) {
            Kind::Unavailable
        } else if error.is_timeout() {
            Kind::Timeout
        } else if error.is_unrecoverable_error() || error.is_connection_dropped() || error.is_connection_refusal() {
            Kind::Connection
        } else {
            Kind::Other
        }
    }
}

/// The time of the last error of each kind.
pub struct Faults {
    last: Mutex<BTreeMap<Kind, Instant>>,
    counted: Option<IntCounterVec>,
}

impl Faults {
    pub fn new(metrics: &Registry) -> Self {
        let options = Opts::new("keylatch_redis_errors_total", "Errors of Redis, by kind.");
        let counted = IntCounterVec::new(options, &["kind"]).ok();
        if let Some(counted) = &counted {
            let _ = metrics.register(Box::new(counted.clone()));
        }
        Self { last: Mutex::default(), counted }
    }

    /// Records an error of the driver.
    pub fn note(&self, error: &redis::RedisError) -> Kind {
        let kind = Kind::classify(error);
        self.count(kind, &first_line(error));
        kind
    }

    /// Records a time-out of a request.
    pub fn late(&self) {
        self.count(Kind::Timeout, "no answer in time");
    }

    fn count(&self, kind: Kind, says: &str) {
        if let Some(counted) = &self.counted {
            counted.with_label_values(&[kind.as_str()]).inc();
        }
        let before = self.last.lock().insert(kind, Instant::now());
        if before.is_none_or(|at| at.elapsed() >= LASTS) {
            tracing::warn!(kind = kind.as_str(), error = says, "redis: {}", kind.advice());
        }
    }

    /// The kinds with recent errors.
    pub fn lasting(&self) -> Vec<&'static str> {
        self.last.lock().iter().filter(|(_, at)| at.elapsed() < LASTS).map(|(kind, _)| kind.as_str()).collect()
    }

    /// Clears the kinds that a working connection disproves. A permission for one command may still
    /// be missing.
    pub fn works(&self) {
        self.last.lock().retain(|kind, _| matches!(kind, Kind::Permission | Kind::Other));
    }
}
