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
    /// Whether the entry is known. Otherwise [`Self::begin`] must be called before a reservation.
    pub fn knows(&self, entry: &LedgerEntry) -> bool {
        self.accounts.lock().contains_key(&(Arc::clone(&entry.name), entry.period))
    }

    /// Adds an entry with the amount that was spent before. Keeps an entry that is known.
    pub fn begin(&self, entry: &LedgerEntry, spent: u64, now: Now) {
        let mut accounts = self.accounts.lock();
        if accounts.len() >= ENTRIES_MAX {
            make_room(&mut accounts, i64::try_from(now.unix_s()).unwrap_or(i64::MAX));
        }
        let new = || Account { spent, period_end_s: entry.period_end_s, ..Account::default() };
        accounts.entry((Arc::clone(&entry.name), entry.period)).or_insert_with(new);
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

    /// Replaces a reservation by the amount that was used. Returns the spent amounts before and after.
    pub fn settle_now(&self, id: &str, entry: &LedgerEntry, amount: u64) -> (u64, u64) {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry((Arc::clone(&entry.name), entry.period)).or_default();
        account.period_end_s = entry.period_end_s;
        if let Some((reserved, _)) = account.open.remove(id) {
            account.reserved = account.reserved.saturating_sub(reserved);
        }
        let before = account.spent;
        account.spent = before.saturating_add(amount);
        (before, account.spent)
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
        self.begin(entry, 0, now);
        let reserved = self.reserve_at(id, entry, amount, now.instant);
        Box::pin(std::future::ready(Ok(reserved)))
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
        ledger.begin(&entry, 40, Now::read());
        ledger.begin(&entry, 0, Now::read());
        let reserve = |id: &str, amount| ledger.reserve_at(id, &entry, amount, now).allowed;
        assert!(reserve("1", 30) && reserve("2", 30) && !reserve("3", 1));
        assert_eq!(ledger.settle_now("1", &entry, 10), (40, 50));
        assert!(reserve("4", 20) && !reserve("5", 1));
        assert_eq!(ledger.settle_now("2", &entry, 60), (50, 110), "the truth may exceed the reservation");
        assert!(!reserve("6", 0), "nothing is left");
        assert_eq!(ledger.state_at(&entry, now), LedgerState { spent: 110, reserved: 20 });
    }

    #[test]
    fn reservations_expire() {
        let (ledger, entry, now) = (MemoryLedger::default(), entry("a", 100), Now::read().instant);
        assert!(ledger.reserve_at("1", &entry, 100, now).allowed);
        assert!(!ledger.reserve_at("2", &entry, 100, now + Duration::from_secs(59)).allowed);
        assert!(ledger.reserve_at("2", &entry, 100, now + Duration::from_secs(60)).allowed);
        assert_eq!(ledger.settle_now("1", &entry, 5), (0, 5), "a late settlement counts");
        assert_eq!(ledger.state_at(&entry, now).reserved, 100);
    }

    #[test]
    fn memory_is_bounded_without_loss() {
        let ledger = MemoryLedger::default();
        let open = entry("open", 10);
        ledger.begin(&open, 0, Now::read());
        assert!(ledger.reserve_at("1", &open, 5, Now::read().instant).allowed);
        (0..ENTRIES_MAX).for_each(|n| ledger.begin(&entry(&n.to_string(), 10), 1, Now::read()));
        assert!(ledger.accounts.lock().len() <= ENTRIES_MAX);
        assert!(ledger.knows(&open));
    }
}
