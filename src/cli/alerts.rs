//! `keylatch alerts`: tests the delivery of alerts to webhooks.

use clap::{Args, Subcommand};

use super::{ConfigFile, on_runtime};
use crate::cli::terminal::outln;
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
    /// Send a test alert to every webhook and print the outcome
    Test,
}

pub fn alerts(args: &Alerts) -> Result<(), String> {
    let parsed = parse_file(&args.file.config).map_err(|report| report.to_string())?;
    let snapshot = Compiler::new(check_ports()).compile(parsed).map_err(|report| report.to_string())?;
    let Command::Test = args.command;
    let outcomes = on_runtime(async { Ok(snapshot.alerts.test().await) })?;
    if outcomes.is_empty() {
        return Err("no webhook is configured; add one to `alerts.webhooks`".into());
    }
    for (name, outcome) in &outcomes {
        outln!("{name}: {}", outcome.as_ref().err().map_or("accepted", String::as_str))?;
    }
    if outcomes.iter().all(|(_, outcome)| outcome.is_ok()) { Ok(()) } else { Err("not every webhook accepted the test alert".into()) }
}
