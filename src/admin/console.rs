//! The web console: its files as they stand in `src/console`, embedded in the binary.

use axum::extract::{Path, RawQuery};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Router, http};
use keylatch_filters::contract::hex;
use rust_embed::{Embed, EmbeddedFile};

use super::Known;
use crate::operator::oidc::provider;

#[derive(Embed)]
#[folder = "src/console"]
struct Files;

/// Nothing inline, nothing from elsewhere, nowhere else to send to.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// The console's addresses.
pub fn routes() -> Router<Known> {
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/admin/ui/") }))
        .route("/admin/ui", get(|| async { Redirect::permanent("/admin/ui/") }))
        .route("/admin/ui/", get(|headers: HeaderMap| async move { file("index.html", &headers) }))
        .route("/admin/ui/from/{provider}", get(come_back))
        .route("/admin/ui/{*path}", get(|Path(path): Path<String>, headers: HeaderMap| async move { file(&path, &headers) }))
}

/// Where a provider sends people back to. Each has an address of its own, so that none can pass for another; the page that
/// goes on is the console.
async fn come_back(Path(provider): Path<String>, RawQuery(query): RawQuery) -> Response {
    match provider::name(&provider) {
        // The last one counts, whatever was sent.
        Ok(name) => Redirect::to(&format!("/admin/ui/?{}&provider={name}", query.unwrap_or_default())).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

fn file(path: &str, headers: &HeaderMap) -> Response {
    let kind = match path.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("txt") => "text/plain; charset=utf-8",
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let Some(EmbeddedFile { data, metadata, .. }) = Files::get(path) else { return StatusCode::NOT_FOUND.into_response() };
    let etag = format!("\"{}\"", hex(&metadata.sha256_hash()[..16]));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|field| field.to_str().ok()).is_some_and(|field| field.contains(&etag));
    let fields = [
        (header::CONTENT_TYPE, kind),
        (header::ETAG, etag.as_str()),
        // Asked for each time, and sent only when it has changed: after an upgrade nobody runs half of the old one.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (http::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    match known {
        true => (StatusCode::NOT_MODIFIED, fields).into_response(),
        false => (fields, data.into_owned()).into_response(),
    }
}
