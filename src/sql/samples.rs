//! What replicas count, as stores keep it: the last word of each, and sums of minutes and hours. What is counted is
//! `crate::telemetry`'s to say.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

/// The last word of one replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// When it said so, in milliseconds since 1970.
    pub seen_ms: i64,
    /// What it said.
    pub state: Value,
}

/// What one replica counted in one step of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When the step began, in milliseconds since 1970.
    pub at_ms: i64,
    /// Whose it is.
    pub replica: String,
    /// What was counted.
    pub counted: Value,
}

/// A minute, in seconds: kept for two days.
pub const MINUTE_S: i64 = 60;
/// An hour, in seconds: kept for as long as the audit.
pub const HOUR_S: i64 = 3600;
/// For how long minutes are kept, in milliseconds.
pub const MINUTES_KEPT_MS: i64 = 2 * 24 * 3600 * 1000;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// How many requests, and what became of them.
    Counts,
    /// Who asks most.
    Tops,
}

/// Replicas and what they count.
#[async_trait]
pub trait Samples: Send + Sync {
    /// A replica says how it is.
    async fn say(&self, replica: &Replica) -> Result<(), StoreError>;
    /// All that have said so since then, by name.
    async fn replicas(&self, since_ms: i64) -> Result<Vec<Replica>, StoreError>;
    /// Notes what was counted in one step; of the same step later again, in its place.
    async fn note(&self, of: Of, step_s: i64, sample: &Sample) -> Result<(), StoreError>;
    /// What was counted since then, by time.
    async fn samples(&self, of: Of, step_s: i64, since_ms: i64) -> Result<Vec<Sample>, StoreError>;
}
