//! Reads that race changes, and reads without the authority: a row that was read before a change is never cached over it, and
//! a copy from other replicas refuses only while the authority is away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::FutureExt;
use keylatch_filters::contract::KeyUse;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::sql::sqlite::Sqlite;

/// An authority with readers that wait after the read, and which others change meanwhile.
struct Slow {
    inner: Arc<Sqlite>,
    /// Notified when a row has been read, before the caller gets it.
    read: Notify,
    /// The number of readers that may go on.
    gate: Semaphore,
    on_event: parking_lot::Mutex<Option<OnStoreEvent>>,
    is_away: AtomicBool,
}

impl Slow {
    /// Another process changes the row, and this process is notified.
    async fn elsewhere(&self, key: &str, change: Change) -> i64 {
        let changed = self.inner.change(id(key), change, operator()).await.unwrap().done().unwrap();
        self.notify(StoreEvent::BindingChanged(id(key), changed.binding.version));
        changed.binding.version
    }

    fn notify(&self, event: StoreEvent) {
        self.on_event.lock().as_ref().unwrap()(event);
    }
}

impl Authority for Slow {
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(async move {
            if self.is_away.load(Ordering::Relaxed) {
                return Err(StoreError::Away("away".into()));
            }
            let row = self.inner.get(id).await;
            self.read.notify_one();
            self.gate.acquire().await.unwrap().forget();
            row
        })
    }
    fn bind_first_use(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        self.inner.bind_first_use(first)
    }
    fn adopt(&self, id: KeyId, from: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        self.inner.adopt(id, from)
    }
    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        self.inner.roam(id, network, at)
    }
    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.inner.settle(id, version, accepted)
    }
    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.write(batch)
    }
    fn owner(&self) -> BoxFuture<'_, Result<Option<String>, String>> {
        self.inner.owner()
    }
    fn own(&self, fingerprint: String, before: Option<String>) -> BoxFuture<'_, Result<(), String>> {
        self.inner.own(fingerprint, before)
    }
    fn server_info(&self) -> BoxFuture<'_, Result<ServerInfo, StoreError>> {
        self.inner.server_info()
    }
    fn try_write(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.try_write()
    }
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.ping()
    }
    fn list(&self, query: Query) -> BoxFuture<'_, Result<Page<Record, BindingCursor>, StoreError>> {
        self.inner.list(query)
    }
    fn count(&self, query: Query) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        self.inner.count(query)
    }
    fn change(&self, id: KeyId, change: Change, actor: Actor) -> BoxFuture<'_, Result<Changed<Record>, StoreError>> {
        self.inner.change(id, change, actor)
    }
    fn remove(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> BoxFuture<'_, Result<Changed<()>, StoreError>> {
        self.inner.remove(id, expects, actor)
    }
    fn audit(&self, query: AuditQuery) -> BoxFuture<'_, Result<Vec<AuditEntry>, StoreError>> {
        self.inner.audit(query)
    }
    fn apply_retention(&self, policy: RetentionPolicy) -> BoxFuture<'_, Result<Option<RetentionResult>, StoreError>> {
        self.inner.apply_retention(policy)
    }
    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>> {
        self.inner.intercepted_since(at)
    }
    fn keys_over_threshold(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<KeyOverThreshold>, StoreError>> {
        self.inner.keys_over_threshold(ids, threshold)
    }
    fn record_alert(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.inner.record_alert(id, window, events)
    }
    fn lease_deliveries(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>> {
        self.inner.lease_deliveries(webhooks, lease)
    }
    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.attempted(id, what)
    }
    fn admin_store(&self) -> &dyn AdminStore {
        self.inner.admin_store()
    }
    fn watch(&self, on_event: OnStoreEvent) {
        *self.on_event.lock() = Some(on_event);
    }
}

/// A store on such an authority, with a bound key.
async fn slow() -> (Arc<Slow>, Arc<Store>) {
    let inner = Arc::new(Sqlite::in_memory().await.unwrap());
    inner.bind_first_use(FirstUse { confirmed: true, ..first("a", "10.0.0.1") }).await.unwrap();
    let slow = Arc::new(Slow {
        inner,
        read: Notify::new(),
        gate: Semaphore::new(0),
        on_event: parking_lot::Mutex::default(),
        is_away: AtomicBool::new(false),
    });
    let store = Store::new(Arc::clone(&slow) as _, None, 1000, Duration::from_secs(60), &Registry::new());
    store.follow();
    (slow, store)
}

/// Whether the process cache admits the key.
fn passes(store: &Store) -> bool {
    store.cached(&id("a")).is_some_and(|known| known.admits([10, 0, 0, 1].into(), SystemTime::now()))
}

#[tokio::test]
async fn a_ban_that_races_a_fill_wins() {
    let (slow, store) = slow().await;
    let reader = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.authoritative(id("a"), None).await }
    });
    slow.read.notified().await;
    let version = slow.elsewhere("a", Change { banned: Some(true), ..Change::default() }).await;
    slow.gate.add_permits(1);
    // The read began before the ban; its result is used for that request only.
    reader.await.unwrap().unwrap();
    assert!(!passes(&store), "the row that was read before the ban was cached");
    slow.gate.add_permits(1);
    let now = store.authoritative(id("a"), None).await.unwrap().unwrap();
    assert!(now.banned && now.version == version && !passes(&store));
}

#[tokio::test]
async fn rows_read_before_events_were_lost_are_not_cached() {
    let (slow, store) = slow().await;
    let reader = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.authoritative(id("a"), None).await }
    });
    slow.read.notified().await;
    // The event of the ban is lost, and the loss is reported.
    slow.inner.change(id("a"), Change { banned: Some(true), ..Change::default() }, operator()).await.unwrap();
    slow.notify(StoreEvent::EventsLost);
    slow.gate.add_permits(1);
    reader.await.unwrap().unwrap();
    assert!(!passes(&store));
}

#[tokio::test]
async fn an_unbind_that_races_a_fill_wins() {
    let (slow, store) = slow().await;
    let reader = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.authoritative(id("a"), None).await }
    });
    slow.read.notified().await;
    let before = slow.inner.get(id("a")).await.unwrap().unwrap().version;
    assert_eq!(slow.inner.remove(id("a"), None, operator()).await.unwrap(), Changed::Done(()));
    slow.notify(StoreEvent::BindingChanged(id("a"), before + 1));
    slow.gate.add_permits(1);
    reader.await.unwrap().unwrap();
    assert!(!passes(&store), "an unbound key is not cached as bound");
}

#[tokio::test]
async fn a_copy_from_other_replicas_admits_and_never_refuses() {
    let (slow, store) = slow().await;
    let row = slow.inner.get(id("a")).await.unwrap().unwrap();
    let copy = Binding { networks: vec!["10.0.0.2/32".parse().unwrap()], ..row.clone() };
    store.cache.put_unverified(copy.clone(), Instant::now(), store.cache.epoch()).unwrap();
    let read = |address: [u8; 4]| store.authoritative(id("a"), Some(KeyUse { client: address.into(), at: SystemTime::now() }));
    assert_eq!(read([10, 0, 0, 2]).now_or_never().unwrap().unwrap().as_deref(), Some(&copy), "without the authority");
    assert!(read([10, 0, 0, 1]).now_or_never().is_none(), "the authority is asked before a refusal");
    slow.gate.add_permits(1);
    assert_eq!(read([10, 0, 0, 1]).await.unwrap().as_deref(), Some(&row));
}

#[tokio::test]
async fn while_the_authority_is_away_the_last_known_copy_decides() {
    let (slow, store) = slow().await;
    slow.is_away.store(true, Ordering::Relaxed);
    let read = || store.authoritative(id("a"), Some(KeyUse { client: [10, 0, 0, 9].into(), at: SystemTime::now() }));
    assert!(matches!(read().await, Err(StoreError::Away(_))), "no copy");
    let row = slow.inner.get(id("a")).await.unwrap().unwrap();
    store.cache.put_unverified(row.clone(), Instant::now(), store.cache.epoch()).unwrap();
    assert_eq!(read().await.unwrap().as_deref(), Some(&row), "it refuses this client");
    store.handle_event(StoreEvent::BindingChanged(id("a"), row.version + 1));
    assert!(matches!(read().await, Err(StoreError::Unsettled(_))), "the row is known to have changed");
}
