//! The store contract of budgets: what each has spent in each period. Contains only the types.

use std::sync::Arc;

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use uuid::Uuid;

use super::Events;

/// An amount that was spent, to be added to a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerAddition {
    /// The budget and the subject.
    pub name: Arc<str>,
    /// The number of the period.
    pub period: i64,
    /// The end of the period, in seconds since 1970.
    pub period_end_s: i64,
    /// The amount that was spent.
    pub amount: i64,
    /// The amount of the budget.
    pub amount_max: i64,
    /// The shares of the amount, in percent, at which operators are alerted.
    pub alert_at: Arc<[u8]>,
}

/// Additions that are written in one transaction.
#[derive(Clone, Debug)]
pub struct LedgerBatch {
    /// The unique id. A batch with an id that the database knows is not written again.
    pub id: Uuid,
    /// The creation time, in seconds since 1970.
    pub made_s: i64,
    /// The additions; one for each name and period, in this order.
    pub additions: Vec<LedgerAddition>,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// The amount that was spent.
    pub spent: i64,
    /// The amount of the budget.
    pub amount_max: i64,
    /// The highest share, in percent, that operators were alerted of.
    pub alerted: i64,
}

/// The store of budgets.
#[async_trait]
pub trait LedgerStore: Send + Sync {
    /// Adds amounts in one transaction, unless the batch was written before.
    async fn add_to_ledger(&self, batch: &LedgerBatch) -> Result<(), StoreError>;
    /// The row of a budget and subject in a period. `None`: nothing was spent.
    async fn ledger_row(&self, name: &str, period: i64) -> Result<Option<LedgerRow>, StoreError>;
    /// Records that operators are alerted of this share, and queues the deliveries: id, webhook and
    /// event of each. False: another process did so.
    async fn alert_of_share(&self, name: &str, period: i64, percent: u8, events: Events) -> Result<bool, StoreError>;
}
