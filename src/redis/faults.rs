//! Errors of Redis by their kind: each kind is counted, logged once while it lasts, and named in `/health`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts, Registry};

use super::connect::plainly;

/// A kind lasts for this long after its last error.
const LASTS: Duration = Duration::from_secs(30);

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The connection failed or could not be made.
    Connection,
    /// No answer came in time.
    Timeout,
    /// The server is a replica and takes no writes: a failover has happened.
    ReadOnly,
    /// The user may not use a command or a key.
    Permission,
    /// The server is full and evicts nothing.
    Memory,
    /// The server is loading, has lost its master, or its cluster is down.
    Unavailable,
    /// Anything else.
    Other,
}

impl Kind {
    /// Its name in the metric and in `/health`.
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

    /// What an operator does about it.
    fn advice(self) -> &'static str {
        match self {
            Kind::ReadOnly => "the server is a replica; connecting again to find the one that takes writes",
            Kind::Permission => "the user lacks a command or a key; docs/how-to/redis.md lists what each feature needs",
            Kind::Memory => "the server is full; raise maxmemory or set a maxmemory-policy that evicts",
            _ => "what replicas share is not counted until it works again",
        }
    }

    /// Of an error. A script's error may hold that of the command in it.
    pub fn of_error(error: &redis::RedisError) -> Self {
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

/// The kinds of which there were errors, and when the last one was.
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

    /// An error of the driver's.
    pub fn note(&self, error: &redis::RedisError) -> Kind {
        let kind = Kind::of_error(error);
        self.count(kind, &plainly(error));
        kind
    }

    /// No answer came within the time a request waits.
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

    /// The kinds of which there were errors lately.
    pub fn lasting(&self) -> Vec<&'static str> {
        self.last.lock().iter().filter(|(_, at)| at.elapsed() < LASTS).map(|(kind, _)| kind.as_str()).collect()
    }

    /// The server works: what kept all of it from working is over. A command that a feature lacks may still be missing.
    pub fn works(&self) {
        self.last.lock().retain(|kind, _| matches!(kind, Kind::Permission | Kind::Other));
    }
}
