//! This process among those that share a store: what it is called, and how far it is from its end.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

/// A name that no other has, and that stays the same over restarts.
pub struct Replica {
    name: Mutex<String>,
    stopping: AtomicBool,
    handed_over: watch::Sender<bool>,
}

impl Replica {
    /// One that serves.
    pub fn new(name: String) -> Self {
        Self { name: Mutex::new(name), stopping: AtomicBool::new(false), handed_over: watch::Sender::new(false) }
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// Whether it has begun to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// It has begun to stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether another process serves in its place, and it only lets end what is open.
    pub fn has_handed_over(&self) -> bool {
        *self.handed_over.borrow()
    }

    /// Returns once another process serves in its place.
    pub async fn until_handed_over(&self) {
        // It never fails: the other half is this one's.
        let _ = self.handed_over.subscribe().wait_for(|over| *over).await;
    }

    /// Another process serves in its place.
    pub fn hand_over(&self) {
        self.handed_over.send_replace(true);
    }

    /// Another process is to take its name: from here on it is called by its number, too.
    pub fn leave_name(&self) {
        let mut name = self.name.lock();
        *name = format!("{name}~{}", std::process::id());
    }

    /// The successor has come to nothing: it is called as before.
    pub fn take_name_back(&self) {
        let mut name = self.name.lock();
        if let Some((before, _)) = name.clone().rsplit_once('~') {
            *name = before.to_owned();
        }
    }
}
