//! The server certificates of a listener, chosen by SNI. ACME orders belong to `acme`.

use std::collections::HashMap;
use std::sync::Arc;

use keylatch_filters::contract::Invalid;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;

use crate::acme::{AcmeCertificates, WantedCertificate};
use crate::config::Files;
use crate::config::model::CertificateFiles;
use crate::util::pem;

/// A server certificate from files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCertificate {
    /// Its DNS names.
    pub names: Vec<String>,
    /// Its `notAfter`, in seconds since 1970.
    pub not_after_s: i64,
}

/// The certificates by name.
#[derive(Debug)]
pub struct Certificates {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
    made: Option<(Arc<AcmeCertificates>, WantedCertificate)>,
}

impl Certificates {
    /// Reads the certificates from their files.
    pub fn compile(
        config: &[CertificateFiles],
        made: Option<(Arc<AcmeCertificates>, WantedCertificate)>,
        files: &Files,
    ) -> Result<(Self, Vec<ServerCertificate>), Vec<Invalid>> {
        let (mut wrong, mut all, mut shown) = (Vec::new(), Vec::new(), Vec::new());
        for (index, one) in config.iter().enumerate() {
            match read(one, files) {
                Ok((key, certificate)) => {
                    all.push((Arc::new(key), certificate.names.clone()));
                    shown.push(certificate);
                }
                Err(invalid) => wrong.push(invalid.index(index).at("certificates")),
            }
        }
        let first = all.first().map(|(key, _)| Arc::clone(key));
        if first.is_none() && made.is_none() && wrong.is_empty() {
            wrong.push(Invalid::new("the list is empty; at least one is needed, or `acme`").at("certificates"));
        }
        let mut by_name = HashMap::new();
        for (key, names) in all {
            for name in names {
                // The first certificate with a name serves it.
                by_name.entry(name).or_insert_with(|| Arc::clone(&key));
            }
        }
        if wrong.is_empty() { Ok((Self { by_name, first, made }, shown)) } else { Err(wrong) }
    }

    /// The ACME certificate, if it includes this name or the client sent no name.
    fn made(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let (certificates, wanted) = self.made.as_ref()?;
        let name = name.or(wanted.names.first().map(String::as_str))?;
        // An earlier certificate serves until the wanted one is issued.
        if wanted.has(name) { certificates.get(wanted).or_else(|| certificates.for_name(name)) } else { None }
    }

    fn for_name(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let wildcard = || name.split_once('.').and_then(|(_, rest)| self.by_name.get(&format!("*.{rest}")));
        let exact = self.by_name.get(&name).cloned().or_else(|| self.made(Some(&name)));
        exact.or_else(|| wildcard().cloned())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.for_name(name));
        named.or_else(|| self.first.clone()).or_else(|| self.made(None))
    }
}

fn read(config: &CertificateFiles, files: &Files) -> Result<(CertifiedKey, ServerCertificate), Invalid> {
    use keylatch_filters::contract::Resolve;
    let chain = files.file(&config.chain_file).and_then(|text| pem::certificates(&text)).map_err(|e| e.at("chain_file"))?;
    let key = files.secret_file(&config.key_file).and_then(|text| pem::signing_key(&pem::key(&text)?)).map_err(|e| e.at("key_file"))?;
    let parsed = chain.first().map(pem::parsed).transpose().map_err(|e| e.at("chain_file"))?;
    let shown = parsed.map(|parsed| {
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        ServerCertificate { names: names.collect(), not_after_s: parsed.validity().not_after.timestamp() }
    });
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|_| Invalid::new("the key does not belong to the certificate").at("key_file"))?;
    Ok((certified, shown.unwrap_or(ServerCertificate { names: Vec::new(), not_after_s: 0 })))
}
