//! Handlers for the audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::export::{self, Format};
use super::extract::{May, QueryParams, READ, Revalidation};
use super::paging::{ListPage, cursor, limit, parse_cursor};
use super::problem::{Answer, Problems};
use super::time::format_time;
use crate::operator::access::{Caller, Scope};
use crate::sql::audit;

/// An audit entry.
#[derive(Serialize, ToSchema)]
pub struct Entry {
    /// The id; it grows with time.
    id: i64,
    /// The time of the change.
    #[schema(format = DateTime)]
    at: String,
    /// The actor: an account, `ACCOUNT/TOKEN` for an API token, or `command:USER` for a local command.
    actor: String,
    /// The address or host of the actor.
    origin: String,
    /// The action, such as `binding.changed`.
    action: String,
    /// The target: a key id, a setting, an account, a token.
    target: String,
    /// The state before the change.
    before: Option<Value>,
    /// The state after the change.
    after: Option<Value>,
}

impl From<audit::AuditEntry> for Entry {
    fn from(entry: audit::AuditEntry) -> Self {
        let audit::AuditEntry { id, at, actor, origin, action, target, before, after } = entry;
        Self { id, at: format_time(at), actor, origin, action, target, before, after }
    }
}

/// An entry for an action that changes no row of the store.
pub fn line(action: &'static str, target: &str, after: Option<Value>) -> audit::AuditLine {
    audit::AuditLine { action, target: target.to_owned(), before: None, after: after.map(|after| after.to_string()) }
}

/// Query parameters of the list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Entries for this target.
    target: Option<String>,
    /// Entries by this actor.
    actor: Option<String>,
    /// Entries with this action: `binding.changed`, or `binding` for all actions on bindings.
    action: Option<String>,
    /// The file format of an export.
    #[param(inline)]
    format: Option<Format>,
    /// The cursor: `next` of the previous page.
    cursor: Option<String>,
    /// Maximum rows.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

fn asked(filter: &Filter, caller: &Caller) -> Answer<audit::AuditQuery> {
    Ok(audit::AuditQuery {
        before: parse_cursor(filter.cursor.as_deref())?,
        target: filter.target.clone(),
        actor: filter.actor.clone(),
        action: filter.action.clone(),
        // Entries about accounts require the scope `accounts`.
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

/// List audit entries, latest first
///
/// Entries about accounts, sign-ins and tokens require the scope `accounts`.
#[utoipa::path(get, path = "/admin/api/audit", tag = "audit", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = ListPage<Entry>), Problems))]
pub async fn list(
    State(api): State<Arc<Api>>,
    May(caller): May<READ>,
    QueryParams(filter): QueryParams<Filter>,
) -> Answer<Json<ListPage<Entry>>> {
    let (items, next) = page(&api, asked(&filter, &caller)?).await?;
    Ok(Json(ListPage { items, next: next.as_ref().map(cursor), total: None }))
}

/// Export the audit log
#[utoipa::path(get, path = "/admin/api/audit/export", tag = "audit", security(("bearer" = ["read"])), params(Filter),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(
    State(api): State<Arc<Api>>,
    May(caller): May<READ>,
    revalidation: Revalidation,
    QueryParams(filter): QueryParams<Filter>,
) -> Answer<Response> {
    let wanted = audit::AuditQuery { limit: export::PAGE, ..asked(&filter, &caller)? };
    export::stream(Arc::clone(&api), revalidation, filter.format.unwrap_or_default(), "audit", move |before: Option<i64>| {
        let (api, wanted) = (Arc::clone(&api), audit::AuditQuery { before: before.or(wanted.before), ..wanted.clone() });
        async move { page(&api, wanted).await }
    })
    .await
}
