//! SIGHUP reloads, SIGUSR2 has a new process take over; SIGTERM stops in order, SIGINT and SIGQUIT at once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use super::sd_notify;
use crate::cluster::replica::Replica;
use crate::config::model::Shutdown;
use crate::control::{self, Upgrade};
use crate::reload::Reloader;
use crate::server::Stop;

/// What is written and told at the end, after open requests have had their time, takes no longer.
const LAST_STEPS: Duration = Duration::from_secs(20);

/// Follows them, from before anything is served.
pub fn follow(
    config: &Path,
    shutdown: &Shutdown,
    reloader: Arc<Reloader>,
    replica: Arc<Replica>,
    upgrades: mpsc::Sender<Upgrade>,
    tell: watch::Sender<Stop>,
) -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|e| format!("signals cannot be handled: {e}"));
    let (mut hangup, mut terminate) = (listen(SignalKind::hangup())?, listen(SignalKind::terminate())?);
    let (mut interrupt, mut quit) = (listen(SignalKind::interrupt())?, listen(SignalKind::quit())?);
    let mut upgrade = listen(SignalKind::user_defined2())?;
    let (readiness_delay, drain) = (shutdown.readiness_delay.0, shutdown.drain.0);
    let (config, again) = (config.to_owned(), Arc::new(Notify::new()));
    let asked = Arc::clone(&again);
    tokio::spawn(async move {
        loop {
            asked.notified().await;
            // The outcome is logged and counted.
            let _ = reloader.reload().await;
        }
    });
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    // Whoever says stop meanwhile is not kept waiting, and however often it is said, one more is enough.
                    again.notify_one();
                }
                _ = upgrade.recv() => {
                    // It is logged what comes of it; a second one while one is under way is none.
                    let (answer, _) = tokio::sync::oneshot::channel();
                    let _ = upgrades.try_send(answer);
                }
                _ = terminate.recv() => {
                    replica.stop();
                    sd_notify::stopping(readiness_delay + drain + LAST_STEPS);
                    tracing::info!(?readiness_delay, "stopping: readiness fails from now on");
                    let (tell, delay) = (tell.clone(), if replica.has_handed_over() { Default::default() } else { readiness_delay });
                    // Where the process that serves has ended, which one does not expect, nobody does: the manager waits for this one.
                    let last = replica.has_handed_over() && sd_notify::is_there() && !control::is_there(&config);
                    let how = if last { Stop::Cut } else { Stop::Drain };
                    tokio::spawn(async move {
                        // So long whoever balances load needs to see that it is not ready.
                        tokio::time::sleep(delay).await;
                        tell.send_if_modified(|stop| {
                            let goes_on = matches!(stop, Stop::No | Stop::HandedOver);
                            if goes_on {
                                *stop = how;
                            }
                            goes_on
                        });
                    });
                }
                _ = interrupt.recv() => { tell.send_replace(Stop::Now); }
                _ = quit.recv() => { tell.send_replace(Stop::Now); }
            }
        }
    });
    Ok(())
}
