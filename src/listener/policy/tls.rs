//! Compiles the TLS configuration of a listener from its files. Handshakes are in `conn::tls`.

use std::sync::Arc;

use keylatch_filters::contract::{Invalid, Keep};
use rustls::ServerConfig;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::version::{TLS12, TLS13};

use super::certificates::{Certificates, ServerCertificate};
use super::clients::{self, ClientCertPolicy};
use crate::acme::{AcmeCertificates, WantedCertificate};
use crate::config::Files;
use crate::config::model::{ListenerTls, TlsVersion};

/// The TLS configuration of a listener.
pub struct TlsPolicy {
    /// The rustls configuration.
    pub server: Arc<ServerConfig>,
    /// The server certificates from files.
    pub shown: Vec<ServerCertificate>,
    /// The client certificate policy; `None`: no client certificate is requested.
    pub clients: Option<Arc<ClientCertPolicy>>,
}

/// Compiles the configuration. The same settings with the same files share one configuration, so
/// that sessions are resumed across reloads. Others start without sessions, so that no client
/// resumes one that is no longer allowed.
pub fn compile(
    config: &ListenerTls,
    made: Option<(Arc<AcmeCertificates>, WantedCertificate)>,
    files: &Files,
    keep: &Keep,
) -> Result<TlsPolicy, Vec<Invalid>> {
    let mut wrong = Vec::new();
    let own = files.apart();
    let wanted = made.as_ref().map(|(_, wanted)| wanted.clone());
    let certificates = Certificates::compile(&config.certificates, made, &own).map_err(|invalid| wrong.extend(invalid)).ok();
    let clients = config.client_certificates.as_ref().map(|clients| clients::compile(clients, &own, keep)).transpose();
    let clients = clients.map_err(|invalid| wrong.push(invalid.at("client_certificates"))).ok();
    let key = format!("{config:?} {wanted:?} {:?}", own.digests());
    files.add(own);
    let (Some((certificates, shown)), Some(clients)) = (certificates, clients) else { return Err(wrong) };
    let versions: &[_] = match config.min_version {
        TlsVersion::V1_2 => &[&TLS12, &TLS13],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let failed = |e: rustls::Error| vec![Invalid::new(e.to_string())];
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(versions).map_err(failed)?;
    let builder = match &clients {
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(Arc::new(certificates));
    server.ticketer = Ticketer::new().map_err(failed)?;
    let http1 = b"http/1.1".to_vec();
    server.alpn_protocols = if config.http2 { vec![b"h2".to_vec(), http1] } else { vec![http1] };
    Ok(TlsPolicy { server: keep.get(&key, || server), shown, clients })
}
