//! Handlers for the caller's own account: password, sessions, API tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::extract::{ActiveSession, AnyCaller, Body, ClientAddr, PathParam, SessionCaller};
use super::paging::ListPage;
use super::problem::{Answer, Problem, Problems};
use super::time::rfc3339;
use crate::operator::access::{Caller, Role, Scope, Scopes};
use crate::operator::accounts::{self, now_ms};
use crate::operator::sign_in::Declined;
use crate::sql::accounts::Token;

/// The caller.
#[derive(Serialize, ToSchema)]
pub struct Me {
    /// The account's name.
    username: String,
    /// The account's role.
    role: Role,
    /// The effective scopes of this session or token.
    scopes: Vec<Scope>,
    /// Whether the password must be changed before anything else.
    must_change_password: bool,
    /// The session id; `null` for an API token.
    session: Option<String>,
}

/// Get the caller's account
#[utoipa::path(get, path = "/admin/api/account", tag = "account", security(("bearer" = [])), responses((status = 200, body = Me), Problems))]
pub async fn me(AnyCaller(caller): AnyCaller) -> Json<Me> {
    let Caller { account, role, scopes, session, must_change, .. } = caller;
    Json(Me { username: account, role, scopes: scopes.list(), must_change_password: must_change, session })
}

/// A change of the password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// The current password.
    #[schema(format = Password)]
    current: String,
    /// The new password, at least 12 characters.
    #[schema(min_length = 12, max_length = 1024, format = Password)]
    password: String,
}

/// Change the caller's password
///
/// Ends all other sessions of the account.
#[utoipa::path(put, path = "/admin/api/account/password", tag = "account", security(("bearer" = [])), request_body = NewPassword,
    responses((status = 204, description = "Changed."), Problems))]
pub async fn choose_password(
    State(api): State<Arc<Api>>,
    SessionCaller(caller): SessionCaller,
    ClientAddr(from): ClientAddr,
    Body(input): Body<NewPassword>,
) -> Answer<StatusCode> {
    match api.authenticator.choose_password(&api.store, &caller, &input.current, &input.password, from).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(Declined::Refused(refusal)) => Err(refusal.into()),
        Err(Declined::Fault(fault)) => Err(fault.into()),
    }
}

/// A session.
#[derive(Serialize, ToSchema)]
pub struct Session {
    /// The id.
    id: String,
    /// Time of the sign-in.
    #[schema(format = DateTime)]
    created_at: String,
    /// Time at which it expires.
    #[schema(format = DateTime)]
    expires_at: String,
    /// The address of the sign-in.
    origin: String,
    /// The `User-Agent` of the browser.
    user_agent: String,
    /// Whether it is the session of this request.
    current: bool,
}

/// List the caller's sessions
#[utoipa::path(get, path = "/admin/api/account/sessions", tag = "account", security(("bearer" = [])), responses((status = 200, body = ListPage<Session>), Problems))]
pub async fn sessions(State(api): State<Arc<Api>>, ActiveSession(caller): ActiveSession) -> Answer<Json<ListPage<Session>>> {
    let sessions = api.store.admin_store().sessions(&caller.account, now_ms()).await?;
    let items = sessions.into_iter().map(|session| Session {
        current: caller.session.as_ref() == Some(&session.id),
        id: session.id,
        created_at: rfc3339(session.created_ms),
        expires_at: rfc3339(session.expires_ms),
        origin: session.origin,
        user_agent: session.agent,
    });
    Ok(Json(ListPage::all(items.collect())))
}

/// End one of the caller's sessions
#[utoipa::path(delete, path = "/admin/api/account/sessions/{id}", tag = "account", security(("bearer" = [])), params(("id" = String, Path, description = "The session's id.")),
    responses((status = 204, description = "Signed out."), Problems))]
pub async fn end_session(
    State(api): State<Arc<Api>>,
    ActiveSession(caller): ActiveSession,
    PathParam(id): PathParam,
) -> Answer<StatusCode> {
    match api.store.admin_store().end_session(&caller.account, &id, &caller.actor).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::missing("you have no session with this id")),
    }
}

/// An API token without its secret, which is not stored.
#[derive(Serialize, ToSchema)]
pub struct ApiToken {
    /// The id.
    id: String,
    /// The token's name.
    name: String,
    /// The token's scopes; they apply only while the owner has them, too.
    scopes: Vec<Scope>,
    /// Creation time.
    #[schema(format = DateTime)]
    created_at: String,
    /// Time at which it expires.
    #[schema(format = DateTime)]
    expires_at: String,
    /// Time of the last use, to the minute.
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
}

/// The API form of a stored token.
pub fn shown(token: Token) -> ApiToken {
    ApiToken {
        id: token.id,
        name: token.name,
        scopes: Scopes::stored(&token.scopes).list(),
        created_at: rfc3339(token.created_ms),
        expires_at: rfc3339(token.expires_ms),
        last_used_at: token.used_ms.map(rfc3339),
    }
}

/// List the caller's API tokens
#[utoipa::path(get, path = "/admin/api/account/tokens", tag = "account", security(("bearer" = [])), responses((status = 200, body = ListPage<ApiToken>), Problems))]
pub async fn tokens(State(api): State<Arc<Api>>, ActiveSession(caller): ActiveSession) -> Answer<Json<ListPage<ApiToken>>> {
    let tokens = api.store.admin_store().tokens(Some(&caller.account)).await?;
    Ok(Json(ListPage::all(tokens.into_iter().map(shown).collect())))
}

/// A token to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// The token's name.
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    /// The token's scopes.
    #[schema(min_items = 1)]
    scopes: Vec<Scope>,
    /// Lifetime in days.
    #[serde(default = "thirty")]
    #[schema(minimum = 1, maximum = 366, default = 30)]
    days: u32,
}

fn thirty() -> u32 {
    30
}

/// A created token.
#[derive(Serialize, ToSchema)]
pub struct MadeToken {
    /// The secret token. It is shown only once and not stored.
    token: String,
    /// The token's description.
    #[serde(flatten)]
    shown: ApiToken,
}

/// Create an API token
#[utoipa::path(post, path = "/admin/api/account/tokens", tag = "account", security(("bearer" = [])), request_body = NewToken,
    responses((status = 201, body = MadeToken), Problems))]
pub async fn make_token(
    State(api): State<Arc<Api>>,
    ActiveSession(caller): ActiveSession,
    Body(input): Body<NewToken>,
) -> Answer<(StatusCode, Json<MadeToken>)> {
    let (token, secret) = accounts::make_token(&api.store, &caller, &input.name, &input.scopes, input.days).await?;
    Ok((StatusCode::CREATED, Json(MadeToken { token: secret, shown: shown(token) })))
}

/// Remove one of the caller's API tokens
#[utoipa::path(delete, path = "/admin/api/account/tokens/{id}", tag = "account", security(("bearer" = [])), params(("id" = String, Path, description = "The token's id.")),
    responses((status = 204, description = "Removed."), Problems))]
pub async fn remove_token(
    State(api): State<Arc<Api>>,
    ActiveSession(caller): ActiveSession,
    PathParam(id): PathParam,
) -> Answer<StatusCode> {
    match api.store.admin_store().remove_token(&caller.account, &id, &caller.actor).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::missing("you have no token with this id")),
    }
}
