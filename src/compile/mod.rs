//! Compiles a parsed configuration into a [`Snapshot`], which is immutable and replaced as a whole.
//! Starts nothing and opens no store.

mod noop_ports;
mod route;
mod snapshot;

pub use noop_ports::check_ports;
pub use route::Route;
pub use snapshot::Snapshot;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use keylatch_filters::ALL;
use keylatch_filters::chain::{Chain, Item};
use keylatch_filters::contract::{Invalid, Keep, LimitNames, ModelPrice, Ports, PriceTable, PricesConfig, SecretRef, Site, TrustedProxies};

use crate::alerts::Alerts;
use crate::config::model::{FilterItem, RouteSettings, Settings, Storage};
use crate::config::report::nearest;
use crate::config::sections::add_invalid;
use crate::config::store_url::{self, PostgresUrl};
use crate::config::{Files, Parsed, Report, bounds, parse, parse_file, read_list};
use crate::listener::policy::ListenerPolicy;
use crate::upstream::Upstream;
use route::Matcher;

/// Compiles configurations, and keeps the state that outlives a reload.
pub struct Compiler {
    keep: Keep,
    ports: Ports,
}

impl Compiler {
    /// With the implementations of the ports.
    pub fn new(ports: Ports) -> Self {
        Self { keep: Keep::default(), ports }
    }

    /// Keeps the policy of a listener that still has its socket although the file no longer has it. Its
    /// files are read again and watched.
    pub fn keep_on(&self, gone: &Arc<ListenerPolicy>, path: &Path, fresh: &mut Snapshot) {
        let files = Files::beside(path);
        let entry = gone.recompile(&files, &self.keep).map(Arc::new).unwrap_or_else(|wrong| {
            let why = wrong.iter().map(|invalid| invalid.message.as_str()).collect::<Vec<_>>().join("; ");
            tracing::error!(listener = %gone.address, why, "the listener is no longer in the file and its files cannot be read; its policy stays until a restart");
            Arc::clone(gone)
        });
        fresh.files.extend(files.digests());
        fresh.secret_files.extend(files.secrets());
        fresh.entries.push(entry);
    }

    /// Compiles a configuration. Starts nothing; the report lists all errors.
    pub fn compile(&self, mut parsed: Parsed) -> Result<Snapshot, Report> {
        let mut report = std::mem::replace(&mut parsed.mistakes, Report::new(&parsed.path));
        let said = parsed.settings.clone();
        let overrides = std::mem::take(&mut parsed.overrides);
        overrides.apply(&mut parsed.settings);
        let files = Files::beside(&parsed.path);
        let partial = !report.is_empty();
        // Without a `redis` section there is no Redis, whatever the process was started with.
        let has_redis = parsed.settings.redis.is_some();
        let counters = self.ports.counters.clone().filter(|_| has_redis);
        let shared_ledger = self.ports.shared_ledger.clone().filter(|_| has_redis);
        let ports = Ports { counters, shared_ledger, ..self.ports.clone() };
        // Routes that could not be parsed have names, too.
        let names = parsed.settings.routes.iter().map(|route| route.name.clone()).filter(|_| !partial).collect();
        let mut work = Work {
            compiler: self,
            ports,
            parsed: &parsed,
            partial,
            files: &files,
            report: &mut report,
            trusted: Arc::default(),
            prices: Arc::default(),
            shares: Cell::default(),
            reads_usage: Cell::default(),
            budgets: RefCell::default(),
            limits: RefCell::default(),
            routes: names,
        };
        let pieces = work.pieces();
        let trusted = Arc::clone(&work.trusted);
        match pieces {
            Pieces { entries, upstreams, routes, unrouted, alerts } if report.is_empty() => {
                let (written, masked) = (parsed.written(), parsed.masked());
                let (files, secret_files) = (files.digests(), files.secrets());
                Ok(Snapshot { settings: said, entries, routes, unrouted, upstreams, trusted, alerts, written, masked, files, secret_files })
            }
            _ => Err(report),
        }
    }
}

/// Checks a file, or a text in place of its content. The report omits values from the environment:
/// the sender of a text may not be allowed to see them.
pub fn check(path: &Path, text: Option<&str>) -> Result<(), Report> {
    let looked_up = RefCell::new(Vec::new());
    let look_up = |name: &str| std::env::var(name).ok().inspect(|value| looked_up.borrow_mut().push(value.clone()));
    let parsed = text.map_or_else(|| parse_file(path), |text| parse(path, text, &look_up));
    let checked = parsed.and_then(|parsed| Compiler::new(check_ports()).compile(parsed));
    checked.map(|_| ()).map_err(|report| report.without(&looked_up.take()))
}

/// The settings of a file, if it is valid as far as that can be known without a running process.
pub fn settings(parsed: Parsed) -> Result<Settings, Report> {
    if parsed.mistakes.is_empty() {
        return Ok(parsed.settings);
    }
    Compiler::new(check_ports()).compile(parsed).map(|snapshot| snapshot.settings)
}

struct Work<'a> {
    compiler: &'a Compiler,
    ports: Ports,
    parsed: &'a Parsed,
    /// Whether something could not be parsed and has its default instead.
    partial: bool,
    files: &'a Files,
    report: &'a mut Report,
    trusted: Arc<TrustedProxies>,
    prices: Arc<PriceTable>,
    /// Whether a filter uses shared state.
    shares: Cell<bool>,
    /// Whether `usage` stands before the next filter.
    reads_usage: Cell<bool>,
    /// The terms of budgets by name.
    budgets: RefCell<HashMap<String, String>>,
    /// The limits that filters refer to by name: those of the top level, or of the route being
    /// compiled.
    limits: RefCell<LimitNames>,
    /// The names of all routes; empty if some could not be parsed.
    routes: Vec<String>,
}

/// The parts of a snapshot.
struct Pieces {
    entries: Vec<Arc<ListenerPolicy>>,
    upstreams: Vec<Arc<Upstream>>,
    routes: Vec<Route>,
    unrouted: Chain,
    alerts: Arc<Alerts>,
}

impl Work<'_> {
    fn wrong(&mut self, invalid: &Invalid) {
        add_invalid(self.report, &self.parsed.tree, &[], invalid);
    }

    fn pieces(&mut self) -> Pieces {
        let settings = &self.parsed.settings;
        bounds::check(settings, self.partial).iter().for_each(|invalid| self.wrong(invalid));
        store_urls(settings, &self.files.apart()).iter().for_each(|invalid| self.wrong(invalid));
        match TrustedProxies::compile(&settings.trusted_proxies, self.files) {
            Ok(trusted) => self.trusted = Arc::new(trusted),
            Err(invalid) => self.wrong(&invalid.at("trusted_proxies")),
        }
        if settings.prices.is_none() && self.partial {
            // They may be what could not be parsed.
            self.prices = Arc::new(PriceTable::invalid());
        }
        match prices(settings.prices.as_ref(), self.files) {
            Ok(prices) if prices.is_empty() && self.prices.is_invalid() => {}
            Ok(prices) => self.prices = Arc::new(prices),
            Err(wrong) => {
                self.prices = Arc::new(PriceTable::invalid());
                wrong.into_iter().for_each(|invalid| self.wrong(&invalid.at("prices")));
            }
        }
        let entries = self.entries();
        let upstreams = self.upstreams();
        let shared = self.filters(&settings.filters, &|invalid, index| invalid.index(index).at("filters"), "");
        let (above, usage_above) = (self.limits.take(), self.reads_usage.get());
        let mut routes = Vec::new();
        for (index, route) in settings.routes.iter().enumerate() {
            self.limits.replace(above.clone());
            self.reads_usage.set(usage_above);
            routes.extend(self.route(index, route, &upstreams, &shared));
            let limits = self.limits.borrow();
            let missing = limits
                .missing()
                .map(|name| format!("a rule chooses the limit `{name}`, but no later rate_limit has it with `chosen: true`"));
            let idle = limits
                .idle()
                .map(|name| format!("the limit `{name}` has `chosen: true`, but no earlier rule chooses it: it would never count"));
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
            self.wrong(
                &Invalid::new("the section has no effect without storage.postgres or a limit with `scope: shared`; remove it").at("redis"),
            );
        }
        Pieces {
            entries,
            upstreams: upstreams.into_iter().flatten().collect(),
            routes,
            unrouted: Chain::new(shared),
            alerts: Arc::new(alerts),
        }
    }

    fn entries(&mut self) -> Vec<Arc<ListenerPolicy>> {
        let mut entries = Vec::new();
        for (index, config) in self.parsed.settings.listeners.iter().enumerate() {
            match ListenerPolicy::compile(config, self.parsed.settings.acme.as_ref(), self.files, &self.compiler.keep) {
                Ok(entry) => entries.push(Arc::new(entry)),
                Err(wrong) => wrong.into_iter().for_each(|invalid| self.wrong(&invalid.index(index).at("listeners"))),
            }
        }
        entries
    }

    /// One item for each item of the list; `None` for an invalid one, so that references to it are
    /// no further errors.
    fn upstreams(&mut self) -> Vec<Option<Arc<Upstream>>> {
        let mut seen = HashMap::new();
        let mut compiled = Vec::new();
        for (index, config) in self.parsed.settings.upstreams.iter().enumerate() {
            if let Some(first) = seen.insert(config.name.as_str(), index) {
                let invalid = Invalid::new(format!("the name `{}` is already used by upstreams[{first}]", config.name));
                self.wrong(&invalid.at("name").index(index).at("upstreams"));
            }
            // An unchanged upstream is kept with its connections, health and tasks.
            let own = self.files.apart();
            let made = Upstream::compile(config, &own);
            let key = format!("{config:?} {:?}", own.digests());
            self.files.add(own);
            let made = made.map(|upstream| self.compiler.keep.get(&key, || upstream));
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
            let also = RefCell::default();
            let mut site = Site {
                // Numbered among filters of its kind: inserting another kind must not reset the
                // counters.
                place: format!("{prefix}{}[{}]", item.name, items.iter().take(index).filter(|other| other.name == item.name).count()),
                trusted: Arc::clone(&self.trusted),
                prices: Arc::clone(&self.prices),
                keep: &self.compiler.keep,
                ports: &self.ports,
                resolve: self.files,
                uses_shared_counters: &self.shares,
                reads_usage: &self.reads_usage,
                budgets: &self.budgets,
                limits: &self.limits,
                routes: &self.routes,
                more_errors: &also,
            };
            let Some(kind) = ALL.iter().find(|kind| kind.name == item.name) else { continue };
            let made = (kind.compile)(item.config.clone(), &mut site);
            let mut wrong = also.take();
            match made {
                Ok(filter) => compiled.push(Item { filter, shadow: item.shadow }),
                Err(invalid) => wrong.push(invalid),
            }
            wrong.into_iter().for_each(|invalid| self.wrong(&place(invalid.at(item.name.as_str()), index)));
        }
        compiled
    }

    fn route(&mut self, index: usize, config: &RouteSettings, upstreams: &[Option<Arc<Upstream>>], shared: &[Item]) -> Option<Route> {
        let settings = &self.parsed.settings;
        let place = |invalid: Invalid| invalid.index(index).at("routes");
        if let Some(first) = settings.routes.iter().take(index).position(|other| other.name == config.name) {
            self.wrong(&place(Invalid::new(format!("the name `{}` is already used by routes[{first}]", config.name)).at("name")));
        }
        let matcher = Matcher::compile(&config.matches).map_err(|invalid| self.wrong(&place(invalid.at("match")))).ok();
        let own = self.filters(&config.filters, &|invalid, at| place(invalid.index(at).at("filters")), &format!("routes.{}.", config.name));
        let found = settings.upstreams.iter().position(|upstream| upstream.name == config.upstream);
        // An upstream or route that could not be parsed is already in the report.
        let unread = self.partial && (settings.upstreams.is_empty() || config.upstream.is_empty());
        if found.is_none() && !unread {
            let names = settings.upstreams.iter().map(|upstream| upstream.name.as_str());
            let advice = match nearest(&config.upstream, names.clone()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("expected one of {}", names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
            };
            self.wrong(&place(Invalid::new(format!("the upstream `{}` does not exist; {advice}", config.upstream)).at("upstream")));
        }
        let upstream = upstreams.get(found?)?.clone()?;
        Some(Route {
            name: config.name.as_str().into(),
            chain: Chain::new(shared.iter().cloned().chain(own).collect()),
            upstream,
            allow_encoded_slash: config.allow_encoded_slash,
            dialect: config.dialect,
            matcher: matcher?,
        })
    }
}

/// The compiled prices, with those of their file.
fn prices(config: Option<&PricesConfig>, files: &Files) -> Result<PriceTable, Vec<Invalid>> {
    let Some(config) = config else { return Ok(PriceTable::default()) };
    let in_file = config.file.as_ref().map(|path| read_list::<ModelPrice>(files, path)).transpose();
    let unreadable = in_file.as_ref().err().map(|invalid| invalid.clone().at("file"));
    let table = PriceTable::compile(config, &in_file.ok().flatten().unwrap_or_default());
    match unreadable {
        None => table,
        Some(invalid) => Err(std::iter::once(invalid).chain(table.err().into_iter().flatten()).collect()),
    }
}

/// Store URLs that a start would refuse.
fn store_urls(settings: &Settings, files: &Files) -> Vec<Invalid> {
    let mut wrong = Vec::new();
    let read = |url: &SecretRef, parse: &dyn Fn(&str) -> Result<(), String>| {
        let text = files.secret(url).map_err(|invalid| invalid.to_string())?;
        // A variable of the environment may be missing where a file is only checked.
        if text.is_empty() { Err("is empty".into()) } else { parse(&text) }
    };
    if let Storage::Postgres(config) = &settings.storage {
        let parse = |text: &str| PostgresUrl::parse(text).and_then(|url| url.verification(config.tls)).map(|_| ());
        for (key, url) in [("url", Some(&config.url)), ("listen_url", config.listen_url.as_ref())] {
            if let Some(Err(says)) = url.map(|url| read(url, &parse)) {
                wrong.push(Invalid::new(says).at(key).at("postgres").at("storage"));
            }
        }
    }
    if let Some(config) = &settings.redis {
        let parse = |text: &str| store_url::redis(text).map(|_| ());
        wrong.extend(read(&config.url, &parse).err().map(|says| Invalid::new(says).at("url").at("redis")));
        for (index, url) in config.sentinels.iter().enumerate() {
            wrong.extend(read(url, &parse).err().map(|says| Invalid::new(says).index(index).at("sentinels").at("redis")));
        }
    }
    wrong
}
