//! Handlers for the configuration file: show, check, reload.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::audit::line;
use super::extract::{Body, CONFIG, May, READ};
use super::problem::{Answer, Problem, Problems};
use super::time::rfc3339;
use crate::config::Report;

/// The configuration in force.
#[derive(Serialize, ToSchema)]
pub struct Configuration {
    /// The path of the file.
    path: String,
    /// The parsed configuration as YAML, with secrets masked.
    yaml: String,
    /// Number of configurations loaded since the start, including the first.
    generation: u64,
    /// When this configuration took effect.
    #[schema(format = DateTime)]
    loaded_at: String,
    /// The last reload.
    last_reload: LastReload,
}

/// The result of the last reload.
#[derive(Serialize, ToSchema)]
pub struct LastReload {
    /// Its time.
    #[schema(format = DateTime)]
    at: String,
    /// Whether it succeeded.
    ok: bool,
    /// The result in words.
    message: String,
    /// Errors in the file, if it was rejected.
    mistakes: Vec<Mistake>,
}

/// An error in a configuration.
#[derive(Clone, Serialize, ToSchema)]
pub struct Mistake {
    /// The line, from 1; `null` for an error of the file as a whole.
    line: Option<usize>,
    /// The column, from 1.
    column: Option<usize>,
    /// The position in the configuration, such as `routes[0].upstream`.
    place: String,
    /// What is wrong, and how to correct it.
    message: String,
}

fn mistakes(report: &Report) -> Vec<Mistake> {
    let mistake = |mistake: &crate::config::Mistake| Mistake {
        line: (mistake.line > 0).then_some(mistake.line),
        column: (mistake.line > 0).then_some(mistake.column),
        place: mistake.place.clone(),
        message: mistake.message.clone(),
    };
    report.mistakes().iter().map(mistake).collect()
}

/// Get the configuration in force
#[utoipa::path(get, path = "/admin/api/config", tag = "configuration", security(("bearer" = ["read"])), responses((status = 200, body = Configuration), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(_caller): May<READ>) -> Json<Configuration> {
    let snapshot = api.shared.snapshot.load();
    let last = api.reloader.last();
    Json(Configuration {
        path: api.path.display().to_string(),
        yaml: snapshot.masked.clone(),
        generation: last.generation,
        loaded_at: rfc3339(last.loaded_ms),
        last_reload: LastReload {
            at: rfc3339(last.at_ms),
            ok: last.outcome.is_ok(),
            message: last.outcome.as_ref().map_or_else(ToString::to_string, Clone::clone),
            mistakes: last.outcome.as_ref().err().map(mistakes).unwrap_or_default(),
        },
    })
}

/// A configuration to check.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The YAML. Default: the content of the file.
    yaml: Option<String>,
}

/// The result of a check.
#[derive(Serialize, ToSchema)]
pub struct Checked {
    /// Whether the configuration is valid.
    ok: bool,
    /// Errors in the configuration.
    mistakes: Vec<Mistake>,
}

/// Check a configuration
#[utoipa::path(post, path = "/admin/api/config/check", tag = "configuration", security(("bearer" = ["config"])), request_body = Text, responses((status = 200, body = Checked), Problems))]
pub async fn check(State(api): State<Arc<Api>>, May(_caller): May<CONFIG>, Body(input): Body<Text>) -> Answer<Json<Checked>> {
    let reloader = Arc::clone(&api.reloader);
    let checked = tokio::task::spawn_blocking(move || reloader.check(input.yaml.as_deref())).await;
    let checked = checked.map_err(|_| Problem::unreadable("the check of the configuration failed unexpectedly; see the log"))?;
    Ok(Json(Checked { ok: checked.is_ok(), mistakes: checked.err().as_ref().map(mistakes).unwrap_or_default() }))
}

/// The result in words.
#[derive(Serialize, ToSchema)]
pub struct Reloaded {
    /// The result in words.
    message: String,
}

/// Reload the configuration file on this replica
#[utoipa::path(post, path = "/admin/api/config/reload", tag = "configuration", security(("bearer" = ["config"])), responses((status = 200, body = Reloaded), Problems))]
pub async fn reload(State(api): State<Arc<Api>>, May(caller): May<CONFIG>) -> Answer<Json<Reloaded>> {
    let outcome = api.reloader.reload().await;
    let after = serde_json::json!({ "replica": api.replica.name(), "taken": outcome.is_ok() });
    // A failed audit entry does not undo the reload.
    let noted =
        api.store.admin_store().write_audit(line("config.reloaded", &api.path.display().to_string(), Some(after)), &caller.actor).await;
    if let Err(error) = noted {
        tracing::warn!(%error, by = caller.actor.who, "cannot write a reload to the audit");
    }
    match outcome {
        Ok(message) => Ok(Json(Reloaded { message })),
        Err(why) => Err(Problem::refused(why)),
    }
}
