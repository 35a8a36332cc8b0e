//! Client certificates: the policy that verifies them, and the facts they contain. Identities are
//! assigned by filters.

use std::sync::Arc;
use std::time::SystemTime;

use keylatch_filters::contract::{ClientCertificate, Invalid, Keep, Resolve, hex};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;

use crate::config::Files;
use crate::config::model::{ClientCertificates, Presented};
use crate::util::pem;
use crate::util::time::millis;

/// The verification of client certificates. The same settings with the same files give the same
/// object.
#[derive(Debug)]
pub struct ClientCertPolicy(Arc<dyn ClientCertVerifier>);

impl ClientCertPolicy {
    /// The verifier for the handshake.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.0)
    }

    /// Whether this policy accepts a chain, which may have been accepted by another policy before.
    pub fn admit(&self, shown: &[CertificateDer<'static>]) -> bool {
        match shown {
            [] => !self.0.client_auth_mandatory(),
            [own, others @ ..] => self.0.verify_client_cert(own, others, UnixTime::now()).is_ok(),
        }
    }
}

/// Compiles the policy: certificates must be signed by one of the CAs, be in their validity period,
/// be for clients, and not be revoked.
pub fn compile(config: &ClientCertificates, files: &Files, keep: &Keep) -> Result<Arc<ClientCertPolicy>, Invalid> {
    let own = files.apart();
    let verifier = verifier(config, &own);
    let key = format!("clients {config:?} {:?}", own.digests());
    files.add(own);
    let verifier = verifier?;
    Ok(keep.get(&key, || ClientCertPolicy(verifier)))
}

fn verifier(config: &ClientCertificates, files: &Files) -> Result<Arc<dyn ClientCertVerifier>, Invalid> {
    let roots = files.file(&config.ca_file).and_then(|text| pem::roots(&text)).map_err(|e| e.at("ca_file"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    if let Some(file) = &config.revoked_file {
        let lists = files.file(file).and_then(|text| pem::revocations(&text)).map_err(|e| e.at("revoked_file"))?;
        builder = builder.with_crls(lists);
        // An expired list still applies: clients must not be locked out because the list is no
        // longer renewed.
        let ends = files.file(file).ok().and_then(|text| pem::lists_end_s(&text));
        if ends.is_some_and(|ends| ends <= millis(SystemTime::now()) / 1000) {
            tracing::warn!(file, "the revocation list has expired: certificates revoked since then are still accepted");
        }
    }
    if config.presented == Presented::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|e| {
        let key = if config.revoked_file.is_some() { "revoked_file" } else { "ca_file" };
        Invalid::new(format!("cannot be used: {e}")).at(key)
    })
}

/// The facts of a verified certificate.
pub fn client_certificate(certificate: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let parsed = pem::parsed(certificate).ok()?;
    let mut facts = ClientCertificate {
        fingerprint: hex(&Sha256::digest(certificate)),
        not_after_s: parsed.validity().not_after.timestamp(),
        serial: hex(parsed.raw_serial()),
        common_name: parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned),
        ..ClientCertificate::default()
    };
    let names = parsed.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => facts.dns.push(name.to_ascii_lowercase()),
            GeneralName::RFC822Name(name) => facts.email.push((*name).to_owned()),
            GeneralName::URI(name) => facts.uri.push((*name).to_owned()),
            _ => {}
        }
    }
    Some(facts)
}
