//! Handlers for sign-in, token renewal and sign-out.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::cookie::Cookie;
use super::extract::{Body, ClientAddr, SessionCaller};
use super::problem::{Answer, Problem, Problems};
use crate::operator::Fault;
use crate::operator::access::{Role, Scope};
use crate::operator::sign_in::{BROWSER_KNOWN, SignedIn};

/// Marks a browser from which an account has signed in before.
const BROWSER: Cookie = Cookie { name: "keylatch-browser", path: "/admin/api/login" };

/// The credentials of an account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The account's name.
    #[schema(max_length = 64)]
    username: String,
    /// Its password.
    #[schema(max_length = 1024, format = Password)]
    password: String,
}

/// The result of a sign-in.
#[derive(Serialize, ToSchema)]
pub struct SignInToken {
    /// The token, to send as `Authorization: Bearer TOKEN`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// Lifetime in seconds; renew the token before.
    expires_in: u64,
    /// The account's name.
    username: String,
    /// The account's role.
    role: Role,
    /// The scopes of the token.
    scopes: Vec<Scope>,
    /// Whether the password must be changed before anything else.
    must_change_password: bool,
}

impl SignInToken {
    /// The response for a sign-in.
    pub fn from_signed_in(signed_in: SignedIn) -> Self {
        let SignedIn { token, expires_in, account } = signed_in;
        let role = Role::stored(&account.role);
        let scopes = if account.must_change { Vec::new() } else { role.scopes().list() };
        SignInToken {
            access_token: token,
            token_type: "Bearer",
            expires_in: expires_in.as_secs(),
            username: account.name,
            role,
            scopes,
            must_change_password: account.must_change,
        }
    }
}

/// Sign in with a password
///
/// After 5 failed attempts for an account, or 20 from an address, the next failure locks it for 1 s. Each further failure doubles
/// this time, up to 15 min. A successful sign-in sets a cookie. Failed attempts with this cookie are counted separately.
#[utoipa::path(post, path = "/admin/api/login", tag = "sign-in", request_body = Credentials, responses((status = 200, body = SignInToken), Problems))]
pub async fn sign_in(
    State(api): State<Arc<Api>>,
    ClientAddr(from): ClientAddr,
    headers: HeaderMap,
    Body(input): Body<Credentials>,
) -> Answer<([(HeaderName, HeaderValue); 1], Json<SignInToken>)> {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let signed_in = api.authenticator.sign_in(&api.store, &input.username, &input.password, from, agent, BROWSER.read(&headers)).await;
    let signed_in = signed_in.map_err(Problem::from);
    let result = signed_in.as_ref().map_or_else(Problem::sign_in_result, |_| "ok");
    api.shared.metrics.sign_ins.with_label_values(&[result]).inc();
    let says = |problem: Problem| if result == "wrong" { problem.saying("the name or password is wrong") } else { problem };
    let signed_in = signed_in.map_err(says)?;
    let cookie = api.authenticator.remember_browser(&signed_in.account.name, BROWSER.read(&headers)).map_err(Fault::Unavailable)?;
    Ok((BROWSER.set(&cookie, BROWSER_KNOWN.as_secs(), &headers), Json(SignInToken::from_signed_in(signed_in))))
}

/// Renew the token of a sign-in
#[utoipa::path(post, path = "/admin/api/session", tag = "sign-in", security(("bearer" = [])), responses((status = 200, body = SignInToken), Problems))]
pub async fn renew(State(api): State<Arc<Api>>, SessionCaller(caller): SessionCaller) -> Answer<Json<SignInToken>> {
    let session = caller.session.unwrap_or_default();
    Ok(Json(SignInToken::from_signed_in(api.authenticator.renew(&api.store, &session).await?)))
}

/// Sign out
#[utoipa::path(post, path = "/admin/api/logout", tag = "sign-in", security(("bearer" = [])), responses((status = 204, description = "Signed out."), Problems))]
pub async fn sign_out(State(api): State<Arc<Api>>, SessionCaller(caller): SessionCaller) -> Answer<StatusCode> {
    let session = caller.session.unwrap_or_default();
    api.store.admin_store().end_session(&caller.account, &session, &caller.actor).await?;
    Ok(StatusCode::NO_CONTENT)
}
