//! Who has changed what.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::export::{self, Format};
use super::extract::{Again, Asked, May, READ};
use super::paging::{List, cursor, limit, mark};
use super::problem::{Answer, Problems};
use super::time::of;
use crate::operator::access::{Caller, Scope};
use crate::sql::audit;

/// One change.
#[derive(Serialize, ToSchema)]
pub struct Entry {
    /// Grows with time.
    id: i64,
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// Who: an account, `ACCOUNT/TOKEN` for a script, or `command:USER` for a command on the machine.
    actor: String,
    /// The address or machine it came from.
    origin: String,
    /// What was done, such as `binding.changed`.
    action: String,
    /// To what: a key id, a setting, an account, a token.
    target: String,
    /// How it was.
    before: Option<Value>,
    /// How it is since.
    after: Option<Value>,
}

impl From<audit::AuditEntry> for Entry {
    fn from(entry: audit::AuditEntry) -> Self {
        let audit::AuditEntry { id, at, actor, origin, action, target, before, after } = entry;
        Self { id, at: of(at), actor, origin, action, target, before, after }
    }
}

/// A line of something that is no change of a row.
pub fn line(action: &'static str, target: &str, after: Option<Value>) -> audit::AuditLine {
    audit::AuditLine { action, target: target.to_owned(), before: None, after: after.map(|after| after.to_string()) }
}

/// Which changes.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Of this thing.
    target: Option<String>,
    /// By him.
    actor: Option<String>,
    /// Of this kind: `binding.changed`, or `binding` for all of bindings.
    action: Option<String>,
    /// With files: how they are written.
    #[param(inline)]
    format: Option<Format>,
    /// Where the page begins: `next` of the page before.
    cursor: Option<String>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

fn asked(filter: &Filter, caller: &Caller) -> Answer<audit::AuditQuery> {
    Ok(audit::AuditQuery {
        before: mark(filter.cursor.as_deref())?,
        target: filter.target.clone(),
        actor: filter.actor.clone(),
        action: filter.action.clone(),
        // What is about accounts is for those who may look at them.
        without_accounts: !caller.scopes.has(Scope::Accounts),
        limit: limit(filter.limit)?,
    })
}

async fn page(api: &Api, asked: audit::AuditQuery) -> Answer<(Vec<Entry>, Option<i64>)> {
    let wanted = asked.limit as usize;
    let entries = api.store.audit(asked).await?;
    let next = entries.last().filter(|_| entries.len() >= wanted).map(|entry| entry.id);
    Ok((entries.into_iter().map(Entry::from).collect(), next))
}

/// See who has changed what, the latest first
///
/// What is about accounts, sign-ins and tokens is shown to those who may look at accounts.
#[utoipa::path(get, path = "/admin/api/audit", tag = "audit", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = List<Entry>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(caller): May<READ>, Asked(filter): Asked<Filter>) -> Answer<Json<List<Entry>>> {
    let (items, next) = page(&api, asked(&filter, &caller)?).await?;
    Ok(Json(List { items, next: next.as_ref().map(cursor), total: None }))
}

/// Write the audit to a file
#[utoipa::path(get, path = "/admin/api/audit/export", tag = "audit", security(("bearer" = ["read"])), params(Filter),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(State(api): State<Arc<Api>>, May(caller): May<READ>, again: Again, Asked(filter): Asked<Filter>) -> Answer<Response> {
    let wanted = audit::AuditQuery { limit: export::PAGE, ..asked(&filter, &caller)? };
    export::stream(Arc::clone(&api), again, filter.format.unwrap_or_default(), "audit", move |before: Option<i64>| {
        let (api, wanted) = (Arc::clone(&api), audit::AuditQuery { before: before.or(wanted.before), ..wanted.clone() });
        async move { page(&api, wanted).await }
    })
    .await
}
