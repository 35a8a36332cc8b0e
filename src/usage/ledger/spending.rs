//! Write-behind queue of what budgets have spent. Each amount is written once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use keylatch_filters::contract::{LedgerEntry, StoreError};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::sql::Authority;
use crate::sql::ledger::{LedgerAddition, LedgerBatch};
use crate::util::failure_log::FailureLog;

/// The maximum number of additions in one transaction.
const PIECE_MAX: usize = 500;
/// The maximum number of entries that wait for a check of their alerts.
const WRITTEN_MAX: usize = 100_000;

type Additions = HashMap<(Arc<str>, i64), LedgerAddition>;

/// What was spent and is not in the database yet.
pub struct Spending {
    authority: Arc<dyn Authority>,
    pending: Mutex<Additions>,
    /// Batches that are being written, or could not be written yet.
    unwritten: tokio::sync::Mutex<VecDeque<LedgerBatch>>,
    /// Entries with alerts that were written since the last [`Self::take_written`].
    written: Mutex<Additions>,
    failures: FailureLog,
}

impl Spending {
    /// Over the database.
    pub fn new(authority: Arc<dyn Authority>) -> Arc<Self> {
        Arc::new(Self {
            authority,
            pending: Mutex::default(),
            unwritten: tokio::sync::Mutex::default(),
            written: Mutex::default(),
            failures: FailureLog::default(),
        })
    }

    /// Queues an amount.
    pub fn add(&self, entry: &LedgerEntry, amount: u64) {
        if amount == 0 {
            return;
        }
        let signed = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        let mut pending = self.pending.lock();
        let addition = pending.entry((Arc::clone(&entry.name), entry.period)).or_insert_with(|| LedgerAddition {
            name: Arc::clone(&entry.name),
            period: entry.period,
            period_end_s: entry.period_end_s,
            amount: 0,
            amount_max: signed(entry.amount_max),
            alert_at: Arc::clone(&entry.alert_at),
        });
        addition.amount = addition.amount.saturating_add(signed(amount));
        (addition.amount_max, addition.alert_at) = (signed(entry.amount_max), Arc::clone(&entry.alert_at));
    }

    /// What an entry has spent: in the database and in the queue.
    pub async fn spent(&self, entry: &LedgerEntry) -> Result<u64, StoreError> {
        // No batch is written while this is held, so that each amount is seen once.
        let unwritten = self.unwritten.lock().await;
        let row = self.authority.admin_store().ledger_row(&entry.name, entry.period).await?;
        let is_same = |addition: &&LedgerAddition| addition.period == entry.period && addition.name == entry.name;
        let waiting: i64 = unwritten.iter().flat_map(|batch| &batch.additions).filter(is_same).map(|addition| addition.amount).sum();
        let key = (Arc::clone(&entry.name), entry.period);
        let pending = self.pending.lock().get(&key).map_or(0, |addition| addition.amount);
        let all = row.map_or(0, |row| row.spent).saturating_add(waiting).saturating_add(pending);
        Ok(u64::try_from(all).unwrap_or(0))
    }

    /// Writes all amounts. What cannot be written is kept for the next flush.
    pub async fn flush(&self) {
        let mut unwritten = self.unwritten.lock().await;
        let mut taken: Vec<LedgerAddition> = std::mem::take(&mut *self.pending.lock()).into_values().collect();
        // All processes lock rows in this order.
        taken.sort_by(|a, b| (&a.name, a.period).cmp(&(&b.name, b.period)));
        let made_s = crate::util::time::millis(SystemTime::now()) / 1000;
        unwritten.extend(taken.chunks(PIECE_MAX).map(|piece| LedgerBatch { id: Uuid::now_v7(), made_s, additions: piece.to_vec() }));
        while let Some(batch) = unwritten.front() {
            match self.authority.admin_store().add_to_ledger(batch).await {
                Ok(()) => {
                    if let Some(batch) = unwritten.pop_front() {
                        self.note_written(batch);
                    }
                    if let Some(failures) = self.failures.succeeded() {
                        tracing::info!(failures, "budgets are written again");
                    }
                }
                Err(error) => {
                    if let Some(failures) = self.failures.failed(Instant::now()) {
                        tracing::error!(%error, failures, "what budgets have spent could not be written; trying again at each flush");
                    }
                    return;
                }
            }
        }
    }

    fn note_written(&self, batch: LedgerBatch) {
        let mut written = self.written.lock();
        for addition in batch.additions.into_iter().filter(|addition| !addition.alert_at.is_empty()) {
            if written.len() < WRITTEN_MAX {
                written.insert((Arc::clone(&addition.name), addition.period), addition);
            }
        }
    }

    /// The entries with alerts that were written since the last call.
    pub fn take_written(&self) -> Vec<LedgerAddition> {
        std::mem::take(&mut *self.written.lock()).into_values().collect()
    }
}
