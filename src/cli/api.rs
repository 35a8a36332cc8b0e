//! `keylatch api`: any call of the admin API, of the process that runs here.

use clap::Args;
use http::Method;

use super::{ConfigFile, admin_client};
use crate::cli::terminal::{read_stdin, say};

/// The largest body that is read.
const BODY_BYTES_MAX: usize = 6 << 20;

#[derive(Args)]
pub struct Api {
    #[command(flatten)]
    file: ConfigFile,
    /// `GET`, `POST`, `PUT`, `PATCH`, `DELETE`
    method: Method,
    /// Behind `/admin/api`: `/bindings?banned=true`; `/openapi.json` says which there are
    path: String,
    /// Send this JSON; `-`: what is read from standard input
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// Do it only in this version of what was looked at (`If-Match`)
    #[arg(long)]
    version: Option<i64>,
}

pub fn api(asked: &Api) -> Result<(), String> {
    let body = match asked.data.as_deref() {
        Some("-") => Some(read_stdin(BODY_BYTES_MAX)?),
        Some(text) => Some(text.to_owned()),
        None => None,
    };
    let body = body.map(|text| serde_json::from_str(&text).map_err(|e| format!("--data is no JSON: {e}"))).transpose()?;
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let call = admin_client::Call { method: asked.method.clone(), path, query, body: body.as_ref(), version: asked.version };
    let said = call.carry_out(&asked.file.config)?;
    match said {
        serde_json::Value::Null => Ok(()),
        said => say!("{said}"),
    }
}
