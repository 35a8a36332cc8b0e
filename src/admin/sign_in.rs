//! Signing in, staying signed in, signing out.

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

/// By which a browser is known that somebody has signed in from.
const BROWSER: Cookie = Cookie { name: "keylatch-browser", path: "/admin/api/login" };

/// Who wants in.
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

/// Somebody is in.
#[derive(Serialize, ToSchema)]
pub struct SignInToken {
    /// To be sent as `Authorization: Bearer`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// For how many seconds it is good; renew it before.
    expires_in: u64,
    /// Who it is.
    username: String,
    /// What he is.
    role: Role,
    /// What he may do.
    scopes: Vec<Scope>,
    /// He must choose a password of his own before he may do anything else.
    must_change_password: bool,
}

impl SignInToken {
    /// Of somebody.
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
/// After 5 wrong passwords for an account, or 20 from an address, each further one locks for twice as long, from 1 s to 15 min.
/// A browser from which somebody has signed in before gets a cookie, by which its wrong passwords count apart from others'.
#[utoipa::path(post, path = "/admin/api/login", tag = "sign-in", request_body = Credentials, responses((status = 200, body = SignInToken), Problems))]
pub async fn sign_in(
    State(api): State<Arc<Api>>,
    ClientAddr(from): ClientAddr,
    headers: HeaderMap,
    Body(asked): Body<Credentials>,
) -> Answer<([(HeaderName, HeaderValue); 1], Json<SignInToken>)> {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let signed_in = api.authenticator.sign_in(&api.store, &asked.username, &asked.password, from, agent, BROWSER.read(&headers)).await;
    let signed_in = signed_in.map_err(Problem::from);
    let result = signed_in.as_ref().map_or_else(Problem::sign_in_result, |_| "ok");
    api.shared.metrics.sign_ins.with_label_values(&[result]).inc();
    let says = |problem: Problem| if result == "wrong" { problem.saying("name or password is wrong") } else { problem };
    let signed_in = signed_in.map_err(says)?;
    let known = api.authenticator.remember_browser(&signed_in.account.name, BROWSER.read(&headers)).map_err(Fault::Unavailable)?;
    Ok((BROWSER.set(&known, BROWSER_KNOWN.as_secs(), &headers), Json(SignInToken::from_signed_in(signed_in))))
}

/// Have a fresh token for the sign-in
#[utoipa::path(post, path = "/admin/api/session", tag = "sign-in", security(("bearer" = [])), responses((status = 200, body = SignInToken), Problems))]
pub async fn renew(State(api): State<Arc<Api>>, SessionCaller(caller): SessionCaller) -> Answer<Json<SignInToken>> {
    let session = caller.session.unwrap_or_default();
    Ok(Json(SignInToken::from_signed_in(api.authenticator.renew(&api.store, &session).await?)))
}

/// Sign out
#[utoipa::path(post, path = "/admin/api/logout", tag = "sign-in", security(("bearer" = [])), responses((status = 204, description = "Signed out."), Problems))]
pub async fn sign_out(State(api): State<Arc<Api>>, SessionCaller(caller): SessionCaller) -> Answer<StatusCode> {
    let session = caller.session.unwrap_or_default();
    api.store.desk().end_session(&caller.account, &session, &caller.actor).await?;
    Ok(StatusCode::NO_CONTENT)
}
