//! The running process: its parts put together, its sockets, its signals, its end, and the process that takes its place.

mod components;
mod first_account;
mod handover;
mod sd_notify;
mod signals;
mod sockets;
mod upgrade;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::config::model::Storage;
use crate::config::{Settings, parse_file};
use crate::server::{self, Pulse, Stop};
use crate::sql::News;
use crate::telemetry::{logs, sampler};
use crate::util::periodic::every;
use crate::{admin, compile, control};
use components::Parts;
use handover::Predecessor;
pub use handover::launch;
use sockets::{For, Sockets};
use upgrade::Upgrades;

/// How long the end waits for alerts to be noted.
const LAST_LOOK: Duration = Duration::from_secs(5);
/// How long the end waits for what runs beside the proxy.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Configurations are compiled there, whose expressions nest.
const HOUSE_STACK_BYTES: usize = 8 << 20;
/// How often a process that only lets end what is open looks at what its successor has changed, where nobody tells it; and a
/// successor, in the beginning, at what commands that the one before had begun have changed.
const LOOK_BACK: Duration = Duration::from_secs(1);
/// How long such commands may take.
const LAST_COMMANDS: Duration = Duration::from_secs(30);
/// How long the process before waits for a successor that reloads its configuration.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(5);
/// How long the end waits for an upgrade that is given up.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);

/// Serves a configuration until it is told to stop.
pub fn run(path: &Path) -> Result<(), String> {
    serve(path, None)
}

/// Serves a configuration in the place of the process that has started this one.
pub fn succeed(path: &Path) -> Result<(), String> {
    let predecessor = Arc::new(Predecessor::find()?);
    let served = serve(path, Some(Arc::clone(&predecessor)));
    served.inspect_err(|why| predecessor.fail(why))
}

fn serve(path: &Path, predecessor: Option<Arc<Predecessor>>) -> Result<(), String> {
    let settings = parse_file(path).and_then(compile::settings).map_err(|report| report.to_string())?;
    // As it was called at the start: what takes its place there is what is started in an upgrade.
    let program = handover::program()?;
    logs::begin(&settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(HOUSE_STACK_BYTES)
        .thread_name("house")
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| format!("no threads to be had: {e}"))?;
    let parts = Arc::new(runtime.block_on(Parts::open(path, &settings))?);
    let there = predecessor.as_ref().map(|predecessor| predecessor.take()).transpose()?.unwrap_or_default();
    let sockets = Sockets::open(&settings, there)?;
    let (tell, stop) = watch::channel(Stop::No);
    let pulse = Arc::new(Pulse::default());
    let open = sockets.again().map_err(|e| format!("no descriptors to be had: {e}"))?;
    let upgrade_drain = settings.shutdown.upgrade_drain;
    let upgrades = Upgrades { parts: Arc::clone(&parts), program, path: path.to_owned(), tell: tell.clone(), sockets, upgrade_drain };
    let (control, upgrading) = runtime.block_on(begin(path, &settings, upgrades, stop.clone()))?;
    let started = {
        let (parts, pulse, house, control) = (Arc::clone(&parts), Arc::clone(&pulse), runtime.handle().clone(), Arc::clone(&control));
        move || house.block_on(serving(&parts, &pulse, &control, predecessor.as_deref()))
    };
    let listeners: Vec<String> = settings.listeners.iter().map(|listener| listener.address.to_string()).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listeners = listeners.join(","), admin = %settings.admin.address, "ready");
    let served = server::run(&parts.shared, &settings, open.of(For::Requests), stop, runtime.handle(), &pulse, started);
    runtime.block_on(end(&parts));
    parts.shared.access.close();
    runtime.block_on(control.answered());
    let _ = runtime.block_on(async { tokio::time::timeout(GIVEN_UP_WITHIN, upgrading).await });
    drop(control);
    tracing::info!("ended");
    // What is under way there still can hold up nothing that matters any more.
    runtime.shutdown_timeout(LAST_MOMENT);
    served
}

/// Starts what listens, but for the proxy; and what makes upgrades.
async fn begin(
    path: &Path,
    settings: &Settings,
    upgrades: Upgrades,
    stop: watch::Receiver<Stop>,
) -> Result<(Arc<control::Guard>, JoinHandle<()>), String> {
    let parts = Arc::clone(&upgrades.parts);
    tokio::spawn(first_account::make(Arc::clone(&parts.api)));
    tokio::spawn(Arc::clone(&parts.api.rpc).listen());
    every(&parts, sampler::SAID_EVERY, |parts| async move {
        parts.say().await;
        let now = parts.state();
        let what = if now.handed_over { "lets end what is open" } else { "serves" };
        sd_notify::status(&format!(
            "{what}: {:.0} requests/s, {} streams, {} connections",
            now.requests_per_s, now.streams, now.connections
        ));
    });
    if matches!(settings.storage, Storage::Sqlite(_)) {
        let succeeded = upgrades.succeeds().then(Instant::now);
        every(&parts, LOOK_BACK, move |parts| async move {
            if parts.replica.has_handed_over() || succeeded.is_some_and(|at| at.elapsed() < LAST_COMMANDS) {
                parts.store.hear(News::Lost);
            }
        });
    }
    let (asks, asked) = mpsc::channel(1);
    signals::follow(
        path,
        &settings.shutdown,
        Arc::clone(&parts.reloader),
        Arc::clone(&parts.replica),
        asks.clone(),
        upgrades.tell.clone(),
    )?;
    // Before the admin listener, which answers whether this process is ready: whoever is told so may give commands at once.
    let (control, commands) = control::listen(path, upgrades.succeeds(), Arc::clone(&parts.reloader), Arc::clone(&parts.store), asks)?;
    let control = Arc::new(control);
    tokio::spawn(admin::server::serve_commands(commands, admin::router(Arc::clone(&parts.api)), Arc::clone(&parts.replica)));
    let open = upgrades.sockets.again().map_err(|e| format!("no descriptors to be had: {e}"))?;
    for (address, listener) in open.of(For::Admin) {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| format!("cannot listen on {address} (admin): {e}"))?;
        tokio::spawn(admin::server::serve(listener, admin::router(Arc::clone(&parts.api)), Arc::clone(&parts.replica)));
    }
    let upgrading = tokio::spawn(upgrades.follow(asked, stop, Arc::clone(&control)));
    Ok((control, upgrading))
}

/// The proxy's threads have begun. An error: this process is not to be.
async fn serving(
    parts: &Arc<Parts>,
    pulse: &Arc<Pulse>,
    control: &control::Guard,
    predecessor: Option<&Predecessor>,
) -> Result<(), String> {
    if let Some(predecessor) = predecessor {
        // Not before: where anything has failed until now, commands still find the one that serves.
        control.take_place()?;
        // Whoever had the file reloaded by the one before, at any moment since this one has read it, was told that it is in force.
        // With a file that is broken by now, what this one was started with is in force; one that takes its time is in force later.
        let catching_up = Arc::clone(parts);
        let caught_up = tokio::spawn(async move { catching_up.reloader.catch_up().await });
        let _ = tokio::time::timeout(CAUGHT_UP_WITHIN, caught_up).await;
        tracing::info!(replica = parts.replica.name(), "has taken the place of the process before");
        predecessor.serving();
    }
    sd_notify::serving(pulse, predecessor.is_some());
    // Others count on it from now on.
    let parts = Arc::clone(parts);
    tokio::spawn(async move { parts.say().await });
    Ok(())
}

/// What was counted last, and that this replica has gone; what waits to be written; what is to be told.
async fn end(parts: &Parts) {
    parts.replica.stop();
    parts.shared.acme.end().await;
    let _ = tokio::time::timeout(LAST_LOOK, parts.say()).await;
    parts.store.finish().await;
    // What was written last is noted, and sent by whoever comes after.
    let _ = tokio::time::timeout(LAST_LOOK, parts.look_last()).await;
    let _ = tokio::time::timeout(LAST_LOOK, parts.store.close()).await;
}
