//! Has a new process take this one's place, when it is asked to.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::handover::Successor;
use super::manager;
use super::parts::Parts;
use super::sockets::Sockets;
use crate::config::model::Storage;
use crate::control::{Guard, Upgrade};
use crate::proxy::Stop;

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
}

impl Upgrades {
    /// Answers those who ask for an upgrade, until one has come about or the process stops.
    pub async fn follow(self, mut asked: mpsc::Receiver<Upgrade>, control: Arc<Guard>, mut stop: watch::Receiver<Stop>) {
        loop {
            let answer = tokio::select! {
                answer = asked.recv() => answer,
                _ = stop.wait_for(|stop| *stop != Stop::No) => None,
            };
            let Some(answer) = answer else { return };
            let done = tokio::select! {
                done = self.upgrade() => done,
                // Told to stop meanwhile: then nobody's place is to be taken.
                _ = stop.wait_for(|stop| *stop != Stop::No) => Err("the process was told to stop meanwhile".into()),
            };
            let over = done.is_ok();
            match &done {
                Ok(said) => tracing::info!("{said}"),
                Err(why) => tracing::error!("no upgrade: {why}"),
            }
            if over {
                // The sockets of commands are the new one's; they must not go with this process.
                control.leave();
                self.tell.send_if_modified(|stop| {
                    let goes_on = *stop == Stop::No;
                    if goes_on {
                        *stop = Stop::HandedOver;
                    }
                    goes_on
                });
            }
            // Whoever asked may be gone.
            let _ = answer.send(done);
            if over {
                return;
            }
        }
    }

    async fn upgrade(&self) -> Result<String, String> {
        let parts = &self.parts;
        if parts.replica.is_stopping() {
            return Err("this process is stopping".into());
        }
        let snapshot = parts.shared.snapshot.load_full();
        if snapshot.settings.storage == Storage::Memory {
            return Err("storage is memory: bindings, accounts and settings are in this process alone, and would be lost".into());
        }
        tracing::info!(program = %self.program.display(), "a new process is started to take the place of this one");
        let (program, path) = (self.program.clone(), self.path.clone());
        let successor = blocking(move || Successor::start(&program, &path)).await?;
        let pid = successor.pid;
        // Under its own name it counts no more: the next one goes on from there.
        parts.api.sampler.rename(&parts.store, || parts.replica.hand_over()).await;
        let sockets = self.sockets.again().map_err(|e| format!("no descriptors to be had: {e}"));
        let handed = match sockets {
            Ok(sockets) => blocking(move || successor.hand_over(&sockets)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = handed {
            parts.api.sampler.rename(&parts.store, || parts.replica.take_back()).await;
            return Err(error);
        }
        manager::replaced_by(pid);
        // Whoever looks for what is open here finds it from now on.
        parts.say().await;
        let (open, most) = (parts.shared.metrics.connections.get(), snapshot.settings.shutdown.upgrade_drain);
        Ok(format!(
            "process {pid} serves in the place of {}; {open} connections go on to their end here, for {most} at most",
            std::process::id()
        ))
    }

    /// Whether the sockets of commands may be another process's still.
    pub fn succeeds(&self) -> bool {
        self.sockets.were_handed
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(e.to_string()))
}
