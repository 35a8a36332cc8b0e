//! The operators' part of the store, for commands and the admin API. Applies changes to the caches
//! of this process; the authority notifies the others.

use keylatch_filters::contract::{KeyId, StoreError};
use serde_json::Value;
use tokio::sync::watch;

use super::Store;
use crate::sql::audit::{Actor, AuditEntry, AuditQuery};
use crate::sql::intercepts::Page;
use crate::sql::record::{BindingCursor, Change, Changed, Query, Record, version_now};
use crate::sql::{AdminStore, StoreEvent};

impl Store {
    /// Accounts, lists, settings and counts.
    pub fn admin_store(&self) -> &dyn AdminStore {
        self.authority.admin_store()
    }

    /// Returns a page of bindings.
    pub async fn list(&self, query: Query) -> Result<Page<Record, BindingCursor>, StoreError> {
        self.authority.list(query).await
    }

    /// The number of bindings; `None`: too many to count.
    pub async fn count(&self, query: Query) -> Result<Option<u64>, StoreError> {
        self.authority.count(query).await
    }

    /// Changes a binding, or creates it.
    pub async fn change(&self, id: KeyId, change: Change, actor: Actor) -> Result<Changed<Record>, StoreError> {
        let changed = self.authority.change(id, change, actor).await?;
        if let Changed::Done(record) = &changed {
            self.handle_event(StoreEvent::BindingChanged(id, record.binding.version));
        }
        Ok(changed)
    }

    /// Removes a binding; the next use binds again.
    pub async fn remove(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> Result<Changed<()>, StoreError> {
        let removed = self.authority.remove(id, expects, actor).await?;
        self.handle_event(StoreEvent::BindingChanged(id, version_now(0)));
        Ok(removed)
    }

    /// Sets live settings, or removes them (`None`) so that the file applies; all or none. False:
    /// the settings do not have the expected version.
    pub async fn set_settings(&self, changes: &[(String, Option<Value>)], expects: Option<i64>, actor: &Actor) -> Result<bool, StoreError> {
        let done = self.admin_store().set_settings(changes, expects, actor).await?;
        self.handle_event(StoreEvent::SettingsChanged);
        Ok(done)
    }

    /// Waits until a live setting may have changed, on any replica. For one task.
    pub async fn settings_changed(&self) {
        self.settings_changed.notified().await;
    }

    /// Notifies of possible questions and answers of other replicas.
    pub fn mail(&self) -> watch::Receiver<()> {
        self.mail.subscribe()
    }

    /// Queries the audit log, the latest first.
    pub async fn audit(&self, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        self.authority.audit(query).await
    }
}
