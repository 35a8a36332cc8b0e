//! Certificates that were made, as listeners show them, and the one that answers a challenge.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::entry::{certificates, parsed, pem_key, signing_key};

/// A certificate that a listener wants: its names, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The names, of which the first is its common one.
    pub names: Vec<String>,
    /// The CA's directory: another CA's is another certificate.
    pub directory: String,
}

impl Wanted {
    /// Under which name it is kept.
    pub fn certificate(&self) -> String {
        format!("acme certificate {} {}", self.directory, self.names.join(","))
    }

    /// Whether it is for this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

struct One {
    key: Arc<CertifiedKey>,
    chain: String,
    begins_s: i64,
    ends_s: i64,
}

/// Those that were made, by what was wanted. Outlives reloads.
#[derive(Default)]
pub struct Held(Mutex<HashMap<Wanted, One>>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the keys.
        write!(f, "Held({})", self.0.lock().len())
    }
}

impl Held {
    /// Shows it from now on. False: it is shown already, or is none.
    pub fn show(&self, wanted: &Wanted, chain: &str, key: &str, ends_s: i64) -> bool {
        if self.0.lock().get(wanted).is_some_and(|one| one.chain == chain) {
            return false;
        }
        let read = || {
            let certificates = certificates(chain).ok()?;
            let begins_s = parsed(certificates.first()?).ok()?.validity().not_before.timestamp();
            let key = CertifiedKey::new(certificates, signing_key(&pem_key(key).ok()?).ok()?);
            key.keys_match().ok()?;
            Some(One { key: Arc::new(key), chain: chain.to_owned(), begins_s, ends_s })
        };
        match read() {
            Some(one) => self.0.lock().insert(wanted.clone(), one).is_none_or(|_| true),
            None => {
                tracing::error!(names = wanted.names.join(", "), "the certificate that is kept makes no sense");
                false
            }
        }
    }

    /// The one that is shown.
    pub fn get(&self, wanted: &Wanted) -> Option<Arc<CertifiedKey>> {
        self.0.lock().get(wanted).map(|one| Arc::clone(&one.key))
    }

    /// When it begins, in seconds since 1970.
    pub fn begins(&self, wanted: &Wanted) -> Option<i64> {
        self.0.lock().get(wanted).map(|one| one.begins_s)
    }

    /// When it ends.
    pub fn ends(&self, wanted: &Wanted) -> Option<i64> {
        self.0.lock().get(wanted).map(|one| one.ends_s)
    }
}

/// When the first certificate of a chain ends, in seconds since 1970.
pub fn not_after_s(chain: &str) -> Result<i64, String> {
    let all = certificates(chain).map_err(|_| "the CA has sent something else than certificates")?;
    let first = all.first().ok_or("the CA has sent no certificate")?;
    parsed(first).map(|one| one.validity().not_after.timestamp()).map_err(|invalid| invalid.message)
}

/// TLS-ALPN-01: a certificate that signs itself, for that name alone, with the digest that shows who has it (RFC 8737, section 3).
pub fn challenge_config(name: &str, digest: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let wrong = |e: &dyn std::fmt::Display| e.to_string();
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|e| wrong(&e))?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(|e| wrong(&e))?;
    let certificate = params.self_signed(&key).map_err(|e| wrong(&e))?;
    let builder =
        ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions().map_err(|e| wrong(&e))?;
    let secret = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| wrong(&e))?;
    // Without the look at it that rustls takes otherwise: it has an extension that is critical, and known to few.
    let shown = CertifiedKey::new(vec![certificate.der().clone()], signing_key(&secret).map_err(|invalid| invalid.message)?);
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The protocol by which the CA comes.
pub const ALPN: &[u8] = b"acme-tls/1";
