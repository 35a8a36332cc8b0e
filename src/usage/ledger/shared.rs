//! Budgets that all replicas share: judged in Redis, written to the database. An entry that Redis
//! does not know begins with what the database has. While Redis is away, this process can go on
//! alone; Redis gets its settlements later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use keylatch_filters::contract::{BoxFuture, Ledger, LedgerEntry, LedgerState, Now, Reserved, StoreError};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::LocalLedger;
use crate::redis::ledger::RedisLedger;

/// The maximum number of settlements that wait for Redis. Further ones expire with their reservations;
/// the database has their amounts.
const WAITING_MAX: usize = 100_000;
/// The settlements that are sent at once.
const AT_ONCE: usize = 64;
/// The pause after a failed settlement.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The interval at which the background task sees that the ledger is no longer in use.
const IDLE_CHECK: Duration = Duration::from_secs(5);

struct Settlement {
    id: String,
    entry: LedgerEntry,
    amount: u64,
}

/// The ledger of all replicas.
pub struct SharedLedger {
    redis: RedisLedger,
    /// Reads and writes the amounts of the database, and judges while Redis is away.
    local: Arc<LocalLedger>,
    waiting: Mutex<VecDeque<Settlement>>,
    added: Notify,
}

impl SharedLedger {
    /// Over a Redis and the ledger of this process. Settles in the background as long as it lives.
    pub fn new(redis: RedisLedger, local: Arc<LocalLedger>) -> Arc<Self> {
        let ledger = Arc::new(Self { redis, local, waiting: Mutex::default(), added: Notify::new() });
        let weak = Arc::downgrade(&ledger);
        tokio::spawn(async move {
            while let Some(ledger) = weak.upgrade() {
                if !ledger.settle_waiting().await {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                let _ = tokio::time::timeout(IDLE_CHECK, ledger.added.notified()).await;
            }
        });
        ledger
    }

    /// Settles what waits. False: Redis is unavailable.
    pub async fn settle_waiting(&self) -> bool {
        loop {
            let next: Vec<Settlement> = {
                let mut waiting = self.waiting.lock();
                let count = waiting.len().min(AT_ONCE);
                waiting.drain(..count).collect()
            };
            if next.is_empty() {
                return true;
            }
            let sent = join_all(next.iter().map(|one| self.redis.settle(&one.id, &one.entry, one.amount))).await;
            let failed: Vec<Settlement> = next.into_iter().zip(sent).filter(|(_, sent)| sent.is_err()).map(|(one, _)| one).collect();
            if !failed.is_empty() {
                self.waiting.lock().extend(failed);
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
            self.local.load(entry, now).await?;
            let spent = self.local.memory.state_at(entry, now.instant).spent;
            let reserved = self.redis.reserve(id, entry, amount, Some(spent), now_s).await?;
            reserved.ok_or_else(|| StoreError::Useless("redis does not keep a budget".into()))
        })
    }

    fn reserve_locally<'a>(
        &'a self,
        id: &'a str,
        entry: &'a LedgerEntry,
        amount: u64,
        now: Now,
    ) -> BoxFuture<'a, Result<Reserved, StoreError>> {
        Box::pin(async move {
            // Other replicas spend, too. Without the database, what is known decides.
            let _ = self.local.load(entry, now).await;
            self.local.reserve_locally(id, entry, amount, now).await
        })
    }

    fn settle(&self, id: &str, entry: &LedgerEntry, amount: u64) {
        self.local.settle(id, entry, amount);
        let mut waiting = self.waiting.lock();
        if waiting.len() < WAITING_MAX {
            waiting.push_back(Settlement { id: id.to_owned(), entry: entry.clone(), amount });
            self.added.notify_one();
        }
    }

    fn state<'a>(&'a self, entry: &'a LedgerEntry, now: Now) -> BoxFuture<'a, Result<LedgerState, StoreError>> {
        Box::pin(async move {
            match self.redis.state(entry).await? {
                Some(state) => Ok(state),
                None => {
                    self.local.load(entry, now).await?;
                    Ok(self.local.memory.state_at(entry, now.instant))
                }
            }
        })
    }
}
