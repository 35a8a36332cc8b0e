//! `keylatch api`: makes any call of the admin API of the running process.

use clap::Args;
use http::Method;

use super::{ConfigFile, admin_client};
use crate::cli::terminal::{outln, read_stdin};

/// The largest body on standard input, in bytes.
const BODY_BYTES_MAX: usize = 6 << 20;

#[derive(Args)]
pub struct Api {
    #[command(flatten)]
    file: ConfigFile,
    /// The method: `GET`, `POST`, `PUT`, `PATCH` or `DELETE`
    method: Method,
    /// The path below `/admin/api`, such as `/bindings?banned=true`; `/openapi.json` lists all paths
    path: String,
    /// The JSON body; `-` reads it from standard input
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// Apply the change to this version only (`If-Match`)
    #[arg(long)]
    version: Option<i64>,
}

pub fn api(args: &Api) -> Result<(), String> {
    let body = match args.data.as_deref() {
        Some("-") => Some(read_stdin(BODY_BYTES_MAX)?),
        Some(text) => Some(text.to_owned()),
        None => None,
    };
    let body = body.map(|text| serde_json::from_str(&text).map_err(|e| format!("--data is not valid JSON: {e}"))).transpose()?;
    let (path, query) = args.path.split_once('?').unwrap_or((&args.path, ""));
    let call = admin_client::Call { method: args.method.clone(), path, query, body: body.as_ref(), version: args.version };
    match call.send(&args.file.config)? {
        serde_json::Value::Null => Ok(()),
        body => outln!("{body}"),
    }
}
