//! `keylatch health`: the state of the process that runs here, for container engines, scripts and operators. Its exit codes are an
//! interface: docs/explanation/upstreams.md lists them.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::terminal::say;
use super::{ConfigFile, admin_client};

const DEGRADED: u8 = 3;
const DOWN: u8 = 4;

#[derive(Args)]
pub struct Health {
    #[command(flatten)]
    file: ConfigFile,
    /// Only whether requests should be sent to it: not while it stops, or its store is away
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// Only whether it answers
    #[arg(long)]
    live: bool,
}

/// Exit code 0: ok. 1: it does not run, does not answer, or is not ready. 3: degraded. 4: down.
pub fn health(asked: &Health) -> Result<ExitCode, String> {
    let path = match (asked.ready, asked.live) {
        (true, _) => "/health/ready",
        (_, true) => "/health/live",
        _ => "/health",
    };
    let call = admin_client::Call { method: Method::GET, path, query: "", body: None, version: None };
    let said = call.carry_out(&asked.file.config).map_err(|error| format!("not well: {error}"))?;
    let status = said["status"].as_str().unwrap_or("ok");
    say!("{status}")?;
    problems(&said).into_iter().try_for_each(|problem| say!("{problem}"))?;
    Ok(match status {
        "degraded" => ExitCode::from(DEGRADED),
        "down" => ExitCode::from(DOWN),
        _ => ExitCode::SUCCESS,
    })
}

fn problems(said: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(error) = said["store"]["error"].as_str() {
        problems.push(format!("store: {error}"));
    }
    if said["store"]["notifications"] == false {
        problems.push("store: changes made by other processes take up to 30 s; `keylatch doctor` tells why".into());
    }
    if said["redis"]["ok"] == false {
        let errors: Vec<&str> = said["redis"]["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        problems.push(match errors.is_empty() {
            true => "redis: does not answer".into(),
            false => format!("redis: errors of the kind {}", errors.join(", ")),
        });
    }
    for upstream in said["upstreams"].as_array().into_iter().flatten().filter(|upstream| upstream["status"] != "ok") {
        let (name, status) = (upstream["name"].as_str().unwrap_or_default(), upstream["status"].as_str().unwrap_or_default());
        problems.push(format!("upstream {name}: {status}, {} of {} servers work", upstream["well"], upstream["servers"]));
    }
    for name in said["upstreams_down"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        problems.push(format!("upstream {name}: down"));
    }
    problems
}
