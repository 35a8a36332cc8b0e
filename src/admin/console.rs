//! Serves the web console: the files of `src/console`, embedded in the binary.

use axum::extract::{Path, RawQuery};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Router, http};
use keylatch_filters::contract::hex;
use rust_embed::{Embed, EmbeddedFile};

use super::ApiState;
use crate::operator::oidc::provider;

#[derive(Embed)]
#[folder = "src/console"]
struct Files;

/// Content security policy: own files only, no inline code, requests to this origin only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// The routes of the console.
pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/admin/ui/") }))
        .route("/admin/ui", get(|| async { Redirect::permanent("/admin/ui/") }))
        .route("/admin/ui/", get(|headers: HeaderMap| async move { file("index.html", &headers) }))
        .route("/admin/ui/from/{provider}", get(redirect_from_provider))
        .route("/admin/ui/{*path}", get(|Path(path): Path<String>, headers: HeaderMap| async move { file(&path, &headers) }))
}

/// The redirect URI of a provider. Each provider has its own, so that none can impersonate another; the console then
/// finishes the sign-in.
async fn redirect_from_provider(Path(provider): Path<String>, RawQuery(query): RawQuery) -> Response {
    match provider::name(&provider) {
        // The last `provider` wins over one in the provider's query.
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
    let is_current = headers.get(header::IF_NONE_MATCH).and_then(|field| field.to_str().ok()).is_some_and(|field| field.contains(&etag));
    let fields = [
        (header::CONTENT_TYPE, kind),
        (header::ETAG, etag.as_str()),
        // Revalidated on each load, so that no browser mixes files of two versions after an upgrade.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (http::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    match is_current {
        true => (StatusCode::NOT_MODIFIED, fields).into_response(),
        false => (fields, data.into_owned()).into_response(),
    }
}
