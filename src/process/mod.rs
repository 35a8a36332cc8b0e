//! The running process: its components, sockets, signals, shutdown, and the handover to a new process.
//!
//! It starts and stops the parts of the proxy and decides nothing about requests.

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
use crate::sql::StoreEvent;
use crate::telemetry::{logs, sampler};
use crate::util::periodic::every;
use crate::{admin, compile, control};
use components::Components;
use handover::Predecessor;
pub use handover::launch;
use sockets::{SocketPurpose, Sockets};
use upgrade::Upgrades;

/// The longest wait at shutdown for each of: the last report, the last alerts, closing the store.
const LAST_WRITES_WAIT_MAX: Duration = Duration::from_secs(5);
/// The longest wait at shutdown for the last usage.
const USAGE_WRITE_WAIT_MAX: Duration = Duration::from_secs(15);
/// The longest wait at shutdown for background tasks.
const BACKGROUND_TASKS_WAIT_MAX: Duration = Duration::from_secs(1);
/// The stack of a background thread. Configurations are compiled there, and compiling nested expressions recurses.
const BACKGROUND_STACK_BYTES: usize = 8 << 20;
/// SQLite has no notifications: after a handover both processes read changes of the other one at this interval.
const PEER_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a successor polls for changes by commands that began before the handover.
const PEER_POLL_TIME: Duration = Duration::from_secs(30);
/// The longest wait for a successor that reloads its configuration before it reports that it serves.
const CATCH_UP_WAIT_MAX: Duration = Duration::from_secs(5);
/// The longest wait at shutdown for an upgrade that is cancelled.
const UPGRADE_CANCEL_WAIT_MAX: Duration = Duration::from_secs(1);

/// Serves a configuration until a signal stops the process.
pub fn run(path: &Path) -> Result<(), String> {
    serve(path, None)
}

/// Takes over from the process that started this one, and serves until a signal stops the process.
pub fn succeed(path: &Path) -> Result<(), String> {
    let predecessor = Arc::new(Predecessor::find()?);
    let served = serve(path, Some(Arc::clone(&predecessor)));
    served.inspect_err(|error| predecessor.report_failure(error))
}

fn serve(path: &Path, predecessor: Option<Arc<Predecessor>>) -> Result<(), String> {
    let settings = parse_file(path).and_then(compile::settings).map_err(|report| report.to_string())?;
    // An upgrade starts the program that is at this path by then.
    let program = handover::program()?;
    logs::begin(&settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(BACKGROUND_STACK_BYTES)
        .thread_name("background")
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| format!("cannot start the background threads: {e}"))?;
    let components = Arc::new(runtime.block_on(Components::open(path, &settings))?);
    let inherited = predecessor.as_ref().map(|predecessor| predecessor.receive_sockets()).transpose()?.unwrap_or_default();
    let sockets = Sockets::open(&settings, inherited)?;
    let (stop_sender, stop) = watch::channel(Stop::No);
    let pulse = Arc::new(Pulse::default());
    let open = sockets.try_clone().map_err(|e| format!("cannot duplicate the listening sockets: {e}"))?;
    let upgrade_drain = settings.shutdown.upgrade_drain;
    let upgrades =
        Upgrades { components: Arc::clone(&components), program, path: path.to_owned(), stop: stop_sender.clone(), sockets, upgrade_drain };
    let (control, upgrading) = runtime.block_on(begin(path, &settings, upgrades, stop.clone()))?;
    let started = {
        let (components, pulse, background, control) =
            (Arc::clone(&components), Arc::clone(&pulse), runtime.handle().clone(), Arc::clone(&control));
        move || background.block_on(serving(&components, &pulse, &control, predecessor.as_deref()))
    };
    let listeners: Vec<String> = settings.listeners.iter().map(|listener| listener.address.to_string()).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listeners = listeners.join(","), admin = %settings.admin.address, "ready");
    let requests = open.into_listeners(SocketPurpose::Requests);
    let served = server::run(&components.shared, &settings, requests, stop, runtime.handle(), &pulse, started);
    runtime.block_on(end(&components));
    components.shared.access.close();
    runtime.block_on(control.flush_replies());
    let _ = runtime.block_on(async { tokio::time::timeout(UPGRADE_CANCEL_WAIT_MAX, upgrading).await });
    drop(control);
    tracing::info!("ended");
    // Everything that must be stored is stored by now, so tasks that still run may be cut off.
    runtime.shutdown_timeout(BACKGROUND_TASKS_WAIT_MAX);
    served
}

/// Starts the admin and control listeners, the periodic reports, the signal handlers and the upgrade task.
async fn begin(
    path: &Path,
    settings: &Settings,
    upgrades: Upgrades,
    stop: watch::Receiver<Stop>,
) -> Result<(Arc<control::ControlSockets>, JoinHandle<()>), String> {
    let components = Arc::clone(&upgrades.components);
    tokio::spawn(first_account::create(Arc::clone(&components.api)));
    tokio::spawn(Arc::clone(&components.api.rpc).listen());
    every(&components, sampler::REPORT_INTERVAL, |components| async move {
        components.report().await;
        let now = components.state();
        let activity = if now.handed_over { "drains its connections" } else { "serves" };
        sd_notify::status(&format!(
            "{activity}: {:.0} requests/s, {} streams, {} connections",
            now.requests_per_s, now.streams, now.connections
        ));
    });
    if matches!(settings.storage, Storage::Sqlite(_)) {
        let succeeded = upgrades.succeeds().then(Instant::now);
        every(&components, PEER_POLL_INTERVAL, move |components| async move {
            if components.replica.has_handed_over() || succeeded.is_some_and(|at| at.elapsed() < PEER_POLL_TIME) {
                components.store.handle_event(StoreEvent::EventsLost);
            }
        });
    }
    let (upgrade_sender, upgrade_requests) = mpsc::channel(1);
    signals::follow(
        path,
        &settings.shutdown,
        Arc::clone(&components.reloader),
        Arc::clone(&components.replica),
        upgrade_sender.clone(),
        upgrades.stop.clone(),
    )?;
    // The admin listener reports readiness, so commands must work before it answers.
    let (reloader, store) = (Arc::clone(&components.reloader), Arc::clone(&components.store));
    let (control, commands) = control::listen(path, upgrades.succeeds(), reloader, store, upgrade_sender)?;
    let control = Arc::new(control);
    let api = || admin::router(Arc::clone(&components.api));
    tokio::spawn(admin::server::serve_commands(commands, api(), Arc::clone(&components.replica)));
    let open = upgrades.sockets.try_clone().map_err(|e| format!("cannot duplicate the listening sockets: {e}"))?;
    for (address, listener) in open.into_listeners(SocketPurpose::Admin) {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| format!("cannot listen on {address} (admin): {e}"))?;
        tokio::spawn(admin::server::serve(listener, api(), Arc::clone(&components.replica)));
    }
    let upgrading = tokio::spawn(upgrades.run(upgrade_requests, stop, Arc::clone(&control)));
    Ok((control, upgrading))
}

/// Called when the proxy's threads have started: publishes this process. After an error the process must not serve.
async fn serving(
    components: &Arc<Components>,
    pulse: &Arc<Pulse>,
    control: &control::ControlSockets,
    predecessor: Option<&Predecessor>,
) -> Result<(), String> {
    if let Some(predecessor) = predecessor {
        // Only now do commands reach this process. If an earlier step fails, they still reach the predecessor.
        control.publish()?;
        // The predecessor may have reloaded the file since this process read it. If the file is invalid by now, the
        // configuration from the start stays in force; a slow reload takes effect later.
        let catching_up = Arc::clone(components);
        let caught_up = tokio::spawn(async move { catching_up.reloader.catch_up().await });
        let _ = tokio::time::timeout(CATCH_UP_WAIT_MAX, caught_up).await;
        tracing::info!(replica = components.replica.name(), "this process has taken over from its predecessor");
        predecessor.report_serving();
    }
    sd_notify::serving(pulse, predecessor.is_some());
    // Other replicas see this one from the first report on.
    let components = Arc::clone(components);
    tokio::spawn(async move { components.report().await });
    Ok(())
}

/// Writes the last report with the final counts, flushes the write-behind queue, records the last alerts, closes the store.
async fn end(components: &Components) {
    components.replica.stop();
    components.shared.acme.shut_down().await;
    let _ = tokio::time::timeout(LAST_WRITES_WAIT_MAX, components.report()).await;
    components.store.finish().await;
    let _ = tokio::time::timeout(USAGE_WRITE_WAIT_MAX, components.flush_usage()).await;
    // Alerts about the writes above are only recorded here; another process delivers them.
    let _ = tokio::time::timeout(LAST_WRITES_WAIT_MAX, components.record_last_alerts()).await;
    let _ = tokio::time::timeout(LAST_WRITES_WAIT_MAX, components.store.close()).await;
}
