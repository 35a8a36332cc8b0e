//! Live settings.

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

/// All of them.
#[derive(Serialize, ToSchema)]
pub struct Settings {
    /// By name.
    items: Vec<Shown>,
    /// Of all of them, for `If-Match`.
    version: i64,
}

/// What an answer has.
type All = ([(HeaderName, String); 1], Json<Settings>);

async fn all(api: &Api) -> Answer<All> {
    let snapshot = api.shared.snapshot.load();
    let (items, version) = settings::list(&api.store, &snapshot.settings, &snapshot.written).await?;
    Ok((etag(version), Json(Settings { items, version })))
}

/// See what can be changed while it runs
#[utoipa::path(get, path = "/admin/api/settings", tag = "settings", security(("bearer" = ["read"])), responses((status = 200, body = Settings), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>) -> Answer<All> {
    all(&api).await
}

/// Settings by their names.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// What to set; `null` gives a setting back to the file.
    #[schema(example = json!({ "maintenance": true, "retention.audit": "90days", "alerts.intercepts.count": null }))]
    values: BTreeMap<String, Value>,
}

/// Change settings, on every replica
///
/// All of them or none. Secrets among them are stored encrypted, and shown to nobody.
#[utoipa::path(put, path = "/admin/api/settings", tag = "settings", security(("bearer" = ["settings"])), request_body = Values,
    params(("If-Match" = Option<String>, Header, description = "The `ETag` of what was looked at.")), responses((status = 200, body = Settings), Problems))]
pub async fn change(
    State(api): State<Arc<Api>>,
    May(caller): May<SETTINGS>,
    IfMatch(expects): IfMatch,
    Body(asked): Body<Values>,
) -> Answer<All> {
    let values: Vec<(String, Value)> = asked.values.into_iter().collect();
    let changed = settings::change(&api.store, api.shared.live.sealer(), &values, expects, &caller.actor).await;
    changed.map_err(|fault| precise(fault.into(), expects))?;
    all(&api).await
}

/// What a webhook has done with a test.
#[derive(Serialize, ToSchema)]
pub struct Tested {
    /// The webhook's name; `live setting`: the one that is set here.
    webhook: String,
    /// Why it was not taken; `null`: it was.
    error: Option<String>,
}

/// Send a test to where alerts go
#[utoipa::path(post, path = "/admin/api/alerts/test", tag = "settings", security(("bearer" = ["settings"])), responses((status = 200, body = ListPage<Tested>), Problems))]
pub async fn test_alerts(State(api): State<Arc<Api>>, May(_caller): May<SETTINGS>) -> Answer<Json<ListPage<Tested>>> {
    // What was set a moment ago counts.
    api.shared.live.refresh(&api.store).await;
    let (alerts, _) = api.shared.live.alerts(&api.shared.snapshot.load().alerts);
    let outcomes = alerts.test().await;
    Ok(Json(ListPage::all(outcomes.into_iter().map(|(webhook, sent)| Tested { webhook, error: sent.err() }).collect())))
}

/// Give a setting back to the file
#[utoipa::path(delete, path = "/admin/api/settings/{name}", tag = "settings", security(("bearer" = ["settings"])),
    params(("name" = String, Path, description = "The setting's name."), ("If-Match" = Option<String>, Header, description = "The `ETag` of what was looked at.")),
    responses((status = 200, body = Settings), Problems))]
pub async fn revert(State(api): State<Arc<Api>>, May(caller): May<SETTINGS>, PathParam(name): PathParam, IfMatch(expects): IfMatch) -> Answer<All> {
    crate::settings::named(&name).map_err(Problem::missing)?;
    let reverted = settings::change(&api.store, api.shared.live.sealer(), &[(name, Value::Null)], expects, &caller.actor).await;
    reverted.map_err(|fault| precise(fault.into(), expects))?;
    all(&api).await
}
