//! Tokens that the authorization server is asked about (RFC 7662).

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
use super::jwt::{is_for, lacks, numeric_date, text_claim};
use super::memo::Memo;
use super::verdict::{Rejected, Verdict, Verified};
use crate::contract::{AnswerBody, Call, Endpoint, HumanDuration, Identity, Invalid, SecretRef, Service, Site};

const ANSWER_BYTES_MAX: usize = 64 * 1024;
const REMEMBERED_MAX: Duration = Duration::from_secs(3600);

/// `introspection`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IntrospectionConfig {
    /// The introspection endpoint.
    pub endpoint: Endpoint,
    /// Who we are to it.
    pub client_id: String,
    /// What proves it.
    pub client_secret: SecretRef,
    /// How both are sent. Default: `client_secret_basic`.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// What `iss` must be, if the answer names one. Default: not looked at.
    pub issuer: Option<String>,
    /// What `aud` must name at least one of. Default: not looked at.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// What the answer must say, whatever it says. Default: nothing beyond `active`.
    #[serde(default)]
    pub required_claims: Vec<String>,
    /// How long an active token is remembered, never past its `exp`; at most 1h; 0s: not. Default: 60s.
    #[serde(default = "a_minute")]
    pub cache: HumanDuration,
    /// How long it is remembered that a token is not active; at most 1h; 0s: not. Default: 10s.
    #[serde(default = "ten_seconds")]
    pub negative_cache: HumanDuration,
    /// What becomes of tokens that nobody can be asked about. Default: `closed`.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// How a client proves who it is (RFC 6749, section 2.3.1; the names are those of RFC 8414).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// In `Authorization: Basic`.
    #[default]
    ClientSecretBasic,
    /// In the form.
    ClientSecretPost,
}

fn a_minute() -> HumanDuration {
    HumanDuration::secs(60)
}
fn ten_seconds() -> HumanDuration {
    HumanDuration::secs(10)
}

/// The compiled mode.
pub struct Introspection {
    config: IntrospectionConfig,
    service: Arc<dyn Service>,
    /// `Authorization`; `None`: the credentials are in `form`.
    authorization: Option<HeaderValue>,
    /// What the form has beside the token.
    form: String,
    memo: Memo,
}

/// How long an answer may be remembered, or what is wrong with that.
pub fn remembered(duration: HumanDuration, name: &str) -> Result<Duration, Invalid> {
    if duration.0 > REMEMBERED_MAX {
        return Err(Invalid::new("at most 1h: a token that is revoked passes for as long").at(name));
    }
    if !duration.0.is_zero() && duration.0 < Duration::from_secs(1) {
        return Err(Invalid::new("at least 1s, or 0s for not at all").at(name));
    }
    Ok(duration.0)
}

/// `application/x-www-form-urlencoded`, as RFC 6749, appendix B asks for.
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
        let (accepted, refused) = (remembered(config.cache, "cache")?, remembered(config.negative_cache, "negative_cache")?);
        let memo = Memo::new(cache_max, accepted, refused);
        Ok(Self { config, service, authorization, form, memo })
    }

    pub fn fails_open(&self) -> bool {
        self.config.on_failure == OnFailure::Open
    }

    /// `hash` is what the token is remembered by.
    pub async fn verify(&self, token: &str, hash: [u8; 32], now_s: u64) -> Verdict {
        let verdict = self.memo.get(hash, now_s, self.ask(token)).await;
        match &verdict {
            Verdict::Accepted(verified) => match verified.in_time(now_s) {
                Ok(()) => verdict,
                Err(rejected) => Verdict::Rejected(rejected),
            },
            _ => verdict,
        }
    }

    async fn ask(&self, token: &str) -> (Verdict, Duration) {
        let mut headers = vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
            (header::ACCEPT, HeaderValue::from_static("application/json")),
            // The answer holds for us and for now.
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
            Err(error) => return (Verdict::of_error("introspection", &error), Duration::ZERO),
        };
        let verdict = match answered.status.as_u16() {
            200 => match serde_json::from_slice::<Map<String, Value>>(&answered.body) {
                Ok(claims) => self.judge(claims).into(),
                Err(_) => Verdict::Unclear("introspection: the answer is not a JSON object".into()),
            },
            // It is this token that it does not like.
            400 | 413 | 414 | 422 | 431 => Verdict::Rejected(Rejected::Malformed),
            status => Verdict::of_status("introspection", status),
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
        if !self.config.audiences.is_empty() && !is_for(&claims, &self.config.audiences) {
            return Err(Rejected::Audience);
        }
        if lacks(&claims, &self.config.required_claims) {
            return Err(Rejected::Claims);
        }
        // A server may say of what it has no date that there is none.
        let date = |name| if claims.get(name).is_some_and(Value::is_null) { Ok(None) } else { numeric_date(&claims, name) };
        let (expires_s, from_s) = (date("exp")?, date("nbf")?);
        let subject = ["sub", "username"].into_iter().find_map(|name| text_claim(&claims, name));
        Ok(Verified { expires_s, from_s, ..Verified::new(Identity { subject, claims: Arc::new(claims) }) })
    }
}
