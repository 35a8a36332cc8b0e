//! Extractors: the caller and the required scope, the body, the query, path parameters, `If-Match`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Query, Request, State};
use axum::http;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use keylatch_filters::client_ip::ClientIp;
use keylatch_filters::contract::canonical;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::{Api, ApiState};
use crate::operator::access::{Caller, Role, SCOPES, Scope};
use crate::sql::audit::Actor;

/// Timeout for the arrival of a body.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// An authenticated caller, with any scopes.
pub struct AnyCaller(pub Caller);

/// A caller with a session. API tokens cannot manage accounts or sessions of their owner.
pub struct SessionCaller(pub Caller);

/// A caller with a session and no pending password change.
pub struct ActiveSession(pub Caller);

/// A caller with this scope: `May<READ>`.
pub struct May<const SCOPE: u8>(pub Caller);

/// [`Scope::Read`] as a const parameter; the others alike.
pub const READ: u8 = Scope::Read as u8;
pub const STREAMS: u8 = Scope::Streams as u8;
pub const LIMITS: u8 = Scope::Limits as u8;
pub const BINDINGS: u8 = Scope::Bindings as u8;
pub const SETTINGS: u8 = Scope::Settings as u8;
pub const CONFIG: u8 = Scope::Config as u8;
pub const ACCOUNTS: u8 = Scope::Accounts as u8;

/// Marks requests of local commands, made by the owner of the process. Only the command listener sets it.
#[derive(Clone, Copy)]
pub struct LocalCommand;

/// The header that names the user of a local command. It is ignored in other requests.
pub const ACTOR: &str = "keylatch-actor";

fn local_caller(headers: &HeaderMap) -> Caller {
    let who = headers.get(ACTOR).and_then(|who| who.to_str().ok()).unwrap_or("command").to_owned();
    let origin = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".into());
    Caller {
        account: who.clone(),
        role: Role::Admin,
        scopes: Role::Admin.scopes(),
        session: None,
        must_change: false,
        actor: Actor { who, origin },
    }
}

/// The client address, behind trusted proxies, too.
pub struct ClientAddr(pub IpAddr);

impl FromRequestParts<ApiState> for ClientAddr {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map_or(IpAddr::from([0, 0, 0, 0]), |info| info.0.ip());
        let snapshot = state.0.shared.snapshot.load();
        Ok(Self(ClientIp::by_default(&snapshot.trusted, canonical(peer), &parts.headers)))
    }
}

impl FromRequestParts<ApiState> for AnyCaller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        if parts.extensions.get::<LocalCommand>().is_some() {
            return Ok(Self(local_caller(&parts.headers)));
        }
        let ClientAddr(from) = ClientAddr::from_request_parts(parts, state).await?;
        let token = bearer(&parts.headers).ok_or_else(Problem::unknown_caller)?;
        let api: &Api = &state.0;
        Ok(Self(api.authenticator.caller(&api.store, token, from).await?))
    }
}

impl FromRequestParts<ApiState> for SessionCaller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        let AnyCaller(caller) = AnyCaller::from_request_parts(parts, state).await?;
        match caller.session {
            Some(_) => Ok(Self(caller)),
            None => Err(Problem::forbidden("this operation requires a sign-in; an API token is not accepted")),
        }
    }
}

impl FromRequestParts<ApiState> for ActiveSession {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        let SessionCaller(caller) = SessionCaller::from_request_parts(parts, state).await?;
        active(caller).map(Self)
    }
}

/// Rejects callers that must change their password first.
fn active(caller: Caller) -> Result<Caller, Problem> {
    match caller.must_change {
        false => Ok(caller),
        true => Err(Problem::forbidden("change your temporary password first: PUT /admin/api/account/password")),
    }
}

impl<const SCOPE: u8> FromRequestParts<ApiState> for May<SCOPE> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        let AnyCaller(caller) = AnyCaller::from_request_parts(parts, state).await?;
        let caller = active(caller)?;
        match SCOPES.into_iter().find(|scope| *scope as u8 == SCOPE) {
            Some(scope) if caller.scopes.has(scope) => Ok(Self(caller)),
            scope => Err(Problem::forbidden(format!("this operation requires the scope `{}`", scope.map_or("", Scope::as_str)))),
        }
    }
}

/// The bearer token of a request with exactly one `Authorization` header.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (field, None) = (fields.next()?, fields.next()) else { return None };
    let (scheme, token) = field.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<ApiState> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            return Err(Problem::not_json());
        }
        let arrives = tokio::time::timeout(BODY_TIME_MAX, Bytes::from_request(request, state)).await;
        let bytes = arrives.map_err(|_| Problem::unreadable("the body did not arrive in time"))?.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(_) => Problem::too_large(),
            _ => Problem::unreadable("the body did not arrive"),
        })?;
        if let Some(problem) = reject_nul(&bytes) {
            return Err(problem);
        }
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let error = error.into_inner();
            match error.classify() {
                serde_json::error::Category::Data => Problem::invalid(path.trim_matches('.'), without_value(&error)),
                _ => Problem::unreadable(format!("the body is not valid JSON at line {}, column {}", error.line(), error.column())),
            }
        })?;
        match reader.end() {
            Ok(()) => Ok(Self(read)),
            Err(_) => Err(Problem::unreadable("the body contains data after the JSON value")),
        }
    }
}

/// No valid value contains NUL, and databases reject it.
fn reject_nul(text: &[u8]) -> Option<Problem> {
    let there = |what: &[u8]| memchr::memmem::find(text, what).is_some();
    (there(b"\\u0000") || there(b"%00")).then(|| Problem::unreadable("the request contains a NUL character; remove it"))
}

/// The message of serde without the value, which may be a password or a key.
fn without_value(error: &serde_json::Error) -> String {
    let says = error.to_string();
    let says = says.rsplit_once(" at line ").map_or(says.as_str(), |(says, _)| says);
    match says.split_once(", expected ") {
        Some((_, expected)) if says.starts_with("invalid") => format!("must be {expected}"),
        _ => says.to_owned(),
    }
}

/// Query parameters.
pub struct QueryParams<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<ApiState> for QueryParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        if let Some(problem) = reject_nul(parts.uri.query().unwrap_or_default().as_bytes()) {
            return Err(problem);
        }
        let query = Query::<T>::from_request_parts(parts, state).await;
        let says = |rejection: axum::extract::rejection::QueryRejection| {
            let text = rejection.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text).to_owned();
            match text.split_once(": ") {
                Some((field, why)) if !field.contains(' ') => Problem::invalid(field, why),
                _ => Problem::unreadable(text),
            }
        };
        query.map(|Query(query)| Self(query)).map_err(says)
    }
}

/// A path parameter. An invalid one is a 404.
pub struct PathParam(pub String);

impl FromRequestParts<ApiState> for PathParam {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let named = path.ok().map(|axum::extract::Path(part)| part).filter(|part| !part.contains('\0'));
        named.map(Self).ok_or_else(|| Problem::missing("there is no object with this name"))
    }
}

/// Two path parameters.
pub struct PathParams(pub (String, String));

impl FromRequestParts<ApiState> for PathParams {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        let path = axum::extract::Path::<(String, String)>::from_request_parts(parts, state).await;
        let named = path.ok().map(|axum::extract::Path(both)| both).filter(|(one, other)| !one.contains('\0') && !other.contains('\0'));
        named.map(Self).ok_or_else(|| Problem::missing("there is no object with this name"))
    }
}

/// The version in `If-Match`; `None` without the header or with `*`.
pub struct IfMatch(pub Option<i64>);

impl FromRequestParts<ApiState> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &ApiState) -> Result<Self, Problem> {
        let Some(field) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = field.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        match text.trim_matches('"').parse() {
            Ok(version) if text.starts_with('"') => Ok(Self(Some(version))),
            _ => Err(Problem::stale("the value of `If-Match` is not a valid version; copy it from the `ETag` of the object")),
        }
    }
}

/// The `ETag` header of a version.
pub fn etag(version: i64) -> [(header::HeaderName, String); 1] {
    [(header::ETAG, format!("\"{version}\""))]
}

/// Checks the caller of a long-running response again.
pub struct Revalidation {
    /// `None`: a local command.
    token: Option<String>,
    from: IpAddr,
}

impl FromRequestParts<ApiState> for Revalidation {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &ApiState) -> Result<Self, Problem> {
        let ClientAddr(from) = ClientAddr::from_request_parts(parts, state).await?;
        let is_local = parts.extensions.get::<LocalCommand>().is_some();
        Ok(Self { token: bearer(&parts.headers).filter(|_| !is_local).map(str::to_owned), from })
    }
}

impl Revalidation {
    /// Fails if the caller's token has expired or was revoked.
    pub async fn check(&self, api: &Api) -> Result<(), Problem> {
        let Some(token) = &self.token else { return Ok(()) };
        Ok(api.authenticator.caller(&api.store, token, self.from).await.map(|_| ())?)
    }
}

/// Rejects requests from pages of other sites, and forbids caching of responses.
pub async fn own_origin(State(ApiState(api)): State<ApiState>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name: header::HeaderName| headers.get(name).and_then(|field| field.to_str().ok());
    let snapshot = api.shared.snapshot.load();
    let public = snapshot.settings.admin.public_origin.as_deref();
    let host = text(header::HOST).unwrap_or_default();
    let is_own = |origin: &str| {
        let by_host = origin.split_once("://").is_some_and(|(_, of_origin)| of_origin.eq_ignore_ascii_case(host));
        by_host || public.is_some_and(|public| origin.eq_ignore_ascii_case(public))
    };
    let origin = headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()));
    let has_body = headers.contains_key(header::TRANSFER_ENCODING) || text(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    let site = headers.get("sec-fetch-site").and_then(|field| field.to_str().ok());
    let foreign = origin.filter(|origin| !is_own(origin));
    let mut response = if let Some(origin) = foreign {
        let expected = public.map_or_else(
            || format!("the request's `Host` is `{host}`"),
            |public| format!("the request's `Host` is `{host}`, and `admin.public_origin` is `{public}`"),
        );
        let advice = "If a proxy changes `Host`, configure it to keep `Host`, or set `admin.public_origin`.";
        Problem::forbidden(format!("cross-origin requests are not allowed: `Origin` is `{origin}`, {expected}. {advice}")).into_response()
    } else if matches!(site, Some("cross-site" | "same-site")) {
        Problem::forbidden("cross-origin requests are not allowed").into_response()
    } else {
        next.run(request).await
    };
    if has_body && (response.status().is_client_error() || response.status().is_server_error()) {
        // The body may be unread, so the connection must end; the header tells the client.
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(header::HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
