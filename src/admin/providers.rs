//! Handlers for the OpenID Connect providers of the sign-in.

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

/// An OpenID Connect provider.
#[derive(Serialize, ToSchema)]
pub struct Provider {
    /// Its name.
    name: String,
    /// Its settings; `null` if the stored ones cannot be parsed.
    settings: Option<Settings>,
    /// Whether a client secret is stored. It cannot be read.
    has_client_secret: bool,
    /// The version, for `If-Match`.
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

/// A response with one provider.
type One = ([(HeaderName, String); 1], Json<Provider>);

fn one(stored: Stored) -> One {
    (etag(stored.version), Json(shown(stored)))
}

/// List providers
#[utoipa::path(get, path = "/admin/api/providers", tag = "accounts", security(("bearer" = ["accounts"])), responses((status = 200, body = ListPage<Provider>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>) -> Answer<Json<ListPage<Provider>>> {
    Ok(Json(ListPage::all(api.store.admin_store().providers().await?.into_iter().map(shown).collect())))
}

/// Get a provider
#[utoipa::path(get, path = "/admin/api/providers/{name}", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The provider's name.")),
    responses((status = 200, body = Provider), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>, PathParam(name): PathParam) -> Answer<One> {
    Ok(one(oidc::get(&api.store, &name).await?))
}

/// The new state of a provider.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// The settings without the secret.
    settings: Settings,
    /// The client secret. Absent: the stored one is kept; empty: it is removed.
    #[schema(max_length = 4096, format = Password)]
    client_secret: Option<String>,
}

/// Create or replace a provider
///
/// The client secret is stored encrypted. Register `https://HOST/admin/ui/from/NAME` as the redirect URI at the provider.
#[utoipa::path(put, path = "/admin/api/providers/{name}", tag = "accounts", security(("bearer" = ["accounts"])), request_body = Put,
    params(("name" = String, Path, description = "The provider's name: lower-case letters, digits and `-`."), ("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`."),
        ("If-None-Match" = Option<String>, Header, description = "`*`: fail if a provider with this name exists.")),
    responses((status = 200, body = Provider), Problems))]
pub async fn put(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
    headers: HeaderMap,
    Body(input): Body<Put>,
) -> Answer<One> {
    let fresh = headers.get(header::IF_NONE_MATCH).is_some_and(|field| field.as_bytes() == b"*");
    let expected = match (expects, fresh) {
        (Some(version), _) => Expects::Version(version),
        (None, true) => Expects::Nothing,
        (None, false) => Expects::Anything,
    };
    let secret = input.client_secret.as_deref();
    let put = api.oidc.put(&api.store, &name, &input.settings, secret, expected, &caller.actor).await;
    put.map(one).map_err(|fault| match fault {
        // A condition of the header fails (RFC 9110, section 13.1).
        Fault::NotFound(why) | Fault::Conflict(why) if expected != Expects::Anything => Problem::stale(why),
        fault => Problem::from(fault).below("settings", &["name", "client_secret"]),
    })
}

/// Check a provider
///
/// Sends the requests that a sign-in needs: discovery and keys.
#[utoipa::path(post, path = "/admin/api/providers/{name}/check", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The provider's name.")),
    responses((status = 204, description = "The provider works."), Problems))]
pub async fn check(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>, PathParam(name): PathParam) -> Answer<StatusCode> {
    Ok(api.oidc.check(&api.store, &name).await.map(|()| StatusCode::NO_CONTENT)?)
}

/// Remove a provider
///
/// Accounts that sign in through it are removed, too.
#[utoipa::path(delete, path = "/admin/api/providers/{name}", tag = "accounts", security(("bearer" = ["accounts"])),
    params(("name" = String, Path, description = "The provider's name."), ("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")),
    responses((status = 204, description = "Removed."), Problems))]
pub async fn remove(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
) -> Answer<StatusCode> {
    let removed = api.oidc.remove(&api.store, &name, expects, &caller.actor).await;
    removed.map(|()| StatusCode::NO_CONTENT).map_err(|fault| precise(fault.into(), expects))
}
