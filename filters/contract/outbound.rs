//! Asking other people's services, and work that is done again and again: what filters have done for them where they
//! may do no I/O themselves.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

use super::{BoxFuture, HumanDuration, Invalid, SecretRef};

/// Where a service is, and how far a call to it may go: written as a URL alone, or with its particulars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://…`
    pub url: String,
    /// Whether it may be an address that is not public, or `http`. Default: false.
    pub allow_private: bool,
    /// The certificates, in PEM, that may sign the server's. Default: the system's.
    pub ca_file: Option<String>,
    /// The value of the `Authorization` field of each call. Default: none.
    pub authorization: Option<SecretRef>,
    /// How long a call may take, all in all. Default: 2s.
    pub timeout: HumanDuration,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EndpointParticulars")]
struct Particulars {
    /// `https://…`
    url: String,
    /// Whether it may be an address that is not public, or `http`. Default: false.
    #[serde(default)]
    allow_private: bool,
    /// The certificates, in PEM, that may sign the server's. Default: the system's.
    ca_file: Option<String>,
    /// The value of the `Authorization` field of each call, for published keys only (`jwks_url`, `discovery`). Not sent to another
    /// origin that discovery names. Default: none.
    authorization: Option<SecretRef>,
    /// How long a call may take, all in all; between 50ms and 1min. Default: 2s.
    #[serde(default = "two_seconds")]
    timeout: HumanDuration,
}

fn two_seconds() -> HumanDuration {
    HumanDuration::secs(2)
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct UrlOrMap;
        impl<'de> de::Visitor<'de> for UrlOrMap {
            type Value = Endpoint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or a map with `url`")
            }
            fn visit_str<E: de::Error>(self, url: &str) -> Result<Endpoint, E> {
                Ok(Endpoint { url: url.to_owned(), allow_private: false, ca_file: None, authorization: None, timeout: two_seconds() })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Endpoint, A::Error> {
                let read = Particulars::deserialize(MapAccessDeserializer::new(map))?;
                let Particulars { url, allow_private, ca_file, authorization, timeout } = read;
                Ok(Endpoint { url, allow_private, ca_file, authorization, timeout })
            }
        }
        input.deserialize_any(UrlOrMap)
    }
}

impl JsonSchema for Endpoint {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let particulars = generator.subschema_for::<Particulars>();
        schemars::json_schema!({ "anyOf": [{ "type": "string", "format": "uri" }, particulars] })
    }
}

impl Endpoint {
    /// The URL without what may be secret in it: user, password and query. For logs.
    pub fn shown(&self) -> String {
        let (before, rest) = self.url.split_once("://").map_or(("", &*self.url), |(scheme, rest)| (scheme, rest));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        format!("{before}://{host}{path}")
    }
}

/// One call.
pub struct Call {
    /// Its method.
    pub method: Method,
    /// What comes behind the endpoint's URL: a path that begins with `/`, or nothing. Never from a request.
    pub path: Cow<'static, str>,
    /// Its fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: String,
    /// How much of the answer's body is read.
    pub answer: Body,
}

/// How much of an answer's body is read, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// All of it; a longer one is [`CallError::Unclear`].
    Whole(usize),
    /// Its beginning; what goes beyond is left out.
    Cut(usize),
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The status.
    pub status: StatusCode,
    /// The fields.
    pub headers: HeaderMap,
    /// The body, as far as it was asked for.
    pub body: Vec<u8>,
    /// How long it took, waiting for its turn included.
    pub took: Duration,
}

/// Nothing of use came back. The texts name no URL and no secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// It cannot be reached, or does not answer in time: whatever was asked.
    #[error("{0}")]
    Away(String),
    /// It is there, and something is wrong with the answer, which may be because of what was asked.
    #[error("{0}")]
    Unclear(String),
}

/// A service that can be called.
pub trait Service: Send + Sync {
    /// Calls it, with so many others at once as it bears. Bounded by the endpoint's time, and as long again while it waits
    /// for its turn; redirects are not followed.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answered, CallError>>;

    /// The same service at another URL, which it has named itself; as far as the endpoint may go.
    fn elsewhere(&self, url: &str) -> Result<Arc<dyn Service>, CallError>;
}

/// What came of tending to something.
pub struct Tended {
    /// How long to wait until it is done again.
    pub pause: Duration,
    /// Why it did not succeed, for the log; names nothing secret.
    pub failed: Option<String>,
}

/// Work that is done again and again.
pub trait Tend: Send + Sync {
    /// What is tended to, for the log.
    fn name(&self) -> String;
    /// Does it once; it is `now`.
    fn tend(&self, now: Instant) -> BoxFuture<'_, Tended>;
}

/// Who does it.
pub trait Tender: Send + Sync {
    /// Done once more without waiting for its time, or once to its end if it is being done already.
    fn now(&self) -> BoxFuture<'_, ()>;
    /// At its end, where it is being done; at once where it is not.
    fn settled(&self) -> BoxFuture<'_, ()>;
}

/// Whoever calls services and tends to things.
pub trait Outbound: Send + Sync {
    /// A service, with the certificates of its `ca_file` as PEM and the value of its `authorization`.
    fn service(&self, endpoint: &Endpoint, ca: Option<String>, authorization: Option<HeaderValue>) -> Result<Arc<dyn Service>, Invalid>;
    /// Does this now, and again and again, for as long as somebody holds it.
    fn tend(&self, task: Weak<dyn Tend>) -> Arc<dyn Tender>;
}
