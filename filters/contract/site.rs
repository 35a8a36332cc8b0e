//! The environment of a filter's compilation: files, secrets, ports, metrics, and state that survives a reload.
//! It is not available while requests run.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use http::HeaderValue;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::{
    Bindings, Counters, Endpoint, Invalid, KeyHasher, Ledger, Outbound, PriceTable, SecretRef, Service, TrustedProxies, UsageSink,
    UsageTracker,
};

/// Reads the files a configuration refers to.
pub trait Resolve {
    /// The content of `path` (relative to the folder of the configuration), at most 1 MiB of UTF-8.
    fn file(&self, path: &str) -> Result<String, Invalid>;
    /// The content of a secret file, which other users should not be able to read.
    fn secret_file(&self, path: &str) -> Result<String, Invalid> {
        self.file(path)
    }
    /// The bytes of a secret file.
    fn secret_bytes(&self, path: &str) -> Result<Vec<u8>, Invalid> {
        self.secret_file(path).map(String::into_bytes)
    }
    /// Whether the file exists.
    fn exists(&self, path: &str) -> bool {
        self.file(path).is_ok()
    }
}

/// State that survives a reload, such as the counters of a limit. The filters that use it own it: it is dropped with the
/// last of them.
#[derive(Default)]
pub struct Keep(Mutex<HashMap<(TypeId, String), Weak<dyn Any + Send + Sync>>>);

impl Keep {
    /// The state under `key`: that of the previous snapshot, or else a new one from `init`.
    pub fn get<T: Any + Send + Sync>(&self, key: &str, init: impl FnOnce() -> T) -> Arc<T> {
        let mut kept = self.0.lock();
        kept.retain(|_, state| state.strong_count() > 0);
        let slot = (TypeId::of::<T>(), key.to_owned());
        let existing = kept.get(&slot).and_then(Weak::upgrade).and_then(|state| state.downcast::<T>().ok());
        existing.unwrap_or_else(|| {
            let fresh = Arc::new(init());
            let erased: Arc<dyn Any + Send + Sync> = fresh.clone();
            kept.insert(slot, Arc::downgrade(&erased));
            fresh
        })
    }
}

/// Provides metric counters to filters. A counter lives as long as the process and is not reset by a reload.
#[derive(Default)]
pub struct Meter {
    registry: Registry,
    known: Mutex<HashMap<&'static str, IntCounterVec>>,
}

impl Meter {
    /// Registers all counters in `registry`.
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
        // A name that cannot be registered is a bug in a filter, found by the test of the registry. It must not stop
        // requests, so that the counter then works without being exported.
        made.and_then(|vec| vec.get_metric_with_label_values(&values).ok())
            .or_else(|| IntCounter::new("detached", "not shown").ok())
            .unwrap_or_else(|| unreachable!("`detached` is a valid name"))
    }
}

/// The implementations behind the ports.
#[derive(Clone)]
pub struct Ports {
    /// The store of bindings.
    pub bindings: Arc<dyn Bindings>,
    /// Computes key ids.
    pub hasher: KeyHasher,
    /// Provides metric counters.
    pub meter: Arc<Meter>,
    /// Counters that replicas share; `None` without Redis.
    pub counters: Option<Arc<dyn Counters>>,
    /// Calls external services.
    pub outbound: Arc<dyn Outbound>,
    /// Tracks subjects that are near a limit.
    pub usage_tracker: Arc<UsageTracker>,
    /// Adds usage to the accounts.
    pub usage: Arc<dyn UsageSink>,
    /// The budgets of this process.
    pub ledger: Arc<dyn Ledger>,
    /// The budgets that replicas share; `None` without Redis.
    pub shared_ledger: Option<Arc<dyn Ledger>>,
}

/// The environment of one filter while it is compiled.
pub struct Site<'a> {
    /// The place of the filter: route, name, and index among filters of this name, such as `routes.api.rate_limit[0]`. It is
    /// part of the key of state that survives a reload.
    pub place: String,
    /// The trusted proxies.
    pub trusted: Arc<TrustedProxies>,
    /// The prices of models.
    pub prices: Arc<PriceTable>,
    /// State that survives a reload.
    pub keep: &'a Keep,
    /// The implementations of the ports.
    pub ports: &'a Ports,
    /// Reads files.
    pub resolve: &'a dyn Resolve,
    /// Set when a filter uses the counters that replicas share.
    pub uses_shared_counters: &'a Cell<bool>,
    /// Set when `usage` is compiled: filters after it can read the usage of a request.
    pub reads_usage: &'a Cell<bool>,
    /// The terms of the budgets of the whole configuration by name.
    pub budgets: &'a RefCell<HashMap<String, String>>,
    /// The limits that rules select by name, to check that each exists.
    pub limits: &'a RefCell<LimitNames>,
    /// The names of all routes; empty if they are unknown.
    pub routes: &'a [String],
    /// Further errors of the filter, in addition to the error that `compile` returns.
    pub more_errors: &'a RefCell<Vec<Invalid>>,
}

/// The names of limits that rules of the same chain can select.
#[derive(Clone, Debug, Default)]
pub struct LimitNames {
    /// Limits that apply only if a rule selects them, in chain order.
    pub offered: Vec<String>,
    /// Limits that rules select, each with the number of offered limits that stand before its rule: only later ones can be
    /// selected.
    pub chosen: Vec<(String, usize)>,
}

impl LimitNames {
    /// The first offered limit that no earlier rule selects: it would never apply.
    pub fn idle(&self) -> Option<&str> {
        let chosen = |(at, name): &(usize, &String)| self.chosen.iter().any(|(wanted, from)| wanted == *name && *from <= *at);
        self.offered.iter().enumerate().find(|offered| !chosen(offered)).map(|(_, name)| name.as_str())
    }

    /// A selected limit that does not exist after the rule that selects it.
    pub fn missing(&self) -> Option<&str> {
        let exists = |(name, from): &&(String, usize)| self.offered.iter().skip(*from).any(|offered| offered == name);
        self.chosen.iter().find(|chosen| !exists(chosen)).map(|(name, _)| name.as_str())
    }
}

/// The secret in the text of a file, without the byte order mark and the line end that editors add.
pub fn trim_secret(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text).trim_end_matches(['\r', '\n'])
}

impl Site<'_> {
    /// Reads a secret: the text itself, or the content of its file without a byte order mark and line end.
    pub fn secret(&self, secret: &SecretRef) -> Result<String, Invalid> {
        let text = match secret.file() {
            Some(path) => trim_secret(&self.resolve.secret_file(path)?).to_owned(),
            None => secret.text().to_owned(),
        };
        if text.is_empty() {
            return Err(Invalid::new("the secret is empty"));
        }
        Ok(text)
    }

    /// The counters that replicas share; an error without Redis.
    pub fn counters(&self) -> Result<Arc<dyn Counters>, Invalid> {
        self.uses_shared_counters.set(true);
        self.ports.counters.clone().ok_or_else(|| Invalid::new("shared counts require Redis; add the section `redis` and restart"))
    }

    /// The budgets of this process, or those that replicas share; an error without Redis.
    pub fn ledger(&self, is_shared: bool) -> Result<Arc<dyn Ledger>, Invalid> {
        if !is_shared {
            return Ok(Arc::clone(&self.ports.ledger));
        }
        self.uses_shared_counters.set(true);
        let missing = || Invalid::new("shared budgets require Redis; add the section `redis` and restart");
        self.ports.shared_ledger.clone().ok_or_else(missing)
    }

    /// An external service without configured credentials.
    pub fn service(&self, endpoint: &Endpoint) -> Result<Arc<dyn Service>, Invalid> {
        if endpoint.authorization.is_some() {
            return Err(Invalid::new("is allowed for `jwks_url` and `discovery` only").at("authorization"));
        }
        self.service_with_credentials(endpoint)
    }

    /// An external service, with the credentials of its endpoint.
    pub fn service_with_credentials(&self, endpoint: &Endpoint) -> Result<Arc<dyn Service>, Invalid> {
        if !(50..=60_000).contains(&endpoint.timeout.0.as_millis()) {
            return Err(Invalid::new("must be between 50ms and 1min").at("timeout"));
        }
        let ca = endpoint.ca_file.as_ref().map(|path| self.resolve.file(path)).transpose().map_err(|e| e.at("ca_file"))?;
        let authorization = endpoint.authorization.as_ref().map(|secret| authorization(&self.secret(secret)?)).transpose();
        self.ports.outbound.service(endpoint, ca, authorization.map_err(|e| e.at("authorization"))?)
    }

    /// Declares a budget: those of one name are one budget, and must have the same terms.
    pub fn declare_budget(&self, name: &str, terms: &str) -> Result<(), Invalid> {
        let mut budgets = self.budgets.borrow_mut();
        let known = budgets.entry(name.to_owned()).or_insert_with(|| terms.to_owned());
        let says = || {
            format!(
                "another budget is named `{name}` and has other terms (per, label, amount, period, time_zone or scope); use another name"
            )
        };
        if known == terms { Ok(()) } else { Err(Invalid::new(says())) }
    }

    /// Declares that a rule of this chain selects the limit of this name.
    pub fn select_limit(&self, limit: &str) {
        let mut limits = self.limits.borrow_mut();
        let before = limits.offered.len();
        limits.chosen.push((limit.to_owned(), before));
    }

    /// Declares that a rule can select a limit of this chain by this name.
    pub fn offer_limit(&self, limit: &str) {
        self.limits.borrow_mut().offered.push(limit.to_owned());
    }

    /// Reports a further error. `compile` must still return an error.
    pub fn report(&self, invalid: Invalid) {
        self.more_errors.borrow_mut().push(invalid);
    }

    /// State that survives a reload, under this key and type.
    pub fn keep<T: Any + Send + Sync>(&self, key: &str, init: impl FnOnce() -> T) -> Arc<T> {
        self.keep.get(key, init)
    }

    /// The counter `keylatch_<name>` with one label. Filters that use the same name and label share it.
    pub fn counter(&self, name: &'static str, help: &str, label: (&str, &str)) -> IntCounter {
        self.ports.meter.counter(name, help, &[label])
    }

    /// The counter `keylatch_<name>` with several labels.
    pub fn counter_by(&self, name: &'static str, help: &str, labels: &[(&str, &str)]) -> IntCounter {
        self.ports.meter.counter(name, help, labels)
    }
}

fn authorization(secret: &str) -> Result<HeaderValue, Invalid> {
    let mut value =
        HeaderValue::from_str(secret).map_err(|_| Invalid::new("is not a valid header field value; write it like `Bearer TOKEN`"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_state_lives_as_long_as_its_owners() {
        let keep = Keep::default();
        let first = keep.get("a", || 1);
        assert_eq!(*keep.get("a", || 2), 1, "the state of the snapshot before");
        drop(first);
        assert_eq!(*keep.get("a", || 3), 3, "the last owner was dropped");
        assert_eq!(*keep.get::<String>("a", || "another type".into()), "another type");
    }
}
