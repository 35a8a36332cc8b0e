//! Accepts connections: applies connection limits, the PROXY protocol and TLS, wraps the stream in
//! [`ConnStream`], and passes it to Pingora's HTTP. It reads no request.

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
use crate::http_proxy::{ProxyPhases, ProxyState};
use crate::listener::admission::OpenConnections;
use crate::listener::conn::{ClientCertCheck, Conn, ConnLimits, ConnStream, OnRefusal, lingering, proxy_protocol, tls};

/// The Pingora application of one listener.
pub struct Acceptor {
    proxy: Arc<HttpProxy<ProxyPhases>>,
    state: Arc<ProxyState>,
    address: SocketAddr,
    limits: ConnLimits,
    open_connections: Arc<OpenConnections>,
    on_refusal: OnRefusal,
    /// HTTP/2 without TLS is enabled.
    h2c: bool,
    drain: Drain,
}

/// A connection that is ready for HTTP.
struct Opened {
    stream: Stream,
    read: Vec<u8>,
    peer: IpAddr,
    tls: Option<Arrival>,
    client_cert: ClientCertCheck,
    http2: bool,
}

impl Acceptor {
    /// The acceptor of one listener.
    pub fn new(
        proxy: Arc<HttpProxy<ProxyPhases>>,
        state: Arc<ProxyState>,
        listener: &Listener,
        open_connections: Arc<OpenConnections>,
        drain: Drain,
        on_refusal: OnRefusal,
    ) -> Self {
        let limits = &listener.limits;
        Self {
            proxy,
            state,
            address: listener.address,
            limits: ConnLimits {
                header_bytes: limits.header_bytes.as_usize(),
                header_fields: limits.headers,
                header_timeout: limits.header_timeout.0,
                idle_timeout: limits.idle_timeout.0,
                body_rate: limits.into(),
                lingering: limits.into(),
            },
            open_connections,
            on_refusal,
            h2c: listener.h2c,
            drain,
        }
    }

    /// Runs the PROXY protocol and the TLS handshake. An error has the reason for the metrics.
    async fn open(&self, mut stream: Stream, peer: IpAddr) -> Result<Opened, (&'static str, io::Error)> {
        let policy = self.state.snapshot.load().listener_policy(self.address).cloned();
        let policy = policy.ok_or_else(|| ("listener", io::Error::other("the listener is not in the configuration in force")))?;
        let (mut peer, mut read) = (peer, Vec::new());
        if policy.is_proxy(peer) {
            let found = proxy_protocol::read(&mut stream).await.map_err(|e| ("proxy_protocol", e))?;
            (peer, read) = (found.source.unwrap_or(peer), found.rest);
        }
        let acme = policy.acme.as_ref().map(|_| &*self.state.acme);
        let Some(tls) = &policy.tls else {
            return Ok(Opened { stream, read, peer, tls: None, client_cert: ClientCertCheck::default(), http2: false });
        };
        let agreed = tls::accept(stream, read, Arc::clone(&tls.server), acme).await.map_err(|e| ("tls_handshake", e))?;
        let arrival = Arrival { tls: true, certificate: agreed.certificate, vouched: Vouched::Nothing };
        let client_cert = ClientCertCheck::new(agreed.shown, arrival.certificate.as_deref(), tls.clients.clone());
        Ok(Opened { stream: agreed.stream, read: Vec::new(), peer, tls: Some(arrival), client_cert, http2: agreed.http2 })
    }

    fn refuse(&self, peer: IpAddr, reason: &'static str, error: &io::Error) {
        // Port checks open a connection and close it at once: not counted, not logged.
        if error.kind() != io::ErrorKind::UnexpectedEof {
            (self.on_refusal)(reason);
            tracing::debug!(%peer, reason, %error, "connection refused");
        }
    }
}

#[async_trait]
impl ServerApp for Acceptor {
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
        // PROXY protocol and handshake together have the timeout of a header.
        // Boxed: the future of a handshake has 3 KiB, which every connection would keep to its end.
        let opening = Box::pin(self.open(stream, peer));
        let Ok(opened) = tokio::time::timeout(self.limits.header_timeout, opening).await else {
            (self.on_refusal)("handshake_timeout");
            return None;
        };
        let opened = opened.inspect_err(|(reason, error)| self.refuse(peer, reason, error)).ok()?;
        let conn = Arc::new(Conn::new(opened.peer, opened.tls, opened.client_cert, place));
        let http2 = opened.http2 || (self.h2c && conn.tls.is_none());
        if opened.http2 {
            conn.set_http2();
        }
        let stream = ConnStream::new(opened.stream, opened.read, Arc::clone(&conn), self.limits, Arc::clone(&self.on_refusal)).ok()?;
        if http2 {
            // The drain is for HTTP/2. If the client speaks HTTP/1 here, Pingora's own shutdown applies.
            let (shutdown_sender, stopping) = watch::channel(*shutdown.borrow() && !opened.http2);
            tokio::select! {
                biased;
                _ = self.proxy.process_new(Box::new(stream), &stopping) => {}
                () = self.drain.end(&conn, shutdown.clone(), shutdown_sender) => {}
            }
        } else {
            self.proxy.process_new(Box::new(stream), shutdown).await;
        }
        // The connection is counted until it is closed.
        if let Some(closing) = conn.take_closing()
            && let Some(lingered) = lingering::close(closing, self.limits.lingering).await
        {
            self.state.metrics.lingering.with_label_values(&[lingered.as_str()]).inc();
        }
        None
    }

    async fn cleanup(&self) {
        // Closing a connection while a request is in flight loses that request. After a handover
        // there is no hurry: idle clients may send one more request, and its response announces
        // the close.
        if *self.drain.stop.borrow() == Stop::HandedOver {
            return;
        }
        ServerApp::cleanup(&*self.proxy).await;
    }
}
