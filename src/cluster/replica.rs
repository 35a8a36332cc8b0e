//! The identity of this process among the replicas that share a store: its name, and whether it stops or has handed over.
//!
//! It holds state and signals changes; it neither stops the process nor starts another one.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

/// One replica. Its name is unique among the replicas of a store and survives restarts.
pub struct Replica {
    name: Mutex<String>,
    stopping: AtomicBool,
    handed_over: watch::Sender<bool>,
}

impl Replica {
    /// A replica that serves.
    pub fn new(name: String) -> Self {
        Self { name: Mutex::new(name), stopping: AtomicBool::new(false), handed_over: watch::Sender::new(false) }
    }

    /// The name.
    pub fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// Whether the process has begun to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Records that the process has begun to stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether another process has taken over, so that this one only drains its open connections.
    pub fn has_handed_over(&self) -> bool {
        *self.handed_over.borrow()
    }

    /// Waits until another process has taken over.
    pub async fn until_handed_over(&self) {
        // This cannot fail: the sender lives as long as `self`.
        let _ = self.handed_over.subscribe().wait_for(|over| *over).await;
    }

    /// Records that another process has taken over.
    pub fn hand_over(&self) {
        self.handed_over.send_replace(true);
    }

    /// Frees the name for a successor: the process id is appended to this one's name.
    pub fn release_name(&self) {
        let mut name = self.name.lock();
        *name = format!("{name}~{}", std::process::id());
    }

    /// Restores the name after a failed handover.
    pub fn reclaim_name(&self) {
        let mut name = self.name.lock();
        if let Some((before, _)) = name.clone().rsplit_once('~') {
            *name = before.to_owned();
        }
    }
}
