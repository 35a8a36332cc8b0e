//! Handler that explains the outcome of a request.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Api;
use super::extract::{Body, May, READ};
use super::problem::{Answer, Problems};
use crate::operator::explain::{ExplainRequest, Explanation, Lookups, explain as explained};

/// Explain the outcome of a request
///
/// Uses the configuration, bindings and counts in force. Nothing is sent upstream, counted or bound. Services that filters
/// query about a request, such as an introspection endpoint, are queried.
#[utoipa::path(post, path = "/admin/api/explain", tag = "configuration", security(("bearer" = ["read"])), request_body = ExplainRequest, responses((status = 200, body = Explanation), Problems))]
pub async fn explain(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    Body(question): Body<ExplainRequest>,
) -> Answer<Json<Explanation>> {
    let snapshot = api.shared.snapshot.load_full();
    Ok(Json(explained(&snapshot, &question, Lookups::Live).await?))
}
