//! What alerts need of a store: keys that were refused too often, and events on their way to webhooks.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{KeyId, StoreError};

use super::Store;
use crate::sql::Events;
use crate::sql::outbox::{Attempted, Delivery, Hot, Threshold};

impl Store {
    /// The keys of which intercepts were written since the last time.
    pub fn take_intercepted(&self) -> Vec<KeyId> {
        std::mem::take(&mut *self.intercepted.lock()).into_iter().collect()
    }

    /// Keys of which intercepts were written within `window`, by whomever: a replica that has ended may not have looked at
    /// its own.
    pub async fn look_back(&self, window: Duration) {
        let since = SystemTime::now().checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
        // While the store is away its own messages say so, and it is looked back again.
        let ids = self.authority.intercepted_since(since).await.unwrap_or_default();
        self.intercepted.lock().extend(ids);
    }

    /// Those of these keys that were refused too often, and of which nobody was alerted yet. Where the store is
    /// away, they are looked at next time.
    pub async fn hot(&self, ids: Vec<KeyId>, threshold: Threshold) -> Result<Vec<Hot>, StoreError> {
        let hot = self.authority.hot(ids.clone(), threshold).await;
        if hot.is_err() {
            self.intercepted.lock().extend(ids);
        }
        hot
    }

    /// Notes that somebody is alerted of a key, and for each webhook the event that it gets. False: another process has done so.
    pub async fn raise(&self, id: KeyId, window: Duration, events: Events) -> Result<bool, StoreError> {
        let raised = self.authority.raise(id, window, events).await;
        if raised.is_err() {
            self.intercepted.lock().insert(id);
        }
        raised
    }

    /// Takes deliveries that are due; nobody else does for the time of `lease`.
    pub async fn due(&self, webhooks: Vec<String>, lease: Duration) -> Result<Vec<Delivery>, StoreError> {
        self.authority.due(webhooks, lease).await
    }

    /// What came of an attempt to deliver.
    pub async fn attempted(&self, id: String, what: Attempted) -> Result<(), StoreError> {
        self.authority.attempted(id, what).await
    }
}
