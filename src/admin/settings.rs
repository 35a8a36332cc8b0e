//! Handlers for live settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Api;
use super::accounts::precise;
use super::extract::{Body, IfMatch, May, PathParam, READ, SETTINGS, etag};
use super::paging::ListPage;
use super::problem::{Answer, Problem, Problems};
use crate::operator::settings;
use crate::settings::Shown;

/// All live settings.
#[derive(Serialize, ToSchema)]
pub struct Settings {
    /// The settings, ordered by name.
    items: Vec<Shown>,
    /// The common version of all settings, for `If-Match`.
    version: i64,
}

/// A response with all settings.
type AllSettings = ([(HeaderName, String); 1], Json<Settings>);

async fn all(api: &Api) -> Answer<AllSettings> {
    let snapshot = api.shared.snapshot.load();
    let (items, version) = settings::list(&api.store, &snapshot.settings, &snapshot.written).await?;
    Ok((etag(version), Json(Settings { items, version })))
}

/// List live settings
#[utoipa::path(get, path = "/admin/api/settings", tag = "settings", security(("bearer" = ["read"])), responses((status = 200, body = Settings), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>) -> Answer<AllSettings> {
    all(&api).await
}

/// New values of settings, by name.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// The values to set; `null` reverts a setting to the configuration file.
    #[schema(example = json!({ "maintenance": true, "retention.audit": "90days", "alerts.intercepts.count": null }))]
    values: BTreeMap<String, Value>,
}

/// Change settings on every replica
///
/// All changes apply, or none. Secrets are stored encrypted and cannot be read.
#[utoipa::path(put, path = "/admin/api/settings", tag = "settings", security(("bearer" = ["settings"])), request_body = Values,
    params(("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")), responses((status = 200, body = Settings), Problems))]
pub async fn change(
    State(api): State<Arc<Api>>,
    May(caller): May<SETTINGS>,
    IfMatch(expects): IfMatch,
    Body(input): Body<Values>,
) -> Answer<AllSettings> {
    let values: Vec<(String, Value)> = input.values.into_iter().collect();
    let changed = settings::change(&api.store, api.shared.live.sealer(), &values, expects, &caller.actor).await;
    changed.map_err(|fault| precise(fault.into(), expects))?;
    all(&api).await
}

/// The result of a test message to a webhook.
#[derive(Serialize, ToSchema)]
pub struct Tested {
    /// The webhook's name; `live setting` for the one set here.
    webhook: String,
    /// Why the delivery failed; `null` if it succeeded.
    error: Option<String>,
}

/// Send a test alert to all webhooks
#[utoipa::path(post, path = "/admin/api/alerts/test", tag = "settings", security(("bearer" = ["settings"])), responses((status = 200, body = ListPage<Tested>), Problems))]
pub async fn test_alerts(State(api): State<Arc<Api>>, May(_caller): May<SETTINGS>) -> Answer<Json<ListPage<Tested>>> {
    // Settings changed a moment ago must apply to the test.
    api.shared.live.refresh(&api.store).await;
    let (alerts, _) = api.shared.live.alerts(&api.shared.snapshot.load().alerts);
    let outcomes = alerts.test().await;
    Ok(Json(ListPage::all(outcomes.into_iter().map(|(webhook, sent)| Tested { webhook, error: sent.err() }).collect())))
}

/// Revert a setting to the configuration file
#[utoipa::path(delete, path = "/admin/api/settings/{name}", tag = "settings", security(("bearer" = ["settings"])),
    params(("name" = String, Path, description = "The setting's name."), ("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")),
    responses((status = 200, body = Settings), Problems))]
pub async fn revert(
    State(api): State<Arc<Api>>,
    May(caller): May<SETTINGS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
) -> Answer<AllSettings> {
    crate::settings::named(&name).map_err(Problem::missing)?;
    let reverted = settings::change(&api.store, api.shared.live.sealer(), &[(name, Value::Null)], expects, &caller.actor).await;
    reverted.map_err(|fault| precise(fault.into(), expects))?;
    all(&api).await
}
