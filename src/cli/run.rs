//! `keylatch run`: put the parts together, serve, and end in order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use keylatch_filters::contract::{Meter, Near, Ports};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::{Receiver, channel};

use crate::admin::{self, Api};
use crate::alerts::{self, Watch};
use crate::config::model::Storage;
use crate::config::{Compiler, Files, Parsed, Settings, parse_file};
use crate::control;
use crate::every::every;
use crate::live::{self, Live};
use crate::outbound::Services;
use crate::proxy::{self, Shared, Stop};
use crate::reload::{self, Reloader};
use crate::service::everywhere::Everywhere;
use crate::service::oidc::Oidc;
use crate::service::sign_in::Door;
use crate::service::{Fault, accounts};
use crate::store::record::millis;
use crate::store::{self, Purpose, Store};
use crate::telemetry::access::AccessLog;
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::sampler::{self, Sampler, State};
use crate::watch;

/// How long the end waits for alerts to be noted.
const LAST_LOOK: Duration = Duration::from_secs(5);
/// The first account's password, if it is not to be made up.
const FIRST_PASSWORD: &str = "KEYLATCH_ADMIN_PASSWORD";
/// Configurations are compiled there, whose expressions nest.
const HOUSE_STACK_BYTES: usize = 8 << 20;

/// What runs beside the proxy, on a runtime of its own: nothing here can hold up a request.
struct House {
    shared: Arc<Shared>,
    store: Arc<Store>,
    watch: Arc<Watch>,
    settings: Settings,
    stop: Receiver<Stop>,
    api: Arc<Api>,
    started_ms: i64,
    _files: Arc<watch::Watch>,
    _control: control::Guard,
}

pub fn run(path: &Path) -> Result<(), String> {
    let settings = parse_file(path).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    logs::begin(&settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(HOUSE_STACK_BYTES)
        .thread_name("house")
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| format!("no threads to be had: {e}"))?;
    let house = runtime.block_on(open(path, settings))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), admin = %house.settings.admin.address, "ready");
    let served = proxy::run(&house.shared, &house.settings, house.stop.clone(), runtime.handle());
    runtime.block_on(async {
        // What was counted last, and that this replica has gone.
        let _ = tokio::time::timeout(LAST_LOOK, house.api.sampler.say(&house.store, &state(&house.api, house.started_ms))).await;
        house.store.finish().await;
        // What was written last is noted, and sent by whoever comes after.
        let _ = tokio::time::timeout(LAST_LOOK, look(&house.watch, &house.shared)).await;
    });
    house.shared.access.close();
    tracing::info!("ended");
    served
}

async fn open(path: &Path, settings: Settings) -> Result<House, String> {
    let metrics = Arc::new(Metrics::new().map_err(|e| format!("the metrics cannot be registered: {e}"))?);
    let (files, registry) = (Files::beside(path), &metrics.registry);
    let redis = store::open_redis(&settings, &files, registry).await?;
    let counters = redis.as_ref().map(store::counters);
    let opened = store::open(&settings, &files, registry, Purpose::Serve, redis).await?;
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
    let access = AccessLog::stdout(metrics.access_lost.clone()).map_err(|e| format!("no thread for the access log: {e}"))?;
    let shared = Arc::new(Shared { snapshot: ArcSwap::from_pointee(snapshot), metrics, access, live });
    let current = Arc::clone(&shared);
    // As often as the smallest period that makes sense; the store knows whether it is time.
    opened.store.tend_every(Duration::from_secs(5), move || current.live.tending(current.snapshot.load().settings.retention.tending()));
    let watch = Watch::new(Arc::clone(&opened.store), &shared.metrics.registry);
    let current = Arc::clone(&shared);
    every(&watch, alerts::EVERY, move |watch| {
        let current = Arc::clone(&current);
        async move { look(&watch, &current).await }
    });
    let reloader = Arc::new(Reloader::new(path, compiler, Arc::clone(&shared), parsed));
    let files = Arc::new(watch::Watch::new(Arc::clone(&shared), Arc::clone(&reloader)));
    every(&files, watch::EVERY, |files| async move { files.look().await });
    let reloads = Arc::clone(&reloader);
    live::follow(Arc::clone(&shared.live), Arc::clone(&opened.store), move |overrides| {
        let reloads = Arc::clone(&reloads);
        async move { reloads.apply(&overrides).await }
    });
    let stopping = Arc::new(AtomicBool::new(false));
    let door = Door::new(&opened.admin_secret, settings.admin.session.0, settings.admin.token.0)?;
    let everywhere = Arc::new(Everywhere {
        store: Arc::clone(&opened.store),
        replica: settings.replica(),
        others: matches!(settings.storage, Storage::Postgres(_)),
        streams: Arc::clone(&shared.metrics.streams),
        near,
    });
    tokio::spawn(Arc::clone(&everywhere).listen());
    let oidc = Oidc::new(&opened.admin_secret, Arc::new(Services::here()))?;
    let sampler = Sampler::new(settings.replica(), Arc::clone(&shared.metrics));
    let api = Arc::new(Api {
        sampler,
        shared: Arc::clone(&shared),
        store: Arc::clone(&opened.store),
        hasher: opened.hasher,
        door,
        oidc,
        everywhere,
        reloader: Arc::clone(&reloader),
        path: path.to_owned(),
        stopping: Arc::clone(&stopping),
    });
    tokio::spawn(first_account(Arc::clone(&api)));
    let started_ms = millis(SystemTime::now());
    every(&api, sampler::SAID_EVERY, move |api| async move { api.sampler.say(&api.store, &state(&api, started_ms)).await });
    serve_admin(&settings, Arc::clone(&api)).await?;
    let (control, commands) = control::listen(path, Arc::clone(&reloader), Arc::clone(&opened.store))?;
    tokio::spawn(admin::server::serve_commands(commands, admin::router(Arc::clone(&api))));
    let stop = watch_signals(&settings, reloader, stopping)?;
    Ok(House { shared, store: opened.store, watch, settings, stop, api, started_ms, _files: files, _control: control })
}

/// Looks for keys that were refused too often.
async fn look(watch: &Arc<Watch>, shared: &Shared) {
    let (alerts, threshold) = shared.live.alerts(&shared.snapshot.load().alerts);
    watch.look(&alerts, threshold).await;
}

/// How this replica is.
fn state(api: &Api, started_ms: i64) -> State {
    let (metrics, last) = (&api.shared.metrics, api.reloader.last());
    State {
        version: env!("CARGO_PKG_VERSION").into(),
        started_ms,
        generation: last.generation,
        loaded_ms: last.loaded_ms,
        reload_ok: last.outcome.is_ok(),
        streams: metrics.streams.open.get(),
        connections: metrics.connections.get(),
        requests_per_s: api.sampler.rate(),
        stopping: api.stopping.load(Ordering::Relaxed),
    }
}

/// Where nobody may sign in yet, somebody may from now on.
async fn first_account(api: Arc<Api>) {
    let given = std::env::var(FIRST_PASSWORD).ok().filter(|password| !password.is_empty());
    let made = loop {
        match accounts::make_first(&api.store, api.door.passwords(), given.as_deref()).await {
            // The store will be back, and then somebody wants in.
            Err(Fault::Away(_)) => tokio::time::sleep(Duration::from_secs(5)).await,
            made => break made,
        }
    };
    match made {
        Ok(None) => {}
        Ok(Some(_)) if given.is_some() => {
            tracing::info!("the account `{}` was made, with the password of {FIRST_PASSWORD}", accounts::FIRST)
        }
        // Not by the log: this is for whoever starts it, and for nobody else.
        Ok(Some(password)) => eprintln!(
            "The admin API's first account is `{}`, and its password, which is shown this once and must be changed:\n{password}",
            accounts::FIRST
        ),
        Err(fault) => tracing::error!("no first account can be made, so nobody can sign in: {fault}"),
    }
}

async fn serve_admin(settings: &Settings, api: Arc<Api>) -> Result<(), String> {
    let address = settings.admin.address;
    let listener = TcpListener::bind(address).await.map_err(|e| format!("cannot listen on {address} (admin): {e}"))?;
    tokio::spawn(admin::server::serve(listener, admin::router(api)));
    Ok(())
}

/// SIGHUP reloads; SIGTERM stops in order, SIGINT and SIGQUIT at once. Handlers are in place before anything is served.
fn watch_signals(settings: &Settings, reloader: Arc<Reloader>, stopping: Arc<AtomicBool>) -> Result<Receiver<Stop>, String> {
    let listen = |kind| signal(kind).map_err(|e| format!("signals cannot be handled: {e}"));
    let (mut hangup, mut terminate) = (listen(SignalKind::hangup())?, listen(SignalKind::terminate())?);
    let (mut interrupt, mut quit) = (listen(SignalKind::interrupt())?, listen(SignalKind::quit())?);
    let readiness_delay = settings.shutdown.readiness_delay.0;
    let (tell, stop) = channel(Stop::No);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    // The outcome is logged and counted; nobody waits for it here.
                    let _ = reloader.reload().await;
                }
                _ = terminate.recv() => {
                    stopping.store(true, Ordering::Relaxed);
                    tracing::info!(?readiness_delay, "stopping: readiness fails from now on");
                    let tell = tell.clone();
                    tokio::spawn(async move {
                        // So long whoever balances load needs to see that it is not ready.
                        tokio::time::sleep(readiness_delay).await;
                        tell.send_if_modified(|stop| std::mem::replace(stop, if *stop == Stop::No { Stop::Drain } else { *stop }) == Stop::No);
                    });
                }
                _ = interrupt.recv() => { tell.send_replace(Stop::Now); }
                _ = quit.recv() => { tell.send_replace(Stop::Now); }
            }
        }
    });
    Ok(stop)
}
