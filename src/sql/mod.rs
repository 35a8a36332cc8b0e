//! The only SQL of the project: the contract of an authority ([`Authority`], [`AdminStore`]) and its two implementations,
//! `postgres` and `sqlite`. Knows no request and no configuration beyond its own section; caching is `bindings`' part.

pub mod accounts;
pub mod audit;
pub mod batch;
mod batcher;
pub mod intercepts;
pub mod mailbox;
pub mod outbox;
pub mod postgres;
pub mod providers;
pub mod record;
pub mod row;
pub mod samples;
pub mod settings;
pub mod shared_secrets;
pub mod sqlite;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyId, StoreError};

use audit::{Actor, Asked, Entry};
use batch::Batch;
use intercepts::Page;
use outbox::{Attempted, Delivery, Hot, Threshold};
use record::{Change, Changed, Mark, Query, Record, Tended, Tending};

/// What other processes have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// This binding was changed or removed, as of this version.
    Changed(KeyId, i64),
    /// A live setting was changed.
    Settings,
    /// A replica has asked something, or answered.
    Mail,
    /// Something may have happened that was not heard of.
    Lost,
    /// Whether changes made by other processes are heard of at once.
    Hears(bool),
}

/// Id, webhook and event of deliveries.
pub type Events = Vec<(String, String, String)>;

/// Called for each change that another process has made.
pub type OnChange = Arc<dyn Fn(News) + Send + Sync>;

/// What is asked for by operators alone.
pub trait Desk:
    accounts::Accounts
    + accounts::Notes
    + intercepts::Intercepts
    + providers::Providers
    + mailbox::Questions
    + samples::Samples
    + settings::LiveSettings
    + shared_secrets::Vault
{
}
impl<T> Desk for T where
    T: accounts::Accounts
        + accounts::Notes
        + intercepts::Intercepts
        + providers::Providers
        + mailbox::Questions
        + samples::Samples
        + settings::LiveSettings
        + shared_secrets::Vault
{
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Which kind of server, and its version, for people.
    pub version: String,
    /// Its major version.
    pub major: u32,
    /// Its clock, in milliseconds since 1970.
    pub now_ms: i64,
}

/// What holds the truth. Every method may be called from anywhere, at any time.
pub trait Authority: Send + Sync + 'static {
    /// The row.
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// Inserts if absent, in one step; answers with the row that is there then.
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>>;
    /// Moves a row to another id, unless one is there; answers with the row there then. `None`: there is none.
    fn adopt(&self, id: KeyId, from: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// See [`keylatch_filters::contract::Bindings::roam`].
    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// The upstream's word on the key of the row in this version: confirms it, or removes it unless it was
    /// confirmed. Words that come at once are carried out with the good ones first. Whether the row is there then.
    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Writes what nobody waits for. On an error nothing of it was written.
    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>>;
    /// The fingerprint of the secret that the database goes with; `None`: no secret has claimed it.
    fn owner(&self) -> BoxFuture<'_, Result<Option<String>, String>>;
    /// Has it go with the secret of this fingerprint, if it goes with that of `before`, or with none where that is `None`.
    fn own(&self, fingerprint: String, before: Option<String>) -> BoxFuture<'_, Result<(), String>>;
    /// What it is, and what time it has.
    fn about(&self) -> BoxFuture<'_, Result<About, StoreError>>;
    /// Copies all of it into a new file, while it is in use. An error: it is no file, or cannot be copied.
    fn copy(&self, _to: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Err("the database is a server's, which has its own ways".into()) })
    }
    /// Whether changes made by other processes are heard of at once. An error says what to do.
    fn hears(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
    /// Ends: what was written is in the database's own file then, not in a log beside it.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Whether a first use could be written: one is tried, and leaves nothing behind.
    fn try_write(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Whether it answers.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Rows for an operator.
    fn list(&self, query: Query) -> BoxFuture<'_, Result<Page<Record, Mark>, StoreError>>;
    /// How many there are, without regard to `after` and `limit`. `None`: more than [`record::COUNTED_MAX`], or too dear to count.
    fn count(&self, query: Query) -> BoxFuture<'_, Result<Option<u64>, StoreError>>;
    /// An operator's change, in a new version, with its line in the audit.
    fn change(&self, id: KeyId, change: Change, actor: Actor) -> BoxFuture<'_, Result<Changed<Record>, StoreError>>;
    /// Removes the row, if it is in the version that is expected, with a line in the audit.
    fn remove(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> BoxFuture<'_, Result<Changed<()>, StoreError>>;
    /// The audit.
    fn audit(&self, asked: Asked) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>>;
    /// Archives, sweeps and trims, if it is time. `None`: it is not, or another process did it.
    fn tend(&self, tending: Tending) -> BoxFuture<'_, Result<Option<Tended>, StoreError>>;
    /// Keys of which intercepts were written since then; not more than are looked at at once.
    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>>;
    /// Which of these keys are over the threshold, and nobody was alerted of them within its window.
    fn hot(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<Hot>, StoreError>>;
    /// Notes that somebody is alerted of the key, and what is to be sent: id, webhook and event of each. False:
    /// another process has done so within the window.
    fn raise(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Takes deliveries that are due for these webhooks; nobody else does for the time of `lease`.
    fn due(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>>;
    /// What came of an attempt.
    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>>;
    /// What the admin API needs beside the above.
    fn desk(&self) -> &dyn Desk;
    /// Tells of what others do, from now on. Nobody else writes to what only this process has.
    fn watch(&self, _on_change: OnChange) {}
}
