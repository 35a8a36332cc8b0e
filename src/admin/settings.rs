//! Live settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Api;
use super::extract::{Body, May, Part, READ, SETTINGS};
use super::problem::{Answer, Problem, Problems};
use crate::live::{self, Shown};
use crate::service::settings;

/// All of them.
#[derive(Serialize, ToSchema)]
pub struct Settings {
    /// By name.
    items: Vec<Shown>,
}

async fn all(api: &Api) -> Answer<Json<Settings>> {
    let snapshot = api.shared.snapshot.load();
    Ok(Json(Settings { items: settings::list(&api.store, &snapshot.settings, &snapshot.written).await? }))
}

/// See what can be changed while it runs
#[utoipa::path(get, path = "/admin/api/settings", tag = "settings", security(("bearer" = ["read"])), responses((status = 200, body = Settings), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<READ>) -> Answer<Json<Settings>> {
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
/// All are checked before the first is changed.
#[utoipa::path(put, path = "/admin/api/settings", tag = "settings", security(("bearer" = ["settings"])), request_body = Values, responses((status = 200, body = Settings), Problems))]
pub async fn change(State(api): State<Arc<Api>>, May(caller): May<SETTINGS>, Body(asked): Body<Values>) -> Answer<Json<Settings>> {
    for (name, value) in &asked.values {
        let field = || format!("values.{name}");
        let setting = live::named(name).map_err(|why| Problem::invalid(field(), why))?;
        if !value.is_null() {
            setting.kind.check(value).map_err(|why| Problem::invalid(field(), why))?;
        }
    }
    for (name, value) in asked.values {
        match value {
            Value::Null => settings::revert(&api.store, &name, &caller.actor).await?,
            value => settings::set(&api.store, &name, value, &caller.actor).await?,
        }
    }
    all(&api).await
}

/// Give a setting back to the file
#[utoipa::path(delete, path = "/admin/api/settings/{name}", tag = "settings", security(("bearer" = ["settings"])), params(("name" = String, Path, description = "The setting's name.")),
    responses((status = 200, body = Settings), Problems))]
pub async fn revert(State(api): State<Arc<Api>>, May(caller): May<SETTINGS>, Part(name): Part) -> Answer<Json<Settings>> {
    settings::revert(&api.store, &name, &caller.actor).await?;
    all(&api).await
}
