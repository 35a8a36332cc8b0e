//! `keylatch health`: reports the health of the running process to container engines, scripts and operators.
//!
//! The exit codes are a public interface; docs/explanation/upstreams.md lists them.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::terminal::outln;
use super::{ConfigFile, admin_client};

const DEGRADED: u8 = 3;
const DOWN: u8 = 4;

#[derive(Args)]
pub struct Health {
    #[command(flatten)]
    file: ConfigFile,
    /// Check readiness only. The process is not ready while it stops or its store is unavailable
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// Check only that the process answers
    #[arg(long)]
    live: bool,
}

/// Exit codes: 0 ok; 1 not running, no answer, or not ready; 3 degraded; 4 down.
pub fn health(args: &Health) -> Result<ExitCode, String> {
    let path = match (args.ready, args.live) {
        (true, _) => "/health/ready",
        (_, true) => "/health/live",
        _ => "/health",
    };
    let call = admin_client::Call { method: Method::GET, path, query: "", body: None, version: None };
    let health = call.send(&args.file.config).map_err(|error| format!("unhealthy: {error}"))?;
    let status = health["status"].as_str().unwrap_or("ok");
    outln!("{status}")?;
    problems(&health).into_iter().try_for_each(|problem| outln!("{problem}"))?;
    Ok(match status {
        "degraded" => ExitCode::from(DEGRADED),
        "down" => ExitCode::from(DOWN),
        _ => ExitCode::SUCCESS,
    })
}

fn problems(health: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(error) = health["store"]["error"].as_str() {
        problems.push(format!("store: {error}"));
    }
    if health["store"]["notifications"] == false {
        problems.push("store: notifications are down, so changes by other processes take up to 30 s; see `keylatch doctor`".into());
    }
    if health["redis"]["ok"] == false {
        let errors: Vec<&str> = health["redis"]["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        problems.push(match errors.is_empty() {
            true => "redis: no answer".into(),
            false => format!("redis: errors of kind {}", errors.join(", ")),
        });
    }
    for upstream in health["upstreams"].as_array().into_iter().flatten().filter(|upstream| upstream["status"] != "ok") {
        let (name, status) = (upstream["name"].as_str().unwrap_or_default(), upstream["status"].as_str().unwrap_or_default());
        problems.push(format!("upstream {name}: {status}, {} of {} servers are healthy", upstream["well"], upstream["servers"]));
    }
    for name in health["upstreams_down"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        problems.push(format!("upstream {name}: down"));
    }
    problems
}
