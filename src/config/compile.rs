//! From what an operator wrote to what a request meets: a [`Snapshot`], immutable, swapped whole.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use ipnet::IpNet;
use keylatch_filters::ALL;
use keylatch_filters::chain::{Chain, Item};
use keylatch_filters::contract::{
    Answered, Binding, Bindings, BoxFuture, Call, CallError, Counters, Endpoint, FirstUse, Hit, Intercept, Invalid, Keep, KeyHasher, KeyId,
    Lease, Leash, Meter, Named, Outbound, Outcome, Ports, Service, Site, StoreError, Tend, Tender, TrustedProxies,
};

use super::model::{FilterItem, RouteSettings, Settings, Storage};
use super::report::nearest;
use super::routes::{Matcher, Route};
use super::sections::tell;
use super::{Files, Parsed, Report, Written};
use crate::alerts::Alerts;
use crate::outbound;
use crate::upstream::Upstream;

/// Everything compiled from one file. A request takes it once, at its start, and keeps it to its end.
pub struct Snapshot {
    /// What the file said.
    pub settings: Settings,
    /// In order; the first that matches is taken.
    pub routes: Vec<Route>,
    /// The top-level filters alone, for requests that no route is for.
    pub unrouted: Chain,
    /// Every upstream, used by a route or not.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Who may speak for others.
    pub trusted: Arc<TrustedProxies>,
    /// Who is told what.
    pub alerts: Arc<Alerts>,
    /// What stands in the file.
    pub written: Written,
    /// All of it as YAML, secrets masked.
    pub masked: String,
}

impl Snapshot {
    /// The route for a request; `path` normalised and without its query.
    pub fn route(&self, method: &http::Method, host: &str, path: &str) -> Option<(usize, &Route)> {
        self.routes.iter().enumerate().find(|(_, route)| route.matches(method, host, path))
    }

    /// The sections that differ from those the process was started with and take effect at a restart only.
    pub fn needs_restart(&self, other: &Settings) -> Vec<&'static str> {
        let (a, b) = (&self.settings, other);
        let changed = [
            ("listeners", a.listeners != b.listeners),
            ("admin", a.admin != b.admin),
            ("storage", a.storage != b.storage),
            ("redis", a.redis != b.redis),
            ("secrets", a.secrets != b.secrets),
            ("log.level or log.format", (a.log.level, a.log.format) != (b.log.level, b.log.format)),
            ("shutdown", a.shutdown != b.shutdown),
            ("workers", a.workers != b.workers),
        ];
        changed.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

/// Compiles files, one after the other, with what outlives a reload.
pub struct Compiler {
    keep: Keep,
    ports: Ports,
}

impl Compiler {
    /// With the implementations behind the ports.
    pub fn new(ports: Ports) -> Self {
        Self { keep: Keep::default(), ports }
    }

    /// Compiles a file. Nothing is started; all that is wrong is in the report.
    pub fn compile(&self, mut parsed: Parsed) -> Result<Snapshot, Report> {
        let mut report = std::mem::replace(&mut parsed.mistakes, Report::new(&parsed.path));
        let said = parsed.settings.clone();
        let overrides = std::mem::take(&mut parsed.overrides);
        overrides.apply(&mut parsed.settings);
        let files = Files::beside(&parsed.path);
        let partial = !report.is_empty();
        // Where the file says nothing of Redis there is none, whatever the process was started with.
        let counters = self.ports.counters.clone().filter(|_| parsed.settings.redis.is_some());
        let ports = Ports { counters, ..self.ports.clone() };
        let mut work = Work {
            compiler: self,
            ports,
            parsed: &parsed,
            partial,
            files: &files,
            report: &mut report,
            trusted: Arc::default(),
            shares: Cell::default(),
            limits: RefCell::default(),
        };
        let snapshot = work.snapshot();
        match snapshot {
            Some((trusted, upstreams, routes, unrouted, alerts)) if report.is_empty() => {
                let (written, masked) = (parsed.written(), parsed.masked());
                Ok(Snapshot { settings: said, routes, unrouted, upstreams, trusted, alerts, written, masked })
            }
            _ => Err(report),
        }
    }
}

struct Work<'a> {
    compiler: &'a Compiler,
    ports: Ports,
    parsed: &'a Parsed,
    /// Something could not be read; defaults stand in its place.
    partial: bool,
    files: &'a Files,
    report: &'a mut Report,
    trusted: Arc<TrustedProxies>,
    /// Whether any filter uses what replicas share.
    shares: Cell<bool>,
    /// The limits by which filters refer to each other: those of the top level, or of the route that is compiled.
    limits: RefCell<Named>,
}

type Pieces = (Arc<TrustedProxies>, Vec<Arc<Upstream>>, Vec<Route>, Chain, Arc<Alerts>);

impl Work<'_> {
    fn wrong(&mut self, invalid: &Invalid) {
        tell(self.report, &self.parsed.tree, &[], invalid);
    }

    fn snapshot(&mut self) -> Option<Pieces> {
        let settings = &self.parsed.settings;
        self.numbers();
        match TrustedProxies::compile(&settings.trusted_proxies, self.files) {
            Ok(trusted) => self.trusted = Arc::new(trusted),
            Err(invalid) => self.wrong(&invalid.at("trusted_proxies")),
        }
        let upstreams = self.upstreams();
        let shared = self.filters(&settings.filters, &|invalid, index| invalid.index(index).at("filters"), "");
        let above = self.limits.take();
        let mut routes = Vec::new();
        for (index, route) in settings.routes.iter().enumerate() {
            self.limits.replace(above.clone());
            routes.extend(self.route(index, route, &upstreams, &shared));
            let limits = self.limits.borrow();
            let missing = limits
                .missing()
                .map(|name| format!("no rate_limit behind the rule that chooses it has a limit `{name}` with `chosen: true`"));
            let idle = limits
                .idle()
                .map(|name| format!("no rule before it chooses the limit `{name}`, which says `chosen: true`: it would never count"));
            drop(limits);
            if let Some(says) = missing.or(idle).filter(|_| !self.partial && self.report.is_empty()) {
                self.wrong(&Invalid::new(says).at("filters").index(index).at("routes"));
            }
        }
        let alerts = Alerts::compile(settings.alerts.as_ref(), self.files).unwrap_or_else(|wrong| {
            wrong.into_iter().for_each(|invalid| self.wrong(&invalid.at("alerts")));
            Alerts::default()
        });
        let unused = settings.redis.is_some() && !matches!(settings.storage, Storage::Postgres(_)) && !self.shares.get();
        if unused && !self.partial && self.report.is_empty() {
            self.wrong(&Invalid::new("nothing uses it: neither storage.postgres nor a limit with `scope: shared`").at("redis"));
        }
        Some((Arc::clone(&self.trusted), upstreams.into_iter().flatten().collect(), routes, Chain::new(shared), Arc::new(alerts)))
    }

    /// Numbers that make sense only within bounds.
    fn numbers(&mut self) {
        let mut wrong = Vec::new();
        for (index, listener) in self.parsed.settings.listeners.iter().enumerate() {
            let limits = &listener.limits;
            let mut check = |ok: bool, key: &str, says: &str| {
                if !ok {
                    wrong.push(Invalid::new(says).at(key).at("limits").index(index).at("listeners"));
                }
            };
            check((1024..=512 * 1024).contains(&limits.header_bytes.0), "header_bytes", "must be between 1KiB and 512KiB");
            check((1..=256).contains(&limits.headers), "headers", "must be between 1 and 256");
            check((100..=600_000).contains(&limits.header_timeout.0.as_millis()), "header_timeout", "must be between 100ms and 10min");
            check((100..=3_600_000).contains(&limits.body_timeout.0.as_millis()), "body_timeout", "must be between 100ms and 1h");
            check((100..=3_600_000).contains(&limits.write_timeout.0.as_millis()), "write_timeout", "must be between 100ms and 1h");
            check((1000..=3_600_000).contains(&limits.idle_timeout.0.as_millis()), "idle_timeout", "must be between 1s and 1h");
            check(limits.connections > 0, "connections", "must be at least 1");
            check(limits.connections_per_peer > 0, "connections_per_peer", "must be at least 1");
            check(limits.requests_per_connection > 0, "requests_per_connection", "must be at least 1");
        }
        wrong.iter().for_each(|invalid| self.wrong(invalid));
        self.admin();
        self.rest();
    }

    /// The admin listener, and that no address is listened on twice.
    fn admin(&mut self) {
        let mut wrong = Vec::new();
        let addresses: Vec<_> = self.parsed.settings.listeners.iter().map(|listener| listener.address).collect();
        for (index, address) in addresses.iter().enumerate() {
            let earlier = addresses.iter().take(index).any(|other| other == address);
            let admins = !self.partial && *address == self.parsed.settings.admin.address;
            if earlier || admins {
                wrong.push(Invalid::new(format!("{address} is listened on twice")).at("address").index(index).at("listeners"));
            }
        }
        let admin = &self.parsed.settings.admin;
        if !(60..=30 * 86_400).contains(&admin.session.0.as_secs()) {
            wrong.push(Invalid::new("must be between 1m and 30days").at("session").at("admin"));
        }
        if !(10..=3600).contains(&admin.token.0.as_secs()) {
            wrong.push(Invalid::new("must be between 10s and 1h").at("token").at("admin"));
        }
        wrong.iter().for_each(|invalid| self.wrong(invalid));
    }

    /// Stores, what goes with time, threads.
    fn rest(&mut self) {
        let mut wrong = Vec::new();
        let mut stored = |kind: &str, ok: bool, key: &str, says: &str| {
            if !ok {
                wrong.push(Invalid::new(says).at(key).at(kind).at("storage"));
            }
        };
        match &self.parsed.settings.storage {
            Storage::Sqlite(sqlite) => {
                stored("sqlite", sqlite.flush_every.0.as_millis() >= 10, "flush_every", "must be at least 10ms");
                stored("sqlite", sqlite.cache_max >= 16, "cache_max", "must be at least 16");
            }
            Storage::Postgres(postgres) => {
                stored("postgres", postgres.flush_every.0.as_millis() >= 10, "flush_every", "must be at least 10ms");
                stored("postgres", postgres.cache_max >= 16, "cache_max", "must be at least 16");
                stored("postgres", (2..=500).contains(&postgres.connections_max), "connections_max", "must be between 2 and 500");
                let timeout = (50..=60_000).contains(&postgres.timeout.0.as_millis());
                stored("postgres", timeout, "timeout", "must be between 50ms and 1min");
            }
            Storage::Memory => {}
        }
        if let Some(redis) = &self.parsed.settings.redis {
            wrong.extend(redis.mistakes());
        }
        if let Some(alerts) = &self.parsed.settings.alerts {
            wrong.extend(alerts.mistakes());
        }
        let retention = &self.parsed.settings.retention;
        for (key, age, least_s) in [
            ("archive_after", retention.archive_after, 60),
            ("unconfirmed", retention.unconfirmed, 1),
            ("intercepts", retention.intercepts, 60),
            ("archive", retention.archive, 60),
            ("audit", retention.audit, 60),
            ("every", retention.every, 1),
        ] {
            if age.0.as_secs() < least_s {
                wrong.push(Invalid::new(format!("must be at least {least_s}s")).at(key).at("retention"));
            }
        }
        if self.parsed.settings.workers > 1024 {
            wrong.push(Invalid::new("at most 1024 threads").at("workers"));
        }
        wrong.iter().for_each(|invalid| self.wrong(invalid));
    }

    /// One for each item of the list; `None` for one that is wrong, so that references to it are not.
    fn upstreams(&mut self) -> Vec<Option<Arc<Upstream>>> {
        let mut seen = HashMap::new();
        let mut compiled = Vec::new();
        for (index, config) in self.parsed.settings.upstreams.iter().enumerate() {
            if let Some(first) = seen.insert(config.name.as_str(), index) {
                let invalid = Invalid::new(format!("`{}` is the name of upstreams[{first}] already", config.name));
                self.wrong(&invalid.at("name").index(index).at("upstreams"));
            }
            // The same configuration is the same upstream: its connections, health and tasks go on.
            let key = format!("{config:?}");
            let made = Upstream::compile(config).map(|upstream| self.compiler.keep.get(&key, || upstream));
            compiled.push(match made {
                Ok(upstream) => Some(upstream),
                Err(invalid) => {
                    self.wrong(&invalid.index(index).at("upstreams"));
                    None
                }
            });
        }
        compiled
    }

    fn filters(&mut self, items: &[FilterItem], place: &dyn Fn(Invalid, usize) -> Invalid, prefix: &str) -> Vec<Item> {
        let mut compiled = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let mut site = Site {
                // Named by its kind: a filter of another kind that is put before it must not reset its counts.
                place: format!("{prefix}{}[{}]", item.name, items.iter().take(index).filter(|other| other.name == item.name).count()),
                trusted: Arc::clone(&self.trusted),
                keep: &self.compiler.keep,
                ports: &self.ports,
                resolve: self.files,
                shares: &self.shares,
                limits: &self.limits,
            };
            let Some(kind) = ALL.iter().find(|kind| kind.name == item.name) else { continue };
            match (kind.compile)(item.config.clone(), &mut site) {
                Ok(filter) => compiled.push(Item { filter, shadow: item.shadow }),
                Err(invalid) => self.wrong(&place(invalid.at(item.name.as_str()), index)),
            }
        }
        compiled
    }

    fn route(&mut self, index: usize, config: &RouteSettings, upstreams: &[Option<Arc<Upstream>>], shared: &[Item]) -> Option<Route> {
        let settings = &self.parsed.settings;
        let place = |invalid: Invalid| invalid.index(index).at("routes");
        if let Some(first) = settings.routes.iter().take(index).position(|other| other.name == config.name) {
            self.wrong(&place(Invalid::new(format!("`{}` is the name of routes[{first}] already", config.name)).at("name")));
        }
        let matcher = Matcher::compile(&config.matches).map_err(|invalid| self.wrong(&place(invalid.at("match")))).ok();
        let own = self.filters(&config.filters, &|invalid, at| place(invalid.index(at).at("filters")), &format!("routes.{}.", config.name));
        let found = settings.upstreams.iter().position(|upstream| upstream.name == config.upstream);
        // Where upstreams or this route could not be read, that has been told.
        let unread = self.partial && (settings.upstreams.is_empty() || config.upstream.is_empty());
        if found.is_none() && !unread {
            let names = settings.upstreams.iter().map(|upstream| upstream.name.as_str());
            let advice = match nearest(&config.upstream, names.clone()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
            };
            self.wrong(&place(Invalid::new(format!("there is no upstream `{}`; {advice}", config.upstream)).at("upstream")));
        }
        let upstream = upstreams.get(found?)?.clone()?;
        Some(Route {
            name: config.name.as_str().into(),
            chain: Chain::new(shared.iter().cloned().chain(own).collect()),
            upstream,
            allow_encoded_slash: config.allow_encoded_slash,
            matcher: matcher?,
        })
    }
}

/// Ports for compiling without running: nothing is stored, nothing is known.
pub fn check_ports() -> Ports {
    Ports {
        bindings: Arc::new(Nowhere),
        hasher: KeyHasher::new(b""),
        meter: Arc::new(Meter::default()),
        counters: Some(Arc::new(Nowhere)),
        outbound: Arc::new(Nowhere),
        near: Arc::default(),
    }
}

struct Nowhere;

impl Outbound for Nowhere {
    fn service(&self, endpoint: &Endpoint, ca: Option<String>) -> Result<Arc<dyn Service>, Invalid> {
        outbound::check(endpoint, ca)?;
        Ok(Arc::new(Nowhere))
    }
    fn tend(&self, _: Weak<dyn Tend>) -> Arc<dyn Tender> {
        Arc::new(Nowhere)
    }
}

impl Tender for Nowhere {
    fn now(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl Service for Nowhere {
    fn call(&self, _: Call) -> BoxFuture<'_, Result<Answered, CallError>> {
        Box::pin(async { Err(CallError::Away("nobody is asked here".into())) })
    }
    fn elsewhere(&self, _: &str) -> Result<Arc<dyn Service>, CallError> {
        Ok(Arc::new(Nowhere))
    }
}

impl Counters for Nowhere {
    fn hit(&self, _: Vec<Hit>) -> BoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("nothing is shared".into())) })
    }
    fn look<'a>(&'a self, _: &'a Hit) -> BoxFuture<'a, Result<Outcome, StoreError>> {
        Box::pin(async { Err(StoreError::Away("nothing is shared".into())) })
    }
    fn forget<'a>(&'a self, _: &'a Hit) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Err(StoreError::Away("nothing is shared".into())) })
    }
    fn lease(&self, _: String, _: u32) -> BoxFuture<'_, Result<Option<Lease>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("nothing is shared".into())) })
    }
}

impl Bindings for Nowhere {
    fn peek(&self, _: &KeyId) -> Option<Arc<Binding>> {
        None
    }
    fn recall(&self, _: KeyId) -> BoxFuture<'_, Option<Arc<Binding>>> {
        Box::pin(async { None })
    }
    fn look_up(&self, _: KeyId) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no store is open".into())) })
    }
    fn latch(&self, _: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no store is open".into())) })
    }
    fn adopt(&self, _: KeyId, _: Vec<KeyId>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async { Ok(None) })
    }
    fn roam(&self, _: KeyId, _: IpNet, _: SystemTime) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async { Ok(None) })
    }
    fn leash(&self, _: KeyId, _: IpAddr) -> Arc<Leash> {
        Arc::default()
    }
    fn confirm(&self, _: &Binding) {}
    fn release(&self, _: &Binding) {}
    fn used(&self, _: KeyId, _: SystemTime) {}
    fn intercepted(&self, _: Intercept) {}
}
