//! The certificates a listener shows, chosen by the name that is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use keylatch_filters::contract::Invalid;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;

use crate::acme::{Held, Wanted};
use crate::config::Files;
use crate::config::model::CertificateFiles;
use crate::util::pem;

/// A certificate that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its names.
    pub names: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub not_after_s: i64,
}

/// By name.
#[derive(Debug)]
pub struct Certificates {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
    made: Option<(Arc<Held>, Wanted)>,
}

impl Certificates {
    /// Reads them.
    pub fn compile(
        config: &[CertificateFiles],
        made: Option<(Arc<Held>, Wanted)>,
        files: &Files,
    ) -> Result<(Self, Vec<Shown>), Vec<Invalid>> {
        let (mut wrong, mut all, mut shown) = (Vec::new(), Vec::new(), Vec::new());
        for (index, one) in config.iter().enumerate() {
            match read(one, files) {
                Ok((key, about)) => {
                    all.push((Arc::new(key), about.names.clone()));
                    shown.push(about);
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
                // The first that has a name keeps it.
                by_name.entry(name).or_insert_with(|| Arc::clone(&key));
            }
        }
        if wrong.is_empty() { Ok((Self { by_name, first, made }, shown)) } else { Err(wrong) }
    }

    /// The one that was made, if it is for this name, or no name was asked for.
    fn made(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let (held, wanted) = self.made.as_ref()?;
        let name = name.or(wanted.names.first().map(String::as_str))?;
        // One for other names too, until the one that is wanted was made.
        if wanted.has(name) { held.get(wanted).or_else(|| held.of_name(name)) } else { None }
    }

    fn of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let wildcard = || name.split_once('.').and_then(|(_, rest)| self.by_name.get(&format!("*.{rest}")));
        let exact = self.by_name.get(&name).cloned().or_else(|| self.made(Some(&name)));
        exact.or_else(|| wildcard().cloned())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.of(name));
        named.or_else(|| self.first.clone()).or_else(|| self.made(None))
    }
}

fn read(config: &CertificateFiles, files: &Files) -> Result<(CertifiedKey, Shown), Invalid> {
    use keylatch_filters::contract::Resolve;
    let chain = files.file(&config.chain_file).and_then(|text| pem::certificates(&text)).map_err(|e| e.at("chain_file"))?;
    let key = files.secret_file(&config.key_file).and_then(|text| pem::signing_key(&pem::key(&text)?)).map_err(|e| e.at("key_file"))?;
    let about = chain.first().map(pem::parsed).transpose().map_err(|e| e.at("chain_file"))?;
    let shown = about.map(|about| {
        let alternative = about.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        Shown { names: names.collect(), not_after_s: about.validity().not_after.timestamp() }
    });
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|_| Invalid::new("the key does not belong to the certificate").at("key_file"))?;
    Ok((certified, shown.unwrap_or(Shown { names: Vec::new(), not_after_s: 0 })))
}
