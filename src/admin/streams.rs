//! Event streams that are open.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::extract::{Asked, May, Part, READ, STREAMS};
use super::paging::{cursor, limit, mark};
use super::problem::{Answer, Problem, Problems};
use crate::operator::streams::{self, Stream};

/// Which page.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Where the page begins: `next` of the page before.
    cursor: Option<String>,
    /// How many rows at most.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

/// Streams that are open.
#[derive(Serialize, ToSchema)]
pub struct Streams {
    /// The oldest first.
    items: Vec<Stream>,
    /// Where the next page begins: to be sent as `cursor`. `null`: this is the last one.
    next: Option<String>,
    /// How many there are in all.
    total: u64,
    /// Replicas that have not answered: their streams are missing.
    silent: Vec<String>,
}

/// See the streams that are open on all replicas, the oldest first
#[utoipa::path(get, path = "/admin/api/streams", tag = "streams", security(("bearer" = ["read"])), params(Page), responses((status = 200, body = Streams), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>, Asked(page): Asked<Page>) -> Answer<Json<Streams>> {
    let limit = limit(page.limit)? as usize;
    let page = streams::list(&api.everywhere, mark(page.cursor.as_deref())?, limit).await?;
    Ok(Json(Streams { items: page.streams, next: page.next.as_ref().map(cursor), total: page.total, silent: page.silent }))
}

/// Where a stream is open.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct On {
    /// The replica; must be said where there are several.
    replica: Option<String>,
}

/// End a stream
///
/// Its client gets an error event, where one can stand.
#[utoipa::path(delete, path = "/admin/api/streams/{id}", tag = "streams", security(("bearer" = ["streams"])), params(("id" = u64, Path, description = "The stream's number."), On),
    responses((status = 200, body = Stream), Problems))]
pub async fn end(State(api): State<Arc<Api>>, May(caller): May<STREAMS>, Part(id): Part, Asked(on): Asked<On>) -> Answer<Json<Stream>> {
    let id = id.parse().map_err(|_| Problem::missing("a stream's number is a whole number"))?;
    Ok(Json(streams::end(&api.everywhere, id, on.replica.as_deref(), &caller.actor).await?))
}
