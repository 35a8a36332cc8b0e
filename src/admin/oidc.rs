//! Handlers for sign-in through an OpenID Connect provider. The provider redirects the browser to the console, which sends the
//! parameters here, from the page that began the sign-in.

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

/// The sealed pending sign-in. Only the operations below receive it, and only from pages of this origin.
const PENDING_COOKIE: Cookie = Cookie { name: "keylatch-sign-in", path: "/admin/api/oidc" };

/// A provider on the sign-in page, visible without sign-in.
#[derive(Serialize, ToSchema)]
pub struct ProviderButton {
    /// The provider's name.
    name: String,
    /// The text of its button.
    label: String,
}

/// List the providers for sign-in
#[utoipa::path(get, path = "/admin/api/oidc", tag = "sign-in", responses((status = 200, body = ListPage<ProviderButton>), Problems))]
pub async fn sign_in_providers(State(api): State<Arc<Api>>) -> Answer<Json<ListPage<ProviderButton>>> {
    let providers = api.store.admin_store().providers().await?;
    let button = |provider: crate::sql::providers::Provider| {
        let label = provider.settings.get("label").and_then(|label| label.as_str()).filter(|label| !label.is_empty());
        ProviderButton { label: label.unwrap_or(&provider.name).to_owned(), name: provider.name }
    };
    Ok(Json(ListPage::all(providers.into_iter().map(button).collect())))
}

/// The redirection to a provider.
#[derive(Serialize, ToSchema)]
pub struct Redirection {
    /// The provider's page. It redirects back to the console.
    url: String,
}

/// The console's origin according to the browser; `own_origin` has compared it with the host.
fn origin(headers: &HeaderMap) -> Answer<&str> {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let fits = |origin: &&str| origin.starts_with("https://") || origin.starts_with("http://");
    origin.filter(fits).ok_or_else(|| Problem::unreadable("this operation is for browsers: `Origin` must be the console's origin"))
}

/// Begin a sign-in through a provider
///
/// The response holds the URL to go to, and sets a cookie that is valid for ten minutes.
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

/// The parameters of the redirect back from a provider.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Returned {
    /// The `state`.
    #[schema(max_length = 512)]
    state: String,
    /// The `code`.
    #[schema(min_length = 1, max_length = 8192)]
    code: String,
    /// The provider: the last part of the redirect URI's path.
    #[schema(max_length = 32)]
    provider: String,
    /// The `iss`, if the provider sent it.
    #[schema(max_length = 512)]
    iss: Option<String>,
}

/// Finish a sign-in through a provider
#[utoipa::path(post, path = "/admin/api/oidc/finish", tag = "sign-in", request_body = Returned, responses((status = 200, body = SignInToken), Problems))]
pub async fn finish(
    State(api): State<Arc<Api>>,
    ClientAddr(from): ClientAddr,
    headers: HeaderMap,
    Body(input): Body<Returned>,
) -> Answer<([(HeaderName, HeaderValue); 1], Json<SignInToken>)> {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let callback = Callback {
        from: &input.provider,
        sealed: PENDING_COOKIE.read(&headers).unwrap_or_default(),
        state: &input.state,
        code: &input.code,
        issuer: input.iss.as_deref(),
    };
    let signed_in = complete(&api, &callback, from, agent).await;
    let result = signed_in.as_ref().map_or_else(Problem::sign_in_result, |_| "ok");
    api.shared.metrics.sign_ins.with_label_values(&[result]).inc();
    Ok((PENDING_COOKIE.set("", 0, &headers), Json(SignInToken::from_signed_in(signed_in?))))
}

async fn complete(api: &Api, callback: &Callback<'_>, from: std::net::IpAddr, agent: &str) -> Answer<SignedIn> {
    let guessed = api.authenticator.count_attempt(&api.store, from).await?;
    let identity = match api.oidc.finish(&api.store, callback).await {
        Ok(identity) => identity,
        Err(fault) => {
            tracing::warn!(provider = callback.from, why = %fault, "a sign-in through a provider failed");
            if matches!(fault, Fault::External(_) | Fault::Unavailable(_)) {
                // Failures of the provider or the store do not count as failed attempts.
                api.store.admin_store().forgive_attempt(&guessed).await?;
            } else {
                record_failure(&api.store, None, from, "provider").await;
            }
            return Err(fault.into());
        }
    };
    api.authenticator.sign_in_from(&api.store, &identity, from, agent, &guessed).await.map_err(|declined| match declined {
        Declined::Refused(refusal) => Problem::from(refusal),
        Declined::Fault(fault) => Problem::from(fault),
    })
}
