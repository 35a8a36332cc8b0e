//! The mode `forward_auth`: asks an HTTP service about a token. 2xx accepts it, 3xx and 4xx refuse it, as with nginx
//! `auth_request`, Traefik ForwardAuth and Envoy HTTP `ext_authz`. It does not interpret the token itself.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::OnFailure;
use super::introspection::cache_duration;
use super::verdict::{Rejected, Verdict, Verified};
use super::verdict_cache::VerdictCache;
use crate::contract::{
    AnswerBody, Body, Call, Endpoint, HumanDuration, Identity, Invalid, Problem, Reply, RequestCx, Service, ServiceResponse, Site,
    field_name, is_framing,
};

/// The maximum length of the service's body in a refusal.
const SHOWN_BODY_BYTES_MAX: usize = 4096;
/// The maximum number of fields in `send` and `take`.
const FIELDS_MAX: usize = 32;

/// A detail of the request that the service receives, in a header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RequestDetail {
    /// `X-Forwarded-Method`
    Method,
    /// `X-Forwarded-Uri`, path and query
    Uri,
    /// `X-Forwarded-Host`
    Host,
    /// `X-Forwarded-For`, the client's address
    Client,
}

/// The response that the client receives after a refusal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The response of Keylatch: 403 if the service has answered with 403, otherwise 401.
    #[default]
    Ours,
    /// The response of the service: its status, `Content-Type`, `WWW-Authenticate`, `Location`, and the first 4 KiB of its
    /// body.
    Theirs,
}

/// `forward_auth`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardAuthConfig {
    /// The URL of the service, called with GET.
    pub endpoint: Endpoint,
    /// The header fields of the request that the service receives, beside the token in `Authorization: Bearer`. Default: none.
    #[serde(default)]
    pub send: Vec<String>,
    /// Further details of the request that the service receives. Default: none.
    #[serde(default)]
    pub tell: Vec<RequestDetail>,
    /// The fields of the service's response that the upstream receives. Fields of these names from the client are removed.
    /// Default: none.
    #[serde(default)]
    pub take: Vec<String>,
    /// The field of the service's response that has the subject. Default: none.
    pub subject: Option<String>,
    /// The response that the client receives after a refusal. Default: `ours`.
    #[serde(default)]
    pub refusal: Refusal,
    /// The time for which an acceptance is cached, for the same token and the same other data sent; at most 1h, 0s to disable.
    /// Default: 30s.
    #[serde(default = "half_a_minute")]
    pub cache: HumanDuration,
    /// The time for which a refusal is cached; at most 1h, 0s to disable. Default: 5s.
    #[serde(default = "five_seconds")]
    pub negative_cache: HumanDuration,
    /// The action if the service is unavailable. Default: `closed`.
    #[serde(default)]
    pub on_failure: OnFailure,
}

fn half_a_minute() -> HumanDuration {
    HumanDuration::secs(30)
}
fn five_seconds() -> HumanDuration {
    HumanDuration::secs(5)
}

/// The compiled item of `bearer.accept`.
pub struct ForwardAuth {
    service: Arc<dyn Service>,
    send: Vec<HeaderName>,
    tell: Vec<RequestDetail>,
    take: Vec<HeaderName>,
    subject: Option<HeaderName>,
    refusal: Refusal,
    on_failure: OnFailure,
    verdicts: VerdictCache,
}

impl ForwardAuth {
    pub fn compile(config: ForwardAuthConfig, cache_max: usize, site: &Site<'_>) -> Result<Self, Invalid> {
        let names = |names: &[String], key: &str| {
            if names.len() > FIELDS_MAX {
                return Err(Invalid::new(format!("must have at most {FIELDS_MAX} fields")).at(key));
            }
            let name = |(index, name): (usize, &String)| field_name(name).map_err(|e| e.index(index).at(key));
            names.iter().enumerate().map(name).collect::<Result<Vec<_>, _>>()
        };
        let (send, take) = (names(&config.send, "send")?, names(&config.take, "take")?);
        if let Some(index) = send.iter().position(|name| *name == header::AUTHORIZATION) {
            return Err(Invalid::new("the token is always sent; remove this field").index(index).at("send"));
        }
        let belongs = |name: &HeaderName| is_framing(name) || *name == header::HOST;
        for (key, names) in [("send", &send), ("take", &take)] {
            if let Some(index) = names.iter().position(belongs) {
                return Err(Invalid::new("controls message framing and cannot be copied to another message").index(index).at(key));
            }
        }
        // The service could mistake fields of the client for those that Keylatch sets.
        if let Some(index) = send.iter().position(|name| name.as_str().starts_with("x-forwarded-")) {
            return Err(Invalid::new("a client can forge this field; use `tell`").index(index).at("send"));
        }
        let subject = config.subject.as_deref().map(field_name).transpose().map_err(|e| e.at("subject"))?;
        let (accepted, refused) = (cache_duration(config.cache, "cache")?, cache_duration(config.negative_cache, "negative_cache")?);
        Ok(Self {
            service: site.service(&config.endpoint).map_err(|e| e.at("endpoint"))?,
            send,
            tell: config.tell,
            take,
            subject,
            refusal: config.refusal,
            on_failure: config.on_failure,
            verdicts: VerdictCache::new(cache_max, accepted, refused),
        })
    }

    pub fn fails_open(&self) -> bool {
        self.on_failure == OnFailure::Open
    }

    /// The fields of the upstream request that only the service may set.
    pub fn takes(&self) -> &[HeaderName] {
        &self.take
    }

    pub async fn verify(&self, token: &str, cx: &RequestCx<'_>) -> Verdict {
        let Ok(mut authorization) = HeaderValue::try_from(format!("Bearer {token}")) else {
            return Verdict::Rejected(Rejected::Malformed);
        };
        authorization.set_sensitive(true);
        let mut headers = vec![(header::AUTHORIZATION, authorization)];
        headers.extend(self.request_fields(cx));
        // The cache key covers everything that is sent to the service.
        let mut hash = Sha256::new();
        for (name, value) in &headers {
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        self.verdicts.get(hash.finalize().into(), cx.now.unix_s(), self.call(headers)).await
    }

    fn request_fields(&self, cx: &RequestCx<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let mut fields = Vec::new();
        for name in &self.send {
            fields.extend(cx.headers().get_all(name).iter().map(|value| (name.clone(), value.clone())));
        }
        for tell in &self.tell {
            let (name, value) = match tell {
                RequestDetail::Method => ("x-forwarded-method", Cow::Borrowed(cx.request.method.as_str())),
                RequestDetail::Uri => ("x-forwarded-uri", cx.request.uri.path_and_query().map_or("", |target| target.as_str()).into()),
                RequestDetail::Host => {
                    let host = cx.headers().get(header::HOST).and_then(|host| host.to_str().ok());
                    ("x-forwarded-host", host.unwrap_or_default().into())
                }
                RequestDetail::Client => ("x-forwarded-for", cx.client().to_string().into()),
            };
            if let Ok(value) = HeaderValue::try_from(&*value) {
                fields.push((HeaderName::from_static(name), value));
            }
        }
        fields
    }

    async fn call(&self, headers: Vec<(HeaderName, HeaderValue)>) -> (Verdict, Duration) {
        // The body of an acceptance is not used, and a long body must not turn a refusal into a failure.
        let answer = AnswerBody::Cut(if self.refusal == Refusal::Theirs { SHOWN_BODY_BYTES_MAX } else { 0 });
        let call = Call { method: Method::GET, path: Cow::Borrowed(""), headers, body: String::new(), answer };
        let answered = match self.service.call(call).await {
            Ok(answered) => answered,
            Err(error) => return (Verdict::from_call_error("forward_auth", &error), Duration::ZERO),
        };
        let took = answered.took;
        let verdict = match answered.status {
            status if status.is_success() => Verdict::Accepted(Arc::new(self.accepted(&answered.headers))),
            // These two statuses tell nothing about the token.
            status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => Verdict::from_status("forward_auth", status.as_u16()),
            // A redirect to a sign-in page is a refusal.
            status if status.is_client_error() || status.is_redirection() => self.refused(answered),
            status => Verdict::from_status("forward_auth", status.as_u16()),
        };
        (verdict, took)
    }

    fn accepted(&self, answer: &HeaderMap) -> Verified {
        let subject = self.subject.as_ref().and_then(|name| answer.get(name)?.to_str().ok());
        let identity = Identity { subject: subject.map(str::to_owned), claims: Arc::default() };
        let taken = self.take.iter().flat_map(|name| answer.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        Verified { fields: taken.take(FIELDS_MAX).collect(), ..Verified::new(identity) }
    }

    fn refused(&self, answered: ServiceResponse) -> Verdict {
        let status = answered.status;
        match self.refusal {
            Refusal::Ours if status != StatusCode::FORBIDDEN => Verdict::Rejected(Rejected::Inactive),
            Refusal::Ours => {
                let message = "Access denied. This token does not permit the request.";
                Verdict::Refused(Box::new(Reply::new(Problem::Forbidden, "insufficient_scope", "forbidden", message)))
            }
            Refusal::Theirs => {
                let problem = if status == StatusCode::FORBIDDEN { Problem::Forbidden } else { Problem::Unauthenticated };
                let body = Body { content_type: answered.headers.get(header::CONTENT_TYPE).cloned(), bytes: answered.body.into() };
                let mut reply = Reply::new(problem, "refused", "forward_auth", "Access denied.").status(status).body(body);
                for name in [header::WWW_AUTHENTICATE, header::LOCATION] {
                    for value in answered.headers.get_all(&name) {
                        reply = reply.header(name.clone(), value.clone());
                    }
                }
                Verdict::Refused(Box::new(reply))
            }
        }
    }
}
