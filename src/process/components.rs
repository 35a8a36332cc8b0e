//! The parts of the process, put together: everything but its sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use keylatch_filters::contract::{Meter, Near, Ports};

use crate::acme::{self, Acme};
use crate::admin::Api;
use crate::alerts::{self, Watch};
use crate::bindings::{self, Opened, Purpose, Store};
use crate::cluster::replica::Replica;
use crate::compile::Compiler;
use crate::config::model::Storage;
use crate::config::{Files, Settings, parse_file};
use crate::http_proxy::Shared;
use crate::operator::local_queries::LocalQueries;
use crate::operator::oidc::Oidc;
use crate::operator::ranges;
use crate::operator::replica_rpc::ReplicaRpc;
use crate::operator::sign_in::Authenticator;
use crate::outbound::Services;
use crate::reload::{self, Reloader};
use crate::settings::{self, Live};
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::sampler::{Sampler, State};
use crate::util::periodic::every;
use crate::util::time::millis;
use crate::{redis, watch};

/// How often it is looked whether Cloudflare's ranges are old.
const RANGES_LOOKED_AT: Duration = Duration::from_secs(10);
/// After those that could not be read it is tried again.
const RANGES_PAUSE: Duration = Duration::from_secs(300);

/// What runs beside the proxy, on a runtime of its own: nothing here can hold up a request.
pub struct Parts {
    /// What all listeners share.
    pub shared: Arc<Shared>,
    /// The store.
    pub store: Arc<Store>,
    /// Looks for keys that are refused too often.
    pub watch: Arc<Watch>,
    /// This process among its like.
    pub replica: Arc<Replica>,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
    /// The admin API.
    pub api: Arc<Api>,
    /// When the process began, in milliseconds since 1970.
    pub started_ms: i64,
    _files: Arc<watch::Watch>,
}

impl Parts {
    /// Opens the stores, compiles the configuration, and starts what needs no listener. All of it can be done while another
    /// process serves the same configuration.
    pub async fn open(path: &Path, settings: &Settings) -> Result<Self, String> {
        let metrics = Arc::new(Metrics::new().map_err(|e| format!("the metrics cannot be registered: {e}"))?);
        let (files, registry) = (Files::beside(path), &metrics.registry);
        let redis = bindings::open_redis(settings, &files, registry).await?;
        let counters = redis.as_ref().map(redis::counters);
        let opened = bindings::open(settings, &files, registry, Purpose::Serve, redis).await?;
        let near = Arc::<Near>::default();
        let ports = Ports {
            bindings: Arc::clone(&opened.store) as _,
            hasher: opened.hasher.clone(),
            meter: Arc::new(Meter::new(metrics.registry.clone())),
            counters,
            outbound: Arc::new(Services::here()),
            near: Arc::clone(&near),
        };
        let compiler = Arc::new(Compiler::new(ports));
        let live = Arc::new(Live::new(&opened.admin_secret)?);
        live.refresh(&opened.store).await;
        let parsed = parse_file(path).map_err(|report| report.to_string())?.with(&live.overrides());
        let snapshot = reload::begin(&compiler, parsed.clone()).await.map_err(|report| report.to_string())?;
        metrics.last_reload.set(reload::unix_s());
        metrics.shows(&snapshot.entries);
        let acme = Acme::new(Arc::clone(&opened.store), &opened.admin_secret, &settings.replica(), registry)?;
        // What was made before is there for the first who connects.
        if acme.look(settings.acme.as_ref(), &snapshot.acme(), &files, false).await {
            metrics.shows(&snapshot.entries);
        }
        let access = AccessLog::stdout(metrics.access_lost.clone()).map_err(|e| format!("no thread for the access log: {e}"))?;
        let shared = Arc::new(Shared { snapshot: ArcSwap::from_pointee(snapshot), metrics, access, live, acme });
        let reloader = Arc::new(Reloader::new(path, compiler, Arc::clone(&shared), parsed));
        let replica = Arc::new(Replica::new(settings.replica()));
        let (watch, files) = begin(path, &shared, &opened.store, &reloader, &replica);
        have_made(path, &shared, &replica);
        let api = api(path, settings, opened, near, &shared, &replica, &reloader)?;
        let store = Arc::clone(&api.store);
        Ok(Self { shared, store, watch, replica, reloader, api, started_ms: millis(SystemTime::now()), _files: files })
    }

    /// How this replica is.
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

    /// Says how this replica is, and what it has counted.
    pub async fn say(&self) {
        self.api.sampler.say(&self.store, &self.state()).await;
    }

    /// Looks for the last time for keys that were refused too often.
    pub async fn look_last(&self) {
        let (alerts, threshold) = self.shared.live.alerts(&self.shared.snapshot.load().alerts);
        self.watch.look_last(&alerts, threshold).await;
    }
}

async fn look(watch: &Arc<Watch>, shared: &Shared) {
    let (alerts, threshold) = shared.live.alerts(&shared.snapshot.load().alerts);
    watch.look(&alerts, threshold).await;
}

/// What is done again and again.
fn begin(
    path: &Path,
    shared: &Arc<Shared>,
    store: &Arc<Store>,
    reloader: &Arc<Reloader>,
    replica: &Arc<Replica>,
) -> (Arc<Watch>, Arc<watch::Watch>) {
    let current = Arc::clone(shared);
    // As often as the smallest period that makes sense; the store knows whether it is time.
    let tending = Arc::clone(replica);
    store.tend_every(Duration::from_secs(5), move || {
        // Others go by what is wanted now.
        (!tending.has_handed_over()).then(|| current.live.tending((&current.snapshot.load().settings.retention).into()))
    });
    let watch = Watch::new(Arc::clone(store), &shared.metrics.registry);
    let current = Arc::clone(shared);
    every(&watch, alerts::EVERY, move |watch| {
        let current = Arc::clone(&current);
        async move { look(&watch, &current).await }
    });
    let files = Arc::new(watch::Watch::new(Arc::clone(shared), Arc::clone(reloader)));
    every(&files, watch::EVERY, |files| async move { files.look().await });
    every(shared, RANGES_LOOKED_AT, {
        let (path, replica) = (path.to_owned(), Arc::clone(replica));
        move |shared| refresh(shared, path.clone(), Arc::clone(&replica))
    });
    let reloads = Arc::clone(reloader);
    settings::follow(Arc::clone(&shared.live), Arc::clone(store), move |overrides| {
        let reloads = Arc::clone(&reloads);
        async move { reloads.apply(&overrides).await }
    });
    (watch, files)
}

/// Has certificates made where they are missing or old, and shows those that were made elsewhere. Who only lets end what is open has
/// none made: others go by what is wanted now.
fn have_made(path: &Path, shared: &Arc<Shared>, replica: &Arc<Replica>) {
    let (path, replica) = (path.to_owned(), Arc::clone(replica));
    every(shared, acme::LOOKED_EVERY, move |shared| {
        let (files, orders) = (Files::beside(&path), !replica.has_handed_over() && !replica.is_stopping());
        async move {
            let snapshot = shared.snapshot.load_full();
            if shared.acme.look(snapshot.settings.acme.as_ref(), &snapshot.acme(), &files, orders).await {
                shared.metrics.shows(&snapshot.entries);
            }
        }
    });
}

/// Has Cloudflare's ranges read anew, if it is time. The file is seen to have changed as any other.
async fn refresh(shared: Arc<Shared>, path: PathBuf, replica: Arc<Replica>) {
    if replica.has_handed_over() {
        return;
    }
    let (snapshot, files) = (shared.snapshot.load_full(), Files::beside(&path));
    let trusted = &snapshot.settings.trusted_proxies;
    let Some(from) = trusted.cloudflare_refresh.as_ref().filter(|_| ranges::is_due(trusted, &files)) else { return };
    match ranges::refresh(trusted, &files, from, false).await {
        Ok(said) => tracing::info!("Cloudflare's ranges were read: {said}"),
        Err(error) => {
            tracing::error!(%error, "Cloudflare's ranges were not read; those that are known hold");
            // Whoever does not answer is not asked all the time.
            tokio::time::sleep(RANGES_PAUSE).await;
        }
    }
}

fn api(
    path: &Path,
    settings: &Settings,
    opened: Opened,
    near: Arc<Near>,
    shared: &Arc<Shared>,
    replica: &Arc<Replica>,
    reloader: &Arc<Reloader>,
) -> Result<Arc<Api>, String> {
    let rpc = Arc::new(ReplicaRpc {
        store: Arc::clone(&opened.store),
        replica: Arc::clone(replica),
        // One process alone has its bindings in its memory.
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
        oidc: Oidc::new(&opened.admin_secret, Arc::new(Services::here()))?,
        rpc,
        reloader: Arc::clone(reloader),
        path: path.to_owned(),
        replica: Arc::clone(replica),
    }))
}
