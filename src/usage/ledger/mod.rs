//! Budgets of one process and of all replicas, over the database: an entry begins with what the
//! database has, and what is spent is written behind. Contains no SQL and decides on no request.

mod shared;
mod spending;

use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::{BoxFuture, Ledger, LedgerEntry, LedgerState, Now, Reserved, StoreError};
use keylatch_filters::limiting::ledger::MemoryLedger;

pub use shared::SharedLedger;
pub use spending::Spending;

/// The longest wait for the database at the first use of an entry.
const LOAD_TIME_MAX: Duration = Duration::from_secs(2);

/// The ledger of one process.
pub struct LocalLedger {
    memory: MemoryLedger,
    spending: Arc<Spending>,
}

impl LocalLedger {
    /// Over the amounts of the database.
    pub fn new(spending: Arc<Spending>) -> Arc<Self> {
        Arc::new(Self { memory: MemoryLedger::default(), spending })
    }

    /// Reads what an entry has spent.
    async fn load(&self, entry: &LedgerEntry, now: Now) -> Result<(), StoreError> {
        let settled = self.memory.settled(entry);
        let spent = self.spending.spent(entry);
        let late = |_| StoreError::Away(format!("the store did not answer within {LOAD_TIME_MAX:?}"));
        let spent = tokio::time::timeout(LOAD_TIME_MAX, spent).await.map_err(late)??;
        self.memory.load(entry, spent, settled, now);
        Ok(())
    }

    /// Reads what an entry has spent at its first use.
    async fn load_once(&self, entry: &LedgerEntry, now: Now) -> Result<(), StoreError> {
        if self.memory.is_loaded(entry) { Ok(()) } else { self.load(entry, now).await }
    }
}

impl Ledger for LocalLedger {
    fn reserve<'a>(&'a self, id: &'a str, entry: &'a LedgerEntry, amount: u64, now: Now) -> BoxFuture<'a, Result<Reserved, StoreError>> {
        Box::pin(async move {
            self.load_once(entry, now).await?;
            Ok(self.memory.reserve_at(id, entry, amount, now.instant))
        })
    }

    fn reserve_locally<'a>(
        &'a self,
        id: &'a str,
        entry: &'a LedgerEntry,
        amount: u64,
        now: Now,
    ) -> BoxFuture<'a, Result<Reserved, StoreError>> {
        // What was spent before is loaded once the database is back.
        Box::pin(std::future::ready(Ok(self.memory.reserve_at(id, entry, amount, now.instant))))
    }

    fn settle(&self, id: &str, entry: &LedgerEntry, amount: u64) {
        // In this order: an amount that is read in between counts twice rather than not at all.
        self.spending.add(entry, amount);
        self.memory.settle_now(id, entry, amount);
    }

    fn state<'a>(&'a self, entry: &'a LedgerEntry, now: Now) -> BoxFuture<'a, Result<LedgerState, StoreError>> {
        Box::pin(async move {
            self.load_once(entry, now).await?;
            Ok(self.memory.state_at(entry, now.instant))
        })
    }
}

#[cfg(test)]
mod tests;
