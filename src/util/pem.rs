//! Reads PEM files for TLS. An error says what was expected and never quotes the file.

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

/// All certificates of a file; at least one.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.ok().filter(|all| !all.is_empty()).ok_or_else(|| Invalid::new("the file contains no PEM certificate"))?;
    all.iter().try_for_each(|one| parsed(one).map(|_| ()))?;
    Ok(all)
}

/// Parses a certificate.
pub fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Invalid> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| Invalid::new("a certificate in the file is malformed"))?;
    if rest.is_empty() { Ok(parsed) } else { Err(Invalid::new("a certificate in the file has trailing data")) }
}

/// The CA certificates of a file.
pub fn roots(text: &str) -> Result<Arc<RootCertStore>, Invalid> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(text)? {
        store.add(certificate).map_err(|e| Invalid::new(format!("a certificate in the file cannot be used as a CA: {e}")))?;
    }
    Ok(Arc::new(store))
}

/// The private key of a file.
pub fn key(text: &str) -> Result<PrivateKeyDer<'static>, Invalid> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| Invalid::new("the file contains no unencrypted PEM private key"))
}

/// A key for signing.
pub fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Invalid> {
    any_supported_type(key).map_err(|_| Invalid::new("the type of the key is not supported; use RSA, ECDSA P-256 or P-384, or Ed25519"))
}

/// The private key of a client certificate; an error if it does not belong to the certificate.
pub fn client_key(text: &str, chain: &[CertificateDer<'static>]) -> Result<PrivateKeyDer<'static>, Invalid> {
    let found = key(text)?;
    let certified = rustls::sign::CertifiedKey::new(chain.to_vec(), signing_key(&found)?);
    certified.keys_match().map_err(|_| Invalid::new("the key does not belong to the certificate"))?;
    Ok(found)
}

/// The CRLs of a file; at least one.
pub fn revocations(text: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, Invalid> {
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(text.as_bytes()).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(|| Invalid::new("the file contains no PEM certificate revocation list (X509 CRL)"))
}

/// The serial numbers in the CRLs of a file, in hex with colons.
pub fn revoked_serials(text: &str) -> Result<HashSet<String>, Invalid> {
    let mut serials = HashSet::new();
    for list in revocations(text)? {
        let (_, list) = CertificateRevocationList::from_der(&list)
            .map_err(|_| Invalid::new("a certificate revocation list in the file is malformed"))?;
        serials.extend(list.iter_revoked_certificates().map(|one| one.raw_serial_as_string()));
    }
    Ok(serials)
}

/// The earliest `nextUpdate` of the CRLs of a file, in seconds since 1970.
pub fn lists_end_s(text: &str) -> Option<i64> {
    let all = revocations(text).ok()?;
    let ends = all.iter().filter_map(|list| CertificateRevocationList::from_der(list).ok()?.1.next_update());
    ends.map(|end| end.timestamp()).min()
}
