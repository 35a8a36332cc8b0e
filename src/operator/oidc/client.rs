//! HTTP client for a provider: discovery, token exchange, keys, userinfo.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue, Method, header};
use keylatch_filters::bearer::{Alg, KeySet};
use keylatch_filters::contract::{AnswerBody, Call, CallError, Service};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::provider::Settings;
use crate::operator::Fault;

/// Maximum size of a provider's answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// Accepted signature algorithms of ID tokens, asymmetric ones only.
pub const ALGORITHMS: [Alg; 11] =
    [Alg::RS256, Alg::RS384, Alg::RS512, Alg::PS256, Alg::PS384, Alg::PS512, Alg::ES256, Alg::ES384, Alg::ES512, Alg::EdDSA, Alg::Ed25519];

/// The error of a token endpoint for an invalid code (RFC 6749, section 5.2).
const INVALID_GRANT: &str = "(invalid_grant)";

/// The discovery document (OpenID Connect Discovery 1.0, section 3), reduced to the fields in use.
#[derive(Clone, Debug, Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    userinfo_endpoint: Option<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// A provider's endpoints.
pub struct Endpoints {
    /// The page to which browsers are redirected.
    pub authorization: reqwest::Url,
    token: Arc<dyn Service>,
    keys: Arc<dyn Service>,
    userinfo: Option<Arc<dyn Service>>,
    /// Whether redirects back carry `iss` (RFC 9207).
    pub sends_issuer: bool,
    /// Whether the client secret is sent in the form instead of `Authorization`.
    secret_in_form: bool,
}

/// The answer of the token endpoint.
#[derive(Deserialize)]
pub struct Tokens {
    /// The ID token.
    pub id_token: String,
    /// The access token for the userinfo endpoint.
    pub access_token: Option<String>,
}

fn call_failed(what: &str, error: &CallError) -> Fault {
    Fault::External(format!("the provider's {what}: {error}"))
}

async fn send<T: DeserializeOwned>(service: &dyn Service, what: &str, call: Call) -> Result<T, Fault> {
    let answered = service.call(call).await.map_err(|error| call_failed(what, &error))?;
    let fault = |says: String| Fault::External(format!("the provider's {what} {says}"));
    if !answered.status.is_success() {
        // RFC 6749, section 5.2: an error code. Nothing else of the answer is repeated.
        let word = serde_json::from_slice::<Value>(&answered.body).ok();
        let word = word.as_ref().and_then(|body| body.get("error")?.as_str());
        let word = word.filter(|word| word.len() <= 64 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
        let word = word.map(|word| format!(" ({word})")).unwrap_or_default();
        return Err(fault(format!("answered with {}{word}", answered.status.as_u16())));
    }
    // The message of serde may contain a token.
    serde_json::from_slice(&answered.body).map_err(|_| fault("sent an answer that is not the expected JSON".into()))
}

fn get(path: &'static str, headers: Vec<(HeaderName, HeaderValue)>) -> Call {
    Call { method: Method::GET, path: Cow::Borrowed(path), headers, body: String::new(), answer: AnswerBody::Whole(ANSWER_BYTES_MAX) }
}

fn accepts_json() -> (HeaderName, HeaderValue) {
    (header::ACCEPT, HeaderValue::from_static("application/json"))
}

/// A header value that logs must not show.
fn sensitive(text: &str) -> Result<HeaderValue, Fault> {
    let value = HeaderValue::from_str(text);
    let mut value =
        value.map_err(|_| Fault::External("the provider's access token contains characters that a header cannot carry".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

impl Endpoints {
    /// Fetches the discovery document and its endpoints.
    pub async fn discover(service: &dyn Service, settings: &Settings) -> Result<Self, Fault> {
        let document: Document = send(service, "discovery document", get(WELL_KNOWN, vec![accepts_json()])).await?;
        if document.issuer != settings.issuer {
            return Err(Fault::External(
                "the provider's discovery document names another issuer; set `issuer` to exactly the value in it".into(),
            ));
        }
        let elsewhere = |name: &'static str, url: &str| service.elsewhere(url).map_err(|error| call_failed(name, &error));
        let methods = document.token_endpoint_auth_methods_supported.unwrap_or_default();
        let has = |method: &str| methods.iter().any(|known| known == method);
        let private = settings.allow_private && settings.issuer.starts_with("http:");
        let authorization = page(&document.authorization_endpoint, settings.allow_private, private);
        Ok(Self {
            authorization: authorization.map_err(|says| Fault::External(format!("the provider's authorization_endpoint {says}")))?,
            token: elsewhere("token_endpoint", &document.token_endpoint)?,
            keys: elsewhere("jwks_uri", &document.jwks_uri)?,
            userinfo: document.userinfo_endpoint.map(|url| elsewhere("userinfo_endpoint", &url)).transpose()?,
            sends_issuer: document.authorization_response_iss_parameter_supported,
            secret_in_form: has("client_secret_post") && !has("client_secret_basic"),
        })
    }

    /// The authorization URL (OpenID Connect Core 1.0, section 3.1.2.1; PKCE: RFC 7636).
    pub fn authorization_url(&self, settings: &Settings, back: &str, state: &str, nonce: &str, verifier: &str) -> String {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
        let mut url = self.authorization.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &settings.client_id)
            .append_pair("redirect_uri", back)
            .append_pair("scope", &settings.scope())
            .append_pair("state", state)
            .append_pair("nonce", nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        url.into()
    }

    /// Exchanges a code for tokens (RFC 6749, section 4.1.3).
    pub async fn tokens(&self, settings: &Settings, secret: Option<&str>, back: &str, code: &str, verifier: &str) -> Result<Tokens, Fault> {
        let mut headers = vec![accepts_json(), (header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))];
        let mut form = reqwest::Url::parse("form:?").map_err(|e| Fault::External(e.to_string()))?;
        {
            let mut pairs = form.query_pairs_mut();
            pairs.append_pair("grant_type", "authorization_code").append_pair("code", code);
            pairs.append_pair("redirect_uri", back).append_pair("code_verifier", verifier);
            match secret {
                Some(secret) if !self.secret_in_form => {
                    // RFC 6749, section 2.3.1: both are form-encoded before they are joined.
                    let basic = STANDARD.encode(format!("{}:{}", encoded(&settings.client_id), encoded(secret)));
                    headers.push((header::AUTHORIZATION, sensitive(&format!("Basic {basic}"))?));
                }
                secret => {
                    pairs.append_pair("client_id", &settings.client_id);
                    secret.iter().for_each(|secret| {
                        pairs.append_pair("client_secret", secret);
                    });
                }
            }
        }
        let body = form.query().unwrap_or_default().to_owned();
        let call = Call { method: Method::POST, path: "".into(), headers, body, answer: AnswerBody::Whole(ANSWER_BYTES_MAX) };
        send(&*self.token, "token endpoint", call).await.map_err(|fault| match fault {
            Fault::External(why) if why.contains(INVALID_GRANT) => {
                Fault::Forbidden("the provider rejected the authorization code: it is invalid or has expired; sign in again".into())
            }
            other => other,
        })
    }

    /// The current signing keys. They are not cached: sign-ins are rare, and keys rotate.
    pub async fn keys(&self) -> Result<KeySet, Fault> {
        let set: Value = send(&*self.keys, "keys", get("", vec![accepts_json()])).await?;
        KeySet::published(&set.to_string(), &ALGORITHMS).map_err(|says| Fault::External(format!("the provider's keys: {says}")))
    }

    /// Claims from the userinfo endpoint (OpenID Connect Core 1.0, section 5.3); `None`: the provider has none.
    pub async fn userinfo(&self, access_token: &str) -> Result<Option<Map<String, Value>>, Fault> {
        let Some(service) = &self.userinfo else { return Ok(None) };
        let bearer = (header::AUTHORIZATION, sensitive(&format!("Bearer {access_token}"))?);
        send(&**service, "userinfo endpoint", get("", vec![accepts_json(), bearer])).await.map(Some)
    }
}

/// Parses a URL for redirects. It must not lead from `https` to `http`.
fn page(url: &str, inside: bool, http: bool) -> Result<reqwest::Url, String> {
    let url = crate::util::outbound_url::target(url, inside)?;
    if url.scheme() == "http" && !http { Err("leads from https to http".into()) } else { Ok(url) }
}

/// Form-encodes a text.
fn encoded(text: &str) -> String {
    let mut url = reqwest::Url::parse("form:?").ok();
    if let Some(url) = &mut url {
        url.query_pairs_mut().append_key_only(text);
    }
    url.as_ref().and_then(|url| url.query()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_encoding() {
        assert_eq!(encoded("a b:c%ü&="), "a+b%3Ac%25%C3%BC%26%3D");
    }
}
