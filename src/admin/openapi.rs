//! The OpenAPI document (3.1): made from the handlers, so that it cannot say anything else.

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
        description = "What operators do with a running Keylatch. All calls but those to sign in need `Authorization: Bearer TOKEN`: the token of a sign-in, or one made for a script. The names beside `bearer` are the scopes of which one is needed.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem)),
    tags(
        (name = "sign-in", description = "Signing in and out"),
        (name = "account", description = "Whoever asks: his password, his sessions, the tokens of his scripts"),
        (name = "accounts", description = "Who may sign in"),
        (name = "dashboard", description = "How things are and have been"),
        (name = "streams", description = "Event streams that are open"),
        (name = "limits", description = "Who is near or over a limit"),
        (name = "bindings", description = "Which key may be used from where"),
        (name = "logs", description = "Requests that were refused because of a binding"),
        (name = "settings", description = "What can be changed while it runs"),
        (name = "audit", description = "Who has changed what"),
        (name = "configuration", description = "The configuration file")
    )
)]
struct Frame;

/// The document without its calls.
pub fn frame() -> utoipa::openapi::OpenApi {
    let mut frame = Frame::openapi();
    frame.info.version = env!("CARGO_PKG_VERSION").into();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The token of a sign-in, or of a script."));
    let components = frame.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    components.responses.extend(Problems::described());
    frame
}

/// The whole document, as JSON for people to read, too.
pub fn document() -> String {
    let text = super::calls().split_for_parts().1.to_pretty_json().unwrap_or_default();
    format!("{text}\n")
}

/// Serves it.
pub async fn serve(document: Arc<String>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], String::clone(&document))
}
