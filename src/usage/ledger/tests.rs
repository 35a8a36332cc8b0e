//! Tests of ledgers over SQLite: what is spent survives a restart and counts once.

use super::*;
use crate::sql::Authority;
use crate::sql::ledger::{LedgerAddition, LedgerBatch};
use crate::sql::sqlite::Sqlite;

async fn store() -> Arc<dyn Authority> {
    Arc::new(Sqlite::in_memory().await.unwrap())
}

fn entry(name: &str) -> LedgerEntry {
    LedgerEntry {
        name: name.into(),
        period: 7,
        period_end_s: 2_000_000_000,
        amount_max: 100,
        reservation_ttl: Duration::from_secs(60),
        alert_at: Arc::new([50, 80]),
    }
}

#[tokio::test]
async fn what_was_spent_survives_a_restart() {
    let (authority, now) = (store().await, Now::read());
    let spending = Spending::new(Arc::clone(&authority));
    let ledger = LocalLedger::new(Arc::clone(&spending));
    let entry = entry("a");
    for (id, amount) in [("1", 30), ("2", 25)] {
        assert!(ledger.reserve(id, &entry, 40, now).await.unwrap().allowed);
        ledger.settle(id, &entry, amount);
    }
    assert_eq!(spending.spent(&entry).await.unwrap(), 55, "also before it is written");
    spending.flush().await;
    ledger.settle("3", &entry, 5);
    // Another process begins with what is in the database.
    let other = LocalLedger::new(Spending::new(Arc::clone(&authority)));
    assert_eq!(other.state(&entry, now).await.unwrap(), LedgerState { spent: 55, reserved: 0 });
    assert!(!other.reserve("4", &entry, 50, now).await.unwrap().allowed);
    let next = LedgerEntry { period: 8, ..entry.clone() };
    assert!(other.reserve("5", &next, 100, now).await.unwrap().allowed, "each period has its own amount");
    spending.flush().await;
    spending.flush().await;
    assert_eq!(authority.admin_store().ledger_row("a", 7).await.unwrap().unwrap().spent, 60);
    let written: Vec<_> = spending.take_written().iter().map(|addition| addition.name.to_string()).collect();
    assert_eq!((written, spending.take_written().len()), (vec!["a".to_owned()], 0));
}

#[tokio::test]
async fn a_repeated_batch_counts_once() {
    let authority = store().await;
    let LedgerEntry { name, period, period_end_s, alert_at, .. } = entry("a");
    let addition = LedgerAddition { name, period, period_end_s, amount: 9, amount_max: 100, alert_at };
    let batch = LedgerBatch { id: uuid::Uuid::now_v7(), made_s: 1, additions: vec![addition] };
    for _ in 0..3 {
        authority.admin_store().add_to_ledger(&batch).await.unwrap();
    }
    assert_eq!(authority.admin_store().ledger_row("a", 7).await.unwrap().unwrap().spent, 9);
}

#[tokio::test]
async fn each_share_is_alerted_of_once() {
    let authority = store().await;
    let spending = Spending::new(Arc::clone(&authority));
    spending.add(&entry("a"), 85);
    spending.flush().await;
    let store = authority.admin_store();
    let event = |id: &str| vec![(id.to_owned(), "ops".to_owned(), "{}".to_owned())];
    assert!(store.alert_of_share("a", 7, 80, event("1")).await.unwrap());
    assert!(!store.alert_of_share("a", 7, 80, event("2")).await.unwrap());
    assert!(!store.alert_of_share("a", 7, 50, event("3")).await.unwrap(), "a lower share");
    assert!(!store.alert_of_share("b", 7, 80, event("4")).await.unwrap(), "an unknown budget");
    let queued = authority.lease_deliveries(vec!["ops".into()], Duration::from_secs(60)).await.unwrap();
    assert_eq!(queued.iter().map(|delivery| delivery.id.as_str()).collect::<Vec<_>>(), ["1"]);
}

#[tokio::test]
async fn a_store_that_fails_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let authority: Arc<dyn Authority> = Arc::new(Sqlite::open(&folder.path().join("k.db"), true).await.unwrap());
    let spending = Spending::new(Arc::clone(&authority));
    spending.add(&entry("a"), 5);
    authority.close().await;
    spending.flush().await;
    assert!(spending.spent(&entry("a")).await.is_err(), "an unknown amount is no amount");
    assert!(LocalLedger::new(Arc::clone(&spending)).reserve("1", &entry("a"), 1, Now::read()).await.is_err());
}
