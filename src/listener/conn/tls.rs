//! TLS on a client connection, and the facts it proves. Pingora's own listener builds its
//! configuration once, and drops the client's certificate. Which configuration applies is decided
//! by the listener policy.

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

/// A stream with bytes that were read already.
#[derive(Debug)]
struct PrefixedStream {
    read: Vec<u8>,
    inner: Stream,
}

impl AsyncRead for PrefixedStream {
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

impl AsyncWrite for PrefixedStream {
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

/// A TLS connection.
pub struct TlsStream {
    inner: tokio_rustls::server::TlsStream<PrefixedStream>,
    digest: Arc<SslDigest>,
}

/// The result of a handshake.
pub struct Handshake {
    /// The decrypted stream.
    pub stream: Stream,
    /// HTTP/2 was negotiated.
    pub http2: bool,
    /// The verified client certificate.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The certificate chain of the client; empty without one.
    pub shown: Vec<CertificateDer<'static>>,
}

/// Runs the server's side of the handshake. `read`: bytes that were read already. `acme`: a
/// TLS-ALPN-01 challenge is answered, and ends with an error of the kind `UnexpectedEof`.
pub async fn accept(stream: Stream, read: Vec<u8>, config: Arc<ServerConfig>, acme: Option<&Acme>) -> io::Result<Handshake> {
    let stream = PrefixedStream { read, inner: stream };
    let inner = match acme {
        None => TlsAcceptor::from(config).accept(stream).await?,
        Some(acme) => {
            let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
            if let Some(name) = challenged(&hello.client_hello()) {
                let answer = acme.answer_tls(&name).await.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                let mut connection = hello.into_stream(answer).await?;
                let _ = connection.shutdown().await;
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
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client certificate cannot be parsed"));
    }
    let version = if session.protocol_version() == Some(ProtocolVersion::TLSv1_3) { "TLSv1.3" } else { "TLSv1.2" };
    let digest = Arc::new(SslDigest::new("", version, None, None, Vec::new()));
    Ok(Handshake { stream: Box::new(TlsStream { inner, digest }), http2, certificate, shown })
}

/// The name in a TLS-ALPN-01 challenge; `None` for other clients.
fn challenged(hello: &rustls::server::ClientHello<'_>) -> Option<String> {
    let mut protocols = hello.alpn()?;
    let only = protocols.next() == Some(ACME) && protocols.next().is_none();
    hello.server_name().filter(|_| only).map(str::to_owned)
}

impl TlsStream {
    fn inner_stream(&self) -> &Stream {
        &self.inner.get_ref().0.inner
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsStream({:?})", self.inner_stream())
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
        // An error means that the client has left.
        let _ = self.inner.shutdown().await;
    }
}

impl UniqueID for TlsStream {
    fn id(&self) -> UniqueIDType {
        self.inner_stream().id()
    }
}

impl Ssl for TlsStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(Arc::clone(&self.digest))
    }
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        // Only these two are offered.
        self.inner.get_ref().1.alpn_protocol().map(|name| if name == b"h2" { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for TlsStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner_stream().get_timing_digest()
    }
    fn get_read_pending_time(&self) -> Duration {
        self.inner_stream().get_read_pending_time()
    }
    fn get_write_pending_time(&self) -> Duration {
        self.inner_stream().get_write_pending_time()
    }
}

impl GetProxyDigest for TlsStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner_stream().get_proxy_digest()
    }
}

impl GetSocketDigest for TlsStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner_stream().get_socket_digest()
    }
    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.get_mut().0.inner.set_socket_digest(digest);
    }
}

/// ALPN has negotiated the protocol, so no preface is looked for.
impl Peek for TlsStream {}
