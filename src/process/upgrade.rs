//! Has a new process take this one's place, when it is asked to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::HumanDuration;
use nix::unistd::getppid;
use tokio::sync::{mpsc, watch};

use super::components::Parts;
use super::handover::Successor;
use super::sd_notify;
use super::sockets::Sockets;
use crate::config::model::Storage;
use crate::control::{Guard, Upgrade};
use crate::server::Stop;

/// How long whoever has asked for the upgrade waits for what is said of it in the store.
const SAID_WITHIN: Duration = Duration::from_secs(1);

/// What it takes.
pub struct Upgrades {
    /// This process.
    pub parts: Arc<Parts>,
    /// The program to start.
    pub program: PathBuf,
    /// The configuration file.
    pub path: PathBuf,
    /// Ends the accepting of connections.
    pub tell: watch::Sender<Stop>,
    /// The sockets to hand over; closed when the process stops.
    pub sockets: Sockets,
    /// How long what is open may go on here.
    pub upgrade_drain: HumanDuration,
}

impl Upgrades {
    /// Answers those who ask for an upgrade, until one has come about or the process stops.
    pub async fn follow(self, mut asked: mpsc::Receiver<Upgrade>, mut stop: watch::Receiver<Stop>, control: Arc<Guard>) {
        loop {
            let answer = tokio::select! {
                answer = asked.recv() => answer,
                _ = stop.wait_for(|stop| *stop != Stop::No) => None,
            };
            let Some(answer) = answer else { return };
            let done = {
                let mut upgrade = std::pin::pin!(self.upgrade(&control));
                loop {
                    tokio::select! {
                        done = &mut upgrade => break done,
                        // Whoever asked may be gone.
                        Some(other) = asked.recv() => { let _ = other.send(Err("an upgrade is under way already".into())); }
                    }
                }
            };
            match &done {
                Ok(said) => tracing::info!("{said}"),
                Err(why) => tracing::error!("no upgrade: {why}"),
            }
            let over = done.is_ok();
            let _ = answer.send(done);
            if over {
                // Whatever certificate is had made, the new one has it made by its own configuration.
                self.parts.shared.acme.shut_down().await;
                return;
            }
        }
    }

    async fn upgrade(&self, control: &Guard) -> Result<String, String> {
        let parts = &self.parts;
        if ends_a_container() {
            return Err("this is the process that its container was started for, and the container ends with it: start another container \
                in its place"
                .into());
        }
        let snapshot = parts.shared.snapshot.load_full();
        if snapshot.settings.storage == Storage::Memory {
            return Err("storage is memory: bindings, accounts and settings are in this process alone, and would be lost".into());
        }
        tracing::info!(program = %self.program.display(), "a new process is started to take the place of this one");
        let (program, path) = (self.program.clone(), self.path.clone());
        let given_up = self.given_up();
        let successor = blocking(move || Successor::start(&program, &path, &given_up)).await?;
        let pid = successor.pid;
        // Under its own name it counts no more: the next one goes on from there.
        parts.api.sampler.rename(&parts.store, || parts.replica.leave_name()).await;
        let sockets = self.sockets.again().map_err(|e| format!("no descriptors to be had: {e}"));
        let given_up = self.given_up();
        let handed = match sockets {
            Ok(sockets) => blocking(move || successor.hand_over(&sockets, &given_up)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = handed {
            // It may have come as far as that.
            control.take_place().unwrap_or_else(|error| tracing::error!(error, "commands do not find this process any more"));
            control.clear_of(pid);
            parts.api.sampler.rename(&parts.store, || parts.replica.take_name_back()).await;
            return Err(error);
        }
        // First of all: both accept connections until then, and a store may take its time.
        self.handed_over(pid);
        // Whoever looks for what is open here finds it from now on, if the store does not take its time.
        let _ = tokio::time::timeout(SAID_WITHIN, parts.say()).await;
        let (open, most) = (parts.shared.metrics.connections.get(), self.upgrade_drain);
        Ok(format!(
            "process {pid} serves in the place of {}; {open} connections go on to their end here, for {most} at most",
            std::process::id()
        ))
    }

    fn handed_over(&self, pid: u32) {
        self.parts.replica.hand_over();
        self.tell.send_if_modified(|stop| {
            let goes_on = *stop == Stop::No;
            if goes_on {
                *stop = Stop::HandedOver;
            }
            goes_on
        });
        sd_notify::replaced_by(pid);
    }

    /// Whether this process is to end meanwhile: then nobody is to take its place.
    fn given_up(&self) -> impl Fn() -> bool + Send + 'static {
        let (parts, stop) = (Arc::clone(&self.parts), self.tell.subscribe());
        move || parts.replica.is_stopping() || *stop.borrow() != Stop::No
    }

    /// Whether the sockets of commands may be another process's still.
    pub fn succeeds(&self) -> bool {
        self.sockets.were_handed
    }
}

/// Whether this process is the first of a container, or one whose end its first process waits for.
fn ends_a_container() -> bool {
    const INITS: [&str; 5] = ["tini", "docker-init", "dumb-init", "catatonit", "podman-init"];
    let first = || std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    // The parent of whoever was started from outside of a container is not seen in it.
    std::process::id() == 1 || getppid().as_raw() == 0 || (getppid().as_raw() == 1 && INITS.contains(&first().trim_end()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(e.to_string()))
}
