//! Who is near or over a limit.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::extract::{Body, LIMITS, May, READ};
use super::problem::{Answer, Problems};
use crate::operator::limits::{self, Limit};
use crate::operator::replica_questions::LimitSubject;

/// Whoever is near or over a limit.
#[derive(Serialize, ToSchema)]
pub struct Limits {
    /// First who is over, then who has used most.
    items: Vec<Limit>,
    /// All are here; otherwise a replica knows of more than 1,000.
    complete: bool,
    /// Replicas that have not answered: what they count is missing.
    silent: Vec<String>,
}

/// Who is near or over a limit?
///
/// On all replicas: who has used at least four fifths of what there is at once.
#[utoipa::path(get, path = "/admin/api/limits", tag = "limits", security(("bearer" = ["read"])), responses((status = 200, body = Limits), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>) -> Answer<Json<Limits>> {
    let limits::All { limits: items, complete, silent } = limits::list(&api.everywhere).await?;
    Ok(Json(Limits { items, complete, silent }))
}

/// Give back what somebody has used of a limit
///
/// On all replicas; a block ends with it.
#[utoipa::path(post, path = "/admin/api/limits/reset", tag = "limits", security(("bearer" = ["limits"])), request_body = LimitSubject, responses((status = 204, description = "Given back."), Problems))]
pub async fn reset(State(api): State<Arc<Api>>, May(caller): May<LIMITS>, Body(which): Body<LimitSubject>) -> Answer<StatusCode> {
    limits::give_back(&api.everywhere, &which, &caller.actor).await?;
    Ok(StatusCode::NO_CONTENT)
}
