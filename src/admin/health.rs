//! Health and metrics: put together from what others know. They need no sign-in.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Api, Known};

/// A store that takes longer counts as away.
const STORE_TIME_MAX: Duration = Duration::from_secs(2);

/// The routes.
pub fn routes() -> Router<Known> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/health/live", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/health/ready", get(ready))
}

async fn metrics(State(known): State<Arc<Api>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], known.shared.metrics.text())
}

/// Whether the store answers.
pub async fn store_state(known: &Api) -> Result<(), String> {
    match tokio::time::timeout(STORE_TIME_MAX, known.store.ping()).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("does not answer".into()),
    }
}

/// Whether requests should be sent here.
async fn ready(State(known): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let stopping = known.replica.is_stopping();
    match (stopping, store_state(&known).await) {
        (false, Ok(())) => (StatusCode::OK, Json(json!({ "status": "ok" }))),
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "stopping" }))),
        (false, Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "store", "error": error }))),
    }
}

/// All that is known of how things are. Always 200: it is to be read, not to be acted on.
async fn health(State(known): State<Arc<Api>>) -> Json<Value> {
    let snapshot = known.shared.snapshot.load();
    let upstreams: Vec<Value> = snapshot
        .upstreams
        .iter()
        .map(|upstream| {
            let (servers, well) = upstream.health();
            json!({ "name": &*upstream.name, "servers": servers, "well": well })
        })
        .collect();
    let store = store_state(&known).await;
    Json(json!({
        "status": if store.is_ok() { "ok" } else { "degraded" },
        "version": env!("CARGO_PKG_VERSION"),
        "stopping": known.replica.is_stopping(),
        "maintenance": known.shared.live.in_maintenance(),
        "store": { "ok": store.is_ok(), "error": store.err() },
        "redis": known.store.shares().map(|ok| json!({ "ok": ok })),
        "upstreams": upstreams,
        "open_streams": known.shared.metrics.streams.open.get(),
        "connections": known.shared.metrics.connections.get(),
        "last_reload": known.shared.metrics.last_reload.get(),
    }))
}
