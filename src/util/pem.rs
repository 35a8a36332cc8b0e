//! PEM in, what TLS needs out; each error says what was looked for and not what was found.

use std::collections::HashSet;
use std::sync::Arc;

use keylatch_filters::contract::Invalid;
use rustls::RootCertStore;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

/// All certificates of a file, each of which can be read; at least one.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.ok().filter(|all| !all.is_empty()).ok_or_else(|| Invalid::new("the file holds no certificate in PEM"))?;
    all.iter().try_for_each(|one| parsed(one).map(|_| ()))?;
    Ok(all)
}

/// What stands in a certificate.
pub fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Invalid> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| Invalid::new("a certificate in the file cannot be read"))?;
    if rest.is_empty() { Ok(parsed) } else { Err(Invalid::new("there is something behind a certificate in the file")) }
}

/// The CAs of a file.
pub fn roots(text: &str) -> Result<Arc<RootCertStore>, Invalid> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(text)? {
        store.add(certificate).map_err(|e| Invalid::new(format!("a certificate in the file can be no CA: {e}")))?;
    }
    Ok(Arc::new(store))
}

/// The private key of a file.
pub fn key(text: &str) -> Result<PrivateKeyDer<'static>, Invalid> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| Invalid::new("the file holds no private key in PEM without a passphrase"))
}

/// A key to sign with.
pub fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Invalid> {
    any_supported_type(key).map_err(|_| Invalid::new("a key of this kind is not supported; RSA, ECDSA P-256 or P-384, and Ed25519 are"))
}

/// The private key of a certificate that we show to servers, if it is that certificate's.
pub fn client_key(text: &str, chain: &[CertificateDer<'static>]) -> Result<PrivateKeyDer<'static>, Invalid> {
    let found = key(text)?;
    let certified = rustls::sign::CertifiedKey::new(chain.to_vec(), signing_key(&found)?);
    certified.keys_match().map_err(|_| Invalid::new("the key is not that of the certificate"))?;
    Ok(found)
}

/// The lists of revoked certificates of a file; at least one.
pub fn revocations(text: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, Invalid> {
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(text.as_bytes()).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(|| Invalid::new("the file holds no list of revoked certificates (X509 CRL) in PEM"))
}

/// The serial numbers in the lists of revoked certificates of a file, in hex with colons.
pub fn revoked_serials(text: &str) -> Result<HashSet<String>, Invalid> {
    let mut serials = HashSet::new();
    for list in revocations(text)? {
        let (_, list) = CertificateRevocationList::from_der(&list)
            .map_err(|_| Invalid::new("a list of revoked certificates in the file cannot be read"))?;
        serials.extend(list.iter_revoked_certificates().map(|one| one.raw_serial_as_string()));
    }
    Ok(serials)
}

/// When the first of the lists of revoked certificates of a file should have been followed by another, in seconds since 1970, as far
/// as they say.
pub fn lists_end_s(text: &str) -> Option<i64> {
    let all = revocations(text).ok()?;
    let ends = all.iter().filter_map(|list| CertificateRevocationList::from_der(list).ok()?.1.next_update());
    ends.map(|end| end.timestamp()).min()
}
