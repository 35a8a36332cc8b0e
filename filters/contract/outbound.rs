//! The port for calls to external services and for periodic background tasks. It does no I/O; `src/outbound` implements it.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

use super::{BoxFuture, HumanDuration, Invalid, SecretRef};

/// The endpoint of a service: a URL, or a map with the URL and options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://…`
    pub url: String,
    /// Allow `http` and addresses that are not public. Default: false.
    pub allow_private: bool,
    /// A PEM file of CA certificates for the server's certificate. Default: those of the system.
    pub ca_file: Option<String>,
    /// The value of the `Authorization` field of each call. Default: none.
    pub authorization: Option<SecretRef>,
    /// The total time limit of a call. Default: 2s.
    pub timeout: HumanDuration,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EndpointParticulars")]
struct Particulars {
    /// `https://…`
    url: String,
    /// Allow `http` and addresses that are not public. Default: false.
    #[serde(default)]
    allow_private: bool,
    /// A PEM file of CA certificates for the server's certificate. Default: those of the system.
    ca_file: Option<String>,
    /// The value of the `Authorization` field of each call, for `jwks_url` and `discovery` only. It is not sent to another
    /// origin that a discovery document names. Default: none.
    authorization: Option<SecretRef>,
    /// The total time limit of a call, 50ms to 1min. Default: 2s.
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
    /// The URL for logs: without user, password and query, which can contain secrets.
    pub fn shown(&self) -> String {
        let (before, rest) = self.url.split_once("://").map_or(("", &*self.url), |(scheme, rest)| (scheme, rest));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        format!("{before}://{host}{path}")
    }
}

/// One call to a service.
pub struct Call {
    /// The method.
    pub method: Method,
    /// Appended to the URL of the endpoint: a path that starts with `/`, or nothing. Never taken from a request.
    pub path: Cow<'static, str>,
    /// The header fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: String,
    /// How much of the response body is read.
    pub answer: AnswerBody,
}

/// How much of a response body is read, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerBody {
    /// All of it. A body above this limit is [`CallError::Unclear`].
    Whole(usize),
    /// At most this many bytes; the rest is discarded.
    Cut(usize),
}

/// The response of a service.
#[derive(Clone, Debug)]
pub struct ServiceResponse {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body, as far as [`Call::answer`] requests it.
    pub body: Vec<u8>,
    /// The duration of the call, including the wait in the queue.
    pub took: Duration,
}

/// A failed call. The text contains no URL and no secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The service cannot be reached or does not respond in time. The content of the call is not the cause.
    #[error("{0}")]
    Away(String),
    /// The service has responded, but the response is unusable. The content of the call may be the cause.
    #[error("{0}")]
    Unclear(String),
}

/// A service that can be called.
pub trait Service: Send + Sync {
    /// Calls the service. Concurrent calls are limited; further calls wait in a queue. The time limit of the endpoint applies
    /// to the call and separately to the wait in the queue. Redirects are not followed.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<ServiceResponse, CallError>>;

    /// The same service at another URL that it has named itself. The restrictions of the endpoint apply.
    fn elsewhere(&self, url: &str) -> Result<Arc<dyn Service>, CallError>;
}

/// The outcome of one run of a periodic task.
pub struct TaskOutcome {
    /// The time until the next run.
    pub pause: Duration,
    /// The reason of a failure, for the log. Contains no secret.
    pub failed: Option<String>,
}

/// A task that runs periodically in the background.
pub trait PeriodicTask: Send + Sync {
    /// The name of the task, for the log.
    fn name(&self) -> String;
    /// Runs the task once. `now` is the current time.
    fn run(&self, now: Instant) -> BoxFuture<'_, TaskOutcome>;
}

/// The handle of a scheduled task.
pub trait TaskHandle: Send + Sync {
    /// Runs the task once more without waiting for its schedule, or waits for the run in progress.
    fn run_now(&self) -> BoxFuture<'_, ()>;
    /// Waits for the run in progress; returns at once if there is none.
    fn wait_until_idle(&self) -> BoxFuture<'_, ()>;
}

/// Calls services and runs periodic tasks.
pub trait Outbound: Send + Sync {
    /// Makes a service. `ca` is the content of `ca_file` in PEM, `authorization` the value of the `Authorization` field.
    fn service(&self, endpoint: &Endpoint, ca: Option<String>, authorization: Option<HeaderValue>) -> Result<Arc<dyn Service>, Invalid>;
    /// Runs the task now and periodically, until the task is dropped.
    fn schedule(&self, task: Weak<dyn PeriodicTask>) -> Arc<dyn TaskHandle>;
}
