//! Limits the open connections of a listener, in total and per peer. It does not close connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use prometheus::IntGauge;

/// The open connections of one listener.
#[derive(Debug)]
pub struct OpenConnections {
    connections_max: usize,
    connections_per_peer_max: usize,
    all: AtomicUsize,
    by_peer: Mutex<HashMap<IpAddr, usize>>,
    gauge: IntGauge,
}

/// One open connection. It is counted until it is dropped.
#[derive(Debug)]
pub struct Admission {
    open: Arc<OpenConnections>,
    peer: IpAddr,
}

impl OpenConnections {
    /// No open connections. `gauge` counts those of all listeners.
    pub fn new(connections_max: usize, connections_per_peer_max: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { connections_max, connections_per_peer_max, all: AtomicUsize::new(0), by_peer: Mutex::default(), gauge })
    }

    /// Counts a connection of this peer. `None` if a limit is reached.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Admission> {
        let before = self.all.fetch_add(1, Ordering::Relaxed);
        self.gauge.inc();
        let of_peer = {
            let mut by_peer = self.by_peer.lock();
            let count = by_peer.entry(peer).or_insert(0);
            *count += 1;
            *count
        };
        let admission = Admission { open: Arc::clone(self), peer };
        let has_room = before < self.connections_max && of_peer <= self.connections_per_peer_max;
        has_room.then_some(admission)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.open.gauge.dec();
        self.open.all.fetch_sub(1, Ordering::Relaxed);
        let mut by_peer = self.open.by_peer.lock();
        if let Some(count) = by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}
