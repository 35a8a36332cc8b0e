//! Handlers for the usage of limits.

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
use crate::operator::replica_query::LimitSubject;

/// Subjects near or over a limit.
#[derive(Serialize, ToSchema)]
pub struct Limits {
    /// Subjects over a limit first, then by usage.
    items: Vec<Limit>,
    /// False if a replica has more than 1,000 entries and reported only the largest.
    complete: bool,
    /// Replicas that did not answer in time; their counts are missing.
    silent: Vec<String>,
}

/// List subjects near or over a limit
///
/// Covers all replicas: subjects that have used at least four fifths of a limit's capacity.
#[utoipa::path(get, path = "/admin/api/limits", tag = "limits", security(("bearer" = ["read"])), responses((status = 200, body = Limits), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>) -> Answer<Json<Limits>> {
    let limits::LimitList { limits: items, complete, silent } = limits::list(&api.rpc).await?;
    Ok(Json(Limits { items, complete, silent }))
}

/// Reset the usage of a limit
///
/// Applies to one subject on all replicas, and ends a block.
#[utoipa::path(post, path = "/admin/api/limits/reset", tag = "limits", security(("bearer" = ["limits"])), request_body = LimitSubject, responses((status = 204, description = "The usage was reset."), Problems))]
pub async fn reset(State(api): State<Arc<Api>>, May(caller): May<LIMITS>, Body(which): Body<LimitSubject>) -> Answer<StatusCode> {
    limits::reset(&api.rpc, &which, &caller.actor).await?;
    Ok(StatusCode::NO_CONTENT)
}
