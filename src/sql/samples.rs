//! The store contract for replica states and usage counts, by minutes and hours. Knows no count's
//! meaning; `crate::telemetry` defines them.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

/// The last reported state of a replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// The replica's name.
    pub name: String,
    /// The time of the report, in milliseconds since 1970.
    pub seen_ms: i64,
    /// The state, as JSON.
    pub state: Value,
}

/// The counts of one replica in one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The start of the interval, in milliseconds since 1970.
    pub at_ms: i64,
    /// The replica's name.
    pub replica: String,
    /// The counts, as JSON.
    pub counted: Value,
}

/// Intervals of a minute, in seconds; kept for two days.
pub const MINUTE_S: i64 = 60;
/// Intervals of an hour, in seconds; kept as long as the audit log.
pub const HOUR_S: i64 = 3600;
/// The retention of minutes, in milliseconds.
pub const MINUTES_KEPT_MS: i64 = 2 * 24 * 3600 * 1000;

/// The kind of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// Requests by outcome.
    Counts,
    /// The keys and addresses with the most requests.
    TopRequesters,
}

/// The store of replica states and counts.
#[async_trait]
pub trait Samples: Send + Sync {
    /// Writes the state of a replica.
    async fn put_replica(&self, replica: &Replica) -> Result<(), StoreError>;
    /// Lists the replicas that have reported since then, by name.
    async fn replicas(&self, since_ms: i64) -> Result<Vec<Replica>, StoreError>;
    /// Writes the counts of an interval, in place of earlier counts of the same interval.
    async fn put_sample(&self, kind: SampleKind, step_s: i64, sample: &Sample) -> Result<(), StoreError>;
    /// Lists the counts since then, by time.
    async fn samples(&self, kind: SampleKind, step_s: i64, since_ms: i64) -> Result<Vec<Sample>, StoreError>;
}
