//! A reader that is held up between its reading and its writing: what it has read never takes the place of what was
//! changed meanwhile.

use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::sql::sqlite::Sqlite;

/// An authority that others change, too, and whose readers wait with the row in their hands.
struct Slow {
    inner: Arc<Sqlite>,
    /// A row was read, and nobody has it yet.
    read: Notify,
    /// Lets so many readers go on.
    gate: Semaphore,
    tell: parking_lot::Mutex<Option<OnChange>>,
}

impl Slow {
    /// Somebody else changes the row, and this process hears of it.
    async fn elsewhere(&self, key: &str, change: Change) -> i64 {
        let changed = self.inner.change(id(key), change, somebody()).await.unwrap().done().unwrap();
        self.tell(News::Changed(id(key), changed.binding.version));
        changed.binding.version
    }

    fn tell(&self, news: News) {
        self.tell.lock().as_ref().unwrap()(news);
    }
}

impl Authority for Slow {
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(async move {
            let row = self.inner.get(id).await;
            self.read.notify_one();
            self.gate.acquire().await.unwrap().forget();
            row
        })
    }
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        self.inner.latch(first)
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
    fn about(&self) -> BoxFuture<'_, Result<About, StoreError>> {
        self.inner.about()
    }
    fn try_write(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.try_write()
    }
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.ping()
    }
    fn list(&self, query: Query) -> BoxFuture<'_, Result<Page<Record, Mark>, StoreError>> {
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
    fn audit(&self, asked: Asked) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        self.inner.audit(asked)
    }
    fn tend(&self, tending: Tending) -> BoxFuture<'_, Result<Option<Tended>, StoreError>> {
        self.inner.tend(tending)
    }
    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>> {
        self.inner.intercepted_since(at)
    }
    fn hot(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<Hot>, StoreError>> {
        self.inner.hot(ids, threshold)
    }
    fn raise(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.inner.raise(id, window, events)
    }
    fn due(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>> {
        self.inner.due(webhooks, lease)
    }
    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.attempted(id, what)
    }
    fn desk(&self) -> &dyn Desk {
        self.inner.desk()
    }
    fn watch(&self, on_change: OnChange) {
        *self.tell.lock() = Some(on_change);
    }
}

/// A store on such an authority, with a key that is bound.
async fn slow() -> (Arc<Slow>, Arc<Store>) {
    let inner = Arc::new(Sqlite::in_memory().await.unwrap());
    inner.latch(FirstUse { confirmed: true, ..first("a", "10.0.0.1") }).await.unwrap();
    let slow = Arc::new(Slow { inner, read: Notify::new(), gate: Semaphore::new(0), tell: parking_lot::Mutex::default() });
    let store = Store::new(Arc::clone(&slow) as _, None, 1000, Duration::from_secs(60), &Registry::new());
    store.follow();
    (slow, store)
}

/// Whether what this process remembers lets the key pass.
fn passes(store: &Store) -> bool {
    store.cached(&id("a")).is_some_and(|known| known.admits([10, 0, 0, 1].into(), SystemTime::now()))
}

#[tokio::test]
async fn a_ban_that_races_a_fill_wins() {
    let (slow, store) = slow().await;
    let reader = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.authoritative(id("a")).await }
    });
    slow.read.notified().await;
    let version = slow.elsewhere("a", Change { banned: Some(true), ..Change::default() }).await;
    slow.gate.add_permits(1);
    // The reader itself began before the ban; what it has read stays with it.
    reader.await.unwrap().unwrap();
    assert!(!passes(&store), "the row that was read before the ban was remembered");
    slow.gate.add_permits(1);
    let now = store.authoritative(id("a")).await.unwrap().unwrap();
    assert!(now.banned && now.version == version && !passes(&store));
}

#[tokio::test]
async fn what_was_read_before_news_was_lost_is_not_remembered() {
    let (slow, store) = slow().await;
    let reader = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.authoritative(id("a")).await }
    });
    slow.read.notified().await;
    // The ban is not heard of; that something was missed is.
    slow.inner.change(id("a"), Change { banned: Some(true), ..Change::default() }, somebody()).await.unwrap();
    slow.tell(News::Lost);
    slow.gate.add_permits(1);
    reader.await.unwrap().unwrap();
    assert!(!passes(&store));
}

#[tokio::test]
async fn an_unbind_that_races_a_fill_wins() {
    let (slow, store) = slow().await;
    let reader = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.authoritative(id("a")).await }
    });
    slow.read.notified().await;
    let before = slow.inner.get(id("a")).await.unwrap().unwrap().version;
    assert_eq!(slow.inner.remove(id("a"), None, somebody()).await.unwrap(), Changed::Done(()));
    slow.tell(News::Changed(id("a"), before + 1));
    slow.gate.add_permits(1);
    reader.await.unwrap().unwrap();
    assert!(!passes(&store), "a key that was unbound is not remembered as bound");
}
