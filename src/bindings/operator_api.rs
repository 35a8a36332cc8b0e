//! What operators have a store do, by commands and by whatever else serves them.

use keylatch_filters::contract::{KeyId, StoreError};
use serde_json::Value;
use tokio::sync::watch;

use super::Store;
use crate::sql::audit::{Actor, Asked, Entry};
use crate::sql::intercepts::Page;
use crate::sql::record::{Change, Changed, Mark, Query, Record, version_now};
use crate::sql::{Desk, News};

impl Store {
    /// Accounts, lists and counts.
    pub fn desk(&self) -> &dyn Desk {
        self.authority.desk()
    }

    /// Bindings with all that is known of them.
    pub async fn list(&self, query: Query) -> Result<Page<Record, Mark>, StoreError> {
        self.authority.list(query).await
    }

    /// How many there are; `None`: many.
    pub async fn count(&self, query: Query) -> Result<Option<u64>, StoreError> {
        self.authority.count(query).await
    }

    /// Changes a binding, or makes it where that is wanted.
    pub async fn change(&self, id: KeyId, change: Change, actor: Actor) -> Result<Changed<Record>, StoreError> {
        let changed = self.authority.change(id, change, actor).await?;
        if let Changed::Done(record) = &changed {
            self.hear(News::Changed(id, record.binding.version));
        }
        Ok(changed)
    }

    /// Removes a binding: the next use binds anew.
    pub async fn remove(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> Result<Changed<()>, StoreError> {
        let removed = self.authority.remove(id, expects, actor).await?;
        self.hear(News::Changed(id, version_now(0)));
        Ok(removed)
    }

    /// Sets live settings, or (`None`) gives them back to the file, all or none. False: somebody has changed some since the
    /// version that is expected.
    pub async fn set_settings(&self, changes: &[(String, Option<Value>)], expects: Option<i64>, actor: &Actor) -> Result<bool, StoreError> {
        let done = self.desk().set_settings(changes, expects, actor).await?;
        self.hear(News::Settings);
        Ok(done)
    }

    /// Once one was changed, here or elsewhere, or may have been. For one task.
    pub async fn settings_changed(&self) {
        self.settings_changed.notified().await;
    }

    /// Changes whenever a replica may have asked or answered something.
    pub fn mail(&self) -> watch::Receiver<()> {
        self.mail.subscribe()
    }

    /// What operators have changed, the latest first.
    pub async fn audit(&self, asked: Asked) -> Result<Vec<Entry>, StoreError> {
        self.authority.audit(asked).await
    }
}
