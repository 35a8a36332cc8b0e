//! TLS over a client's connection, and what is known of it. Pingora's own listener makes its configuration once, and forgets
//! the client's certificate.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use keylatch_filters::contract::ClientCertificate;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType,
};
use rustls::pki_types::CertificateDer;
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use crate::acme::{ALPN as ACME, Acme};
use crate::listener::policy::client_certificate;

/// A stream of which something was read already.
#[derive(Debug)]
struct Ahead {
    read: Vec<u8>,
    inner: Stream,
}

impl AsyncRead for Ahead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let length = self.read.len().min(buf.remaining());
        let piece: Vec<u8> = self.read.drain(..length).collect();
        buf.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ahead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// An encrypted connection.
pub struct TlsStream {
    inner: tokio_rustls::server::TlsStream<Ahead>,
    digest: Arc<SslDigest>,
}

/// A connection that has agreed on TLS.
pub struct Agreed {
    /// The connection, as if it were in clear.
    pub stream: Stream,
    /// HTTP/2 was agreed on.
    pub http2: bool,
    /// The certificate that was shown, found good.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// It, and those by which it was signed; none if none was shown.
    pub shown: Vec<CertificateDer<'static>>,
}

/// The server's side of the handshake; `read`: what came before it was known that TLS comes. `acme`: a CA may come to see whose
/// a name is; it is answered, and that is all: an error of the kind `UnexpectedEof`.
pub async fn accept(stream: Stream, read: Vec<u8>, config: Arc<ServerConfig>, acme: Option<&Acme>) -> io::Result<Agreed> {
    let ahead = Ahead { read, inner: stream };
    let inner = match acme {
        None => TlsAcceptor::from(config).accept(ahead).await?,
        Some(acme) => {
            let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), ahead).await?;
            if let Some(name) = challenged(&hello.client_hello()) {
                let answer = acme.answer_tls(&name).await.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                let mut answered = hello.into_stream(answer).await?;
                let _ = answered.shutdown().await;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hello.into_stream(config).await?
        }
    };
    let (_, session) = inner.get_ref();
    let http2 = session.alpn_protocol() == Some(b"h2");
    let shown: Vec<_> = session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
    let certificate = shown.first().and_then(client_certificate).map(Arc::new);
    if certificate.is_none() && !shown.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client's certificate cannot be read"));
    }
    let version = if session.protocol_version() == Some(ProtocolVersion::TLSv1_3) { "TLSv1.3" } else { "TLSv1.2" };
    let digest = Arc::new(SslDigest::new("", version, None, None, Vec::new()));
    Ok(Agreed { stream: Box::new(TlsStream { inner, digest }), http2, certificate, shown })
}

/// The name that a CA asks for by the challenge's protocol, and by nothing else.
fn challenged(hello: &rustls::server::ClientHello<'_>) -> Option<String> {
    let mut protocols = hello.alpn()?;
    let only = protocols.next() == Some(ACME) && protocols.next().is_none();
    hello.server_name().filter(|_| only).map(str::to_owned)
}

impl TlsStream {
    fn below(&self) -> &Stream {
        &self.inner.get_ref().0.inner
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsStream({:?})", self.below())
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for TlsStream {
    async fn shutdown(&mut self) {
        // Whoever has left need not be told so.
        let _ = self.inner.shutdown().await;
    }
}

impl UniqueID for TlsStream {
    fn id(&self) -> UniqueIDType {
        self.below().id()
    }
}

impl Ssl for TlsStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(Arc::clone(&self.digest))
    }
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        // No more than these two are offered.
        self.inner.get_ref().1.alpn_protocol().map(|name| if name == b"h2" { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for TlsStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.below().get_timing_digest()
    }
    fn get_read_pending_time(&self) -> Duration {
        self.below().get_read_pending_time()
    }
    fn get_write_pending_time(&self) -> Duration {
        self.below().get_write_pending_time()
    }
}

impl GetProxyDigest for TlsStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.below().get_proxy_digest()
    }
}

impl GetSocketDigest for TlsStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.below().get_socket_digest()
    }
    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.get_mut().0.inner.set_socket_digest(digest);
    }
}

/// TLS says by ALPN what is spoken: nobody needs to look ahead.
impl Peek for TlsStream {}
