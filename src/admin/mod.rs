//! The admin listener: health and metrics. Handlers only put together what others know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::proxy::Shared;
use crate::store::Store;

/// A store that takes longer counts as away.
const STORE_TIME_MAX: Duration = Duration::from_secs(2);

/// What the handlers ask.
#[derive(Clone)]
pub struct Known {
    /// Snapshot and metrics.
    pub shared: Arc<Shared>,
    /// The store.
    pub store: Arc<Store>,
    /// Set once the process has begun to stop.
    pub stopping: Arc<AtomicBool>,
}

/// The routes.
pub fn router(known: Known) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/health/live", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/health/ready", get(ready))
        .with_state(known)
}

async fn metrics(State(known): State<Known>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], known.shared.metrics.text())
}

async fn store_state(known: &Known) -> Result<(), String> {
    match tokio::time::timeout(STORE_TIME_MAX, known.store.ping()).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("does not answer".into()),
    }
}

/// Whether requests should be sent here.
async fn ready(State(known): State<Known>) -> (StatusCode, Json<Value>) {
    let stopping = known.stopping.load(Ordering::Relaxed);
    match (stopping, store_state(&known).await) {
        (false, Ok(())) => (StatusCode::OK, Json(json!({ "status": "ok" }))),
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "stopping" }))),
        (false, Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "store", "error": error }))),
    }
}

/// All that is known of how things are. Always 200: it is to be read, not to be acted on.
async fn health(State(known): State<Known>) -> Json<Value> {
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
        "stopping": known.stopping.load(Ordering::Relaxed),
        "maintenance": known.shared.live.in_maintenance(),
        "store": { "ok": store.is_ok(), "error": store.err() },
        "redis": known.store.shares().map(|ok| json!({ "ok": ok })),
        "upstreams": upstreams,
        "open_streams": known.shared.metrics.streams.open.get(),
        "connections": known.shared.metrics.connections.get(),
        "last_reload": known.shared.metrics.last_reload.get(),
    }))
}
