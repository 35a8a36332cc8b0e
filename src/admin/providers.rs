//! Providers of OpenID Connect through which people may sign in.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::accounts::precise;
use super::extract::{ACCOUNTS, Body, IfMatch, May, PathParam, etag};
use super::paging::ListPage;
use super::problem::{Answer, Problem, Problems};
use crate::operator::oidc::provider::Settings;
use crate::operator::{Fault, oidc};
use crate::sql::providers::{Expects, Provider as Stored};

/// A provider through which people may sign in.
#[derive(Serialize, ToSchema)]
pub struct Provider {
    /// Its name.
    name: String,
    /// What was said of it; `null` where what is stored makes no sense.
    settings: Option<Settings>,
    /// Whether there is a client secret. It is shown to nobody.
    has_client_secret: bool,
    /// For `If-Match`.
    version: i64,
}

fn shown(stored: Stored) -> Provider {
    Provider {
        name: stored.name,
        settings: serde_json::from_value(stored.settings).ok(),
        has_client_secret: stored.secret.is_some(),
        version: stored.version,
    }
}

/// What an answer about one provider has.
type One = ([(HeaderName, String); 1], Json<Provider>);

fn one(stored: Stored) -> One {
    (etag(stored.version), Json(shown(stored)))
}

/// Through which providers may people sign in?
#[utoipa::path(get, path = "/admin/api/providers", tag = "accounts", security(("bearer" = ["accounts"])), responses((status = 200, body = ListPage<Provider>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>) -> Answer<Json<ListPage<Provider>>> {
    Ok(Json(ListPage::all(api.store.desk().providers().await?.into_iter().map(shown).collect())))
}

/// Look at a provider
#[utoipa::path(get, path = "/admin/api/providers/{name}", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The provider's name.")),
    responses((status = 200, body = Provider), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>, PathParam(name): PathParam) -> Answer<One> {
    Ok(one(oidc::get(&api.store, &name).await?))
}

/// What is to be of a provider.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// All but the secret.
    settings: Settings,
    /// The client secret; left out: the one there is stays; empty: there is none.
    #[schema(max_length = 4096, format = Password)]
    client_secret: Option<String>,
}

/// Make a provider, or change it
///
/// The client secret is stored encrypted. Its console must know `https://HOST/admin/ui/from/NAME` as where to send people back to.
#[utoipa::path(put, path = "/admin/api/providers/{name}", tag = "accounts", security(("bearer" = ["accounts"])), request_body = Put,
    params(("name" = String, Path, description = "The provider's name: lower-case letters, digits and `-`."), ("If-Match" = Option<String>, Header, description = "The `ETag` of what was looked at."),
        ("If-None-Match" = Option<String>, Header, description = "`*`: there must be none of this name.")),
    responses((status = 200, body = Provider), Problems))]
pub async fn put(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
    headers: HeaderMap,
    Body(asked): Body<Put>,
) -> Answer<One> {
    let fresh = headers.get(header::IF_NONE_MATCH).is_some_and(|field| field.as_bytes() == b"*");
    let expected = match (expects, fresh) {
        (Some(version), _) => Expects::Version(version),
        (None, true) => Expects::Nothing,
        (None, false) => Expects::Anything,
    };
    let secret = asked.client_secret.as_deref();
    let put = api.oidc.put(&api.store, &name, &asked.settings, secret, expected, &caller.actor).await;
    put.map(one).map_err(|fault| match fault {
        // What was asked for in the header is not so (RFC 9110, section 13.1).
        Fault::NotFound(why) | Fault::Conflict(why) if expected != Expects::Anything => Problem::stale(why),
        fault => Problem::from(fault).below("settings", &["name", "client_secret"]),
    })
}

/// Ask a provider what is asked when somebody signs in
#[utoipa::path(post, path = "/admin/api/providers/{name}/check", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The provider's name.")),
    responses((status = 204, description = "It answers as it should."), Problems))]
pub async fn check(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>, PathParam(name): PathParam) -> Answer<StatusCode> {
    Ok(api.oidc.check(&api.store, &name).await.map(|()| StatusCode::NO_CONTENT)?)
}

/// Remove a provider
///
/// The accounts of those who sign in there go with it.
#[utoipa::path(delete, path = "/admin/api/providers/{name}", tag = "accounts", security(("bearer" = ["accounts"])),
    params(("name" = String, Path, description = "The provider's name."), ("If-Match" = Option<String>, Header, description = "The `ETag` of what was looked at.")),
    responses((status = 204, description = "It is gone."), Problems))]
pub async fn remove(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
) -> Answer<StatusCode> {
    let removed = api.oidc.remove(&api.store, &name, expects, &caller.actor).await;
    removed.map(|()| StatusCode::NO_CONTENT).map_err(|fault| precise(fault.into(), expects))
}
