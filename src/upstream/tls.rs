//! TLS towards servers: trusted CAs, revocation, and the client certificate. Handshakes are
//! Pingora's.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use keylatch_filters::contract::{Invalid, Resolve};
use pingora::protocols::Digest;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};

use crate::config::Files;
use crate::config::model::{CertificateFiles, Tls as UpstreamTlsConfig};
use crate::util::pem;

/// The compiled section `tls` of an upstream.
#[derive(Default)]
pub struct Tls {
    /// The trusted CA certificates. `None`: those of the system.
    pub ca: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    /// The serial numbers of revoked certificates, in Pingora's format.
    revoked: HashSet<String>,
    /// The pool group: connections are reused only with equal TLS settings, of which Pingora
    /// compares only the name.
    group: u64,
}

impl Tls {
    /// Reads the files.
    pub fn compile(config: &UpstreamTlsConfig, files: &Files) -> Result<Self, Invalid> {
        let mut hasher = DefaultHasher::new();
        format!("{config:?}").hash(&mut hasher);
        let mut file = |path: &String, key: &str| {
            let text = if key == "key_file" { files.secret_file(path) } else { files.file(path) };
            text.inspect(|text| text.hash(&mut hasher)).map_err(|invalid| invalid.at(key))
        };
        let ca = match &config.ca_file {
            Some(path) => {
                let text = file(path, "ca_file")?;
                // Validated here, so that errors are found before a connection.
                pem::roots(&text).map_err(|invalid| invalid.at("ca_file"))?;
                let all = pem::certificates(&text).map_err(|invalid| invalid.at("ca_file"))?;
                Some(all.iter().map(|one| WrappedX509::new(one.to_vec(), parse_x509)).collect::<Arc<CaType>>())
            }
            None => None,
        };
        let revoked = match &config.revoked_file {
            Some(path) => pem::revoked_serials(&file(path, "revoked_file")?).map_err(|invalid| invalid.at("revoked_file"))?,
            None => HashSet::new(),
        };
        let client = match &config.client_certificate {
            Some(CertificateFiles { chain_file, key_file }) => {
                let wrong = |key: &'static str| move |invalid: Invalid| invalid.at(key).at("client_certificate");
                let chain = file(chain_file, "chain_file").map_err(|invalid| invalid.at("client_certificate"))?;
                let chain = pem::certificates(&chain).map_err(wrong("chain_file"))?;
                let key = file(key_file, "key_file").map_err(|invalid| invalid.at("client_certificate"))?;
                let key = pem::client_key(&key, &chain).map_err(wrong("key_file"))?;
                Some(Arc::new(CertKey::new(chain.iter().map(|one| one.to_vec()).collect(), key.secret_der().to_vec())))
            }
            None => None,
        };
        Ok(Self { ca, client, revoked, group: hasher.finish() })
    }

    /// Applies the settings to a connection.
    pub fn apply(&self, peer: &mut HttpPeer) {
        peer.options.ca.clone_from(&self.ca);
        peer.client_cert_key.clone_from(&self.client);
        peer.group_key = self.group;
    }

    /// Whether the server certificate of a connection was revoked.
    pub fn is_revoked(&self, digest: Option<&Digest>) -> bool {
        if self.revoked.is_empty() {
            return false;
        }
        let serial = digest.and_then(|digest| digest.ssl_digest.as_ref()?.serial_number.as_ref());
        serial.is_none_or(|serial| self.revoked.contains(serial))
    }
}
