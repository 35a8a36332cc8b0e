//! Budgets that all replicas share: judged in Redis, written to the database. An entry that Redis
//! does not know begins with what the database has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::{BoxFuture, Ledger, LedgerEntry, LedgerState, Now, Reserved, StoreError};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Spending, within};
use crate::redis::ledger::RedisLedger;

/// The maximum number of settlements that wait for Redis. Further ones expire with their reservations;
/// the database has their amounts.
const WAITING_MAX: usize = 100_000;
/// The pause after a failed settlement.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

struct Settlement {
    id: String,
    entry: LedgerEntry,
    amount: u64,
}

/// The ledger of all replicas.
pub struct SharedLedger {
    redis: RedisLedger,
    spending: Arc<Spending>,
    waiting: Mutex<VecDeque<Settlement>>,
    added: Notify,
}

impl SharedLedger {
    /// Over a Redis and the amounts of the database. Settles in the background as long as it lives.
    pub fn new(redis: RedisLedger, spending: Arc<Spending>) -> Arc<Self> {
        let ledger = Arc::new(Self { redis, spending, waiting: Mutex::default(), added: Notify::new() });
        let weak = Arc::downgrade(&ledger);
        tokio::spawn(async move {
            while let Some(ledger) = weak.upgrade() {
                if !ledger.settle_waiting().await {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Without this time limit, the task would keep the ledger alive.
                let _ = tokio::time::timeout(Duration::from_secs(5), ledger.added.notified()).await;
            }
        });
        ledger
    }

    /// Settles what waits. False: Redis is unavailable.
    pub async fn settle_waiting(&self) -> bool {
        loop {
            let Some(next) = self.waiting.lock().pop_front() else { return true };
            if self.redis.settle(&next.id, &next.entry, next.amount).await.is_err() {
                self.waiting.lock().push_front(next);
                self.added.notify_one();
                return false;
            }
        }
    }
}

impl Ledger for SharedLedger {
    fn reserve<'a>(&'a self, id: &'a str, entry: &'a LedgerEntry, amount: u64, now: Now) -> BoxFuture<'a, Result<Reserved, StoreError>> {
        Box::pin(async move {
            let now_s = i64::try_from(now.unix_s()).unwrap_or(i64::MAX);
            if let Some(reserved) = self.redis.reserve(id, entry, amount, None, now_s).await? {
                return Ok(reserved);
            }
            let spent = within(self.spending.spent(entry)).await?;
            let reserved = self.redis.reserve(id, entry, amount, Some(spent), now_s).await?;
            reserved.ok_or_else(|| StoreError::Useless("redis does not keep a budget".into()))
        })
    }

    fn settle(&self, id: &str, entry: &LedgerEntry, amount: u64) {
        self.spending.add(entry, amount);
        let mut waiting = self.waiting.lock();
        if waiting.len() < WAITING_MAX {
            waiting.push_back(Settlement { id: id.to_owned(), entry: entry.clone(), amount });
            self.added.notify_one();
        }
    }

    fn state<'a>(&'a self, entry: &'a LedgerEntry, _now: Now) -> BoxFuture<'a, Result<LedgerState, StoreError>> {
        Box::pin(async move {
            match self.redis.state(entry).await? {
                Some(state) => Ok(state),
                None => Ok(LedgerState { spent: within(self.spending.spent(entry)).await?, reserved: 0 }),
            }
        })
    }
}
