//! The part of [`super::model`] about listeners.

use std::net::SocketAddr;

use keylatch_filters::contract::{ByteSize, HumanDuration, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// A place where requests come in. Its address and limits need a restart; the rest is in force for the next connection.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// The address to listen on: `127.0.0.1:8080`, `[::]:8080`.
    pub address: SocketAddr,
    /// Whether HTTP/2 in clear is spoken to clients that open with its preface. Default: true.
    #[serde(default = "yes")]
    pub h2c: bool,
    /// Speak TLS, and nothing else.
    pub tls: Option<ListenerTls>,
    /// Networks of balancers that begin each connection with a header of the PROXY protocol, version 1 or 2: whom it names
    /// is the peer from then on. They must; others are not asked, and cannot. Default: none.
    #[serde(default)]
    pub proxy_protocol: Vec<String>,
    /// Whether repeated slashes in a path are one, in matching and on the way upstream. Default: true. With false they stay in both,
    /// which is safe only if no upstream merges them: `/v1//admin` passes a rule about `/v1/admin`. A path that begins with `//`, or
    /// has both repeated slashes and dot segments, is then refused.
    #[serde(default = "yes")]
    pub merge_slashes: bool,
    /// What happens to header fields with an underscore in their names, which many applications take for the ones with a dash.
    /// Default: `drop`.
    #[serde(default)]
    pub underscores_in_headers: Underscores,
    /// A secret that whoever is in front adds to each request; without it a request is refused with 403.
    pub origin_secret: Option<OriginSecret>,
    /// What a client may ask for at most.
    #[serde(default)]
    pub limits: Limits,
}

impl Listener {
    /// What is settled when the process starts.
    pub fn at_start(&self) -> (SocketAddr, bool, &Limits) {
        (self.address, self.h2c, &self.limits)
    }
}

/// What happens to header fields with an underscore in their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Underscores {
    /// They are removed and counted.
    #[default]
    Drop,
    /// They are passed on, but for those that resemble a field by which a client or a message is judged, or that stands beside it.
    Allow,
    /// The request is refused with 400.
    Refuse,
}

/// TLS towards clients. All files are PEM, at most 1 MiB, and read anew when they change.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// The certificates. The one whose names cover the name that is asked for (SNI) is shown, an exact name before a
    /// wildcard, and the first of them where none does or no name is asked for.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// The names of one certificate more, which is had made by `acme`. It is shown for these names, and where no other fits.
    #[serde(default)]
    pub acme: Vec<String>,
    /// The least version that is spoken. Default: `1.2`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Offer HTTP/2 (by ALPN). Default: true.
    #[serde(default = "yes")]
    pub http2: bool,
    /// Ask clients for certificates.
    pub client_certificates: Option<ClientCertificates>,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, then those that lead to its CA.
    pub chain_file: String,
    /// Its key: PKCS #8, PKCS #1 or SEC1.
    pub key_file: String,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3 only.
    #[serde(rename = "1.3")]
    V1_3,
}

/// Certificates of clients, such as those of Cloudflare's Authenticated Origin Pulls.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// The certificates of the CAs that may have signed them.
    pub ca_file: String,
    /// Lists of those that were revoked (CRLs, in PEM): one for each CA that signs, or what that CA has signed is refused.
    pub revoked_file: Option<String>,
    /// Whether a client must show one. Default: `required`.
    #[serde(default)]
    pub presented: Presented,
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Presented {
    /// Without one there is no connection.
    #[default]
    Required,
    /// One that is shown must be good; the filter `client_certificate` says where one is needed.
    Optional,
}

/// A secret that Cloudflare, Caddy or whoever is in front adds to each request.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OriginSecret {
    /// The header field it comes in; it is taken out before anybody else sees it. Default: `x-origin-secret`.
    #[serde(default = "origin_header")]
    pub header: String,
    /// The secrets that are good, at least 16 bytes each: more than one while one takes the place of the other.
    pub values: Vec<SecretRef>,
    /// What is believed of a request that has it, whoever the peer is. Default: `nothing`.
    #[serde(default)]
    pub vouches_for: Vouches,
}

/// What a request with the origin's secret is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Vouches {
    /// Nothing more than without: `trusted_proxies` says whose word is taken.
    #[default]
    Nothing,
    /// The client's address in `X-Forwarded-For` and its like, as from a trusted proxy.
    Forwarded,
    /// That it comes from Cloudflare, whose `CF-Connecting-IP` is the client's address.
    Cloudflare,
}

/// Limits of a listener.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The size of a request's header, at most 512KiB. Default: 32KiB. Past it: 431.
    pub header_bytes: ByteSize,
    /// The number of its fields, at most 256. Default: 100. Past it: 431.
    pub headers: usize,
    /// How long it may take to arrive, from its first byte. Default: 10s. Past it: 408.
    pub header_timeout: HumanDuration,
    /// The size of a request's body. Default: 64MiB. Past it: 413.
    pub body_bytes: ByteSize,
    /// How long a client may send nothing in the middle of a body. Default: 30s. Past it: 408.
    pub body_timeout: HumanDuration,
    /// The least rate of a request's body on average, in bytes a second, while the client is waited for; 0: none. The body has
    /// `body_timeout` whatever its rate, and the rate is not asked for once the response has begun. Default: 100B. Below it: 408.
    pub body_min_rate: ByteSize,
    /// How long one write to a client that does not read may take. Default: 60s. Past it the client is cut off.
    pub write_timeout: HumanDuration,
    /// How long a connection may be idle between requests, 1s to 1h. Default: 75s.
    pub idle_timeout: HumanDuration,
    /// How long nobody may say anything on a connection that has become a WebSocket, 1s to 24h. Default: 10min. No other protocol is
    /// upgraded to: such requests are answered as if they had not asked.
    pub upgrade_idle_timeout: HumanDuration,
    /// How long a connection is still read after its last response, so that the client gets the response while it sends its body.
    /// 100ms to 10min. Default: 30s. Past it the connection is reset.
    pub lingering_time: HumanDuration,
    /// How long the client may send nothing in that time. 100ms to 10min. Default: 5s. Past it the connection is closed.
    pub lingering_timeout: HumanDuration,
    /// How many bytes are read and discarded in that time. Default: 64MiB. Past it the connection is reset.
    pub lingering_bytes: ByteSize,
    /// Connections in all. Default: 20000. Past it, new ones are closed.
    pub connections: usize,
    /// Connections of one peer address. Default: 20000: behind a proxy all come from one peer.
    pub connections_per_peer: usize,
    /// The longest wait that a 429 of ours asks clients to sit out, at most 24h: one whose `Retry-After` is longer carries
    /// `x-should-retry: false`, since some client libraries otherwise sleep for all of it. Default: 60s.
    pub client_retry_max: HumanDuration,
    /// Requests on one HTTP/1 connection before it is closed. Default: 10000.
    pub requests_per_connection: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: ByteSize::kib(32),
            headers: 100,
            header_timeout: HumanDuration::secs(10),
            body_bytes: ByteSize::mib(64),
            body_timeout: HumanDuration::secs(30),
            body_min_rate: ByteSize(100),
            write_timeout: HumanDuration::secs(60),
            idle_timeout: HumanDuration::secs(75),
            upgrade_idle_timeout: HumanDuration::secs(600),
            lingering_time: HumanDuration::secs(30),
            lingering_timeout: HumanDuration::secs(5),
            lingering_bytes: ByteSize::mib(64),
            connections: 20_000,
            connections_per_peer: 20_000,
            client_retry_max: HumanDuration::secs(60),
            requests_per_connection: 10_000,
        }
    }
}

fn yes() -> bool {
    true
}

fn origin_header() -> String {
    "x-origin-secret".into()
}
