//! Certificates of clients: which are good, and what stands in one.

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

/// Who may come in: the same settings with the same files are the same.
#[derive(Debug)]
pub struct Clients(Arc<dyn ClientCertVerifier>);

impl Clients {
    /// For the handshake.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.0)
    }

    /// Whether whoever has shown this, under other rules perhaps, may go on under these.
    pub fn admit(&self, shown: &[CertificateDer<'static>]) -> bool {
        match shown {
            [] => !self.0.client_auth_mandatory(),
            [own, others @ ..] => self.0.verify_client_cert(own, others, UnixTime::now()).is_ok(),
        }
    }
}

/// Verifies them: signed by one of the CAs, in their time, for clients, not revoked.
pub fn compile(config: &ClientCertificates, files: &Files, keep: &Keep) -> Result<Arc<Clients>, Invalid> {
    let own = files.apart();
    let verifier = verifier(config, &own);
    let key = format!("clients {config:?} {:?}", own.digests());
    files.add(own);
    let verifier = verifier?;
    Ok(keep.get(&key, || Clients(verifier)))
}

fn verifier(config: &ClientCertificates, files: &Files) -> Result<Arc<dyn ClientCertVerifier>, Invalid> {
    let roots = files.file(&config.ca_file).and_then(|text| pem::roots(&text)).map_err(|e| e.at("ca_file"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    if let Some(file) = &config.revoked_file {
        let lists = files.file(file).and_then(|text| pem::revocations(&text)).map_err(|e| e.at("revoked_file"))?;
        builder = builder.with_crls(lists);
        // It is held to all the same: nobody is to be locked out because whoever brings it has stopped.
        let ends = files.file(file).ok().and_then(|text| pem::lists_end_s(&text));
        if ends.is_some_and(|ends| ends <= millis(SystemTime::now()) / 1000) {
            tracing::warn!(
                file,
                "a list of revoked certificates should have been followed by another: what was revoked since is not known"
            );
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

/// What stands in a certificate that was found good.
pub fn client_certificate(certificate: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let parsed = pem::parsed(certificate).ok()?;
    let mut about = ClientCertificate {
        fingerprint: hex(&Sha256::digest(certificate)),
        not_after_s: parsed.validity().not_after.timestamp(),
        serial: hex(parsed.raw_serial()),
        common_name: parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned),
        ..ClientCertificate::default()
    };
    let names = parsed.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => about.dns.push(name.to_ascii_lowercase()),
            GeneralName::RFC822Name(name) => about.email.push((*name).to_owned()),
            GeneralName::URI(name) => about.uri.push((*name).to_owned()),
            _ => {}
        }
    }
    Some(about)
}
