//! `keylatch explain`: what would become of a request, filter by filter, without sending or storing anything.

use crate::compile;
use std::net::IpAddr;
use std::path::Path;

use clap::Args;
use http::Method;

use super::{ConfigFile, admin_client, on_runtime};
use crate::cli::terminal::say;
use crate::compile::{Compiler, check_ports};
use crate::config::{Files, parse_file};
use crate::operator::explain::{ExplainRequest, Explanation, Lookups};
use crate::{bindings, control};

#[derive(Args)]
pub struct Explain {
    #[command(flatten)]
    file: ConfigFile,
    /// The address the connection comes from
    #[arg(long, value_name = "ADDRESS")]
    peer: IpAddr,
    /// A header field, as often as you like
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The method
    #[arg(long, default_value = "GET")]
    method: String,
    /// The path, with its query if you like
    #[arg(long, default_value = "/")]
    path: String,
    /// Ask no running process: judge by the file alone, without bindings and counts
    #[arg(long)]
    offline: bool,
}

pub fn explain(asked: &Explain) -> Result<(), String> {
    let Explain { file, peer, headers, method, path, offline } = asked;
    let question = ExplainRequest { peer: *peer, method: method.clone(), path: path.clone(), headers: headers.clone() };
    let config = &file.config;
    let explanation = match (offline, control::is_there(config)) {
        (false, true) => online(config, &question)?,
        (false, false) => {
            let why = "no process that runs this file was found: bindings and counts are not known";
            say!("source    the file alone; {why}")?;
            by_file(config, &question)?
        }
        (true, _) => by_file(config, &question)?,
    };
    explanation.lines.iter().try_for_each(|line| say!("{line}"))
}

/// As the running process says, by what it has compiled and stored.
fn online(config: &Path, question: &ExplainRequest) -> Result<Explanation, String> {
    say!("source    the running process; nothing is sent, counted or bound")?;
    let body = serde_json::to_value(question).map_err(|e| e.to_string())?;
    let said = admin_client::call(config, Method::POST, "/explain", &[], Some(&body))?;
    serde_json::from_value(said).map_err(|e| format!("the running process gave an answer that makes no sense: {e}"))
}

/// As the file says.
fn by_file(config: &Path, question: &ExplainRequest) -> Result<Explanation, String> {
    let parsed = parse_file(config).map_err(|report| report.to_string())?;
    let settings = compile::settings(parsed.clone()).map_err(|report| report.to_string())?;
    let mut ports = check_ports();
    match bindings::known_hasher(&settings, &Files::beside(config)) {
        Ok(Some(hasher)) => ports.hasher = hasher,
        Ok(None) => say!("secret    not known: key ids are not those of the logs")?,
        Err(why) => say!("secret    not known: key ids are not those of the logs; {why}")?,
    }
    let snapshot = Compiler::new(ports).compile(parsed).map_err(|report| report.to_string())?;
    on_runtime(async { crate::operator::explain::explain(&snapshot, question, Lookups::Offline).await.map_err(String::from) })
}
