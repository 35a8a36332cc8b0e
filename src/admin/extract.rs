//! What handlers are given of a request: who asks and whether he may, the body, the query, the version he has seen.

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
use super::{Api, Known};
use crate::operator::access::{Caller, Role, SCOPES, Scope};
use crate::sql::audit::Actor;

/// A body that takes longer does not arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// Somebody who is signed in, whatever he may do.
pub struct Anybody(pub Caller);

/// A person who is signed in; scripts leave accounts alone.
pub struct Person(pub Caller);

/// A person who has chosen a password.
pub struct Settled(pub Caller);

/// Somebody who may do this: `May<{ READ }>`.
pub struct May<const SCOPE: u8>(pub Caller);

/// See [`Scope::Read`]; the others alike.
pub const READ: u8 = Scope::Read as u8;
pub const STREAMS: u8 = Scope::Streams as u8;
pub const LIMITS: u8 = Scope::Limits as u8;
pub const BINDINGS: u8 = Scope::Bindings as u8;
pub const SETTINGS: u8 = Scope::Settings as u8;
pub const CONFIG: u8 = Scope::Config as u8;
pub const ACCOUNTS: u8 = Scope::Accounts as u8;

/// A command on this machine asks: whoever owns the process. Only the listener says so.
#[derive(Clone, Copy)]
pub struct Machine;

/// The field in which commands say who runs them. Means nothing elsewhere.
pub const ACTOR: &str = "keylatch-actor";

fn machine(headers: &HeaderMap) -> Caller {
    let who = headers.get(ACTOR).and_then(|who| who.to_str().ok()).unwrap_or("command").to_owned();
    let origin = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "here".into());
    Caller {
        account: who.clone(),
        role: Role::Admin,
        scopes: Role::Admin.scopes(),
        session: None,
        must_change: false,
        actor: Actor { who, origin },
    }
}

/// Whose address it is, behind trusted proxies too.
pub struct From(pub IpAddr);

impl FromRequestParts<Known> for From {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map_or(IpAddr::from([0, 0, 0, 0]), |info| info.0.ip());
        let snapshot = known.0.shared.snapshot.load();
        Ok(Self(ClientIp::by_default(&snapshot.trusted, canonical(peer), &parts.headers)))
    }
}

impl FromRequestParts<Known> for Anybody {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        if parts.extensions.get::<Machine>().is_some() {
            return Ok(Self(machine(&parts.headers)));
        }
        let From(from) = From::from_request_parts(parts, known).await?;
        let token = bearer(&parts.headers).ok_or_else(Problem::unknown_caller)?;
        let api: &Api = &known.0;
        Ok(Self(api.door.caller(&api.store, token, from).await?))
    }
}

impl FromRequestParts<Known> for Person {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        let Anybody(caller) = Anybody::from_request_parts(parts, known).await?;
        match caller.session {
            Some(_) => Ok(Self(caller)),
            None => Err(Problem::forbidden("this needs a sign-in; a script's token is not enough")),
        }
    }
}

impl FromRequestParts<Known> for Settled {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        let Person(caller) = Person::from_request_parts(parts, known).await?;
        settled(caller).map(Self)
    }
}

/// Nobody does anything else before he has chosen a password that only he knows.
fn settled(caller: Caller) -> Result<Caller, Problem> {
    match caller.must_change {
        false => Ok(caller),
        true => Err(Problem::forbidden("choose a password of your own first: PUT /admin/api/account/password")),
    }
}

impl<const SCOPE: u8> FromRequestParts<Known> for May<SCOPE> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        let Anybody(caller) = Anybody::from_request_parts(parts, known).await?;
        let caller = settled(caller)?;
        match SCOPES.into_iter().find(|scope| *scope as u8 == SCOPE) {
            Some(scope) if caller.scopes.has(scope) => Ok(Self(caller)),
            scope => Err(Problem::forbidden(format!("this needs the scope `{}`", scope.map_or("", Scope::as_str)))),
        }
    }
}

/// The one token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (field, None) = (fields.next()?, fields.next()) else { return None };
    let (scheme, token) = field.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A body of JSON.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Known> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, known: &Known) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            return Err(Problem::not_json());
        }
        let arrives = tokio::time::timeout(BODY_TIME_MAX, Bytes::from_request(request, known)).await;
        let bytes = arrives.map_err(|_| Problem::unreadable("the body did not arrive in time"))?.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(_) => Problem::too_large(),
            _ => Problem::unreadable("the body did not arrive"),
        })?;
        if let Some(problem) = null(&bytes) {
            return Err(problem);
        }
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let error = error.into_inner();
            match error.classify() {
                serde_json::error::Category::Data => Problem::invalid(path.trim_matches('.'), blameless(&error)),
                _ => Problem::unreadable(format!("the body is no JSON, from line {}, column {} on", error.line(), error.column())),
            }
        })?;
        match reader.end() {
            Ok(()) => Ok(Self(read)),
            Err(_) => Err(Problem::unreadable("something stands behind the JSON of the body")),
        }
    }
}

/// No name, key or text of ours has a NUL, and databases do not take one.
fn null(text: &[u8]) -> Option<Problem> {
    let there = |what: &[u8]| memchr::memmem::find(text, what).is_some();
    (there(b"\\u0000") || there(b"%00")).then(|| Problem::unreadable("it holds a NUL character"))
}

/// What serde says of a field, without its value: that may be a password or a key.
fn blameless(error: &serde_json::Error) -> String {
    let says = error.to_string();
    let says = says.rsplit_once(" at line ").map_or(says.as_str(), |(says, _)| says);
    match says.split_once(", expected ") {
        Some((_, expected)) if says.starts_with("invalid") => format!("this must be {expected}"),
        _ => says.to_owned(),
    }
}

/// The query.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Known> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        if let Some(problem) = null(parts.uri.query().unwrap_or_default().as_bytes()) {
            return Err(problem);
        }
        let query = Query::<T>::from_request_parts(parts, known).await;
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

/// A part of the path. What is none stands for nothing that there is.
pub struct Part(pub String);

impl FromRequestParts<Known> for Part {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, known).await;
        let named = path.ok().map(|axum::extract::Path(part)| part).filter(|part| !part.contains('\0'));
        named.map(Self).ok_or_else(|| Problem::missing("there is nothing of this name"))
    }
}

/// Two parts of the path.
pub struct Parts(pub (String, String));

impl FromRequestParts<Known> for Parts {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        let path = axum::extract::Path::<(String, String)>::from_request_parts(parts, known).await;
        let named = path.ok().map(|axum::extract::Path(both)| both).filter(|(one, other)| !one.contains('\0') && !other.contains('\0'));
        named.map(Self).ok_or_else(|| Problem::missing("there is nothing of this name"))
    }
}

/// The version in `If-Match`, if one is there; `*` is any.
pub struct IfMatch(pub Option<i64>);

impl FromRequestParts<Known> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &Known) -> Result<Self, Problem> {
        let Some(field) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = field.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        match text.trim_matches('"').parse() {
            Ok(version) if text.starts_with('"') => Ok(Self(Some(version))),
            _ => Err(Problem::stale("the version in `If-Match` is none of ours; take it from the `ETag` of what you have looked at")),
        }
    }
}

/// What has a version, with it.
pub fn etag(version: i64) -> [(header::HeaderName, String); 1] {
    [(header::ETAG, format!("\"{version}\""))]
}

/// Whoever is still at it, and may go on.
pub struct Again {
    /// `None`: a command on this machine.
    token: Option<String>,
    from: IpAddr,
}

impl FromRequestParts<Known> for Again {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut http::request::Parts, known: &Known) -> Result<Self, Problem> {
        let From(from) = From::from_request_parts(parts, known).await?;
        let machine = parts.extensions.get::<Machine>().is_some();
        Ok(Self { token: bearer(&parts.headers).filter(|_| !machine).map(str::to_owned), from })
    }
}

impl Again {
    /// Whether he is still known: whoever was signed out meanwhile sees nothing more.
    pub async fn still(&self, api: &Api) -> Result<(), Problem> {
        let Some(token) = &self.token else { return Ok(()) };
        Ok(api.door.caller(&api.store, token, self.from).await.map(|_| ())?)
    }
}

/// Pages of other sites have no business here, whatever a browser lets them send; and nothing here is kept by caches.
pub async fn own_origin(State(Known(api)): State<Known>, request: Request, next: Next) -> Response {
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
        let advice = "If a proxy changes `Host`, have it keep `Host`, or set `admin.public_origin`.";
        Problem::forbidden(format!("pages of other sites may not use this API: `Origin` is `{origin}`, {expected}. {advice}"))
            .into_response()
    } else if matches!(site, Some("cross-site" | "same-site")) {
        Problem::forbidden("pages of other sites may not use this API").into_response()
    } else {
        next.run(request).await
    };
    if has_body && (response.status().is_client_error() || response.status().is_server_error()) {
        // Its body may not have been read, and then the connection ends: whoever sent it is told, and begins another one.
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(header::HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
