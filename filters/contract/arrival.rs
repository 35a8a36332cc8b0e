//! Facts about the connection of a request. The listener states them; filters only read them.

use std::sync::Arc;

/// How the request arrived. If the fact is absent, the connection is plain text without a certificate or origin secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The connection uses TLS.
    pub tls: bool,
    /// The certificate of the peer, verified by the listener.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The trust that the origin secret in the request grants.
    pub vouched: Vouched,
}

/// The trust that an origin secret in a request grants, independent of the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vouched {
    /// None.
    #[default]
    Nothing,
    /// The client address in fields such as `X-Forwarded-For` is trusted.
    Forwarded,
    /// The same, and the request was sent by Cloudflare.
    Cloudflare,
}

/// A client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    /// The end of its validity, in seconds since 1970.
    pub not_after_s: i64,
    /// Its serial number, in hex.
    pub serial: String,
    /// The first common name of its subject.
    pub common_name: Option<String>,
    /// The DNS names among its alternative names, in lower case.
    pub dns: Vec<String>,
    /// The email addresses among its alternative names.
    pub email: Vec<String>,
    /// The URIs among its alternative names, such as SPIFFE ids.
    pub uri: Vec<String>,
}
