//! Handlers for open streams.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::extract::{May, PathParam, QueryParams, READ, STREAMS};
use super::paging::{cursor, limit, parse_cursor};
use super::problem::{Answer, Problem, Problems};
use crate::operator::streams::{self, Stream};

/// Query parameters of the list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// The cursor: `next` of the previous page.
    cursor: Option<String>,
    /// Maximum rows.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

/// A page of open streams.
#[derive(Serialize, ToSchema)]
pub struct Streams {
    /// Oldest first.
    items: Vec<Stream>,
    /// The `cursor` of the next page; `null` on the last page.
    next: Option<String>,
    /// The number of open streams.
    total: u64,
    /// Replicas that did not answer in time; their streams are missing.
    silent: Vec<String>,
}

/// List the open streams of all replicas, oldest first
#[utoipa::path(get, path = "/admin/api/streams", tag = "streams", security(("bearer" = ["read"])), params(Page), responses((status = 200, body = Streams), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>, QueryParams(page): QueryParams<Page>) -> Answer<Json<Streams>> {
    let limit = limit(page.limit)? as usize;
    let page = streams::list(&api.rpc, parse_cursor(page.cursor.as_deref())?, limit).await?;
    Ok(Json(Streams { items: page.streams, next: page.next.as_ref().map(cursor), total: page.total, silent: page.silent }))
}

/// The replica of a stream.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct On {
    /// The stream's replica; required if there are several.
    replica: Option<String>,
}

/// End a stream
///
/// The client receives an error event if the stream's format allows one.
#[utoipa::path(delete, path = "/admin/api/streams/{id}", tag = "streams", security(("bearer" = ["streams"])), params(("id" = u64, Path, description = "The stream's id."), On),
    responses((status = 200, body = Stream), Problems))]
pub async fn end(
    State(api): State<Arc<Api>>,
    May(caller): May<STREAMS>,
    PathParam(id): PathParam,
    QueryParams(on): QueryParams<On>,
) -> Answer<Json<Stream>> {
    let id = id.parse().map_err(|_| Problem::missing("a stream's id is an integer"))?;
    Ok(Json(streams::end(&api.rpc, id, on.replica.as_deref(), &caller.actor).await?))
}
