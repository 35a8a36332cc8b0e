//! TLS of a listener, from its files.

use std::sync::Arc;

use keylatch_filters::contract::{Invalid, Keep};
use rustls::ServerConfig;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::version::{TLS12, TLS13};

use super::certificates::{Certificates, Shown};
use super::clients;
use crate::acme::{Held, Wanted};
use crate::config::Files;
use crate::config::model::{ListenerTls, TlsVersion};

/// What it is spoken with, and the certificates that are shown. The same settings with the same files are the same
/// configuration, so that sessions are resumed across reloads; others begin without any, so that nobody resumes what is not
/// allowed any more.
pub fn compile(
    config: &ListenerTls,
    made: Option<(Arc<Held>, Wanted)>,
    files: &Files,
    keep: &Keep,
) -> Result<(Arc<ServerConfig>, Vec<Shown>), Vec<Invalid>> {
    let mut wrong = Vec::new();
    let own = files.apart();
    let certificates = Certificates::compile(&config.certificates, made, &own).map_err(|invalid| wrong.extend(invalid)).ok();
    let verifier = config.client_certificates.as_ref().map(|clients| clients::compile(clients, &own)).transpose();
    let verifier = verifier.map_err(|invalid| wrong.push(invalid.at("client_certificates"))).ok();
    let key = format!("{config:?} {:?}", own.digests());
    files.add(own);
    let (Some((certificates, shown)), Some(verifier)) = (certificates, verifier) else { return Err(wrong) };
    let versions: &[_] = match config.min_version {
        TlsVersion::V1_2 => &[&TLS12, &TLS13],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let failed = |e: rustls::Error| vec![Invalid::new(e.to_string())];
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider())).with_protocol_versions(versions).map_err(failed)?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(Arc::new(certificates));
    server.ticketer = Ticketer::new().map_err(failed)?;
    let http1 = b"http/1.1".to_vec();
    server.alpn_protocols = if config.http2 { vec![b"h2".to_vec(), http1] } else { vec![http1] };
    Ok((keep.get(&key, || server), shown))
}
