//! Where connections come in: counted, bounded, wrapped in [`ConnStream`], and handed to Pingora's HTTP.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use keylatch_filters::contract::canonical;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use prometheus::IntGauge;

use super::conn::{Conn, ConnLimits, ConnStream, OnRefusal};
use super::edge::Edge;
use crate::config::model::Limits;

/// The application of one listener.
pub struct Door {
    proxy: Arc<HttpProxy<Edge>>,
    limits: ConnLimits,
    connections_max: usize,
    connections_per_peer_max: usize,
    counts: Arc<Counts>,
    on_refusal: OnRefusal,
    open: IntGauge,
}

/// Open connections, in all and by peer.
#[derive(Debug, Default)]
struct Counts {
    all: AtomicUsize,
    by_peer: Mutex<HashMap<IpAddr, usize>>,
}

/// One place taken; given back when dropped.
#[derive(Debug)]
pub struct Place {
    counts: Arc<Counts>,
    peer: IpAddr,
    open: IntGauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
        self.counts.all.fetch_sub(1, Ordering::Relaxed);
        let mut by_peer = self.counts.by_peer.lock();
        if let Some(count) = by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}

impl Door {
    /// For one listener.
    pub fn new(proxy: Arc<HttpProxy<Edge>>, limits: &Limits, on_refusal: OnRefusal, open: IntGauge) -> Self {
        Self {
            proxy,
            limits: ConnLimits {
                header_bytes: limits.header_bytes.as_usize(),
                header_fields: limits.headers,
                header_timeout: limits.header_timeout.0,
                idle_timeout: limits.idle_timeout.0,
            },
            connections_max: limits.connections,
            connections_per_peer_max: limits.connections_per_peer,
            counts: Arc::default(),
            on_refusal,
            open,
        }
    }

    /// Takes a place for a connection of this peer; `None` if there is none left.
    fn place(&self, peer: IpAddr) -> Option<Place> {
        let before = self.counts.all.fetch_add(1, Ordering::Relaxed);
        *self.counts.by_peer.lock().entry(peer).or_insert(0) += 1;
        self.open.inc();
        let place = Place { counts: Arc::clone(&self.counts), peer, open: self.open.clone() };
        let of_peer = self.counts.by_peer.lock().get(&peer).copied().unwrap_or(0);
        let room = before < self.connections_max && of_peer <= self.connections_per_peer_max;
        room.then_some(place)
    }
}

#[async_trait]
impl ServerApp for Door {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let socket = stream.get_socket_digest();
        let peer = socket
            .as_ref()
            .and_then(|digest| digest.peer_addr())
            .and_then(|address| address.as_inet())
            .map(|address| canonical(address.ip()))?;
        let Some(place) = self.place(peer) else {
            (self.on_refusal)("connections");
            return None;
        };
        let conn = Arc::new(Conn::new(peer, place));
        let guarded = ConnStream::new(stream, conn, self.limits, Arc::clone(&self.on_refusal)).ok()?;
        self.proxy.process_new(Box::new(guarded), shutdown).await
    }

    async fn cleanup(&self) {
        ServerApp::cleanup(&*self.proxy).await;
    }
}
