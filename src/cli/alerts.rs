//! `keylatch alerts`: whether alerts arrive.

use clap::{Args, Subcommand};

use super::{ConfigFile, on_runtime};
use crate::cli::terminal::say;
use crate::compile::{Compiler, check_ports};
use crate::config::parse_file;

#[derive(Args)]
pub struct Alerts {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send a test to every webhook, now, and say what came of it
    Test,
}

pub fn alerts(asked: &Alerts) -> Result<(), String> {
    let parsed = parse_file(&asked.file.config).map_err(|report| report.to_string())?;
    let snapshot = Compiler::new(check_ports()).compile(parsed).map_err(|report| report.to_string())?;
    let Command::Test = asked.command;
    let outcomes = on_runtime(async { Ok(snapshot.alerts.test().await) })?;
    if outcomes.is_empty() {
        return Err("no webhook is configured; see alerts.webhooks".into());
    }
    for (name, outcome) in &outcomes {
        say!("{name}: {}", outcome.as_ref().err().map_or("taken", String::as_str))?;
    }
    if outcomes.iter().all(|(_, outcome)| outcome.is_ok()) { Ok(()) } else { Err("not every webhook has taken it".into()) }
}
