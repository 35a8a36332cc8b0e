//! How an exchange came in, as the listener knows it.

use std::sync::Arc;

/// Stated for exchanges of which there is something to say; without it the connection is in clear and nobody vouches for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// TLS was spoken with us.
    pub tls: bool,
    /// The certificate that the other end of the connection has shown, found good by the listener.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// What the origin's secret vouches for.
    pub vouched: Vouched,
}

/// What is believed of an exchange because of a secret in it, whoever the peer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vouched {
    /// Nothing more.
    #[default]
    Nothing,
    /// The client's address in fields such as `X-Forwarded-For`.
    Forwarded,
    /// That, and that Cloudflare has sent it.
    Cloudflare,
}

/// A client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    /// When it ends, in seconds since 1970.
    pub not_after_s: i64,
    /// Its serial number, in hex.
    pub serial: String,
    /// The first common name of its subject.
    pub common_name: Option<String>,
    /// The DNS names it is for, in lower case.
    pub dns: Vec<String>,
    /// The addresses of mail it is for.
    pub email: Vec<String>,
    /// The URIs it is for, such as SPIFFE's.
    pub uri: Vec<String>,
}
