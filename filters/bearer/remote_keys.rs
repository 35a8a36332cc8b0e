//! The keys that an issuer publishes: fetched and refreshed in the background, by the URL of the set or by OpenID
//! discovery. The last good set serves while the issuer is away.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, header};
use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::Deserialize;

use super::keys::{Alg, KeySet};
use crate::contract::{AnswerBody, BoxFuture, Call, Endpoint, HumanDuration, Invalid, Service, Site, Tend, Tended, Tender};

/// A set with more has no honest reason.
const SET_BYTES_MAX: usize = 512 * 1024;
const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// How soon a failure is tried again, doubled up to the time between refreshes.
const SOON: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// When keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Refresh {
    /// How often, at least 10s. Default: 10m.
    pub every: HumanDuration,
    /// For how long the last good set is used while it cannot be refreshed, at least `every`. Default: 7d.
    pub max_age: HumanDuration,
    /// At most once within this does a token whose `kid` is unknown have them asked for at once. Default: 30s.
    pub unknown_kid: HumanDuration,
}

impl Default for Refresh {
    fn default() -> Self {
        Self { every: HumanDuration::secs(600), max_age: HumanDuration::secs(7 * 86_400), unknown_kid: HumanDuration::secs(30) }
    }
}

/// A set, and how often another one has taken its place before.
#[derive(Clone)]
struct Current {
    set: Arc<KeySet>,
    text: String,
    generation: u64,
    /// When it was fetched the last time.
    fetched: Instant,
}

/// See the module.
pub struct RemoteKeys {
    service: Arc<dyn Service>,
    /// Where they are, for the log.
    shown: String,
    /// The issuer that discovery must name; `None`: the service is the set itself.
    issuer: Option<String>,
    algorithms: Vec<Alg>,
    refresh: Refresh,
    /// Outlives also a reload that changes when they are asked for.
    current: Arc<RwLock<Option<Current>>>,
    failures: Mutex<u32>,
    /// When a request had them asked for.
    asked: Mutex<Option<Instant>>,
}

/// Keys and whoever tends to them. Outlives a reload that does not change them.
pub struct Kept {
    keys: Arc<RemoteKeys>,
    tender: Arc<dyn Tender>,
}

impl Kept {
    /// The set at `endpoint`; or, with an issuer, the one its discovery document names.
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
                asked: Mutex::default(),
            });
            let task = Arc::downgrade(&keys) as std::sync::Weak<dyn Tend>;
            Self { tender: outbound.tend(task), keys }
        }))
    }

    /// The set, and its generation; `None`: there is none, or it is too old.
    pub fn current(&self, now: Instant) -> Option<(Arc<KeySet>, u64)> {
        let current = self.keys.current.read();
        let current = current.as_ref().filter(|current| now.saturating_duration_since(current.fetched) <= self.keys.refresh.max_age.0)?;
        Some((Arc::clone(&current.set), current.generation))
    }

    /// Whether there ever was a set.
    pub fn had_any(&self) -> bool {
        self.keys.current.read().is_some()
    }

    /// Has them asked for, unless that was done not long ago.
    pub async fn refreshed(&self, now: Instant) {
        let least = if self.keys.current.read().is_some() { self.keys.refresh.unknown_kid.0 } else { SOON };
        let due = {
            let mut asked = self.keys.asked.lock();
            let due = asked.is_none_or(|last| now.saturating_duration_since(last) >= least);
            if due {
                *asked = Some(now);
            }
            due
        };
        if due {
            self.tender.now().await;
        } else {
            self.tender.settled().await;
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
            return Err("the discovery document is of another issuer".into());
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

impl Tend for RemoteKeys {
    fn name(&self) -> String {
        match &self.issuer {
            Some(issuer) => format!("keys of {issuer}"),
            None => format!("keys at {}", self.shown),
        }
    }

    fn tend(&self, now: Instant) -> BoxFuture<'_, Tended> {
        Box::pin(async move {
            let fetched = self.fetch(now).await;
            let mut failures = self.failures.lock();
            *failures = if fetched.is_ok() { 0 } else { failures.saturating_add(1) };
            let every = self.refresh.every.0;
            let pause = match *failures {
                0 => every,
                times => SOON.saturating_mul(1 << (times - 1).min(10)).min(AGAIN_MAX).min(every),
            };
            Tended { pause, failed: fetched.err() }
        })
    }
}
