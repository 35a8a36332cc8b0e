//! Certificates that were made, as listeners show them, and the one that answers a challenge.

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

use super::storage::Kept;
use crate::util::pem::{certificates, key as pem_key, parsed, signing_key};
use crate::util::time::millis;

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

impl One {
    fn read(chain: &str, key: &str) -> Result<Self, String> {
        let certificates = certificates(chain).map_err(|_| "the chain is not one of certificates")?;
        let first = certificates.first().ok_or("the chain is empty")?;
        let (begins_s, ends_s) = {
            let about = parsed(first).map_err(|invalid| invalid.message)?;
            (about.validity().not_before.timestamp(), about.validity().not_after.timestamp())
        };
        let key = pem_key(key).and_then(|key| signing_key(&key)).map_err(|invalid| invalid.message)?;
        let key = CertifiedKey::new(certificates, key);
        key.keys_match().map_err(|_| "the certificate is another key's")?;
        Ok(Self { key: Arc::new(key), chain: chain.to_owned(), begins_s, ends_s })
    }
}

/// Looks at what a CA has sent, before anybody relies on it: it is of this key, for these names, and has not ended. When it ends.
pub fn look_at(chain: &str, key: &str, names: &[String]) -> Result<i64, String> {
    let one = One::read(chain, key).map_err(|why| format!("what the CA has sent makes no sense: {why}"))?;
    let certificate = one.key.end_entity_cert().map_err(|e| e.to_string())?;
    let certificate = ParsedCertificate::try_from(certificate).map_err(|e| e.to_string())?;
    for name in names {
        let server = ServerName::try_from(name.as_str()).map_err(|e| e.to_string())?;
        verify_server_name(&certificate, &server).map_err(|_| format!("the CA has sent a certificate that is not for {name}"))?;
    }
    match one.ends_s > millis(SystemTime::now()) / 1000 {
        true => Ok(one.ends_s),
        false => Err("the CA has sent a certificate that has ended: see whether this machine's clock is right".into()),
    }
}

/// When the first certificate of a chain begins, in seconds since 1970.
pub fn begins_s(chain: &str) -> Option<i64> {
    let all = certificates(chain).ok()?;
    Some(parsed(all.first()?).ok()?.validity().not_before.timestamp())
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
    pub fn show(&self, wanted: &Wanted, kept: &Kept) -> bool {
        if self.0.lock().get(wanted).is_some_and(|one| one.chain == kept.chain) {
            return false;
        }
        match One::read(&kept.chain, &kept.key) {
            Ok(one) => {
                self.0.lock().insert(wanted.clone(), one);
                true
            }
            Err(why) => {
                tracing::error!(names = wanted.names.join(", "), why, "the certificate that is kept makes no sense");
                false
            }
        }
    }

    /// The one that lasts longest of those for this name that have not ended, whatever else they are for.
    pub fn of_name(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let now_s = millis(SystemTime::now()) / 1000;
        let all = self.0.lock();
        let good = all.iter().filter(|(wanted, one)| wanted.has(name) && one.ends_s > now_s);
        good.max_by_key(|(_, one)| one.ends_s).map(|(_, one)| Arc::clone(&one.key))
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
