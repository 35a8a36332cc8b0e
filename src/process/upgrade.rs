//! Upgrades: replaces this process by a new one on request, and restores this one if that fails.
//!
//! The exchange with the new process is in [`super::handover`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::HumanDuration;
use nix::unistd::getppid;
use tokio::sync::{mpsc, watch};

use super::components::Components;
use super::handover::Successor;
use super::sd_notify;
use super::sockets::Sockets;
use crate::config::model::Storage;
use crate::control::{ControlSockets, UpgradeRequest};
use crate::server::Stop;

/// The longest wait for the store to record the handover before the upgrade is reported as done.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(1);

/// The task that carries out upgrades.
pub struct Upgrades {
    /// The components of this process.
    pub components: Arc<Components>,
    /// The program to start.
    pub program: PathBuf,
    /// The configuration file.
    pub path: PathBuf,
    /// Stops accepting connections.
    pub stop: watch::Sender<Stop>,
    /// The sockets to hand over. They are closed when the process stops.
    pub sockets: Sockets,
    /// The longest time for open connections to end here after a handover.
    pub upgrade_drain: HumanDuration,
}

impl Upgrades {
    /// Carries out upgrade requests until one succeeds or the process stops.
    pub async fn run(self, mut requests: mpsc::Receiver<UpgradeRequest>, mut stop: watch::Receiver<Stop>, control: Arc<ControlSockets>) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => request,
                _ = stop.wait_for(|stop| *stop != Stop::No) => None,
            };
            let Some(reply) = request else { return };
            let outcome = {
                let mut upgrade = std::pin::pin!(self.upgrade(&control));
                loop {
                    tokio::select! {
                        outcome = &mut upgrade => break outcome,
                        // A client that has disconnected is no error.
                        Some(other) = requests.recv() => { let _ = other.send(Err("another upgrade is in progress".into())); }
                    }
                }
            };
            match &outcome {
                Ok(message) => tracing::info!("{message}"),
                Err(error) => tracing::error!("the upgrade failed: {error}"),
            }
            let is_done = outcome.is_ok();
            let _ = reply.send(outcome);
            if is_done {
                // The new process orders certificates by its own configuration, so orders of this one end here.
                self.components.shared.acme.shut_down().await;
                return;
            }
        }
    }

    async fn upgrade(&self, control: &ControlSockets) -> Result<String, String> {
        let components = &self.components;
        if ends_its_container() {
            return Err("this is the main process of its container, and the container ends with it: start a new container instead".into());
        }
        let snapshot = components.shared.snapshot.load_full();
        if snapshot.settings.storage == Storage::Memory {
            return Err("storage is memory: bindings, accounts and settings exist only in this process and would be lost".into());
        }
        tracing::info!(program = %self.program.display(), "starting a new process to take over from this one");
        let (program, path) = (self.program.clone(), self.path.clone());
        let is_cancelled = self.cancellation();
        let successor = blocking(move || Successor::start(&program, &path, &is_cancelled)).await?;
        let pid = successor.pid;
        // The successor continues the counts under the name of this replica, so this process must stop using it first.
        components.api.sampler.rename(&components.store, || components.replica.release_name()).await;
        let sockets = self.sockets.try_clone().map_err(|e| format!("cannot duplicate the listening sockets: {e}"));
        let is_cancelled = self.cancellation();
        let handed_over = match sockets {
            Ok(sockets) => blocking(move || successor.hand_over(&sockets, &is_cancelled)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = handed_over {
            // The successor may have published its control sockets already.
            control.publish().unwrap_or_else(|error| tracing::error!(error, "commands cannot find this process any more"));
            control.remove_sockets_of(pid);
            components.api.sampler.rename(&components.store, || components.replica.reclaim_name()).await;
            return Err(error);
        }
        // Before anything that may block: until then both processes accept connections.
        self.finish_handover(pid);
        // Lets other replicas find the streams that are open here. A slow store must not delay the reply.
        let _ = tokio::time::timeout(REPORT_WAIT_MAX, components.report()).await;
        let (open, drain_max) = (components.shared.metrics.connections.get(), self.upgrade_drain);
        Ok(format!(
            "process {pid} has taken over from process {}, which drains {open} connections for at most {drain_max}",
            std::process::id()
        ))
    }

    fn finish_handover(&self, pid: u32) {
        self.components.replica.hand_over();
        self.stop.send_if_modified(|stop| {
            let is_serving = *stop == Stop::No;
            if is_serving {
                *stop = Stop::HandedOver;
            }
            is_serving
        });
        sd_notify::replaced_by(pid);
    }

    /// Tells whether the upgrade is cancelled: a process that stops must not be replaced.
    fn cancellation(&self) -> impl Fn() -> bool + Send + 'static {
        let (components, stop) = (Arc::clone(&self.components), self.stop.subscribe());
        move || components.replica.is_stopping() || *stop.borrow() != Stop::No
    }

    /// Whether this process succeeds another one, which may still own the published control sockets.
    pub fn succeeds(&self) -> bool {
        self.sockets.were_inherited
    }
}

/// Whether the container ends with this process: it is process 1, or process 1 is an init that waits for it.
fn ends_its_container() -> bool {
    const INITS: [&str; 5] = ["tini", "docker-init", "dumb-init", "catatonit", "podman-init"];
    let first = || std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    // The parent id is 0 for a process that was started from outside the container, such as by `docker exec`.
    std::process::id() == 1 || getppid().as_raw() == 0 || (getppid().as_raw() == 1 && INITS.contains(&first().trim_end()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(e.to_string()))
}
