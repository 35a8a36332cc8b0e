//! Event streams that are open on this replica.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::audit::line;
use super::extract::{Asked, May, Part, READ, STREAMS};
use super::paging::{List, cursor, limit, mark};
use super::problem::{Answer, Problem, Problems};
use super::time::of;
use crate::telemetry::streams::About;

/// An open stream.
#[derive(Serialize, ToSchema)]
pub struct Stream {
    /// Its number on this replica.
    id: u64,
    /// When its request's header was complete.
    #[schema(format = DateTime)]
    started_at: String,
    /// For how many seconds it has been open.
    age_s: u64,
    /// Its route.
    route: String,
    /// The path.
    path: String,
    /// Whose it is.
    client: String,
    /// By which key.
    key_id: Option<String>,
    /// The key's hint.
    hint: Option<String>,
    /// Who he is, if that is known.
    subject: Option<String>,
    /// Its id in the logs.
    request_id: Option<String>,
    /// The server it comes from.
    upstream: Option<String>,
}

fn shown(id: u64, about: &About) -> Stream {
    Stream {
        id,
        started_at: of(about.started_at),
        age_s: about.started_at.elapsed().unwrap_or_default().as_secs(),
        route: about.route.clone(),
        path: about.path.clone(),
        client: about.client.to_string(),
        key_id: about.key.as_ref().map(|key| key.id.hex()),
        hint: about.key.as_ref().map(|key| key.hint.clone()),
        subject: about.subject.clone(),
        request_id: about.request_id.clone(),
        upstream: about.upstream.map(|server| server.to_string()),
    }
}

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

/// See the streams that are open on this replica, the oldest first
#[utoipa::path(get, path = "/admin/api/streams", tag = "streams", security(("bearer" = ["read"])), params(Page), responses((status = 200, body = List<Stream>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>, Asked(page): Asked<Page>) -> Answer<Json<List<Stream>>> {
    let (streams, limit) = (&api.shared.metrics.streams, limit(page.limit)? as usize);
    let found = streams.list(mark(page.cursor.as_deref())?.unwrap_or(0), limit);
    let next = found.last().filter(|_| found.len() == limit).map(|(id, _)| cursor(id));
    let total = u64::try_from(streams.open.get()).ok();
    Ok(Json(List { items: found.iter().map(|(id, about)| shown(*id, about)).collect(), next, total }))
}

/// End a stream
///
/// Its client gets an error event, where one can stand.
#[utoipa::path(delete, path = "/admin/api/streams/{id}", tag = "streams", security(("bearer" = ["streams"])), params(("id" = u64, Path, description = "The stream's number.")),
    responses((status = 200, body = Stream), Problems))]
pub async fn end(State(api): State<Arc<Api>>, May(caller): May<STREAMS>, Part(id): Part) -> Answer<Json<Stream>> {
    let id = id.parse().map_err(|_| Problem::missing("a stream's number is a whole number"))?;
    let about = api.shared.metrics.streams.end(id).ok_or_else(|| Problem::missing(format!("no stream {id} is open on this replica")))?;
    tracing::info!(by = caller.actor.who, client = %about.client, route = about.route, "a stream was ended");
    let shown = shown(id, &about);
    let target = about.request_id.clone().unwrap_or_else(|| id.to_string());
    api.store.desk().note_down(line("stream.ended", &target, serde_json::to_value(&shown).ok()), &caller.actor).await?;
    Ok(Json(shown))
}
