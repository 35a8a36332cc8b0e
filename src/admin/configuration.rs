//! The configuration file: what is in force, whether another would be, and taking it.

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

/// What is in force.
#[derive(Serialize, ToSchema)]
pub struct Configuration {
    /// The file.
    path: String,
    /// All of it as YAML, as it was understood; secrets are masked.
    yaml: String,
    /// How often a configuration was taken since the start, the first included.
    generation: u64,
    /// When this one was.
    #[schema(format = DateTime)]
    loaded_at: String,
    /// What came of the last attempt.
    last_reload: LastReload,
}

/// The last attempt to take the file.
#[derive(Serialize, ToSchema)]
pub struct LastReload {
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// Whether it was taken.
    ok: bool,
    /// What happened.
    message: String,
    /// What is wrong with it, if it was not.
    mistakes: Vec<Mistake>,
}

/// What is wrong, and where.
#[derive(Clone, Serialize, ToSchema)]
pub struct Mistake {
    /// The line, from 1 on; `null`: it is the file as a whole.
    line: Option<usize>,
    /// The column, from 1 on.
    column: Option<usize>,
    /// Where it stands, such as `routes[0].upstream`.
    place: String,
    /// What is wrong, and what to do.
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

/// See the configuration in force
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

/// A configuration that might be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The YAML; without it, what stands in the file now.
    yaml: Option<String>,
}

/// Whether a configuration would be taken.
#[derive(Serialize, ToSchema)]
pub struct Checked {
    /// It would.
    ok: bool,
    /// What is wrong with it.
    mistakes: Vec<Mistake>,
}

/// See whether a configuration would be taken
#[utoipa::path(post, path = "/admin/api/config/check", tag = "configuration", security(("bearer" = ["config"])), request_body = Text, responses((status = 200, body = Checked), Problems))]
pub async fn check(State(api): State<Arc<Api>>, May(_caller): May<CONFIG>, Body(asked): Body<Text>) -> Answer<Json<Checked>> {
    let reloader = Arc::clone(&api.reloader);
    let checked = tokio::task::spawn_blocking(move || reloader.check(asked.yaml.as_deref())).await;
    let checked = checked.map_err(|_| Problem::unreadable("the configuration cannot be looked at"))?;
    Ok(Json(Checked { ok: checked.is_ok(), mistakes: checked.err().as_ref().map(mistakes).unwrap_or_default() }))
}

/// What happened.
#[derive(Serialize, ToSchema)]
pub struct Reloaded {
    /// What happened.
    message: String,
}

/// Take the file, on this replica
#[utoipa::path(post, path = "/admin/api/config/reload", tag = "configuration", security(("bearer" = ["config"])), responses((status = 200, body = Reloaded), Problems))]
pub async fn reload(State(api): State<Arc<Api>>, May(caller): May<CONFIG>) -> Answer<Json<Reloaded>> {
    let outcome = api.reloader.reload().await;
    let after = serde_json::json!({ "replica": api.replica.name(), "taken": outcome.is_ok() });
    // The file is what counts: that it cannot be written down now does not undo it.
    let noted =
        api.store.admin_store().write_audit(line("config.reloaded", &api.path.display().to_string(), Some(after)), &caller.actor).await;
    if let Err(error) = noted {
        tracing::warn!(%error, by = caller.actor.who, "a reload is missing in the audit");
    }
    match outcome {
        Ok(message) => Ok(Json(Reloaded { message })),
        Err(why) => Err(Problem::refused(why)),
    }
}
