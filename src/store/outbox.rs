//! What alerts need of a store: keys that were refused too often, and events on their way to webhooks.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{Intercept, KeyId, StoreError};

use super::{Events, Store};

/// A key over the threshold of which nobody was alerted within the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Hot {
    /// Intercepts within the window, give or take a minute.
    pub intercepts: u64,
    /// How many of them were in shadow mode.
    pub shadow: u64,
    /// Different client addresses among them.
    pub clients: u64,
    /// The latest of them.
    pub last: Intercept,
    /// The replica that refused it, where there are several.
    pub replica: String,
}

/// From how many intercepts of one key on somebody is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// So many.
    pub count: u64,
    /// Within this time.
    pub window: Duration,
    /// Whether intercepts in shadow mode count, too.
    pub shadow: bool,
}

/// An event for one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The same at every attempt.
    pub id: String,
    /// The webhook's name.
    pub webhook: String,
    /// The event, as JSON.
    pub event: String,
    /// How often it was tried, this time included.
    pub attempts: u32,
    /// When it was raised.
    pub raised_at: SystemTime,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempted {
    /// It has arrived, or never will: it goes.
    Done,
    /// It is tried again after this time.
    Again(Duration),
}

/// Deliveries that are taken at once.
pub const AT_ONCE: i64 = 16;
/// Keys that are looked at once more, where it is not known whether somebody has.
pub const LOOKED_BACK_MAX: i64 = 10_000;
/// Events older than this are gone, whoever they are for.
pub const AGE_MAX: Duration = Duration::from_secs(2 * 86_400);

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
