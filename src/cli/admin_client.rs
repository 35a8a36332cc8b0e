//! The client of the admin API for commands: calls the running process over a Unix socket that only its owner can open.
//!
//! It sends requests, follows pages and formats fields; each command decides what it prints.

use std::path::Path;
use std::time::Duration;

use http::{Method, header};
use reqwest::ClientBuilder;
use serde_json::Value;

use super::{actor, on_runtime};
use crate::admin::ACTOR;
use crate::control;

/// The longest time for one call. Some calls scan many rows.
const CALL_TIME_MAX: Duration = Duration::from_secs(120);

/// One call of the admin API.
pub struct Call<'a> {
    /// The method.
    pub method: Method,
    /// The path below `/admin/api`; or a path that starts with `/health`.
    pub path: &'a str,
    /// The query, encoded; empty for none.
    pub query: &'a str,
    /// The body.
    pub body: Option<&'a Value>,
    /// The version for `If-Match`.
    pub version: Option<i64>,
}

impl Call<'_> {
    /// Sends the call. A refusal becomes an error with the text of the API; a body that is not JSON is returned as a string.
    pub fn send(&self, config: &Path) -> Result<Value, String> {
        on_runtime(async {
            let answer = self.answer(config, |client| client.timeout(CALL_TIME_MAX)).await?;
            let text = answer.text().await.map_err(interrupted)?;
            Ok(body(text))
        })
    }

    /// Sends the call, and passes the pieces of the response body to `write` as they arrive.
    pub fn download(&self, config: &Path, mut write: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
        on_runtime(async {
            let mut answer = self.answer(config, |client| client.read_timeout(CALL_TIME_MAX)).await?;
            while let Some(piece) = answer.chunk().await.map_err(interrupted)? {
                write(&piece)?;
            }
            Ok(())
        })
    }

    /// The successful response to the call.
    async fn answer(&self, config: &Path, limits: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Result<reqwest::Response, String> {
        let socket = control::trusted_socket(config)?.with_extension("api");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = limits(reqwest::Client::builder().unix_socket(socket.as_path())).no_proxy().build();
        let mut url = reqwest::Url::parse("http://localhost/").map_err(|e| e.to_string())?;
        match self.path == "/health" || self.path.starts_with("/health/") {
            true => url.set_path(self.path),
            false => url.set_path(&format!("/admin/api/{}", self.path.trim_start_matches('/'))),
        }
        url.set_query(Some(self.query).filter(|query| !query.is_empty()));
        let mut request = client.map_err(|e| e.to_string())?.request(self.method.clone(), url).header(ACTOR, to_header_text(&actor().who));
        if let Some(body) = self.body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        if let Some(version) = self.version {
            request = request.header(header::IF_MATCH, format!("\"{version}\""));
        }
        let answer = request.send().await.map_err(|error| match error.is_connect() {
            true => format!("no process that runs {} was found (expected socket: {})", config.display(), socket.display()),
            false => interrupted(error),
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.map_err(interrupted)?;
        Err(refusal(&body(text)).unwrap_or_else(|| format!("the running process answered with status {status}")))
    }
}

fn interrupted(error: reqwest::Error) -> String {
    format!("the running process did not answer: {}", error.without_url())
}

fn body(text: String) -> Value {
    if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

/// The encoded query of these parameters; those without a value are left out.
pub fn encoded(query: &[(&str, Option<String>)]) -> Result<String, String> {
    let mut url = reqwest::Url::parse("http://localhost/").map_err(|e| e.to_string())?;
    for (name, value) in query.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        url.query_pairs_mut().append_pair(name, value);
    }
    Ok(url.query().unwrap_or_default().to_owned())
}

/// Calls the admin API with query parameters; those without a value are left out.
pub fn call(config: &Path, method: Method, path: &str, query: &[(&str, Option<String>)], body: Option<&Value>) -> Result<Value, String> {
    let query = encoded(query)?;
    Call { method, path, query: &query, body, version: None }.send(config)
}

/// Replaces characters that a header field cannot hold.
fn to_header_text(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

/// The text of a problem document (RFC 9457), after the field at fault if there is one.
fn refusal(problem: &Value) -> Option<String> {
    let detail = problem.get("detail")?.as_str()?;
    Some(problem.get("field").and_then(Value::as_str).map_or_else(|| detail.to_owned(), |field| format!("{field}: {detail}")))
}

/// Calls `each` for the rows of a list, page by page, for at most `most` rows. Returns the other fields of the pages.
pub fn list(
    config: &Path,
    path: &str,
    query: &[(&str, Option<String>)],
    most: u32,
    mut each: impl FnMut(&Value) -> Result<(), String>,
) -> Result<Vec<Value>, String> {
    const PAGE: u32 = 1000;
    let (mut cursor, mut left, mut pages) = (None, most, Vec::new());
    loop {
        let mut parameters = query.to_vec();
        parameters.push(("limit", Some(left.min(PAGE).to_string())));
        parameters.push(("cursor", cursor));
        let mut page = call(config, Method::GET, path, &parameters, None)?;
        let items = rows(&page);
        items.iter().try_for_each(&mut each)?;
        left = left.saturating_sub(u32::try_from(items.len()).unwrap_or(left));
        cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
        page.as_object_mut().map(|fields| fields.remove("items"));
        pages.push(page);
        if cursor.is_none() || left == 0 {
            return Ok(pages);
        }
    }
}

/// The rows of a page.
pub fn rows(page: &Value) -> &[Value] {
    page.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A field as text; empty if it is absent or null.
pub fn text(row: &Value, name: &str) -> String {
    match row.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// The first 12 digits of a key id, as logs show it.
pub fn key(row: &Value) -> String {
    let id = text(row, "key_id");
    id.get(..12).unwrap_or(&id).to_owned()
}

/// Warns on standard error about replicas that did not answer. Standard output holds only the rows, for other programs.
pub fn warn_of_silent(pages: &[&Value]) {
    let silent = pages.iter().filter_map(|page| page.get("silent")?.as_array()).flatten().filter_map(Value::as_str);
    let silent: std::collections::BTreeSet<&str> = silent.collect();
    if !silent.is_empty() {
        eprintln!("no answer from {}: their rows are missing", silent.into_iter().collect::<Vec<_>>().join(", "));
    }
}
