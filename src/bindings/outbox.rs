//! The alerts' part of the store: recently refused keys, and deliveries to webhooks. Sends nothing.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{KeyId, StoreError};

use super::Store;
use crate::sql::Events;
use crate::sql::outbox::{Attempted, Delivery, KeyOverThreshold, Threshold};

impl Store {
    /// Takes the keys with intercepts written since the last call.
    pub fn take_intercepted(&self) -> Vec<KeyId> {
        std::mem::take(&mut *self.intercepted.lock()).into_iter().collect()
    }

    /// Queues the keys with intercepts within `window`, of all replicas: a replica that has ended
    /// may not have checked its own.
    pub async fn requeue_intercepted(&self, window: Duration) {
        let since = SystemTime::now().checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
        // If the store is away, its own messages say so; the caller tries again.
        let ids = self.authority.intercepted_since(since).await.unwrap_or_default();
        self.intercepted.lock().extend(ids);
    }

    /// Those of these keys that are over the threshold and had no alert yet. If the store is away,
    /// the keys are queued again.
    pub async fn keys_over_threshold(&self, ids: Vec<KeyId>, threshold: Threshold) -> Result<Vec<KeyOverThreshold>, StoreError> {
        let hot = self.authority.keys_over_threshold(ids.clone(), threshold).await;
        if hot.is_err() {
            self.intercepted.lock().extend(ids);
        }
        hot
    }

    /// Records an alert for a key, with an event for each webhook. False: another process did so.
    pub async fn record_alert(&self, id: KeyId, window: Duration, events: Events) -> Result<bool, StoreError> {
        let raised = self.authority.record_alert(id, window, events).await;
        if raised.is_err() {
            self.intercepted.lock().insert(id);
        }
        raised
    }

    /// Leases due deliveries: no other process takes them within `lease`.
    pub async fn lease_deliveries(&self, webhooks: Vec<String>, lease: Duration) -> Result<Vec<Delivery>, StoreError> {
        self.authority.lease_deliveries(webhooks, lease).await
    }

    /// Records the result of a delivery attempt.
    pub async fn attempted(&self, id: String, what: Attempted) -> Result<(), StoreError> {
        self.authority.attempted(id, what).await
    }
}
