//! What would become of a request.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Api;
use super::extract::{Body, May, READ};
use super::problem::{Answer, Problems};
use crate::operator::explain::{Asks, Explanation, Question, explain as explained};

/// Explain what would become of a request
///
/// By the configuration, the bindings and the counts in force. Nothing is sent upstream, counted or bound; services that
/// filters ask about a request, such as an introspection endpoint, are asked.
#[utoipa::path(post, path = "/admin/api/explain", tag = "configuration", security(("bearer" = ["read"])), request_body = Question, responses((status = 200, body = Explanation), Problems))]
pub async fn explain(State(api): State<Arc<Api>>, May(_caller): May<READ>, Body(question): Body<Question>) -> Answer<Json<Explanation>> {
    let snapshot = api.shared.snapshot.load_full();
    Ok(Json(explained(&snapshot, &question, Asks::Stores).await?))
}
