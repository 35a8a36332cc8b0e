//! The mode `introspection`: asks the authorization server about a token (RFC 7662). It verifies no signatures.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, header};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::OnFailure;
use super::jwt::{has_audience, lacks_claim, numeric_date, text_claim};
use super::verdict::{Rejected, Verdict, Verified};
use super::verdict_cache::VerdictCache;
use crate::contract::{AnswerBody, Call, Endpoint, HumanDuration, Identity, Invalid, SecretRef, Service, Site};

const ANSWER_BYTES_MAX: usize = 64 * 1024;
const CACHE_DURATION_MAX: Duration = Duration::from_secs(3600);

/// `introspection`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IntrospectionConfig {
    /// The introspection endpoint of the authorization server.
    pub endpoint: Endpoint,
    /// The client id of Keylatch at the authorization server.
    pub client_id: String,
    /// The client secret.
    pub client_secret: SecretRef,
    /// The method by which the id and secret are sent. Default: `client_secret_basic`.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// The required `iss`, if the response has one. Default: not checked.
    pub issuer: Option<String>,
    /// The accepted audiences; `aud` must contain at least one. Default: not checked.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Fields that the response must contain, with any value. Default: only `active`.
    #[serde(default)]
    pub required_claims: Vec<String>,
    /// The time for which an active token is cached, never past its `exp`; at most 1h, 0s to disable. Default: 60s.
    #[serde(default = "a_minute")]
    pub cache: HumanDuration,
    /// The time for which an inactive token is cached; at most 1h, 0s to disable. Default: 10s.
    #[serde(default = "ten_seconds")]
    pub negative_cache: HumanDuration,
    /// The action if the authorization server is unavailable. Default: `closed`.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// A method of client authentication (RFC 6749, section 2.3.1; the names are those of RFC 8414).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// In the field `Authorization: Basic`.
    #[default]
    ClientSecretBasic,
    /// In the form of the request body.
    ClientSecretPost,
}

fn a_minute() -> HumanDuration {
    HumanDuration::secs(60)
}
fn ten_seconds() -> HumanDuration {
    HumanDuration::secs(10)
}

/// The compiled item of `bearer.accept`.
pub struct Introspection {
    config: IntrospectionConfig,
    service: Arc<dyn Service>,
    /// The `Authorization` value; `None`: the credentials are in `form`.
    authorization: Option<HeaderValue>,
    /// The encoded form parameters that follow `token=…` in the request.
    form: String,
    verdicts: VerdictCache,
}

/// Checks the lifetime of a cache: 0s, or 1s to 1h.
pub fn cache_duration(duration: HumanDuration, name: &str) -> Result<Duration, Invalid> {
    if duration.0 > CACHE_DURATION_MAX {
        return Err(Invalid::new("must be at most 1h, because a revoked token passes for as long").at(name));
    }
    if !duration.0.is_zero() && duration.0 < Duration::from_secs(1) {
        return Err(Invalid::new("must be at least 1s, or 0s to disable").at(name));
    }
    Ok(duration.0)
}

/// Encodes as `application/x-www-form-urlencoded` (RFC 6749, appendix B).
fn form_encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

impl Introspection {
    pub fn compile(config: IntrospectionConfig, cache_max: usize, site: &Site<'_>) -> Result<Self, Invalid> {
        let service = site.service(&config.endpoint).map_err(|e| e.at("endpoint"))?;
        let secret = site.secret(&config.client_secret).map_err(|e| e.at("client_secret"))?;
        let (id, secret) = (form_encoded(&config.client_id), form_encoded(&secret));
        let (authorization, form) = match config.client_auth {
            ClientAuth::ClientSecretBasic => {
                let pair = STANDARD.encode(format!("{id}:{secret}"));
                let mut value = HeaderValue::try_from(format!("Basic {pair}")).map_err(|e| Invalid::new(e.to_string()))?;
                value.set_sensitive(true);
                (Some(value), "&token_type_hint=access_token".to_owned())
            }
            ClientAuth::ClientSecretPost => (None, format!("&token_type_hint=access_token&client_id={id}&client_secret={secret}")),
        };
        let (accepted, refused) = (cache_duration(config.cache, "cache")?, cache_duration(config.negative_cache, "negative_cache")?);
        let verdicts = VerdictCache::new(cache_max, accepted, refused);
        Ok(Self { config, service, authorization, form, verdicts })
    }

    pub fn fails_open(&self) -> bool {
        self.config.on_failure == OnFailure::Open
    }

    /// `hash` is the hash of the token, the key of the cache.
    pub async fn verify(&self, token: &str, hash: [u8; 32], now_s: u64) -> Verdict {
        let verdict = self.verdicts.get(hash, now_s, self.call(token)).await;
        match &verdict {
            Verdict::Accepted(verified) => match verified.check_time(now_s) {
                Ok(()) => verdict,
                Err(rejected) => Verdict::Rejected(rejected),
            },
            _ => verdict,
        }
    }

    async fn call(&self, token: &str) -> (Verdict, Duration) {
        let mut headers = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
            (header::ACCEPT, HeaderValue::from_static("application/json")),
            // Caches between Keylatch and the server must not store the response.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        headers.extend(self.authorization.clone().map(|value| (header::AUTHORIZATION, value)));
        let call = Call {
            method: Method::POST,
            path: Cow::Borrowed(""),
            headers,
            body: format!("token={}{}", form_encoded(token), self.form),
            answer: AnswerBody::Whole(ANSWER_BYTES_MAX),
        };
        let answered = match self.service.call(call).await {
            Ok(answered) => answered,
            Err(error) => return (Verdict::from_call_error("introspection", &error), Duration::ZERO),
        };
        let verdict = match answered.status.as_u16() {
            200 => match serde_json::from_slice::<Map<String, Value>>(&answered.body) {
                Ok(claims) => self.judge(claims).into(),
                Err(_) => Verdict::Unclear("introspection: the answer is not a JSON object".into()),
            },
            // The server rejects this token as malformed or too long.
            400 | 413 | 414 | 422 | 431 => Verdict::Rejected(Rejected::Malformed),
            status => Verdict::from_status("introspection", status),
        };
        (verdict, answered.took)
    }

    fn judge(&self, claims: Map<String, Value>) -> Result<Verified, Rejected> {
        if claims.get("active") != Some(&Value::Bool(true)) {
            return Err(Rejected::Inactive);
        }
        if let (Some(wanted), Some(named)) = (&self.config.issuer, claims.get("iss"))
            && named.as_str() != Some(wanted)
        {
            return Err(Rejected::Issuer);
        }
        if !self.config.audiences.is_empty() && !has_audience(&claims, &self.config.audiences) {
            return Err(Rejected::Audience);
        }
        if lacks_claim(&claims, &self.config.required_claims) {
            return Err(Rejected::Claims);
        }
        // A server may write null for a date that is not set.
        let date = |name| if claims.get(name).is_some_and(Value::is_null) { Ok(None) } else { numeric_date(&claims, name) };
        let (expires_s, from_s) = (date("exp")?, date("nbf")?);
        let subject = ["sub", "username"].into_iter().find_map(|name| text_claim(&claims, name));
        Ok(Verified { expires_s, from_s, ..Verified::new(Identity { subject, claims: Arc::new(claims) }) })
    }
}
