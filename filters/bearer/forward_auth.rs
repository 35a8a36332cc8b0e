//! Tokens that any HTTP service is asked about: its 2xx is a yes, its 3xx and 4xx a no (as nginx's `auth_request`,
//! Traefik's ForwardAuth and Envoy's HTTP `ext_authz` have it).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::OnFailure;
use super::introspection::remembered;
use super::memo::Memo;
use super::verdict::{Rejected, Verdict, Verified};
use crate::contract::{
    AnswerBody, Answered, Body, Call, Endpoint, HumanDuration, Identity, Invalid, Problem, Reply, RequestCx, Service, Site, field_name,
    is_framing,
};

/// What a refusal shows of the service's words.
const WORDS_BYTES_MAX: usize = 4096;
/// More than these the upstream does not need to know.
const FIELDS_MAX: usize = 32;

/// What of a request the service is told, beside its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tell {
    /// `X-Forwarded-Method`
    Method,
    /// `X-Forwarded-Uri`, path and query
    Uri,
    /// `X-Forwarded-Host`
    Host,
    /// `X-Forwarded-For`, the client's address
    Client,
}

/// Whose words a refusal shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Ours: 401 as for every other mode, or 403 where the service says 403.
    #[default]
    Ours,
    /// The service's: its status, `Content-Type`, `WWW-Authenticate`, `Location`, and the first 4 KiB of its body.
    Theirs,
}

/// `forward_auth`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardAuthConfig {
    /// Where it is asked, with GET.
    pub endpoint: Endpoint,
    /// Header fields of the request that it gets, beside the token as `Authorization: Bearer`. Default: none.
    #[serde(default)]
    pub send: Vec<String>,
    /// What else it is told. Default: nothing.
    #[serde(default)]
    pub tell: Vec<Tell>,
    /// Fields of its answer that the upstream gets with the request; the client's own of that name are removed. Default: none.
    #[serde(default)]
    pub take: Vec<String>,
    /// The field of its answer that names the subject. Default: none.
    pub subject: Option<String>,
    /// Whose words a refusal shows. Default: `ours`.
    #[serde(default)]
    pub refusal: Refusal,
    /// How long a yes is remembered, for the same token and all else that is sent; at most 1h; 0s: not. Default: 30s.
    #[serde(default = "half_a_minute")]
    pub cache: HumanDuration,
    /// How long a no is remembered; at most 1h; 0s: not. Default: 5s.
    #[serde(default = "five_seconds")]
    pub negative_cache: HumanDuration,
    /// What becomes of requests of which it cannot be asked. Default: `closed`.
    #[serde(default)]
    pub on_failure: OnFailure,
}

fn half_a_minute() -> HumanDuration {
    HumanDuration::secs(30)
}
fn five_seconds() -> HumanDuration {
    HumanDuration::secs(5)
}

/// The compiled mode.
pub struct ForwardAuth {
    service: Arc<dyn Service>,
    send: Vec<HeaderName>,
    tell: Vec<Tell>,
    take: Vec<HeaderName>,
    subject: Option<HeaderName>,
    refusal: Refusal,
    on_failure: OnFailure,
    memo: Memo,
}

impl ForwardAuth {
    pub fn compile(config: ForwardAuthConfig, cache_max: usize, site: &Site<'_>) -> Result<Self, Invalid> {
        let names = |names: &[String], key: &str| {
            if names.len() > FIELDS_MAX {
                return Err(Invalid::new(format!("at most {FIELDS_MAX} fields")).at(key));
            }
            let name = |(index, name): (usize, &String)| field_name(name).map_err(|e| e.index(index).at(key));
            names.iter().enumerate().map(name).collect::<Result<Vec<_>, _>>()
        };
        let (send, take) = (names(&config.send, "send")?, names(&config.take, "take")?);
        if let Some(index) = send.iter().position(|name| *name == header::AUTHORIZATION) {
            return Err(Invalid::new("the token is sent anyway").index(index).at("send"));
        }
        let belongs = |name: &HeaderName| is_framing(name) || *name == header::HOST;
        for (key, names) in [("send", &send), ("take", &take)] {
            if let Some(index) = names.iter().position(belongs) {
                return Err(Invalid::new("belongs to one message and cannot go over to another").index(index).at(key));
            }
        }
        // Beside ours, a client's own could be taken for them.
        if let Some(index) = send.iter().position(|name| name.as_str().starts_with("x-forwarded-")) {
            return Err(Invalid::new("a client can write anything there; see `tell`").index(index).at("send"));
        }
        let subject = config.subject.as_deref().map(field_name).transpose().map_err(|e| e.at("subject"))?;
        let (accepted, refused) = (remembered(config.cache, "cache")?, remembered(config.negative_cache, "negative_cache")?);
        Ok(Self {
            service: site.service(&config.endpoint).map_err(|e| e.at("endpoint"))?,
            send,
            tell: config.tell,
            take,
            subject,
            refusal: config.refusal,
            on_failure: config.on_failure,
            memo: Memo::new(cache_max, accepted, refused),
        })
    }

    pub fn fails_open(&self) -> bool {
        self.on_failure == OnFailure::Open
    }

    /// Fields that only the service may set.
    pub fn takes(&self) -> &[HeaderName] {
        &self.take
    }

    pub async fn verify(&self, token: &str, cx: &RequestCx<'_>) -> Verdict {
        let Ok(mut authorization) = HeaderValue::try_from(format!("Bearer {token}")) else {
            return Verdict::Rejected(Rejected::Malformed);
        };
        authorization.set_sensitive(true);
        let mut headers = vec![(header::AUTHORIZATION, authorization)];
        headers.extend(self.told(cx));
        // Remembered by all that it is told: the same question has the same answer.
        let mut hash = Sha256::new();
        for (name, value) in &headers {
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        self.memo.get(hash.finalize().into(), cx.now.unix_s(), self.ask(headers)).await
    }

    fn told(&self, cx: &RequestCx<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let mut fields = Vec::new();
        for name in &self.send {
            fields.extend(cx.headers().get_all(name).iter().map(|value| (name.clone(), value.clone())));
        }
        for tell in &self.tell {
            let (name, value) = match tell {
                Tell::Method => ("x-forwarded-method", Cow::Borrowed(cx.request.method.as_str())),
                Tell::Uri => ("x-forwarded-uri", cx.request.uri.path_and_query().map_or("", |target| target.as_str()).into()),
                Tell::Host => {
                    let host = cx.headers().get(header::HOST).and_then(|host| host.to_str().ok());
                    ("x-forwarded-host", host.unwrap_or_default().into())
                }
                Tell::Client => ("x-forwarded-for", cx.client().to_string().into()),
            };
            if let Ok(value) = HeaderValue::try_from(&*value) {
                fields.push((HeaderName::from_static(name), value));
            }
        }
        fields
    }

    async fn ask(&self, headers: Vec<(HeaderName, HeaderValue)>) -> (Verdict, Duration) {
        // A yes has no body that anybody wants, and how long a no is must not decide whether it is one.
        let answer = AnswerBody::Cut(if self.refusal == Refusal::Theirs { WORDS_BYTES_MAX } else { 0 });
        let call = Call { method: Method::GET, path: Cow::Borrowed(""), headers, body: String::new(), answer };
        let answered = match self.service.call(call).await {
            Ok(answered) => answered,
            Err(error) => return (Verdict::of_error("forward_auth", &error), Duration::ZERO),
        };
        let took = answered.took;
        let verdict = match answered.status {
            status if status.is_success() => Verdict::Accepted(Arc::new(self.accepted(&answered.headers))),
            // Neither says anything of the token.
            status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => Verdict::of_status("forward_auth", status.as_u16()),
            // Whoever is sent to sign in may not pass.
            status if status.is_client_error() || status.is_redirection() => self.refused(answered),
            status => Verdict::of_status("forward_auth", status.as_u16()),
        };
        (verdict, took)
    }

    fn accepted(&self, answer: &HeaderMap) -> Verified {
        let subject = self.subject.as_ref().and_then(|name| answer.get(name)?.to_str().ok());
        let identity = Identity { subject: subject.map(str::to_owned), claims: Arc::default() };
        let taken = self.take.iter().flat_map(|name| answer.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        Verified { fields: taken.take(FIELDS_MAX).collect(), ..Verified::new(identity) }
    }

    fn refused(&self, answered: Answered) -> Verdict {
        let status = answered.status;
        match self.refusal {
            Refusal::Ours if status != StatusCode::FORBIDDEN => Verdict::Rejected(Rejected::Inactive),
            Refusal::Ours => {
                let message = "Access refused: this token may not do this.";
                Verdict::Refused(Box::new(Reply::new(Problem::Forbidden, "insufficient_scope", "forbidden", message)))
            }
            Refusal::Theirs => {
                let problem = if status == StatusCode::FORBIDDEN { Problem::Forbidden } else { Problem::Unauthenticated };
                let body = Body { content_type: answered.headers.get(header::CONTENT_TYPE).cloned(), bytes: answered.body.into() };
                let mut reply = Reply::new(problem, "refused", "forward_auth", "Access refused.").status(status).body(body);
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
