//! Keys that an issuer publishes, fetched in the background from the URL of a JWK set or through OpenID discovery. The last
//! good set stays in use while the issuer is unreachable. It verifies no tokens.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, header};
use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::Deserialize;

use super::keys::{Alg, KeySet};
use crate::contract::{
    AnswerBody, BoxFuture, Call, Endpoint, HumanDuration, Invalid, PeriodicTask, Service, Site, TaskHandle, TaskOutcome,
};

/// The maximum size of a JWK set or discovery document. A larger one has no legitimate use.
const SET_BYTES_MAX: usize = 512 * 1024;
const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// The first back-off after a failed fetch. It doubles up to `BACKOFF_MAX` and the refresh interval.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The schedule of the refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Refresh {
    /// The interval of the refresh, at least 10s. Default: 10m.
    pub every: HumanDuration,
    /// The time for which the last good set stays in use if it cannot be refreshed, at least `every`. Default: 7d.
    pub max_age: HumanDuration,
    /// The minimum interval between refreshes that tokens with an unknown `kid` trigger, at least 1s. Default: 30s.
    pub unknown_kid: HumanDuration,
}

impl Default for Refresh {
    fn default() -> Self {
        Self { every: HumanDuration::secs(600), max_age: HumanDuration::secs(7 * 86_400), unknown_kid: HumanDuration::secs(30) }
    }
}

/// The current set, with its generation.
#[derive(Clone)]
struct Current {
    set: Arc<KeySet>,
    text: String,
    generation: u64,
    /// The time of the last successful fetch.
    fetched: Instant,
}

/// The background task that fetches one key set.
pub struct RemoteKeys {
    service: Arc<dyn Service>,
    /// The URL for the log, without secrets.
    shown: String,
    /// The issuer that the discovery document must name; `None`: the service returns the set itself.
    issuer: Option<String>,
    algorithms: Vec<Alg>,
    refresh: Refresh,
    /// Survives a reload, even if the schedule changes.
    current: Arc<RwLock<Option<Current>>>,
    failures: Mutex<u32>,
    /// The time of the last refresh that a request has triggered.
    triggered: Mutex<Option<Instant>>,
}

/// A key set with the handle of its background task. Survives a reload that does not change its settings.
pub struct SharedKeys {
    keys: Arc<RemoteKeys>,
    task: Arc<dyn TaskHandle>,
}

impl SharedKeys {
    /// The set at `endpoint`, or with an issuer the set that its discovery document names.
    pub fn compile(
        endpoint: &Endpoint,
        issuer: Option<&str>,
        algorithms: &[Alg],
        refresh: Refresh,
        site: &Site<'_>,
    ) -> Result<Arc<Self>, Invalid> {
        if refresh.every.0 < Duration::from_secs(10) {
            return Err(Invalid::new("must be at least 10s").at("every").at("refresh"));
        }
        if refresh.unknown_kid.0 < Duration::from_secs(1) {
            return Err(Invalid::new("must be at least 1s").at("unknown_kid").at("refresh"));
        }
        if refresh.max_age.0 < refresh.every.0 {
            return Err(Invalid::new("must be at least `every`").at("max_age").at("refresh"));
        }
        let service = site.service_with_credentials(endpoint)?;
        let ca = endpoint.ca_file.as_ref().map(|path| site.resolve.file(path)).transpose()?;
        let set = format!("jwks {} {ca:?} {issuer:?} {algorithms:?}", endpoint.url);
        let current = site.keep(&set, RwLock::default);
        let key = format!("{set} {endpoint:?} {refresh:?}");
        let outbound = &site.ports.outbound;
        Ok(site.keep(&key, || {
            let keys = Arc::new(RemoteKeys {
                service,
                shown: endpoint.shown(),
                issuer: issuer.map(str::to_owned),
                algorithms: algorithms.to_vec(),
                refresh,
                current,
                failures: Mutex::default(),
                triggered: Mutex::default(),
            });
            let task = Arc::downgrade(&keys) as std::sync::Weak<dyn PeriodicTask>;
            Self { task: outbound.schedule(task), keys }
        }))
    }

    /// The set and its generation; `None` if there is none or it is too old.
    pub fn current(&self, now: Instant) -> Option<(Arc<KeySet>, u64)> {
        let current = self.keys.current.read();
        let current = current.as_ref().filter(|current| now.saturating_duration_since(current.fetched) <= self.keys.refresh.max_age.0)?;
        Some((Arc::clone(&current.set), current.generation))
    }

    /// Whether a set was ever fetched.
    pub fn had_any(&self) -> bool {
        self.keys.current.read().is_some()
    }

    /// Refreshes the set, unless a request has triggered a refresh within `unknown_kid` (before the first set: [`BACKOFF_MIN`]).
    /// Otherwise it only waits for a refresh in progress.
    pub async fn refresh(&self, now: Instant) {
        let least = if self.keys.current.read().is_some() { self.keys.refresh.unknown_kid.0 } else { BACKOFF_MIN };
        let due = {
            let mut triggered = self.keys.triggered.lock();
            let due = triggered.is_none_or(|last| now.saturating_duration_since(last) >= least);
            if due {
                *triggered = Some(now);
            }
            due
        };
        if due {
            self.task.run_now().await;
        } else {
            self.task.wait_until_idle().await;
        }
    }
}

impl RemoteKeys {
    async fn fetch(&self, fetched: Instant) -> Result<(), String> {
        let service = match &self.issuer {
            None => Arc::clone(&self.service),
            Some(issuer) => self.discover(issuer).await?,
        };
        let text = get(&*service, "").await?;
        if let Some(current) = self.current.write().as_mut().filter(|current| current.text == text) {
            current.fetched = fetched;
            return Ok(());
        }
        let generation = self.current.read().as_ref().map_or(1, |current| current.generation + 1);
        let set = Arc::new(KeySet::published(&text, &self.algorithms)?);
        *self.current.write() = Some(Current { set, text, generation, fetched });
        Ok(())
    }

    /// The service of the set that the issuer names (OpenID Connect Discovery 1.0, section 4).
    async fn discover(&self, issuer: &str) -> Result<Arc<dyn Service>, String> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }
        let text = get(&*self.service, WELL_KNOWN).await?;
        let document: Document = serde_json::from_str(&text).map_err(|e| format!("not a discovery document: {e}"))?;
        if document.issuer != issuer {
            return Err("the discovery document names another issuer".into());
        }
        self.service.elsewhere(&document.jwks_uri).map_err(|error| format!("jwks_uri: {error}"))
    }
}

async fn get(service: &dyn Service, path: &'static str) -> Result<String, String> {
    let accept = (header::ACCEPT, HeaderValue::from_static("application/json, application/jwk-set+json"));
    let call = Call {
        method: Method::GET,
        path: Cow::Borrowed(path),
        headers: vec![accept],
        body: String::new(),
        answer: AnswerBody::Whole(SET_BYTES_MAX),
    };
    let answered = service.call(call).await.map_err(|error| error.to_string())?;
    if !answered.status.is_success() {
        return Err(format!("answered with {}", answered.status.as_u16()));
    }
    String::from_utf8(answered.body).map_err(|_| "the answer is not UTF-8".into())
}

impl PeriodicTask for RemoteKeys {
    fn name(&self) -> String {
        match &self.issuer {
            Some(issuer) => format!("keys of {issuer}"),
            None => format!("keys at {}", self.shown),
        }
    }

    fn run(&self, now: Instant) -> BoxFuture<'_, TaskOutcome> {
        Box::pin(async move {
            let fetched = self.fetch(now).await;
            let mut failures = self.failures.lock();
            *failures = if fetched.is_ok() { 0 } else { failures.saturating_add(1) };
            let every = self.refresh.every.0;
            let pause = match *failures {
                0 => every,
                times => BACKOFF_MIN.saturating_mul(1 << (times - 1).min(10)).min(BACKOFF_MAX).min(every),
            };
            TaskOutcome { pause, failed: fetched.err() }
        })
    }
}
