//! The only SQL of the project: the contract of an authority ([`Authority`], [`AdminStore`]) and
//! its two implementations, `postgres` and `sqlite`. Knows no request and no configuration beyond
//! its own section; caching belongs to `bindings`.

pub mod accounts;
pub mod audit;
pub mod batch;
mod batcher;
pub mod intercepts;
pub mod ledger;
pub mod mailbox;
mod migrations;
pub mod outbox;
pub mod postgres;
pub mod providers;
pub mod record;
pub mod row;
pub mod samples;
pub mod settings;
pub mod shared_secrets;
pub mod sqlite;
pub mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyId, StoreError};

use audit::{Actor, AuditEntry, AuditQuery};
use batch::Batch;
use intercepts::Page;
use outbox::{Attempted, Delivery, KeyOverThreshold, Threshold};
use record::{BindingCursor, Change, Changed, Query, Record, RetentionPolicy, RetentionResult};

/// A change in the store that another process made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// This binding was changed or removed, as of this version.
    BindingChanged(KeyId, i64),
    /// A live setting was changed.
    SettingsChanged,
    /// A replica posted a question or an answer.
    MailChanged,
    /// Events may have been lost.
    EventsLost,
    /// Whether events arrive at once.
    NotificationsWork(bool),
}

/// Id, webhook and event of deliveries.
pub type Events = Vec<(String, String, String)>;

/// Called for each event of another process.
pub type OnStoreEvent = Arc<dyn Fn(StoreEvent) + Send + Sync>;

/// The part of the store that only operators use.
pub trait AdminStore:
    accounts::Accounts
    + accounts::AuditLog
    + intercepts::Intercepts
    + providers::Providers
    + mailbox::Mailbox
    + samples::Samples
    + settings::SettingsStore
    + shared_secrets::SharedSecrets
    + usage::Usage
    + ledger::LedgerStore
{
}
impl<T> AdminStore for T where
    T: accounts::Accounts
        + accounts::AuditLog
        + intercepts::Intercepts
        + providers::Providers
        + mailbox::Mailbox
        + samples::Samples
        + settings::SettingsStore
        + shared_secrets::SharedSecrets
        + usage::Usage
        + ledger::LedgerStore
{
}

/// The version and the clock of a database server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// The product and its version, for display.
    pub version: String,
    /// The major version.
    pub major: u32,
    /// The server's clock, in milliseconds since 1970.
    pub now_ms: i64,
}

/// The authoritative store of bindings. All methods may be called from any thread and runtime.
pub trait Authority: Send + Sync + 'static {
    /// Returns the binding of a key.
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// Inserts the binding if the key has none, atomically. Returns the binding that is stored
    /// then.
    fn bind_first_use(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>>;
    /// Moves a binding to another key id, unless that id has one. Returns the binding of `id` after
    /// that, or `None`.
    fn adopt(&self, id: KeyId, from: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// See [`keylatch_filters::contract::Bindings::roam`].
    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// Applies the upstream's verdict on the key of a binding in this version: confirms the
    /// binding, or removes it unless it is confirmed. In one batch, confirmations come first.
    /// Returns whether the binding exists after that.
    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Writes a batch of the write-behind queue. On an error nothing of it is written.
    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>>;
    /// The fingerprint of the `key_hmac` secret that the database belongs to; `None`: no secret
    /// yet.
    fn owner(&self) -> BoxFuture<'_, Result<Option<String>, String>>;
    /// Sets the fingerprint of the secret, if the stored one is `before`, or if there is none where
    /// that is `None`.
    fn own(&self, fingerprint: String, before: Option<String>) -> BoxFuture<'_, Result<(), String>>;
    /// The version and the clock of the database.
    fn server_info(&self) -> BoxFuture<'_, Result<ServerInfo, StoreError>>;
    /// Copies the database into a new file while it is in use. An error: it is not a file, or
    /// cannot be copied.
    fn copy(&self, _to: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Err("the database is on a server; use the server's own backup tools".into()) })
    }
    /// Tests whether events of other processes arrive at once. An error says what to do.
    fn notifications_work(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
    /// Closes the store. SQLite then moves its write-ahead log into the database file.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Tests whether a first use can be written, and leaves nothing behind.
    fn try_write(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Tests whether the store answers.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Returns a page of bindings for an operator.
    fn list(&self, query: Query) -> BoxFuture<'_, Result<Page<Record, BindingCursor>, StoreError>>;
    /// The number of bindings, regardless of `after` and `limit`. `None`: more than
    /// [`record::COUNTED_MAX`], or too expensive to count.
    fn count(&self, query: Query) -> BoxFuture<'_, Result<Option<u64>, StoreError>>;
    /// Applies an operator's change in a new version, with an audit entry.
    fn change(&self, id: KeyId, change: Change, actor: Actor) -> BoxFuture<'_, Result<Changed<Record>, StoreError>>;
    /// Removes the binding if it has the expected version, with an audit entry.
    fn remove(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> BoxFuture<'_, Result<Changed<()>, StoreError>>;
    /// Queries the audit log.
    fn audit(&self, query: AuditQuery) -> BoxFuture<'_, Result<Vec<AuditEntry>, StoreError>>;
    /// Archives and deletes old rows, if the period is over. `None`: it is not, or another process
    /// did it.
    fn apply_retention(&self, policy: RetentionPolicy) -> BoxFuture<'_, Result<Option<RetentionResult>, StoreError>>;
    /// Keys with intercepts written since then, at most [`outbox::LOOKED_BACK_MAX`].
    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>>;
    /// Those of these keys that are over the threshold and had no alert within its window.
    fn keys_over_threshold(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<KeyOverThreshold>, StoreError>>;
    /// Records an alert for the key, and queues its deliveries: id, webhook and event of each.
    /// False: another process did so within the window.
    fn record_alert(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Leases the due deliveries for these webhooks; no other process takes them within `lease`.
    fn lease_deliveries(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>>;
    /// Records the result of a delivery attempt.
    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>>;
    /// The part of the store that only operators use.
    fn admin_store(&self) -> &dyn AdminStore;
    /// Reports events of other processes from now on. A store of a single process has none.
    fn watch(&self, _on_event: OnStoreEvent) {}
}
