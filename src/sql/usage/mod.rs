//! The store contract for usage: batches of sums that are written once, and the reports of
//! operators. Contains no statement of a database except the tables that both share.

pub mod batch;
pub mod query;
pub mod tables;
pub mod time;

use async_trait::async_trait;
use keylatch_filters::contract::{KeyId, StoreError};

pub use batch::{LATENCY_BOUNDS_MS, LatencyGroup, RequestRow, UsageBatch, UsageGroup, UsageSums};
pub use query::{
    RequestCursor, RequestQuery, UsageCursor, UsageDimension, UsageFilter, UsageHorizon, UsageLatency, UsageQuery, UsageRow, UsageSort,
    UsageStep,
};

use super::intercepts::Page;

/// The store of usage.
#[async_trait]
pub trait Usage: Send + Sync {
    /// Writes a batch in one transaction, unless it was written before: after a lost answer, a batch
    /// may be repeated with the same id.
    async fn write_usage(&self, batch: &UsageBatch) -> Result<(), StoreError>;
    /// Returns a page of the sums of each group and step. A page may have fewer rows than the limit
    /// although there is a next one.
    async fn usage_report(&self, query: &UsageQuery) -> Result<Page<UsageRow, UsageCursor>, StoreError>;
    /// The time to first token of each step, or of the whole range without a step. Of the filters,
    /// only model and route apply.
    async fn usage_latency(&self, query: &UsageQuery) -> Result<Vec<UsageLatency>, StoreError>;
    /// The keys with usage and an id from `first` to `last`, at most two.
    async fn usage_keys(&self, first: KeyId, last: KeyId) -> Result<Vec<KeyId>, StoreError>;
    /// Returns a page of the request log, the latest first.
    async fn usage_requests(&self, query: &RequestQuery) -> Result<Page<RequestRow, RequestCursor>, StoreError>;
}
