//! `keylatch health`: whether the process that runs here is well, for container engines and scripts.

use clap::Args;
use http::Method;

use super::terminal::say;
use super::{ConfigFile, here};

#[derive(Args)]
pub struct Health {
    #[command(flatten)]
    file: ConfigFile,
    /// Whether requests should be sent to it: not while it stops, or its store is away
    #[arg(long)]
    ready: bool,
}

pub fn health(asked: &Health) -> Result<(), String> {
    let path = if asked.ready { "/health/ready" } else { "/health/live" };
    let call = here::Call { method: Method::GET, path, query: "", body: None, version: None };
    let said = call.carry_out(&asked.file.config).map_err(|error| format!("not well: {error}"))?;
    say!("{}", said["status"].as_str().unwrap_or("ok"))
}
