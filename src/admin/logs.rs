//! Intercepts: requests that were refused because their key is bound elsewhere, or banned.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use keylatch_filters::contract::KeyId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::export::{self, Format};
use super::extract::{Revalidation, QueryParams, May, READ};
use super::paging::{ListPage, cursor, limit, parse_cursor};
use super::problem::{Answer, Problem, Problems};
use super::time::{parse, rfc3339};
use crate::operator::access::Caller;
use crate::operator::bindings::{Which, network};
use crate::sql::intercepts::{By, Intercepted, Mark, Wanted};

/// The same refusals within a minute.
#[derive(Serialize, ToSchema)]
pub struct Intercept {
    /// The first time.
    #[schema(format = DateTime)]
    first_at: String,
    /// The last time.
    #[schema(format = DateTime)]
    last_at: String,
    /// How often.
    count: i64,
    /// The key.
    key_id: String,
    /// What people recognise it by.
    hint: String,
    /// From where it was used. `0.0.0.0`: from many addresses.
    client: String,
    /// `elsewhere`: it is bound to other networks; `banned`: it is refused from everywhere.
    reason: &'static str,
    /// The filter is in shadow mode: the requests were not refused.
    shadow: bool,
    /// From where it could be used then.
    networks: Vec<String>,
    /// The method. `*`: several.
    method: String,
    /// The path. `*`: several.
    path: String,
    /// The route.
    route: String,
    /// What the client called itself.
    user_agent: String,
    /// Which replica refused it; empty where there is only one.
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

/// Why a key was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is bound to other networks.
    Elsewhere,
    /// It is refused from everywhere.
    Banned,
}

/// Which intercepts.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Of this key: its id, or the first digits of one that is bound.
    key_id: Option<String>,
    /// Of clients with this address, or in this network.
    client: Option<String>,
    /// On this route.
    route: Option<String>,
    /// With this method.
    method: Option<String>,
    /// On paths that begin so.
    path: Option<String>,
    /// Because of what.
    #[param(inline)]
    reason: Option<Reason>,
    /// Of filters in shadow mode, or of requests that were refused. Default: both.
    shadow: Option<bool>,
    /// Not before this time (RFC 3339), to the minute.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Before this time.
    #[param(format = DateTime)]
    until: Option<String>,
    /// With groups: by what.
    #[param(inline)]
    by: Option<GroupBy>,
    /// With files: how they are written.
    #[param(inline)]
    format: Option<Format>,
    /// Where the page begins: `next` of the page before.
    cursor: Option<String>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

/// By what intercepts are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// The key.
    #[default]
    Key,
    /// The client's address.
    Client,
}

async fn wanted(api: &Api, caller: &Caller, filter: &Filter) -> Answer<Wanted> {
    let key = match filter.key_id.as_deref() {
        Some(text) => Some(match KeyId::from_hex(text) {
            Some(id) => id,
            None => api.bindings(caller).find(Which::Id(text)).await?.binding.id,
        }),
        None => None,
    };
    let times = (filter.since.as_deref().map(|text| parse("since", text)), filter.until.as_deref().map(|text| parse("until", text)));
    Ok(Wanted {
        key,
        client: filter.client.as_deref().map(network).transpose().map_err(|why| Problem::invalid("client", why))?,
        route: filter.route.clone(),
        method: filter.method.clone(),
        path: filter.path.clone(),
        banned: filter.reason.map(|reason| reason == Reason::Banned),
        shadow: filter.shadow,
        // Rows are of whole minutes.
        since_ms: times.0.transpose()?.map(|ms| ms - ms.rem_euclid(60_000)),
        until_ms: times.1.transpose()?,
        after: parse_cursor::<Mark>(filter.cursor.as_deref())?,
        limit: limit(filter.limit)?,
    })
}

/// Find intercepts
///
/// The latest first. Where a filter has no index, some 20,000 rows are looked through at a time; `next` says that there
/// are more to look through.
#[utoipa::path(get, path = "/admin/api/logs", tag = "logs", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = ListPage<Intercept>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(caller): May<READ>, QueryParams(filter): QueryParams<Filter>) -> Answer<Json<ListPage<Intercept>>> {
    let page = api.store.desk().intercepts(&wanted(&api, &caller, &filter).await?).await?;
    Ok(Json(ListPage { items: page.rows.into_iter().map(Intercept::from).collect(), next: page.next.as_ref().map(cursor), total: None }))
}

/// Intercepts of one key, or of one client.
#[derive(Serialize, ToSchema)]
pub struct Group {
    /// The key id, or the address.
    what: String,
    /// The key's hint; empty for a client.
    hint: String,
    /// How many intercepts.
    count: i64,
    /// From how many addresses, or of how many keys.
    others: i64,
    /// The last one.
    #[schema(format = DateTime)]
    last_at: String,
}

impl From<crate::sql::intercepts::Group> for Group {
    fn from(group: crate::sql::intercepts::Group) -> Self {
        Self { what: group.what, hint: group.hint, count: group.count, others: group.others, last_at: rfc3339(group.last_ms) }
    }
}

/// Who causes most intercepts.
#[derive(Serialize, ToSchema)]
pub struct Groups {
    /// The largest first.
    items: Vec<Group>,
    /// All that fit were looked at; otherwise the latest 10,000 rows.
    complete: bool,
}

/// See who causes most intercepts
#[utoipa::path(get, path = "/admin/api/logs/groups", tag = "logs", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = Groups), Problems))]
pub async fn groups(State(api): State<Arc<Api>>, May(caller): May<READ>, QueryParams(filter): QueryParams<Filter>) -> Answer<Json<Groups>> {
    let by = match filter.by.unwrap_or_default() {
        GroupBy::Key => By::Key,
        GroupBy::Client => By::Client,
    };
    let groups = api.store.desk().intercept_groups(by, &wanted(&api, &caller, &filter).await?).await?;
    let complete = groups.examined < crate::sql::intercepts::GROUPED_MAX;
    Ok(Json(Groups { items: groups.groups.into_iter().map(Group::from).collect(), complete }))
}

/// Write intercepts to a file
#[utoipa::path(get, path = "/admin/api/logs/export", tag = "logs", security(("bearer" = ["read"])), params(Filter),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(State(api): State<Arc<Api>>, May(caller): May<READ>, revalidation: Revalidation, QueryParams(filter): QueryParams<Filter>) -> Answer<Response> {
    let wanted = Wanted { limit: export::PAGE, ..wanted(&api, &caller, &filter).await? };
    export::stream(Arc::clone(&api), revalidation, filter.format.unwrap_or_default(), "intercepts", move |after: Option<Mark>| {
        let (api, wanted) = (Arc::clone(&api), Wanted { after: after.or_else(|| wanted.after.clone()), ..wanted.clone() });
        async move {
            let page = api.store.desk().intercepts(&wanted).await?;
            Ok((page.rows.into_iter().map(Intercept::from).collect::<Vec<_>>(), page.next))
        }
    })
    .await
}
