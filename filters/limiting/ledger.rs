//! The ledger of one process: what each budget has spent and reserved, in memory. It stores nothing; `src/usage` writes settled
//! amounts to the database and loads them at the first use of an entry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::contract::{BoxFuture, Ledger, LedgerEntry, LedgerState, Now, Reserved, StoreError};

/// From this number of entries on, those that can be loaded again are dropped.
const ENTRIES_MAX: usize = 100_000;

/// The entry of one budget, subject and period.
#[derive(Debug, Default)]
struct Account {
    spent: u64,
    /// The part of `spent` that was settled here.
    settled: u64,
    /// `spent` includes what was spent before.
    is_loaded: bool,
    reserved: u64,
    period_end_s: i64,
    /// The open reservations by id, with the times when they expire.
    open: HashMap<String, (u64, Instant)>,
}

impl Account {
    fn state(&self) -> LedgerState {
        LedgerState { spent: self.spent, reserved: self.reserved }
    }

    fn expire(&mut self, now: Instant) {
        let reserved = &mut self.reserved;
        self.open.retain(|_, (amount, expires)| {
            let is_open = *expires > now;
            if !is_open {
                *reserved = reserved.saturating_sub(*amount);
            }
            is_open
        });
    }
}

/// The ledger of one process.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    accounts: Mutex<HashMap<(Arc<str>, i64), Account>>,
}

impl MemoryLedger {
    /// Whether what was spent before is known. Otherwise [`Self::load`] must be called before a reservation.
    pub fn is_loaded(&self, entry: &LedgerEntry) -> bool {
        self.accounts.lock().get(&(Arc::clone(&entry.name), entry.period)).is_some_and(|account| account.is_loaded)
    }

    /// What was settled here so far.
    pub fn settled(&self, entry: &LedgerEntry) -> u64 {
        self.accounts.lock().get(&(Arc::clone(&entry.name), entry.period)).map_or(0, |account| account.settled)
    }

    /// Sets what was spent, as it was read after [`Self::settled`] had this value. What was settled meanwhile counts once or
    /// twice, never not at all.
    pub fn load(&self, entry: &LedgerEntry, spent: u64, settled: u64, now: Now) {
        let mut accounts = self.accounts.lock();
        if accounts.len() >= ENTRIES_MAX {
            make_room(&mut accounts, i64::try_from(now.unix_s()).unwrap_or(i64::MAX));
        }
        let account = accounts.entry((Arc::clone(&entry.name), entry.period)).or_default();
        account.period_end_s = entry.period_end_s;
        account.spent = spent.saturating_add(account.settled.saturating_sub(settled));
        account.is_loaded = true;
    }

    /// Reserves an amount, if that much is left.
    pub fn reserve_at(&self, id: &str, entry: &LedgerEntry, amount: u64, now: Instant) -> Reserved {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry((Arc::clone(&entry.name), entry.period)).or_default();
        account.period_end_s = entry.period_end_s;
        if account.state().left(entry.amount_max) < amount {
            account.expire(now);
        }
        let allowed = account.state().left(entry.amount_max) >= amount && account.spent < entry.amount_max;
        if allowed {
            account.reserved = account.reserved.saturating_add(amount);
            account.open.insert(id.to_owned(), (amount, now + entry.reservation_ttl));
        }
        Reserved { allowed, state: account.state() }
    }

    /// Replaces a reservation by the amount that was used. An entry that is not in memory is not made: what was spent is loaded
    /// with it.
    pub fn settle_now(&self, id: &str, entry: &LedgerEntry, amount: u64) {
        let mut accounts = self.accounts.lock();
        let Some(account) = accounts.get_mut(&(Arc::clone(&entry.name), entry.period)) else { return };
        if let Some((reserved, _)) = account.open.remove(id) {
            account.reserved = account.reserved.saturating_sub(reserved);
        }
        account.spent = account.spent.saturating_add(amount);
        account.settled = account.settled.saturating_add(amount);
    }

    /// The state of an entry.
    pub fn state_at(&self, entry: &LedgerEntry, now: Instant) -> LedgerState {
        let mut accounts = self.accounts.lock();
        let Some(account) = accounts.get_mut(&(Arc::clone(&entry.name), entry.period)) else { return LedgerState::default() };
        account.expire(now);
        account.state()
    }
}

/// Drops entries of past periods, then those without reservations: they can be loaded again.
fn make_room(accounts: &mut HashMap<(Arc<str>, i64), Account>, now_s: i64) {
    accounts.retain(|_, account| !account.open.is_empty() || account.period_end_s > now_s);
    let mut surplus = accounts.len().saturating_sub(ENTRIES_MAX - ENTRIES_MAX / 8);
    accounts.retain(|_, account| {
        let keep = surplus == 0 || !account.open.is_empty();
        surplus -= usize::from(!keep);
        keep
    });
}

/// Without a database: an entry begins at zero.
impl Ledger for MemoryLedger {
    fn reserve<'a>(&'a self, id: &'a str, entry: &'a LedgerEntry, amount: u64, now: Now) -> BoxFuture<'a, Result<Reserved, StoreError>> {
        let reserved = self.reserve_at(id, entry, amount, now.instant);
        Box::pin(std::future::ready(Ok(reserved)))
    }

    fn reserve_locally<'a>(
        &'a self,
        id: &'a str,
        entry: &'a LedgerEntry,
        amount: u64,
        now: Now,
    ) -> BoxFuture<'a, Result<Reserved, StoreError>> {
        self.reserve(id, entry, amount, now)
    }

    fn settle(&self, id: &str, entry: &LedgerEntry, amount: u64) {
        self.settle_now(id, entry, amount);
    }

    fn state<'a>(&'a self, entry: &'a LedgerEntry, now: Now) -> BoxFuture<'a, Result<LedgerState, StoreError>> {
        Box::pin(std::future::ready(Ok(self.state_at(entry, now.instant))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(name: &str, amount_max: u64) -> LedgerEntry {
        LedgerEntry {
            name: name.into(),
            period: 1,
            period_end_s: i64::MAX,
            amount_max,
            reservation_ttl: Duration::from_secs(60),
            alert_at: Arc::new([]),
        }
    }

    #[test]
    fn reservations_never_pass_the_amount() {
        let (ledger, entry, now) = (MemoryLedger::default(), entry("a", 100), Now::read().instant);
        ledger.load(&entry, 40, 0, Now::read());
        let reserve = |id: &str, amount| ledger.reserve_at(id, &entry, amount, now).allowed;
        assert!(reserve("1", 30) && reserve("2", 30) && !reserve("3", 1));
        ledger.settle_now("1", &entry, 10);
        assert!(reserve("4", 20) && !reserve("5", 1));
        ledger.settle_now("2", &entry, 60);
        assert!(!reserve("6", 0), "nothing is left");
        assert_eq!(ledger.state_at(&entry, now), LedgerState { spent: 110, reserved: 20 }, "the truth may exceed the reservation");
    }

    #[test]
    fn reservations_expire() {
        let (ledger, entry, now) = (MemoryLedger::default(), entry("a", 100), Now::read().instant);
        assert!(ledger.reserve_at("1", &entry, 100, now).allowed);
        assert!(!ledger.reserve_at("2", &entry, 100, now + Duration::from_secs(59)).allowed);
        assert!(ledger.reserve_at("2", &entry, 100, now + Duration::from_secs(60)).allowed);
        ledger.settle_now("1", &entry, 5);
        assert_eq!(ledger.state_at(&entry, now), LedgerState { spent: 5, reserved: 100 }, "a late settlement counts");
    }

    #[test]
    fn what_is_settled_while_the_amount_is_read_counts() {
        let (ledger, entry, now) = (MemoryLedger::default(), entry("a", 100), Now::read());
        assert!(ledger.reserve_at("1", &entry, 10, now.instant).allowed && !ledger.is_loaded(&entry));
        let settled = ledger.settled(&entry);
        ledger.settle_now("1", &entry, 7);
        ledger.load(&entry, 40, settled, now);
        assert!(ledger.is_loaded(&entry));
        assert_eq!(ledger.state_at(&entry, now.instant), LedgerState { spent: 47, reserved: 0 });
    }

    #[test]
    fn memory_is_bounded_without_loss() {
        let ledger = MemoryLedger::default();
        let open = entry("open", 10);
        assert!(ledger.reserve_at("1", &open, 5, Now::read().instant).allowed);
        (0..ENTRIES_MAX).for_each(|n| ledger.load(&entry(&n.to_string(), 10), 1, 0, Now::read()));
        assert!(ledger.accounts.lock().len() <= ENTRIES_MAX);
        assert_eq!(ledger.state_at(&open, Now::read().instant).reserved, 5);
    }
}
