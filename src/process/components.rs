//! Builds the components of the process, and starts their periodic tasks.
//!
//! It opens no listening socket, so it can run while another process serves the same configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use keylatch_filters::contract::{Meter, Ports, UsageTracker};

use crate::acme::{self, Acme};
use crate::admin::Api;
use crate::alerts::{self, AlertMonitor};
use crate::bindings::{self, Opened, Purpose, Store};
use crate::cluster::replica::Replica;
use crate::compile::Compiler;
use crate::config::model::Storage;
use crate::config::{Files, Settings, parse_file};
use crate::http_proxy::ProxyState;
use crate::operator::local_queries::LocalQueries;
use crate::operator::oidc::Oidc;
use crate::operator::ranges;
use crate::operator::replica_rpc::ReplicaRpc;
use crate::operator::sign_in::Authenticator;
use crate::outbound::Services;
use crate::redis;
use crate::redis::ledger::RedisLedger;
use crate::reload::{self, Reloader};
use crate::settings::{self, LiveSettings};
use crate::sql::record::RetentionPolicy;
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::sampler::{Sampler, State};
use crate::usage::Accounts;
use crate::usage::ledger::{LocalLedger, SharedLedger, Spending};
use crate::util::periodic::{every, every_current};
use crate::util::time::millis;
use crate::watch::{self, FileWatch};

/// The interval at which the age of Cloudflare's ranges is checked.
const RANGES_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The pause after a failed refresh of Cloudflare's ranges.
const RANGES_RETRY_PAUSE: Duration = Duration::from_secs(300);

/// The components of the process. They run on a runtime of their own, so they cannot delay a request.
pub struct Components {
    /// The state that all listeners share.
    pub shared: Arc<ProxyState>,
    /// The store.
    pub store: Arc<Store>,
    /// Raises alerts about keys that are refused too often.
    pub watch: Arc<AlertMonitor>,
    /// The identity of this process among the replicas.
    pub replica: Arc<Replica>,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
    /// What requests used.
    pub usage: Arc<Accounts>,
    /// What budgets have spent.
    spending: Arc<Spending>,
    /// The budgets that replicas share.
    shared_ledger: Option<Arc<SharedLedger>>,
    /// The admin API.
    pub api: Arc<Api>,
    /// When the process started, in milliseconds since 1970.
    pub started_ms: i64,
    _files: Arc<FileWatch>,
}

impl Components {
    /// Opens the stores, compiles the configuration, and starts all tasks that need no listener. Another process may serve the
    /// same configuration meanwhile.
    pub async fn open(path: &Path, settings: &Settings) -> Result<Self, String> {
        let metrics = Arc::new(Metrics::new().map_err(|e| format!("the metrics cannot be registered: {e}"))?);
        let (files, registry) = (Files::beside(path), &metrics.registry);
        let redis = bindings::open_redis(settings, &files, registry).await?;
        let counters = redis.as_ref().map(redis::counters);
        let redis_ledger = redis.clone().map(RedisLedger::new);
        let opened = bindings::open(settings, &files, registry, Purpose::Serve, redis).await?;
        let near = Arc::<UsageTracker>::default();
        let usage = Accounts::new(Arc::clone(&opened.authority), &settings.usage, registry);
        let spending = Spending::new(Arc::clone(&opened.authority));
        let ledger = LocalLedger::new(Arc::clone(&spending));
        let shared_ledger = redis_ledger.map(|redis| SharedLedger::new(redis, Arc::clone(&ledger)));
        let ports = Ports {
            bindings: Arc::clone(&opened.store) as _,
            hasher: opened.hasher.clone(),
            meter: Arc::new(Meter::new(metrics.registry.clone())),
            counters,
            outbound: Arc::new(Services::on_current_runtime()),
            usage_tracker: Arc::clone(&near),
            usage: Arc::clone(&usage) as _,
            ledger: Arc::clone(&ledger) as _,
            shared_ledger: shared_ledger.clone().map(|ledger| ledger as _),
        };
        let compiler = Arc::new(Compiler::new(ports));
        let live = Arc::new(LiveSettings::new(&opened.admin_secret)?);
        live.refresh(&opened.store).await;
        let parsed = parse_file(path).map_err(|report| report.to_string())?.with(&live.overrides());
        let snapshot = reload::begin(&compiler, parsed.clone()).await.map_err(|report| report.to_string())?;
        metrics.last_reload.set(reload::unix_s());
        metrics.set_certificates(&snapshot.entries);
        let acme = Acme::new(Arc::clone(&opened.store), &opened.admin_secret, &settings.replica(), registry)?;
        // Certificates that are stored already must be served from the first connection on.
        if acme.reconcile(settings.acme.as_ref(), &snapshot.acme(), &files, false).await {
            metrics.set_certificates(&snapshot.entries);
        }
        let access = AccessLog::stdout(metrics.access_lost.clone()).map_err(|e| format!("cannot start the access log thread: {e}"))?;
        let shared = Arc::new(ProxyState { snapshot: ArcSwap::from_pointee(snapshot), metrics, access, live, acme });
        let reloader = Arc::new(Reloader::new(path, compiler, Arc::clone(&shared), parsed));
        let replica = Arc::new(Replica::new(settings.replica()));
        let (watch, files) = start_periodic_tasks(path, &shared, &opened.store, &reloader, &replica, &spending);
        start_certificate_orders(path, &shared, &replica);
        flush_usage_periodically(&shared, &usage, &spending);
        let api = api(path, settings, opened, near, &shared, &replica, &reloader, &usage)?;
        let store = Arc::clone(&api.store);
        Ok(Self {
            shared,
            store,
            watch,
            replica,
            reloader,
            usage,
            spending,
            shared_ledger,
            api,
            started_ms: millis(SystemTime::now()),
            _files: files,
        })
    }

    /// The state of this replica.
    pub fn state(&self) -> State {
        let (metrics, last) = (&self.shared.metrics, self.reloader.last());
        State {
            version: env!("CARGO_PKG_VERSION").into(),
            started_ms: self.started_ms,
            generation: last.generation,
            loaded_ms: last.loaded_ms,
            reload_ok: last.outcome.is_ok(),
            streams: metrics.streams.open.get(),
            connections: metrics.connections.get(),
            requests_per_s: self.api.sampler.rate(),
            stopping: self.replica.is_stopping(),
            handed_over: self.replica.has_handed_over(),
        }
    }

    /// Writes the state of this replica and its counts to the store.
    pub async fn report(&self) {
        self.api.sampler.report(&self.store, &self.state()).await;
    }

    /// Writes the last usage, and what budgets have spent.
    pub async fn flush_usage(&self) {
        let settle = async {
            if let Some(ledger) = &self.shared_ledger
                && !ledger.settle_waiting().await
            {
                tracing::warn!("Redis has not got what budgets have spent at last; the database has");
            }
        };
        tokio::join!(self.usage.finish(), self.spending.flush(), settle);
    }

    /// Checks for the last time for keys that were refused too often, and records alerts without delivering them.
    pub async fn record_last_alerts(&self) {
        let (alerts, threshold) = self.shared.live.alerts(&self.shared.snapshot.load().alerts);
        self.watch.check_budgets(&self.spending, &alerts).await;
        self.watch.check_last(&alerts, threshold).await;
    }
}

async fn check_alerts(watch: &Arc<AlertMonitor>, shared: &ProxyState, spending: &Spending) {
    let (alerts, threshold) = shared.live.alerts(&shared.snapshot.load().alerts);
    watch.check_budgets(spending, &alerts).await;
    watch.check(&alerts, threshold).await;
}

/// Starts retention, alerts, the file watch, the refresh of Cloudflare's ranges, and the settings subscription.
fn start_periodic_tasks(
    path: &Path,
    shared: &Arc<ProxyState>,
    store: &Arc<Store>,
    reloader: &Arc<Reloader>,
    replica: &Arc<Replica>,
    spending: &Arc<Spending>,
) -> (Arc<AlertMonitor>, Arc<FileWatch>) {
    let current = Arc::clone(shared);
    // The smallest useful retention period; the store itself decides whether work is due.
    let serving = Arc::clone(replica);
    store.apply_retention_every(Duration::from_secs(5), move || {
        // After a handover the successor applies the retention of the configuration in force.
        (!serving.has_handed_over()).then(|| {
            let snapshot = current.snapshot.load();
            current.live.retention(RetentionPolicy::new(&snapshot.settings.retention, &snapshot.settings.usage))
        })
    });
    let watch = AlertMonitor::new(Arc::clone(store), &shared.metrics.registry);
    let (current, spending) = (Arc::clone(shared), Arc::clone(spending));
    every(&watch, alerts::CHECK_INTERVAL, move |watch| {
        let (current, spending) = (Arc::clone(&current), Arc::clone(&spending));
        async move { check_alerts(&watch, &current, &spending).await }
    });
    let files = Arc::new(FileWatch::new(Arc::clone(shared), Arc::clone(reloader)));
    every(&files, watch::POLL_INTERVAL, |files| async move { files.poll().await });
    every(shared, RANGES_CHECK_INTERVAL, {
        let (path, replica) = (path.to_owned(), Arc::clone(replica));
        move |shared| refresh_ranges(shared, path.clone(), Arc::clone(&replica))
    });
    let reloads = Arc::clone(reloader);
    settings::follow(Arc::clone(&shared.live), Arc::clone(store), move |overrides| {
        let reloads = Arc::clone(&reloads);
        async move { reloads.apply(&overrides).await }
    });
    (watch, files)
}

/// Writes usage and what budgets have spent, in each `usage.flush_every` of the configuration in force.
fn flush_usage_periodically(shared: &Arc<ProxyState>, usage: &Arc<Accounts>, spending: &Arc<Spending>) {
    let period = |shared: &Arc<ProxyState>| {
        let shared = Arc::clone(shared);
        move || shared.snapshot.load().settings.usage.flush_every.0
    };
    let current = Arc::clone(shared);
    every_current(usage, period(shared), move |usage| {
        usage.set_options(&current.snapshot.load().settings.usage);
        async move { usage.flush().await }
    });
    every_current(spending, period(shared), |spending| async move { spending.flush().await });
}

/// Orders certificates that are missing or close to their end, and loads those that other replicas ordered. After a handover
/// this process orders none: the successor goes by the configuration in force.
fn start_certificate_orders(path: &Path, shared: &Arc<ProxyState>, replica: &Arc<Replica>) {
    let (path, replica) = (path.to_owned(), Arc::clone(replica));
    every(shared, acme::RECONCILE_INTERVAL, move |shared| {
        let (files, orders) = (Files::beside(&path), !replica.has_handed_over() && !replica.is_stopping());
        async move {
            let snapshot = shared.snapshot.load_full();
            if shared.acme.reconcile(snapshot.settings.acme.as_ref(), &snapshot.acme(), &files, orders).await {
                shared.metrics.set_certificates(&snapshot.entries);
            }
        }
    });
}

/// Fetches Cloudflare's ranges if they are due. The file watch then picks up the changed file.
async fn refresh_ranges(shared: Arc<ProxyState>, path: PathBuf, replica: Arc<Replica>) {
    if replica.has_handed_over() {
        return;
    }
    let (snapshot, files) = (shared.snapshot.load_full(), Files::beside(&path));
    let trusted = &snapshot.settings.trusted_proxies;
    let Some(from) = trusted.cloudflare_refresh.as_ref().filter(|_| ranges::is_due(trusted, &files)) else { return };
    match ranges::refresh(trusted, &files, from, false).await {
        Ok(outcome) => tracing::info!("Cloudflare's ranges were refreshed: {outcome}"),
        Err(error) => {
            tracing::error!(%error, "Cloudflare's ranges were not refreshed; the known ranges stay in force");
            // Back-off: the next check starts only after this future ends, so a source that fails is not called every 10 s.
            tokio::time::sleep(RANGES_RETRY_PAUSE).await;
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "each is a part of the API")]
fn api(
    path: &Path,
    settings: &Settings,
    opened: Opened,
    near: Arc<UsageTracker>,
    shared: &Arc<ProxyState>,
    replica: &Arc<Replica>,
    reloader: &Arc<Reloader>,
    usage: &Arc<Accounts>,
) -> Result<Arc<Api>, String> {
    let rpc = Arc::new(ReplicaRpc {
        store: Arc::clone(&opened.store),
        replica: Arc::clone(replica),
        // With storage in memory there are no other replicas.
        has_others: settings.storage != Storage::Memory,
        notified: matches!(settings.storage, Storage::Postgres(_)),
        local: Arc::new(LocalQueries { streams: Arc::clone(&shared.metrics.streams), near }),
    });
    Ok(Arc::new(Api {
        sampler: Sampler::new(Arc::clone(replica), Arc::clone(&shared.metrics)),
        shared: Arc::clone(shared),
        store: opened.store,
        hasher: opened.hasher,
        authenticator: Authenticator::new(&opened.admin_secret, settings.admin.session.0, settings.admin.token.0)?,
        oidc: Oidc::new(&opened.admin_secret, Arc::new(Services::on_current_runtime()))?,
        rpc,
        reloader: Arc::clone(reloader),
        path: path.to_owned(),
        replica: Arc::clone(replica),
        usage: Arc::clone(usage),
    }))
}
