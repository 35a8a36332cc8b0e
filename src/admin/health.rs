//! Health and metrics: put together from what others know. They need no sign-in.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{Api, ApiState};
use crate::compile::Snapshot;
use crate::upstream::Status;

/// A store that takes longer counts as away.
const STORE_TIME_MAX: Duration = Duration::from_secs(2);

/// The routes.
pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/health/live", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/health/ready", get(ready))
}

async fn metrics(State(known): State<Arc<Api>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], known.shared.metrics.text())
}

/// Whether the store answers, and could write a first use.
pub async fn store_state(known: &Api) -> Result<(), String> {
    match tokio::time::timeout(STORE_TIME_MAX, known.store.state()).await {
        Ok(state) => state,
        Err(_) => Err("does not answer".into()),
    }
}

/// An upstream.
#[derive(Serialize, ToSchema)]
pub struct UpstreamHealth {
    /// Its name.
    name: String,
    /// `ok`, `degraded` (some servers do not work) or `down` (none works).
    status: &'static str,
    /// Its servers.
    servers: usize,
    /// Those that are well.
    well: usize,
}

/// The upstreams of the configuration in force.
pub fn upstreams(snapshot: &Snapshot) -> Vec<UpstreamHealth> {
    let all = snapshot.upstreams.iter().map(|upstream| {
        let health = upstream.health();
        let (name, status) = (upstream.name.to_string(), health.status().as_str());
        UpstreamHealth { name, status, servers: health.servers, well: health.working }
    });
    all.collect()
}

fn is_down(upstream: &UpstreamHealth) -> bool {
    upstream.status == Status::Down.as_str()
}

/// All in one word: `down` if no upstream has a server that works, `degraded` if one has none or the store is away.
pub fn overall(store_ok: bool, upstreams: &[UpstreamHealth]) -> Status {
    if !upstreams.is_empty() && upstreams.iter().all(is_down) {
        Status::Down
    } else if !store_ok || upstreams.iter().any(is_down) {
        Status::Degraded
    } else {
        Status::Ok
    }
}

/// Whether requests should be sent here. Not for an upstream's failure: all replicas would be taken out at once, and the client
/// would get the balancer's error instead of one in the API's shape. It is named all the same.
async fn ready(State(known): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let stopping = known.replica.is_stopping();
    match (stopping, store_state(&known).await) {
        (false, Ok(())) => {
            let down: Vec<String> = upstreams(&known.shared.snapshot.load()).into_iter().filter(is_down).map(|one| one.name).collect();
            let mut said = json!({ "status": "ok" });
            if let (false, Some(fields)) = (down.is_empty(), said.as_object_mut()) {
                fields.insert("upstreams_down".into(), down.into());
            }
            (StatusCode::OK, Json(said))
        }
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "stopping" }))),
        (false, Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "store", "error": error }))),
    }
}

/// All that is known of how things are. Always 200: it is to be read, not to be acted on.
async fn health(State(known): State<Arc<Api>>) -> Json<Value> {
    let upstreams = upstreams(&known.shared.snapshot.load());
    let store = store_state(&known).await;
    Json(json!({
        "status": overall(store.is_ok(), &upstreams).as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "stopping": known.replica.is_stopping(),
        "maintenance": known.shared.live.in_maintenance(),
        "store": { "ok": store.is_ok(), "error": store.err(), "notifications": known.store.hears() },
        "redis": known.store.redis_state(),
        "upstreams": upstreams,
        "open_streams": known.shared.metrics.streams.open.get(),
        "connections": known.shared.metrics.connections.get(),
        "last_reload": known.shared.metrics.last_reload.get(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_for_all() {
        let upstream = |status: Status| UpstreamHealth { name: "u".into(), status: status.as_str(), servers: 2, well: 0 };
        for (store, upstreams, status) in [
            (true, vec![], Status::Ok),
            (false, vec![], Status::Degraded),
            (true, vec![Status::Ok, Status::Degraded], Status::Ok),
            (true, vec![Status::Ok, Status::Down], Status::Degraded),
            (false, vec![Status::Ok], Status::Degraded),
            (true, vec![Status::Down, Status::Down], Status::Down),
        ] {
            let all: Vec<_> = upstreams.iter().copied().map(upstream).collect();
            assert_eq!(overall(store, &all), status, "{store} {upstreams:?}");
        }
    }
}
