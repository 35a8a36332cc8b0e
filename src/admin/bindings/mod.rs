//! Handlers that find and read bindings. `bulk` and `change` modify them.

pub mod bulk;
pub mod change;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderName;
use axum::response::Response;
use keylatch_filters::contract::Rule;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::audit::Entry;
use super::export::{self, Format};
use super::extract::{Body, May, PathParam, QueryParams, READ, Revalidation, etag};
use super::logs::Intercept;
use super::paging::{ListPage, cursor, limit, parse_cursor};
use super::problem::{Answer, Problem, Problems};
use super::time::format_time;
use crate::operator::bindings::{Which, network, prefix};
use crate::sql::audit;
use crate::sql::intercepts::InterceptQuery;
use crate::sql::record::{BindingCursor, Query, Record, Sort, label};

/// A binding: a key and the networks allowed to use it.
#[derive(Clone, Serialize, ToSchema)]
pub struct Binding {
    /// HMAC-SHA256 of the key, in hex.
    #[schema(example = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0")]
    pub key_id: String,
    /// The hint by which people recognise the key.
    #[schema(example = "sk-…wxyz")]
    pub hint: String,
    /// `single`, `multiple`, `all` or `roaming`.
    pub rule: &'static str,
    /// The networks allowed to use the key.
    pub networks: Vec<String>,
    /// With the rule `roaming`: maximum concurrent networks.
    pub networks_max: Option<u8>,
    /// With the rule `roaming`: how long a network stays valid after its last use.
    pub window: Option<String>,
    /// Whether the key is banned: refused from everywhere.
    pub banned: bool,
    /// Whether the upstream has accepted the key.
    pub confirmed: bool,
    /// `first_use`, or the account that made the binding or set its rule.
    pub made_by: String,
    /// The free-text note.
    pub note: String,
    /// The labels.
    pub labels: Vec<String>,
    /// Creation time.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// Time of the last use; recent uses may not be written yet.
    #[schema(format = DateTime)]
    pub last_used_at: String,
    /// The version, for `If-Match`.
    pub version: i64,
}

impl From<&Record> for Binding {
    fn from(record: &Record) -> Self {
        let binding = &record.binding;
        Self {
            key_id: binding.id.hex(),
            hint: record.hint.clone(),
            rule: binding.rule.as_str(),
            networks: binding.networks.iter().map(ToString::to_string).collect(),
            networks_max: binding.roaming.map(|roaming| roaming.networks_max),
            window: binding.roaming.map(|roaming| humantime::format_duration(roaming.window).to_string()),
            banned: binding.banned,
            confirmed: binding.confirmed,
            made_by: record.made_by.clone(),
            note: record.note.clone(),
            labels: binding.labels.clone(),
            created_at: format_time(record.created_at),
            last_used_at: format_time(record.last_used_at),
            version: binding.version,
        }
    }
}

/// A response with one binding.
pub type One = ([(HeaderName, String); 1], Json<Binding>);

/// The response for a binding, with its version.
pub fn one(record: &Record) -> One {
    (etag(record.binding.version), Json(Binding::from(record)))
}

/// Sort orders.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub enum Order {
    /// Most recently used first.
    #[default]
    #[serde(rename = "-last_used_at")]
    UsedLast,
    /// Least recently used first.
    #[serde(rename = "last_used_at")]
    UsedFirst,
    /// Newest first.
    #[serde(rename = "-created_at")]
    MadeLast,
    /// Oldest first.
    #[serde(rename = "created_at")]
    MadeFirst,
    /// By key id.
    #[serde(rename = "key_id")]
    Id,
    /// By key id, descending.
    #[serde(rename = "-key_id")]
    IdLast,
}

/// Query parameters of the list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Prefix of the key id, at least 6 hex digits.
    pub key_id: Option<String>,
    /// End of the hint, at least 4 characters.
    #[param(min_length = 4)]
    pub hint: Option<String>,
    /// An address or network that contains, or is within, a network of the binding.
    pub network: Option<String>,
    /// A label of the binding.
    pub label: Option<String>,
    /// Whether it is banned.
    pub banned: Option<bool>,
    /// The rule.
    #[param(inline)]
    pub rule: Option<RuleName>,
    /// The account that made it, or `first_use`.
    pub made_by: Option<String>,
    /// The sort order.
    #[param(inline)]
    pub sort: Option<Order>,
    /// The file format of an export.
    #[param(inline)]
    pub format: Option<Format>,
    /// The cursor: `next` of the previous page.
    pub cursor: Option<String>,
    /// Maximum rows.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    pub limit: Option<u32>,
}

/// Names of rules.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleName {
    /// One network.
    Single,
    /// Several networks.
    Multiple,
    /// Everywhere.
    All,
    /// A limited number of networks at a time.
    Roaming,
}

impl From<RuleName> for Rule {
    fn from(name: RuleName) -> Self {
        match name {
            RuleName::Single => Rule::Single,
            RuleName::Multiple => Rule::Multiple,
            RuleName::All => Rule::All,
            RuleName::Roaming => Rule::Roaming,
        }
    }
}

/// The store query for a filter.
pub fn query(filter: &Filter) -> Answer<Query> {
    let (sort, descending) = match filter.sort.unwrap_or_default() {
        Order::UsedLast => (Sort::Used, true),
        Order::UsedFirst => (Sort::Used, false),
        Order::MadeLast => (Sort::Created, true),
        Order::MadeFirst => (Sort::Created, false),
        Order::Id => (Sort::Key, false),
        Order::IdLast => (Sort::Key, true),
    };
    if filter.hint.as_ref().is_some_and(|hint| hint.chars().count() < 4) {
        return Err(Problem::invalid("hint", "must have at least 4 characters"));
    }
    Ok(Query {
        ids: Vec::new(),
        prefix: filter.key_id.as_deref().map(prefix).transpose()?.unwrap_or_default(),
        hint: filter.hint.clone(),
        network: filter.network.as_deref().map(network).transpose().map_err(|why| Problem::invalid("network", why))?,
        label: filter.label.as_deref().map(label).transpose().map_err(|why| Problem::invalid("label", why))?,
        banned: filter.banned,
        rule: filter.rule.map(Rule::from),
        made_by: filter.made_by.clone(),
        sort,
        descending,
        after: parse_cursor(filter.cursor.as_deref())?,
        limit: limit(filter.limit)?,
    })
}

/// List bindings
#[utoipa::path(get, path = "/admin/api/bindings", tag = "bindings", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = ListPage<Binding>), Problems))]
pub async fn list(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    QueryParams(filter): QueryParams<Filter>,
) -> Answer<Json<ListPage<Binding>>> {
    let query = query(&filter)?;
    let first = query.after.is_none();
    let total = if first { api.store.count(query.clone()).await? } else { None };
    let page = api.store.list(query).await?;
    Ok(Json(ListPage { items: page.rows.iter().map(Binding::from).collect(), next: page.next.as_ref().map(cursor), total }))
}

/// Export bindings
#[utoipa::path(get, path = "/admin/api/bindings/export", tag = "bindings", security(("bearer" = ["read"])), params(Filter),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    revalidation: Revalidation,
    QueryParams(filter): QueryParams<Filter>,
) -> Answer<Response> {
    let wanted = Query { limit: export::PAGE, ..query(&filter)? };
    export::stream(Arc::clone(&api), revalidation, filter.format.unwrap_or_default(), "bindings", move |after: Option<BindingCursor>| {
        let (api, wanted) = (Arc::clone(&api), Query { after: after.or(wanted.after), ..wanted.clone() });
        async move {
            let page = api.store.list(wanted).await?;
            Ok((page.rows.iter().map(Binding::from).collect::<Vec<_>>(), page.next))
        }
    })
    .await
}

/// A key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pasted {
    /// The key itself. It is hashed, and neither logged nor stored.
    #[schema(min_length = 1, max_length = 8192, format = Password)]
    key: String,
}

/// The result of a look-up.
#[derive(Serialize, ToSchema)]
pub struct Found {
    /// The key id.
    key_id: String,
    /// The hint.
    hint: String,
    /// The binding; `null` if the key is not bound.
    binding: Option<Binding>,
}

/// Look up the binding of a key
#[utoipa::path(post, path = "/admin/api/bindings/look-up", tag = "bindings", security(("bearer" = ["read"])), request_body = Pasted, responses((status = 200, body = Found), Problems))]
pub async fn look_up(State(api): State<Arc<Api>>, May(caller): May<READ>, Body(pasted): Body<Pasted>) -> Answer<Json<Found>> {
    let (id, hint) = api.bindings(&caller).hashed(&pasted.key).await?;
    let page = api.store.list(Query { prefix: prefix(&id.hex())?, limit: 1, ..Query::default() }).await?;
    Ok(Json(Found { key_id: id.hex(), hint, binding: page.rows.first().map(Binding::from) }))
}

/// Get a binding
#[utoipa::path(get, path = "/admin/api/bindings/{key_id}", tag = "bindings", security(("bearer" = ["read"])), params(("key_id" = String, Path, description = "The key id, or its first digits.")),
    responses((status = 200, body = Binding), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(caller): May<READ>, PathParam(key_id): PathParam) -> Answer<One> {
    Ok(one(&api.bindings(&caller).find(Which::Id(&key_id)).await?))
}

/// The history of a key, latest first.
#[derive(Serialize, ToSchema)]
pub struct Timeline {
    /// The key id.
    key_id: String,
    /// Changes by operators.
    changes: Vec<Entry>,
    /// Intercepts.
    intercepts: Vec<Intercept>,
}

/// Get the history of a key
///
/// The latest 100 changes and 100 intercepts. Also works for keys that are no longer bound, by their complete id.
#[utoipa::path(get, path = "/admin/api/bindings/{key_id}/timeline", tag = "bindings", security(("bearer" = ["read"])), params(("key_id" = String, Path, description = "The key id, or its first digits.")),
    responses((status = 200, body = Timeline), Problems))]
pub async fn timeline(State(api): State<Arc<Api>>, May(caller): May<READ>, PathParam(key_id): PathParam) -> Answer<Json<Timeline>> {
    const EACH: u32 = 100;
    let (id, _) = api.bindings(&caller).meant(Which::Id(&key_id)).await?;
    let asked = audit::AuditQuery { target: Some(id.hex()), limit: EACH, ..audit::AuditQuery::default() };
    let changes = api.store.audit(asked).await?.into_iter().map(Entry::from).collect();
    let wanted = InterceptQuery { key: Some(id), limit: EACH, ..InterceptQuery::default() };
    let intercepts = api.store.admin_store().intercepts(&wanted).await?.rows.into_iter().map(Intercept::from).collect();
    Ok(Json(Timeline { key_id: id.hex(), changes, intercepts }))
}
