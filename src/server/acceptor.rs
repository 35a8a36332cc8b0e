//! Where connections come in: counted, bounded, told by the PROXY protocol for whom they are, decrypted, wrapped in
//! [`ConnStream`], and handed to Pingora's HTTP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use keylatch_filters::contract::{Arrival, Vouched, canonical};
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::sync::watch;

use super::drain::Drain;
use super::stop::Stop;
use crate::config::model::Listener;
use crate::http_proxy::{Edge, Shared};
use crate::listener::admission::OpenConnections;
use crate::listener::conn::{Allowed, Conn, ConnLimits, ConnStream, OnRefusal, lingering, proxy_protocol, tls};

/// The application of one listener.
pub struct Door {
    proxy: Arc<HttpProxy<Edge>>,
    shared: Arc<Shared>,
    address: SocketAddr,
    limits: ConnLimits,
    open_connections: Arc<OpenConnections>,
    on_refusal: OnRefusal,
    /// HTTP/2 in clear is spoken.
    h2c: bool,
    drain: Drain,
}

/// A connection on which HTTP begins.
struct Opened {
    stream: Stream,
    read: Vec<u8>,
    peer: IpAddr,
    tls: Option<Arrival>,
    allowed: Allowed,
    http2: bool,
}

impl Door {
    /// For one listener.
    pub fn new(proxy: Arc<HttpProxy<Edge>>, shared: Arc<Shared>, listener: &Listener, drain: Drain, on_refusal: OnRefusal) -> Self {
        let open = shared.metrics.connections.clone();
        let limits = &listener.limits;
        Self {
            proxy,
            shared,
            address: listener.address,
            limits: ConnLimits {
                header_bytes: limits.header_bytes.as_usize(),
                header_fields: limits.headers,
                header_timeout: limits.header_timeout.0,
                idle_timeout: limits.idle_timeout.0,
                body_rate: limits.into(),
                lingering: limits.into(),
            },
            open_connections: OpenConnections::new(limits.connections, limits.connections_per_peer, open),
            on_refusal,
            h2c: listener.h2c,
            drain,
        }
    }

    /// What comes before HTTP. An error has a reason for the metrics.
    async fn open(&self, mut stream: Stream, peer: IpAddr) -> Result<Opened, (&'static str, io::Error)> {
        let entry = self.shared.snapshot.load().entry(self.address).cloned();
        let entry = entry.ok_or_else(|| ("listener", io::Error::other("nothing is known of this listener")))?;
        let (mut peer, mut read) = (peer, Vec::new());
        if entry.is_proxy(peer) {
            let found = proxy_protocol::read(&mut stream).await.map_err(|e| ("proxy_protocol", e))?;
            (peer, read) = (found.source.unwrap_or(peer), found.rest);
        }
        let acme = entry.acme.as_ref().map(|_| &*self.shared.acme);
        let Some(tls) = &entry.tls else {
            return Ok(Opened { stream, read, peer, tls: None, allowed: Allowed::default(), http2: false });
        };
        let agreed = tls::accept(stream, read, Arc::clone(&tls.server), acme).await.map_err(|e| ("tls_handshake", e))?;
        let arrival = Arrival { tls: true, certificate: agreed.certificate, vouched: Vouched::Nothing };
        let allowed = Allowed::new(agreed.shown, arrival.certificate.as_deref(), tls.clients.clone());
        Ok(Opened { stream: agreed.stream, read: Vec::new(), peer, tls: Some(arrival), allowed, http2: agreed.http2 })
    }

    fn refuse(&self, peer: IpAddr, reason: &'static str, error: &io::Error) {
        // Whoever only looks whether somebody listens is nobody's concern.
        if error.kind() != io::ErrorKind::UnexpectedEof {
            (self.on_refusal)(reason);
            tracing::debug!(%peer, reason, %error, "a connection was refused");
        }
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
        let Some(place) = self.open_connections.admit(peer) else {
            (self.on_refusal)("connections");
            return None;
        };
        // Both of a balancer's word and of a handshake, as of a header: a client has so long, and no longer.
        // Boxed: a handshake takes 3 KiB, which every connection would keep to its end.
        let opening = Box::pin(self.open(stream, peer));
        let Ok(opened) = tokio::time::timeout(self.limits.header_timeout, opening).await else {
            (self.on_refusal)("handshake_timeout");
            return None;
        };
        let opened = opened.inspect_err(|(reason, error)| self.refuse(peer, reason, error)).ok()?;
        let conn = Arc::new(Conn::new(opened.peer, opened.tls, opened.allowed, place));
        let http2 = opened.http2 || (self.h2c && conn.tls.is_none());
        if opened.http2 {
            conn.set_http2();
        }
        let guarded = ConnStream::new(opened.stream, opened.read, Arc::clone(&conn), self.limits, Arc::clone(&self.on_refusal)).ok()?;
        if http2 {
            // What is HTTP/1 after all ends as without this.
            let (tell, stopping) = watch::channel(*shutdown.borrow() && !opened.http2);
            tokio::select! {
                biased;
                _ = self.proxy.process_new(Box::new(guarded), &stopping) => {}
                () = self.drain.end(&conn, shutdown.clone(), tell) => {}
            }
        } else {
            self.proxy.process_new(Box::new(guarded), shutdown).await;
        }
        // It counts as a connection until it is closed.
        if let Some(closing) = conn.take_closing()
            && let Some(lingered) = lingering::close(closing, self.limits.lingering).await
        {
            self.shared.metrics.lingering.with_label_values(&[lingered.as_str()]).inc();
        }
        None
    }

    async fn cleanup(&self) {
        // A connection that is closed while a request is on its way to it loses that request. Where another process serves
        // there is no hurry: who is idle may send one more, whose answer says that the connection ends, or ends by himself.
        if *self.drain.stop.borrow() == Stop::HandedOver {
            return;
        }
        ServerApp::cleanup(&*self.proxy).await;
    }
}
