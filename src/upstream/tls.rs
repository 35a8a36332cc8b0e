//! TLS towards servers: who may have signed their certificates, which of those were revoked, and what is shown to them.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use keylatch_filters::contract::{Invalid, Resolve};
use pingora::protocols::Digest;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};

use crate::config::Files;
use crate::config::model::{CertificateFiles, Tls as Config};
use crate::util::pem;

/// What is needed for a handshake.
#[derive(Default)]
pub struct Tls {
    /// `None`: the system's.
    pub ca: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    /// Serial numbers, as Pingora writes them.
    revoked: HashSet<String>,
    /// Connections are used again only where all of this is the same: Pingora looks at the name alone.
    group: u64,
}

impl Tls {
    /// Reads the files.
    pub fn compile(config: &Config, files: &Files) -> Result<Self, Invalid> {
        let mut hasher = DefaultHasher::new();
        format!("{config:?}").hash(&mut hasher);
        let mut file = |path: &String, key: &str| {
            let text = if key == "key_file" { files.secret_file(path) } else { files.file(path) };
            text.inspect(|text| text.hash(&mut hasher)).map_err(|invalid| invalid.at(key))
        };
        let ca = match &config.ca_file {
            Some(path) => {
                let text = file(path, "ca_file")?;
                // Looked at once here, so that no connection fails for it.
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

    /// How a server is spoken to.
    pub fn apply(&self, peer: &mut HttpPeer) {
        peer.options.ca.clone_from(&self.ca);
        peer.client_cert_key.clone_from(&self.client);
        peer.group_key = self.group;
    }

    /// Whether the certificate of the server at the other end was revoked.
    pub fn is_revoked(&self, digest: Option<&Digest>) -> bool {
        if self.revoked.is_empty() {
            return false;
        }
        let serial = digest.and_then(|digest| digest.ssl_digest.as_ref()?.serial_number.as_ref());
        serial.is_none_or(|serial| self.revoked.contains(serial))
    }
}
