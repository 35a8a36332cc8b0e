//! `keylatch explain`: explains the handling of a request, filter by filter. It sends and stores nothing.

use std::net::IpAddr;
use std::path::Path;

use clap::Args;
use http::Method;

use super::{ConfigFile, admin_client, on_runtime};
use crate::cli::terminal::outln;
use crate::compile;
use crate::compile::{Compiler, check_ports};
use crate::config::{Files, parse_file};
use crate::operator::explain::{ExplainRequest, Explanation, Lookups};
use crate::{bindings, control};

#[derive(Args)]
pub struct Explain {
    #[command(flatten)]
    file: ConfigFile,
    /// The address from which the connection comes
    #[arg(long, value_name = "ADDRESS")]
    peer: IpAddr,
    /// A header field; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The method of the request
    #[arg(long, default_value = "GET")]
    method: String,
    /// The path of the request, with an optional query
    #[arg(long, default_value = "/")]
    path: String,
    /// The model that the body names, for expressions that use `request.model`
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Use the file alone and call no running process; bindings and counts are unknown then
    #[arg(long)]
    offline: bool,
}

pub fn explain(args: &Explain) -> Result<(), String> {
    let Explain { file, peer, headers, method, path, model, offline } = args;
    let question =
        ExplainRequest { peer: *peer, method: method.clone(), path: path.clone(), headers: headers.clone(), model: model.clone() };
    let config = &file.config;
    let explanation = match (offline, control::is_running(config)) {
        (false, true) => online(config, &question)?,
        (false, false) => {
            outln!("source    the file alone; no process that runs this file was found: bindings and counts are unknown")?;
            by_file(config, &question)?
        }
        (true, _) => by_file(config, &question)?,
    };
    explanation.lines.iter().try_for_each(|line| outln!("{line}"))
}

/// Explains by the running process, with its compiled configuration and its store.
fn online(config: &Path, question: &ExplainRequest) -> Result<Explanation, String> {
    outln!("source    the running process; nothing is sent, counted or bound")?;
    let body = serde_json::to_value(question).map_err(|e| e.to_string())?;
    let answer = admin_client::call(config, Method::POST, "/explain", &[], Some(&body))?;
    serde_json::from_value(answer).map_err(|e| format!("the running process sent an invalid answer: {e}"))
}

/// Explains by the file alone.
fn by_file(config: &Path, question: &ExplainRequest) -> Result<Explanation, String> {
    let parsed = parse_file(config).map_err(|report| report.to_string())?;
    let settings = compile::settings(parsed.clone()).map_err(|report| report.to_string())?;
    let mut ports = check_ports();
    match bindings::known_hasher(&settings, &Files::beside(config)) {
        Ok(Some(hasher)) => ports.hasher = hasher,
        Ok(None) => outln!("secret    unknown: key ids differ from those in the logs")?,
        Err(why) => outln!("secret    unknown: key ids differ from those in the logs; {why}")?,
    }
    let snapshot = Compiler::new(ports).compile(parsed).map_err(|report| report.to_string())?;
    on_runtime(async { crate::operator::explain::explain(&snapshot, question, Lookups::Offline).await.map_err(String::from) })
}
