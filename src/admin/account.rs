//! Whoever asks: who he is, his password, where he is signed in, and the tokens of his scripts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::extract::{AnyCaller, Body, ClientAddr, PathParam, SessionCaller, ActiveSession};
use super::paging::ListPage;
use super::problem::{Answer, Problem, Problems};
use super::time::rfc3339;
use crate::operator::access::{Caller, Role, Scope, Scopes};
use crate::operator::accounts::{self, now_ms};
use crate::operator::sign_in::Declined;
use crate::sql::accounts::Token;

/// Whoever asks.
#[derive(Serialize, ToSchema)]
pub struct Me {
    /// His name.
    username: String,
    /// What he is.
    role: Role,
    /// What he may do, this way.
    scopes: Vec<Scope>,
    /// He must choose a password of his own first.
    must_change_password: bool,
    /// His sign-in; `null` for a script.
    session: Option<String>,
}

/// Who am I?
#[utoipa::path(get, path = "/admin/api/account", tag = "account", security(("bearer" = [])), responses((status = 200, body = Me), Problems))]
pub async fn me(AnyCaller(caller): AnyCaller) -> Json<Me> {
    let Caller { account, role, scopes, session, must_change, .. } = caller;
    Json(Me { username: account, role, scopes: scopes.list(), must_change_password: must_change, session })
}

/// A new password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// The one that is good now.
    #[schema(format = Password)]
    current: String,
    /// The one from now on, of at least 12 characters.
    #[schema(min_length = 12, max_length = 1024, format = Password)]
    password: String,
}

/// Choose a password
///
/// Ends all other sign-ins.
#[utoipa::path(put, path = "/admin/api/account/password", tag = "account", security(("bearer" = [])), request_body = NewPassword,
    responses((status = 204, description = "Chosen."), Problems))]
pub async fn choose_password(
    State(api): State<Arc<Api>>,
    SessionCaller(caller): SessionCaller,
    ClientAddr(from): ClientAddr,
    Body(asked): Body<NewPassword>,
) -> Answer<StatusCode> {
    match api.authenticator.choose_password(&api.store, &caller, &asked.current, &asked.password, from).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(Declined::Refused(refusal)) => Err(refusal.into()),
        Err(Declined::Fault(fault)) => Err(fault.into()),
    }
}

/// A sign-in.
#[derive(Serialize, ToSchema)]
pub struct Session {
    /// Its id.
    id: String,
    /// Since when.
    #[schema(format = DateTime)]
    created_at: String,
    /// Until when.
    #[schema(format = DateTime)]
    expires_at: String,
    /// The address it began at.
    origin: String,
    /// The browser, as it calls itself.
    user_agent: String,
    /// It is this one.
    current: bool,
}

/// Where am I signed in?
#[utoipa::path(get, path = "/admin/api/account/sessions", tag = "account", security(("bearer" = [])), responses((status = 200, body = ListPage<Session>), Problems))]
pub async fn sessions(State(api): State<Arc<Api>>, ActiveSession(caller): ActiveSession) -> Answer<Json<ListPage<Session>>> {
    let sessions = api.store.desk().sessions(&caller.account, now_ms()).await?;
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

/// Sign out somewhere
#[utoipa::path(delete, path = "/admin/api/account/sessions/{id}", tag = "account", security(("bearer" = [])), params(("id" = String, Path, description = "The sign-in's id.")),
    responses((status = 204, description = "Signed out."), Problems))]
pub async fn end_session(State(api): State<Arc<Api>>, ActiveSession(caller): ActiveSession, PathParam(id): PathParam) -> Answer<StatusCode> {
    match api.store.desk().end_session(&caller.account, &id, &caller.actor).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::missing("you are not signed in there")),
    }
}

/// A script's token, without the token itself: nobody knows that any more.
#[derive(Serialize, ToSchema)]
pub struct ScriptToken {
    /// Its id.
    id: String,
    /// What it is called.
    name: String,
    /// What it may do, as long as its owner may, too.
    scopes: Vec<Scope>,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// Until when it is good.
    #[schema(format = DateTime)]
    expires_at: String,
    /// When it was used last, to the minute.
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
}

/// For the list.
pub fn shown(token: Token) -> ScriptToken {
    ScriptToken {
        id: token.id,
        name: token.name,
        scopes: Scopes::stored(&token.scopes).list(),
        created_at: rfc3339(token.created_ms),
        expires_at: rfc3339(token.expires_ms),
        last_used_at: token.used_ms.map(rfc3339),
    }
}

/// Which tokens do my scripts have?
#[utoipa::path(get, path = "/admin/api/account/tokens", tag = "account", security(("bearer" = [])), responses((status = 200, body = ListPage<ScriptToken>), Problems))]
pub async fn tokens(State(api): State<Arc<Api>>, ActiveSession(caller): ActiveSession) -> Answer<Json<ListPage<ScriptToken>>> {
    let tokens = api.store.desk().tokens(Some(&caller.account)).await?;
    Ok(Json(ListPage::all(tokens.into_iter().map(shown).collect())))
}

/// What a token is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is called.
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    /// What it may do.
    #[schema(min_items = 1)]
    scopes: Vec<Scope>,
    /// For how many days it is good.
    #[serde(default = "thirty")]
    #[schema(minimum = 1, maximum = 366, default = 30)]
    days: u32,
}

fn thirty() -> u32 {
    30
}

/// A token that was made.
#[derive(Serialize, ToSchema)]
pub struct MadeToken {
    /// The token, which is shown this once and stored nowhere.
    token: String,
    /// All else.
    #[serde(flatten)]
    shown: ScriptToken,
}

/// Make a token for a script
#[utoipa::path(post, path = "/admin/api/account/tokens", tag = "account", security(("bearer" = [])), request_body = NewToken,
    responses((status = 201, body = MadeToken), Problems))]
pub async fn make_token(
    State(api): State<Arc<Api>>,
    ActiveSession(caller): ActiveSession,
    Body(asked): Body<NewToken>,
) -> Answer<(StatusCode, Json<MadeToken>)> {
    let (token, secret) = accounts::make_token(&api.store, &caller, &asked.name, &asked.scopes, asked.days).await?;
    Ok((StatusCode::CREATED, Json(MadeToken { token: secret, shown: shown(token) })))
}

/// Remove a script's token
#[utoipa::path(delete, path = "/admin/api/account/tokens/{id}", tag = "account", security(("bearer" = [])), params(("id" = String, Path, description = "The token's id.")),
    responses((status = 204, description = "It is good no more."), Problems))]
pub async fn remove_token(State(api): State<Arc<Api>>, ActiveSession(caller): ActiveSession, PathParam(id): PathParam) -> Answer<StatusCode> {
    match api.store.desk().remove_token(&caller.account, &id, &caller.actor).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::missing("you have no such token")),
    }
}
