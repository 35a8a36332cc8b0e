//! Bindings: lists, one of them, what has become of it.

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
use super::extract::{Revalidation, QueryParams, Body, May, PathParam, READ, etag};
use super::logs::Intercept;
use super::paging::{ListPage, cursor, limit, parse_cursor};
use super::problem::{Answer, Problem, Problems};
use super::time::format_time;
use crate::operator::bindings::{Which, network, prefix};
use crate::sql::audit;
use crate::sql::intercepts::Wanted;
use crate::sql::record::{Mark, Query, Record, Sort, label};

/// Which key may be used from where.
#[derive(Clone, Serialize, ToSchema)]
pub struct Binding {
    /// HMAC-SHA256 of the key, in hex.
    #[schema(example = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0")]
    pub key_id: String,
    /// What people recognise the key by.
    #[schema(example = "sk-…wxyz")]
    pub hint: String,
    /// `single`, `multiple`, `all` or `roaming`.
    pub rule: &'static str,
    /// From where the key may be used.
    pub networks: Vec<String>,
    /// With the rule `roaming`: how many networks at a time.
    pub networks_max: Option<u8>,
    /// With the rule `roaming`: how long a network counts after its last use.
    pub window: Option<String>,
    /// The key is refused from everywhere.
    pub banned: bool,
    /// The upstream has accepted the key.
    pub confirmed: bool,
    /// `first_use`, or whoever made it or set its rule by hand.
    pub made_by: String,
    /// What somebody wrote about it.
    pub note: String,
    /// Words to find it by.
    pub labels: Vec<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it was used last, as far as is written.
    #[schema(format = DateTime)]
    pub last_used_at: String,
    /// For `If-Match`.
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
            labels: record.labels.clone(),
            created_at: format_time(record.created_at),
            last_used_at: format_time(record.last_used_at),
            version: binding.version,
        }
    }
}

/// What an answer about one binding has.
pub type One = ([(HeaderName, String); 1], Json<Binding>);

/// With its version.
pub fn one(record: &Record) -> One {
    (etag(record.binding.version), Json(Binding::from(record)))
}

/// Orders of bindings.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub enum Order {
    /// The last used first.
    #[default]
    #[serde(rename = "-last_used_at")]
    UsedLast,
    /// The least lately used first.
    #[serde(rename = "last_used_at")]
    UsedFirst,
    /// The newest first.
    #[serde(rename = "-created_at")]
    MadeLast,
    /// The oldest first.
    #[serde(rename = "created_at")]
    MadeFirst,
    /// By key id.
    #[serde(rename = "key_id")]
    Id,
    /// By key id, backwards.
    #[serde(rename = "-key_id")]
    IdLast,
}

/// Which bindings.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Whose key id begins so: at least 6 hex digits.
    pub key_id: Option<String>,
    /// Whose hint ends so: at least 4 characters.
    #[param(min_length = 4)]
    pub hint: Option<String>,
    /// Whose networks hold this address or network, or stand within it.
    pub network: Option<String>,
    /// With this label.
    pub label: Option<String>,
    /// Banned or not.
    pub banned: Option<bool>,
    /// With this rule.
    #[param(inline)]
    pub rule: Option<RuleName>,
    /// Made by him, or by `first_use`.
    pub made_by: Option<String>,
    /// The order.
    #[param(inline)]
    pub sort: Option<Order>,
    /// With files: how they are written.
    #[param(inline)]
    pub format: Option<Format>,
    /// Where the page begins: `next` of the page before.
    pub cursor: Option<String>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    pub limit: Option<u32>,
}

/// The rules.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleName {
    /// One network.
    Single,
    /// Several.
    Multiple,
    /// Everywhere.
    All,
    /// A few networks at a time.
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

/// What a filter asks of the store.
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
        return Err(Problem::invalid("hint", "give at least the last 4 characters"));
    }
    Ok(Query {
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

/// Find bindings
#[utoipa::path(get, path = "/admin/api/bindings", tag = "bindings", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = ListPage<Binding>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>, QueryParams(filter): QueryParams<Filter>) -> Answer<Json<ListPage<Binding>>> {
    let query = query(&filter)?;
    let first = query.after.is_none();
    let total = if first { api.store.count(query.clone()).await? } else { None };
    let page = api.store.list(query).await?;
    Ok(Json(ListPage { items: page.rows.iter().map(Binding::from).collect(), next: page.next.as_ref().map(cursor), total }))
}

/// Write bindings to a file, all or those that a filter finds
#[utoipa::path(get, path = "/admin/api/bindings/export", tag = "bindings", security(("bearer" = ["read"])), params(Filter),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(State(api): State<Arc<Api>>, May(_caller): May<READ>, revalidation: Revalidation, QueryParams(filter): QueryParams<Filter>) -> Answer<Response> {
    let wanted = Query { limit: export::PAGE, ..query(&filter)? };
    export::stream(Arc::clone(&api), revalidation, filter.format.unwrap_or_default(), "bindings", move |after: Option<Mark>| {
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
    /// The key itself. It is hashed, and neither logged nor kept.
    #[schema(min_length = 1, max_length = 8192, format = Password)]
    key: String,
}

/// What is known of a key.
#[derive(Serialize, ToSchema)]
pub struct Found {
    /// Its id.
    key_id: String,
    /// Its hint.
    hint: String,
    /// Its binding, if it is bound.
    binding: Option<Binding>,
}

/// Find the binding of a key
#[utoipa::path(post, path = "/admin/api/bindings/look-up", tag = "bindings", security(("bearer" = ["read"])), request_body = Pasted, responses((status = 200, body = Found), Problems))]
pub async fn look_up(State(api): State<Arc<Api>>, May(caller): May<READ>, Body(pasted): Body<Pasted>) -> Answer<Json<Found>> {
    let (id, hint) = api.bindings(&caller).hashed(&pasted.key).await?;
    let page = api.store.list(Query { prefix: prefix(&id.hex())?, limit: 1, ..Query::default() }).await?;
    Ok(Json(Found { key_id: id.hex(), hint, binding: page.rows.first().map(Binding::from) }))
}

/// Look at a binding
#[utoipa::path(get, path = "/admin/api/bindings/{key_id}", tag = "bindings", security(("bearer" = ["read"])), params(("key_id" = String, Path, description = "The key id, or its first digits.")),
    responses((status = 200, body = Binding), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(caller): May<READ>, PathParam(key_id): PathParam) -> Answer<One> {
    Ok(one(&api.bindings(&caller).find(Which::Id(&key_id)).await?))
}

/// What has become of a key, the latest first.
#[derive(Serialize, ToSchema)]
pub struct Timeline {
    /// The key id.
    key_id: String,
    /// What operators have changed.
    changes: Vec<Entry>,
    /// From where it was refused.
    intercepts: Vec<Intercept>,
}

/// See what has become of a key
///
/// The latest 100 changes and 100 intercepts. It is there for keys that are no longer bound, too, by their whole id.
#[utoipa::path(get, path = "/admin/api/bindings/{key_id}/timeline", tag = "bindings", security(("bearer" = ["read"])), params(("key_id" = String, Path, description = "The key id, or its first digits.")),
    responses((status = 200, body = Timeline), Problems))]
pub async fn timeline(State(api): State<Arc<Api>>, May(caller): May<READ>, PathParam(key_id): PathParam) -> Answer<Json<Timeline>> {
    const EACH: u32 = 100;
    let (id, _) = api.bindings(&caller).meant(Which::Id(&key_id)).await?;
    let asked = audit::Asked { target: Some(id.hex()), limit: EACH, ..audit::Asked::default() };
    let changes = api.store.audit(asked).await?.into_iter().map(Entry::from).collect();
    let wanted = Wanted { key: Some(id), limit: EACH, ..Wanted::default() };
    let intercepts = api.store.desk().intercepts(&wanted).await?.rows.into_iter().map(Intercept::from).collect();
    Ok(Json(Timeline { key_id: id.hex(), changes, intercepts }))
}
