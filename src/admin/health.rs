//! Health checks and metrics. They require no sign-in.

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

/// Timeout for the health check of the store.
const STORE_TIME_MAX: Duration = Duration::from_secs(2);

/// The routes of health checks and metrics.
pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/health/live", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/health/ready", get(ready))
}

async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.shared.metrics.text())
}

/// Whether the store answers, and accepts writes.
pub async fn store_state(api: &Api) -> Result<(), String> {
    match tokio::time::timeout(STORE_TIME_MAX, api.store.state()).await {
        Ok(state) => state,
        Err(_) => Err("does not answer".into()),
    }
}

/// The health of an upstream.
#[derive(Serialize, ToSchema)]
pub struct UpstreamHealth {
    /// Its name.
    name: String,
    /// `ok`, `degraded` (some servers fail) or `down` (all fail).
    status: &'static str,
    /// Number of servers.
    servers: usize,
    /// Number of working servers.
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

/// `down` if no upstream has a working server, `degraded` if one has none or the store is unavailable, else `ok`.
pub fn overall(store_ok: bool, upstreams: &[UpstreamHealth]) -> Status {
    if !upstreams.is_empty() && upstreams.iter().all(is_down) {
        Status::Down
    } else if !store_ok || upstreams.iter().any(is_down) {
        Status::Degraded
    } else {
        Status::Ok
    }
}

/// Whether a load balancer should send requests here. Upstream failures do not count: all replicas would be removed at once,
/// and clients would get the balancer's error instead of one in the API's shape. The response still names them.
async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let stopping = api.replica.is_stopping();
    match (stopping, store_state(&api).await) {
        (false, Ok(())) => {
            let down: Vec<String> = upstreams(&api.shared.snapshot.load()).into_iter().filter(is_down).map(|one| one.name).collect();
            let mut body = json!({ "status": "ok" });
            if let (false, Some(fields)) = (down.is_empty(), body.as_object_mut()) {
                fields.insert("upstreams_down".into(), down.into());
            }
            (StatusCode::OK, Json(body))
        }
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "stopping" }))),
        (false, Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "store", "error": error }))),
    }
}

/// The complete health report. The status is always 200: it is for people, not for load balancers.
async fn health(State(api): State<Arc<Api>>) -> Json<Value> {
    let upstreams = upstreams(&api.shared.snapshot.load());
    let store = store_state(&api).await;
    Json(json!({
        "status": overall(store.is_ok(), &upstreams).as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "stopping": api.replica.is_stopping(),
        "maintenance": api.shared.live.in_maintenance(),
        "store": { "ok": store.is_ok(), "error": store.err(), "notifications": api.store.notifications_work() },
        "redis": api.store.redis_state(),
        "upstreams": upstreams,
        "open_streams": api.shared.metrics.streams.open.get(),
        "connections": api.shared.metrics.connections.get(),
        "last_reload": api.shared.metrics.last_reload.get(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overall_status() {
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
