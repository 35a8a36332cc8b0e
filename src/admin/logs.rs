//! Handlers for intercepts: requests refused because the key is bound to other networks or banned.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use keylatch_filters::contract::KeyId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::export::{self, Format};
use super::extract::{May, QueryParams, READ, Revalidation};
use super::paging::{ListPage, cursor, limit, parse_cursor};
use super::problem::{Answer, Problem, Problems};
use super::time::{parse, rfc3339};
use crate::operator::access::Caller;
use crate::operator::bindings::{Which, network};
use crate::sql::intercepts::{InterceptCursor, InterceptGrouping, InterceptQuery, Intercepted};

/// Equal intercepts within one minute.
#[derive(Serialize, ToSchema)]
pub struct Intercept {
    /// Time of the first one.
    #[schema(format = DateTime)]
    first_at: String,
    /// Time of the last one.
    #[schema(format = DateTime)]
    last_at: String,
    /// Number of requests.
    count: i64,
    /// The key id.
    key_id: String,
    /// The hint of the key.
    hint: String,
    /// The client address. `0.0.0.0` stands for many addresses.
    client: String,
    /// `elsewhere`: the key is bound to other networks; `banned`: the key is banned.
    reason: &'static str,
    /// Whether the filter was in shadow mode: the requests were not refused.
    shadow: bool,
    /// The networks of the binding at that time.
    networks: Vec<String>,
    /// The method. `*` stands for several.
    method: String,
    /// The path. `*` stands for several.
    path: String,
    /// The route.
    route: String,
    /// The `User-Agent` of the client.
    user_agent: String,
    /// The replica; empty if there is only one.
    replica: String,
}

impl From<Intercepted> for Intercept {
    fn from(row: Intercepted) -> Self {
        let Intercepted { mark, hint, networks, user_agent, count, first_ms } = row;
        Self {
            first_at: rfc3339(first_ms),
            last_at: rfc3339(mark.last_ms),
            count,
            key_id: mark.key.hex(),
            hint,
            replica: mark.replica_name().to_owned(),
            client: mark.client.to_string(),
            reason: if mark.banned { "banned" } else { "elsewhere" },
            shadow: mark.shadow,
            networks: networks.iter().map(ToString::to_string).collect(),
            method: mark.method,
            path: mark.path,
            route: mark.route,
            user_agent,
        }
    }
}

/// The reason of an intercept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The key is bound to other networks.
    Elsewhere,
    /// The key is banned.
    Banned,
}

/// Query parameters of the list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// The key id, or the first digits of the id of a bound key.
    key_id: Option<String>,
    /// The client address, or a network that contains it.
    client: Option<String>,
    /// The route.
    route: Option<String>,
    /// The method.
    method: Option<String>,
    /// Prefix of the path.
    path: Option<String>,
    /// The reason.
    #[param(inline)]
    reason: Option<Reason>,
    /// True: intercepts in shadow mode only; false: refused requests only. Default: both.
    shadow: Option<bool>,
    /// Start of the time range (RFC 3339), rounded down to the minute.
    #[param(format = DateTime)]
    since: Option<String>,
    /// End of the time range, exclusive.
    #[param(format = DateTime)]
    until: Option<String>,
    /// The grouping of groups.
    #[param(inline)]
    by: Option<GroupBy>,
    /// The file format of an export.
    #[param(inline)]
    format: Option<Format>,
    /// The cursor: `next` of the previous page.
    cursor: Option<String>,
    /// Maximum rows.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

/// Groupings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// The key id.
    #[default]
    Key,
    /// By client address.
    Client,
}

async fn wanted(api: &Api, caller: &Caller, filter: &Filter) -> Answer<InterceptQuery> {
    let key = match filter.key_id.as_deref() {
        Some(text) => Some(match KeyId::from_hex(text) {
            Some(id) => id,
            None => api.bindings(caller).find(Which::Id(text)).await?.binding.id,
        }),
        None => None,
    };
    let times = (filter.since.as_deref().map(|text| parse("since", text)), filter.until.as_deref().map(|text| parse("until", text)));
    Ok(InterceptQuery {
        key,
        client: filter.client.as_deref().map(network).transpose().map_err(|why| Problem::invalid("client", why))?,
        route: filter.route.clone(),
        method: filter.method.clone(),
        path: filter.path.clone(),
        banned: filter.reason.map(|reason| reason == Reason::Banned),
        shadow: filter.shadow,
        // Rows cover whole minutes.
        since_ms: times.0.transpose()?.map(|ms| ms - ms.rem_euclid(60_000)),
        until_ms: times.1.transpose()?,
        after: parse_cursor::<InterceptCursor>(filter.cursor.as_deref())?,
        limit: limit(filter.limit)?,
    })
}

/// List intercepts, latest first
///
/// A filter without an index examines about 20,000 rows per page; `next` then continues the search, even after an empty
/// page.
#[utoipa::path(get, path = "/admin/api/logs", tag = "logs", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = ListPage<Intercept>), Problems))]
pub async fn list(
    State(api): State<Arc<Api>>,
    May(caller): May<READ>,
    QueryParams(filter): QueryParams<Filter>,
) -> Answer<Json<ListPage<Intercept>>> {
    let page = api.store.admin_store().intercepts(&wanted(&api, &caller, &filter).await?).await?;
    Ok(Json(ListPage { items: page.rows.into_iter().map(Intercept::from).collect(), next: page.next.as_ref().map(cursor), total: None }))
}

/// Intercepts of one key or one client.
#[derive(Serialize, ToSchema)]
pub struct Group {
    /// The key id, or the address.
    what: String,
    /// The key's hint; empty for a client.
    hint: String,
    /// Number of intercepts.
    count: i64,
    /// Number of client addresses, or of keys.
    others: i64,
    /// Time of the last one.
    #[schema(format = DateTime)]
    last_at: String,
}

impl From<crate::sql::intercepts::Group> for Group {
    fn from(group: crate::sql::intercepts::Group) -> Self {
        Self { what: group.what, hint: group.hint, count: group.count, others: group.others, last_at: rfc3339(group.last_ms) }
    }
}

/// Groups of intercepts.
#[derive(Serialize, ToSchema)]
pub struct Groups {
    /// Largest first.
    items: Vec<Group>,
    /// False if only the latest 10,000 rows were counted.
    complete: bool,
}

/// Group intercepts by key or client
#[utoipa::path(get, path = "/admin/api/logs/groups", tag = "logs", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = Groups), Problems))]
pub async fn groups(State(api): State<Arc<Api>>, May(caller): May<READ>, QueryParams(filter): QueryParams<Filter>) -> Answer<Json<Groups>> {
    let by = match filter.by.unwrap_or_default() {
        GroupBy::Key => InterceptGrouping::Key,
        GroupBy::Client => InterceptGrouping::Client,
    };
    let groups = api.store.admin_store().intercept_groups(by, &wanted(&api, &caller, &filter).await?).await?;
    let complete = groups.examined < crate::sql::intercepts::GROUPED_MAX;
    Ok(Json(Groups { items: groups.groups.into_iter().map(Group::from).collect(), complete }))
}

/// Export intercepts
#[utoipa::path(get, path = "/admin/api/logs/export", tag = "logs", security(("bearer" = ["read"])), params(Filter),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(
    State(api): State<Arc<Api>>,
    May(caller): May<READ>,
    revalidation: Revalidation,
    QueryParams(filter): QueryParams<Filter>,
) -> Answer<Response> {
    let wanted = InterceptQuery { limit: export::PAGE, ..wanted(&api, &caller, &filter).await? };
    export::stream(
        Arc::clone(&api),
        revalidation,
        filter.format.unwrap_or_default(),
        "intercepts",
        move |after: Option<InterceptCursor>| {
            let (api, wanted) = (Arc::clone(&api), InterceptQuery { after: after.or_else(|| wanted.after.clone()), ..wanted.clone() });
            async move {
                let page = api.store.admin_store().intercepts(&wanted).await?;
                Ok((page.rows.into_iter().map(Intercept::from).collect::<Vec<_>>(), page.next))
            }
        },
    )
    .await
}
