//! Signing in through a provider of OpenID Connect. The console is where a provider sends people callback to; it brings what
//! they come with here, from the page that has begun it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::cookie::Cookie;
use super::extract::{Body, ClientAddr, PathParam};
use super::paging::ListPage;
use super::problem::{Answer, Problem, Problems};
use super::sign_in::SignInToken;
use crate::operator::Fault;
use crate::operator::oidc::{self, Callback};
use crate::operator::sign_in::{Declined, SignedIn, record_failure};

/// Holds what must come callback with whoever has left. Only the calls below get it, and only from pages of this site.
const PENDING_COOKIE: Cookie = Cookie { name: "keylatch-sign-in", path: "/admin/api/oidc" };

/// A provider, as anybody sees it.
#[derive(Serialize, ToSchema)]
pub struct ProviderButton {
    /// Its name.
    name: String,
    /// What stands on its button.
    label: String,
}

/// Through which providers may one sign in?
#[utoipa::path(get, path = "/admin/api/oidc", tag = "sign-in", responses((status = 200, body = ListPage<ProviderButton>), Problems))]
pub async fn sign_in_providers(State(api): State<Arc<Api>>) -> Answer<Json<ListPage<ProviderButton>>> {
    let providers = api.store.desk().providers().await?;
    let button = |provider: crate::sql::providers::Provider| {
        let label = provider.settings.get("label").and_then(|label| label.as_str()).filter(|label| !label.is_empty());
        ProviderButton { label: label.unwrap_or(&provider.name).to_owned(), name: provider.name }
    };
    Ok(Json(ListPage::all(providers.into_iter().map(button).collect())))
}

/// Where to go.
#[derive(Serialize, ToSchema)]
pub struct Redirection {
    /// The provider's page. It sends callback to the console.
    url: String,
}

/// Where the console is, as the browser says; `own_origin` has made sure that it is the host it was asked under.
fn origin(headers: &HeaderMap) -> Answer<&str> {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let fits = |origin: &&str| origin.starts_with("https://") || origin.starts_with("http://");
    origin.filter(fits).ok_or_else(|| Problem::unreadable("this is for browsers: `Origin` must say where the console is"))
}

/// Begin to sign in through a provider
///
/// Answers with where to go, and leaves a cookie that must come callback from there within ten minutes.
#[utoipa::path(post, path = "/admin/api/oidc/{name}/begin", tag = "sign-in", params(("name" = String, Path, description = "The provider's name.")),
    responses((status = 200, body = Redirection), Problems))]
pub async fn begin(
    State(api): State<Arc<Api>>,
    PathParam(name): PathParam,
    headers: HeaderMap,
) -> Answer<([(HeaderName, HeaderValue); 1], Json<Redirection>)> {
    let origin = origin(&headers)?;
    let (url, sealed) = api.oidc.begin(&api.store, &name, origin).await?;
    Ok((PENDING_COOKIE.set(&sealed, oidc::SIGN_IN_TIME_MAX.as_secs(), &headers), Json(Redirection { url })))
}

/// What a provider has sent somebody callback with.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Returned {
    /// The `state`.
    #[schema(max_length = 512)]
    state: String,
    /// The `code`.
    #[schema(min_length = 1, max_length = 8192)]
    code: String,
    /// The provider from which he comes: the last part of the path that he was sent callback to.
    #[schema(max_length = 32)]
    provider: String,
    /// The `iss`, where there is one.
    #[schema(max_length = 512)]
    iss: Option<String>,
}

/// Sign in with what a provider has sent callback
#[utoipa::path(post, path = "/admin/api/oidc/finish", tag = "sign-in", request_body = Returned, responses((status = 200, body = SignInToken), Problems))]
pub async fn finish(
    State(api): State<Arc<Api>>,
    ClientAddr(from): ClientAddr,
    headers: HeaderMap,
    Body(asked): Body<Returned>,
) -> Answer<([(HeaderName, HeaderValue); 1], Json<SignInToken>)> {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let callback = Callback {
        from: &asked.provider,
        sealed: PENDING_COOKIE.read(&headers).unwrap_or_default(),
        state: &asked.state,
        code: &asked.code,
        issuer: asked.iss.as_deref(),
    };
    let signed_in = complete(&api, &callback, from, agent).await;
    let result = signed_in.as_ref().map_or_else(Problem::sign_in_result, |_| "ok");
    api.shared.metrics.sign_ins.with_label_values(&[result]).inc();
    Ok((PENDING_COOKIE.set("", 0, &headers), Json(SignInToken::from_signed_in(signed_in?))))
}

async fn complete(api: &Api, callback: &Callback<'_>, from: std::net::IpAddr, agent: &str) -> Answer<SignedIn> {
    let guessed = api.authenticator.count_attempt(&api.store, from).await?;
    let known = match api.oidc.finish(&api.store, callback).await {
        Ok(known) => known,
        Err(fault) => {
            tracing::warn!(provider = callback.from, why = %fault, "a sign-in through a provider failed");
            if matches!(fault, Fault::External(_) | Fault::Unavailable(_)) {
                // It is not his fault.
                api.store.desk().forgive(&guessed).await?;
            } else {
                record_failure(&api.store, None, from, "provider").await;
            }
            return Err(fault.into());
        }
    };
    api.authenticator.sign_in_from(&api.store, &known, from, agent, &guessed).await.map_err(|declined| match declined {
        Declined::Refused(refusal) => Problem::from(refusal),
        Declined::Fault(fault) => Problem::from(fault),
    })
}
