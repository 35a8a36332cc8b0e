//! The OpenAPI document (3.1), generated from the handlers.

use std::sync::Arc;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::problem::{Problem, Problems};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keylatch admin API",
        description = "The API for operators of a running Keylatch. All operations except sign-in require `Authorization: Bearer TOKEN` with the token of a sign-in or an API token. The names beside `bearer` are scopes; one of them is required.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem)),
    tags(
        (name = "sign-in", description = "Sign-in and sign-out"),
        (name = "account", description = "The caller's password, sessions and API tokens"),
        (name = "accounts", description = "Accounts and OpenID Connect providers"),
        (name = "dashboard", description = "Current state, history and events"),
        (name = "streams", description = "Open streams"),
        (name = "limits", description = "Usage of limits"),
        (name = "usage", description = "Tokens and cost of requests"),
        (name = "bindings", description = "Keys and the networks allowed to use them"),
        (name = "logs", description = "Intercepts: requests refused because of a binding"),
        (name = "settings", description = "Live settings"),
        (name = "audit", description = "The audit log"),
        (name = "configuration", description = "The configuration file")
    )
)]
struct Frame;

/// The document without operations.
pub fn frame() -> utoipa::openapi::OpenApi {
    let mut frame = Frame::openapi();
    frame.info.version = env!("CARGO_PKG_VERSION").into();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The token of a sign-in, or an API token."));
    let components = frame.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    components.responses.extend(Problems::described());
    frame
}

/// The whole document as formatted JSON.
pub fn document() -> String {
    let text = super::calls().split_for_parts().1.to_pretty_json().unwrap_or_default();
    format!("{text}\n")
}

/// Serves the document.
pub async fn serve(document: Arc<String>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], String::clone(&document))
}
