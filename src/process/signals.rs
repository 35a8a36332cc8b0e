//! Signal handling: SIGHUP reloads, SIGUSR2 starts an upgrade, SIGTERM drains and stops, SIGINT and SIGQUIT stop at once.
//!
//! Handlers only pass requests on to the reloader, the upgrade task and the server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use super::sd_notify;
use crate::cluster::replica::Replica;
use crate::config::model::Shutdown;
use crate::control::{self, UpgradeRequest};
use crate::reload::Reloader;
use crate::server::Stop;

/// The longest time for the last writes and alerts after the drain. The stop timeout of the service manager includes it.
const LAST_STEPS: Duration = Duration::from_secs(20);

/// Starts handling signals. Called before anything is served.
pub fn follow(
    config: &Path,
    shutdown: &Shutdown,
    reloader: Arc<Reloader>,
    replica: Arc<Replica>,
    upgrades: mpsc::Sender<UpgradeRequest>,
    stop: watch::Sender<Stop>,
) -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|e| format!("cannot handle signals: {e}"));
    let (mut hangup, mut terminate) = (listen(SignalKind::hangup())?, listen(SignalKind::terminate())?);
    let (mut interrupt, mut quit) = (listen(SignalKind::interrupt())?, listen(SignalKind::quit())?);
    let mut upgrade = listen(SignalKind::user_defined2())?;
    let (readiness_delay, drain) = (shutdown.readiness_delay.0, shutdown.drain.0);
    let (config, reload_requested) = (config.to_owned(), Arc::new(Notify::new()));
    let reload_wanted = Arc::clone(&reload_requested);
    tokio::spawn(async move {
        loop {
            reload_wanted.notified().await;
            // The outcome is logged and counted.
            let _ = reloader.reload().await;
        }
    });
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    // Reloads run in a task of their own, so that a stop need not wait for one. Repeated signals coalesce.
                    reload_requested.notify_one();
                }
                _ = upgrade.recv() => {
                    // The upgrade task logs the outcome. A signal during an upgrade has no effect.
                    let (answer, _) = tokio::sync::oneshot::channel();
                    let _ = upgrades.try_send(answer);
                }
                _ = terminate.recv() => {
                    replica.stop();
                    sd_notify::stopping(readiness_delay + drain + LAST_STEPS);
                    tracing::info!(?readiness_delay, "stopping: the readiness check fails from now on");
                    let (stop, delay) = (stop.clone(), if replica.has_handed_over() { Default::default() } else { readiness_delay });
                    // If the successor has crashed, no process serves, and the manager restarts the service only after this
                    // process has ended: it cuts its connections.
                    let is_last = replica.has_handed_over() && sd_notify::is_managed() && !control::is_running(&config);
                    let how = if is_last { Stop::Cut } else { Stop::Drain };
                    tokio::spawn(async move {
                        // `shutdown.readiness_delay`: load balancers need this time to see that the process is not ready.
                        tokio::time::sleep(delay).await;
                        stop.send_if_modified(|stop| {
                            let is_serving = matches!(stop, Stop::No | Stop::HandedOver);
                            if is_serving {
                                *stop = how;
                            }
                            is_serving
                        });
                    });
                }
                _ = interrupt.recv() => { stop.send_replace(Stop::Now); }
                _ = quit.recv() => { stop.send_replace(Stop::Now); }
            }
        }
    });
    Ok(())
}
