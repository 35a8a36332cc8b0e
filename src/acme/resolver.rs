//! ACME certificates in memory, as listeners serve them, and the certificate that answers a
//! TLS-ALPN-01 challenge. It reads no store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::storage::StoredCertificate;
use crate::util::pem::{certificates, key as pem_key, parsed, signing_key};
use crate::util::time::millis;

/// A certificate that a listener is configured for: its names, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WantedCertificate {
    /// The names; the first one is the common name.
    pub names: Vec<String>,
    /// The URL of the CA's directory. The same names from another CA are another certificate.
    pub directory: String,
}

impl WantedCertificate {
    /// Its name in the store.
    pub fn storage_name(&self) -> String {
        format!("acme certificate {} {}", self.directory, self.names.join(","))
    }

    /// Whether this name is one of its names.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

struct LoadedCertificate {
    key: Arc<CertifiedKey>,
    chain: String,
    begins_s: i64,
    ends_s: i64,
}

impl LoadedCertificate {
    fn parse(chain: &str, key: &str) -> Result<Self, String> {
        let certificates = certificates(chain).map_err(|_| "the chain contains something other than certificates")?;
        let first = certificates.first().ok_or("the chain is empty")?;
        let (begins_s, ends_s) = {
            let certificate = parsed(first).map_err(|invalid| invalid.message)?;
            (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp())
        };
        let key = pem_key(key).and_then(|key| signing_key(&key)).map_err(|invalid| invalid.message)?;
        let key = CertifiedKey::new(certificates, key);
        key.keys_match().map_err(|_| "the certificate does not belong to the key")?;
        Ok(Self { key: Arc::new(key), chain: chain.to_owned(), begins_s, ends_s })
    }
}

/// Verifies an issued chain before it is used: it belongs to the key, is valid for the names, and
/// has not expired. Returns its expiry, in seconds since 1970.
pub fn verify_chain(chain: &str, key: &str, names: &[String]) -> Result<i64, String> {
    let one = LoadedCertificate::parse(chain, key).map_err(|why| format!("the CA sent an invalid certificate: {why}"))?;
    let certificate = one.key.end_entity_cert().map_err(|e| e.to_string())?;
    let certificate = ParsedCertificate::try_from(certificate).map_err(|e| e.to_string())?;
    for name in names {
        let server = ServerName::try_from(name.as_str()).map_err(|e| e.to_string())?;
        verify_server_name(&certificate, &server).map_err(|_| format!("the CA sent a certificate that is not valid for {name}"))?;
    }
    match one.ends_s > millis(SystemTime::now()) / 1000 {
        true => Ok(one.ends_s),
        false => Err("the CA sent a certificate that has expired: check the clock of this machine".into()),
    }
}

/// `notBefore` of the first certificate of a chain, in seconds since 1970.
pub fn begins_s(chain: &str) -> Option<i64> {
    let all = certificates(chain).ok()?;
    Some(parsed(all.first()?).ok()?.validity().not_before.timestamp())
}

/// The certificates in use, by the one that was wanted. Outlives reloads.
#[derive(Default)]
pub struct AcmeCertificates(Mutex<HashMap<WantedCertificate, LoadedCertificate>>);

impl std::fmt::Debug for AcmeCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the keys.
        write!(f, "AcmeCertificates({})", self.0.lock().len())
    }
}

impl AcmeCertificates {
    /// Installs a stored certificate. Returns whether it changed: an unchanged or invalid one is
    /// not installed.
    pub fn install(&self, wanted: &WantedCertificate, kept: &StoredCertificate) -> bool {
        if self.0.lock().get(wanted).is_some_and(|one| one.chain == kept.chain) {
            return false;
        }
        match LoadedCertificate::parse(&kept.chain, &kept.key) {
            Ok(one) => {
                self.0.lock().insert(wanted.clone(), one);
                true
            }
            Err(why) => {
                tracing::error!(names = wanted.names.join(", "), why, "a stored certificate is invalid");
                false
            }
        }
    }

    /// Of the unexpired certificates that include this name, the one that expires last.
    pub fn for_name(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let now_s = millis(SystemTime::now()) / 1000;
        let all = self.0.lock();
        let good = all.iter().filter(|(wanted, one)| wanted.has(name) && one.ends_s > now_s);
        good.max_by_key(|(_, one)| one.ends_s).map(|(_, one)| Arc::clone(&one.key))
    }

    /// The certificate in use.
    pub fn get(&self, wanted: &WantedCertificate) -> Option<Arc<CertifiedKey>> {
        self.0.lock().get(wanted).map(|one| Arc::clone(&one.key))
    }

    /// Its `notBefore`, in seconds since 1970.
    pub fn begins(&self, wanted: &WantedCertificate) -> Option<i64> {
        self.0.lock().get(wanted).map(|one| one.begins_s)
    }

    /// Its `notAfter`, in seconds since 1970.
    pub fn ends(&self, wanted: &WantedCertificate) -> Option<i64> {
        self.0.lock().get(wanted).map(|one| one.ends_s)
    }
}

/// TLS-ALPN-01: a self-signed certificate for this name alone, with the digest of the key
/// authorization (RFC 8737, section 3).
pub fn challenge_config(name: &str, digest: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let wrong = |e: &dyn std::fmt::Display| e.to_string();
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|e| wrong(&e))?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(|e| wrong(&e))?;
    let certificate = params.self_signed(&key).map_err(|e| wrong(&e))?;
    let builder =
        ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions().map_err(|e| wrong(&e))?;
    let secret = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| wrong(&e))?;
    // Without rustls' check of the certificate: it rejects the unknown critical extension.
    let shown = CertifiedKey::new(vec![certificate.der().clone()], signing_key(&secret).map_err(|invalid| invalid.message)?);
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The ALPN protocol of the challenge.
pub const ALPN: &[u8] = b"acme-tls/1";
