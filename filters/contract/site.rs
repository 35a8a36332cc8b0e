//! What a filter's compilation may look at and hold on to.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use http::HeaderValue;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::{Bindings, Counters, Endpoint, Invalid, KeyHasher, Near, Outbound, SecretRef, Service, TrustedProxies};

/// Reads the files a configuration refers to.
pub trait Resolve {
    /// The content of `path` (relative to the configuration's folder), at most 1 MiB of UTF-8.
    fn file(&self, path: &str) -> Result<String, Invalid>;
    /// The same of a file that nobody else should be able to read.
    fn secret_file(&self, path: &str) -> Result<String, Invalid> {
        self.file(path)
    }
    /// All bytes of such a file.
    fn secret_bytes(&self, path: &str) -> Result<Vec<u8>, Invalid> {
        self.secret_file(path).map(String::into_bytes)
    }
    /// Whether there is such a file.
    fn exists(&self, path: &str) -> bool {
        self.file(path).is_ok()
    }
}

/// State that outlives a reload, such as the counters of a limit: held by the filters that use it,
/// gone when the last of them is.
#[derive(Default)]
pub struct Keep(Mutex<HashMap<(TypeId, String), Weak<dyn Any + Send + Sync>>>);

impl Keep {
    /// The state under `key`, from the snapshot before or else fresh from `init`.
    pub fn get<T: Any + Send + Sync>(&self, key: &str, init: impl FnOnce() -> T) -> Arc<T> {
        let mut kept = self.0.lock();
        kept.retain(|_, state| state.strong_count() > 0);
        let slot = (TypeId::of::<T>(), key.to_owned());
        let known = kept.get(&slot).and_then(Weak::upgrade).and_then(|state| state.downcast::<T>().ok());
        known.unwrap_or_else(|| {
            let fresh = Arc::new(init());
            let erased: Arc<dyn Any + Send + Sync> = fresh.clone();
            kept.insert(slot, Arc::downgrade(&erased));
            fresh
        })
    }
}

/// Hands out the counters of filters. A counter lives as long as the process: reloads go on counting.
#[derive(Default)]
pub struct Meter {
    registry: Registry,
    known: Mutex<HashMap<&'static str, IntCounterVec>>,
}

impl Meter {
    /// Registers what it makes in `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { registry, known: Mutex::default() }
    }

    fn counter(&self, name: &'static str, help: &str, labels: &[(&str, &str)]) -> IntCounter {
        let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
        let made = {
            let mut known = self.known.lock();
            match known.get(name) {
                Some(vec) => Some(vec.clone()),
                None => IntCounterVec::new(Opts::new(format!("keylatch_{name}"), help), &names)
                    .ok()
                    .filter(|vec| self.registry.register(Box::new(vec.clone())).is_ok())
                    .inspect(|vec| {
                        known.insert(name, vec.clone());
                    }),
            }
        };
        // A name that cannot be registered is a mistake in a filter, found by the registry's test;
        // it must not stop a request, so what is counted then is shown nowhere.
        made.and_then(|vec| vec.get_metric_with_label_values(&values).ok())
            .or_else(|| IntCounter::new("detached", "not shown").ok())
            .unwrap_or_else(|| unreachable!("`detached` is a valid name"))
    }
}

/// The implementations behind the ports.
#[derive(Clone)]
pub struct Ports {
    /// The bindings' store.
    pub bindings: Arc<dyn Bindings>,
    /// Turns keys into key ids.
    pub hasher: KeyHasher,
    /// Where filters count.
    pub meter: Arc<Meter>,
    /// Counts that replicas share; `None` where there is nothing to share them in.
    pub counters: Option<Arc<dyn Counters>>,
    /// Who calls other people's services.
    pub outbound: Arc<dyn Outbound>,
    /// Who has used up much of a limit.
    pub near: Arc<Near>,
}

/// The surroundings of a filter that is being compiled.
pub struct Site<'a> {
    /// Its route, kind and number among its kind, such as `routes.api.rate_limit[0]`; names its kept state.
    pub place: String,
    /// Who may speak for others.
    pub trusted: Arc<TrustedProxies>,
    /// State from before the reload.
    pub keep: &'a Keep,
    /// Who does things.
    pub ports: &'a Ports,
    /// Who reads files.
    pub resolve: &'a dyn Resolve,
    /// Set by whoever uses what replicas share.
    pub shares: &'a Cell<bool>,
    /// The limits of the chain, so that one that is chosen is there.
    pub limits: &'a RefCell<Named>,
    /// The names of all routes; empty where they are not known.
    pub routes: &'a [String],
    /// What else is wrong with the filter, beside the error that its compilation returns.
    pub also: &'a RefCell<Vec<Invalid>>,
}

/// Names by which filters of one chain refer to each other.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// Limits that wait to be chosen.
    pub offered: Vec<String>,
    /// Limits that rules choose, and how many were offered before.
    pub chosen: Vec<(String, usize)>,
}

impl Named {
    /// A limit that waits to be chosen, and no rule before it chooses it.
    pub fn idle(&self) -> Option<&str> {
        let chosen = |(at, name): &(usize, &String)| self.chosen.iter().any(|(wanted, from)| wanted == *name && *from <= *at);
        self.offered.iter().enumerate().find(|offered| !chosen(offered)).map(|(_, name)| name.as_str())
    }

    /// A limit that is chosen and stands nowhere behind the rule that chooses it.
    pub fn missing(&self) -> Option<&str> {
        let stands = |(name, from): &&(String, usize)| self.offered.iter().skip(*from).any(|offered| offered == name);
        self.chosen.iter().find(|chosen| !stands(chosen)).map(|(name, _)| name.as_str())
    }
}

/// The text of a secret file: editors add a byte order mark and a line end, and neither is meant.
pub fn bare(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text).trim_end_matches(['\r', '\n'])
}

impl Site<'_> {
    /// The secret itself: the text, or the content of its file without a byte order mark and without the line end.
    pub fn secret(&self, secret: &SecretRef) -> Result<String, Invalid> {
        let text = match secret.file() {
            Some(path) => bare(&self.resolve.secret_file(path)?).to_owned(),
            None => secret.text().to_owned(),
        };
        if text.is_empty() {
            return Err(Invalid::new("the secret is empty"));
        }
        Ok(text)
    }

    /// Counts that replicas share.
    pub fn counters(&self) -> Result<Arc<dyn Counters>, Invalid> {
        self.shares.set(true);
        self.ports
            .counters
            .clone()
            .ok_or_else(|| Invalid::new("replicas share counts in Redis: the section `redis` is needed, and a restart where it is new"))
    }

    /// A service elsewhere that gets the credentials of the call alone.
    pub fn service(&self, endpoint: &Endpoint) -> Result<Arc<dyn Service>, Invalid> {
        if endpoint.authorization.is_some() {
            return Err(Invalid::new("is for published keys only: `jwks_url` and `discovery`").at("authorization"));
        }
        self.service_with_credentials(endpoint)
    }

    /// A service elsewhere.
    pub fn service_with_credentials(&self, endpoint: &Endpoint) -> Result<Arc<dyn Service>, Invalid> {
        if !(50..=60_000).contains(&endpoint.timeout.0.as_millis()) {
            return Err(Invalid::new("must be between 50ms and 1min").at("timeout"));
        }
        let ca = endpoint.ca_file.as_ref().map(|path| self.resolve.file(path)).transpose().map_err(|e| e.at("ca_file"))?;
        let authorization = endpoint.authorization.as_ref().map(|secret| authorization(&self.secret(secret)?)).transpose();
        self.ports.outbound.service(endpoint, ca, authorization.map_err(|e| e.at("authorization"))?)
    }

    /// A rule of this chain chooses the limit of this name.
    pub fn choose(&self, limit: &str) {
        let mut limits = self.limits.borrow_mut();
        let before = limits.offered.len();
        limits.chosen.push((limit.to_owned(), before));
    }

    /// A limit of this chain can be chosen by this name.
    pub fn offer(&self, limit: &str) {
        self.limits.borrow_mut().offered.push(limit.to_owned());
    }

    /// One more error of this filter. Its compilation returns the last one.
    pub fn report(&self, invalid: Invalid) {
        self.also.borrow_mut().push(invalid);
    }

    /// State that outlives a reload, for this place and type.
    pub fn keep<T: Any + Send + Sync>(&self, key: &str, init: impl FnOnce() -> T) -> Arc<T> {
        self.keep.get(key, init)
    }

    /// A counter `keylatch_<name>` with one label, shared with whoever asks for the same.
    pub fn counter(&self, name: &'static str, help: &str, label: (&str, &str)) -> IntCounter {
        self.ports.meter.counter(name, help, &[label])
    }

    /// The same with several labels.
    pub fn counter_by(&self, name: &'static str, help: &str, labels: &[(&str, &str)]) -> IntCounter {
        self.ports.meter.counter(name, help, labels)
    }
}

fn authorization(secret: &str) -> Result<HeaderValue, Invalid> {
    let mut value = HeaderValue::from_str(secret).map_err(|_| Invalid::new("not the value of a header field, such as `Bearer TOKEN`"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_state_lives_as_long_as_its_users() {
        let keep = Keep::default();
        let first = keep.get("a", || 1);
        assert_eq!(*keep.get("a", || 2), 1, "the state of the snapshot before");
        drop(first);
        assert_eq!(*keep.get("a", || 3), 3, "nobody held it");
        assert_eq!(*keep.get::<String>("a", || "another type".into()), "another type");
    }
}
