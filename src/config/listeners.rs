//! The `listeners` section of [`super::model`]. Opens no socket; `crate::listener` does.

use std::net::SocketAddr;

use keylatch_filters::contract::{ByteSize, HumanDuration, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// A listening address. The address, `h2c` and the limits need a restart; the rest takes effect for
/// new connections.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// The listen address: `127.0.0.1:8080`, `[::]:8080`.
    pub address: SocketAddr,
    /// Whether clients may use HTTP/2 without TLS by its preface. Default: true.
    #[serde(default = "yes")]
    pub h2c: bool,
    /// TLS. Without this section the listener speaks plain HTTP.
    pub tls: Option<ListenerTls>,
    /// Networks of load balancers that send a PROXY protocol header (version 1 or 2). The address
    /// in it becomes the peer. Connections from these networks must send one; others must not.
    /// Default: none.
    #[serde(default)]
    pub proxy_protocol: Vec<String>,
    /// Whether repeated slashes in a path are merged, for matching and for the upstream. Default:
    /// true. With false they stay in both, which is safe only if no upstream merges them:
    /// `/v1//admin` passes a rule about `/v1/admin`. A path that begins with `//`, or has both
    /// repeated slashes and dot segments, is then refused.
    #[serde(default = "yes")]
    pub merge_slashes: bool,
    /// Header fields with an underscore in their names, which many applications treat as a dash.
    /// Default: `drop`.
    #[serde(default)]
    pub underscores_in_headers: Underscores,
    /// A secret that the proxy in front adds to each request. A request without it gets 403.
    pub origin_secret: Option<OriginSecret>,
    /// Limits of connections and requests.
    #[serde(default)]
    pub limits: Limits,
}

impl Listener {
    /// The values that are fixed at the start of the process.
    pub fn at_start(&self) -> (SocketAddr, bool, &Limits) {
        (self.address, self.h2c, &self.limits)
    }
}

/// The handling of header fields with an underscore in their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Underscores {
    /// The fields are removed and counted.
    #[default]
    Drop,
    /// The fields are passed on. A field is removed and counted if the request also has its name
    /// with dashes, or if that name identifies a client or a request, such as `x-real-ip`, or
    /// frames the body.
    Allow,
    /// The request is refused with 400.
    Refuse,
}

/// TLS towards clients. All files are PEM, at most 1 MiB, and reloaded when they change.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// The certificates. The one that covers the requested name (SNI) is used, an exact name before
    /// a wildcard. The first one is used if none covers it, or without SNI.
    #[serde(default)]
    pub certificates: Vec<CertificateFiles>,
    /// The names of a certificate that `acme` requests. It is used for these names, and if no other
    /// certificate fits.
    #[serde(default)]
    pub acme: Vec<String>,
    /// The minimum TLS version. Default: `1.2`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Whether HTTP/2 is offered by ALPN. Default: true.
    #[serde(default = "yes")]
    pub http2: bool,
    /// Requests client certificates.
    pub client_certificates: Option<ClientCertificates>,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, followed by the intermediate certificates.
    pub chain_file: String,
    /// The private key: PKCS #8, PKCS #1 or SEC1.
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

/// Client certificates, such as those of Cloudflare's Authenticated Origin Pulls.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// CA certificates that client certificates are verified with.
    pub ca_file: String,
    /// Certificate revocation lists (CRLs, in PEM): one for each issuing CA. Certificates of a CA
    /// without a CRL are refused.
    pub revoked_file: Option<String>,
    /// Whether a client must present a certificate. Default: `required`.
    #[serde(default)]
    pub presented: Presented,
}

/// Whether a client must present a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Presented {
    /// A connection without one is refused.
    #[default]
    Required,
    /// A presented certificate must be valid; the filter `client_certificate` requires one where
    /// needed.
    Optional,
}

/// A secret that the proxy in front (Cloudflare, Caddy) adds to each request.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OriginSecret {
    /// The header field with the secret. It is removed before filters and upstreams see the
    /// request. Default: `x-origin-secret`.
    #[serde(default = "origin_header")]
    pub header: String,
    /// The accepted secrets, at least 16 bytes each; two during a rotation.
    pub values: Vec<SecretRef>,
    /// What the secret proves, whatever the peer's address. Default: `nothing`.
    #[serde(default)]
    pub vouches_for: Vouches,
}

/// What a request with the origin secret is trusted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Vouches {
    /// Nothing more: `trusted_proxies` decides which peers are trusted.
    #[default]
    Nothing,
    /// The client address in `X-Forwarded-For` and similar fields, as from a trusted proxy.
    Forwarded,
    /// That it comes from Cloudflare: `CF-Connecting-IP` is the client address.
    Cloudflare,
}

/// Limits of a listener.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The maximum size of a request header, at most 512KiB. Default: 32KiB. Above it: 431.
    pub header_bytes: ByteSize,
    /// The maximum number of header fields, at most 256. Default: 100. Above it: 431.
    pub headers: usize,
    /// The time limit of a request header, from its first byte. Default: 10s. After it: 408.
    pub header_timeout: HumanDuration,
    /// The maximum size of a request body. Default: 64MiB. Above it: 413.
    pub body_bytes: ByteSize,
    /// How much of a request body may be read ahead of the upstream, for rules that use
    /// `request.model`, at most 64MiB. Default: 4MiB.
    pub read_ahead_bytes: ByteSize,
    /// The memory that all bodies of this listener may use for that at the same time. Default:
    /// 256MiB.
    pub read_ahead_total_bytes: ByteSize,
    /// The longest pause of a client within a body. Default: 30s. After it: 408.
    pub body_timeout: HumanDuration,
    /// The minimum average rate of a request body, in bytes per second, while Keylatch waits for
    /// the client; 0: none. It applies after `body_timeout`, and no longer once the response has
    /// begun. Default: 100B. Below it: 408.
    pub body_min_rate: ByteSize,
    /// The time limit of one write to a client that does not read. Default: 60s. After it the
    /// connection is closed.
    pub write_timeout: HumanDuration,
    /// How long a connection may be idle between requests, 1s to 1h. Default: 75s.
    pub idle_timeout: HumanDuration,
    /// How long a WebSocket may be idle in both directions, 1s to 24h. Default: 10min. Requests to
    /// upgrade to another protocol are answered as ordinary requests.
    pub upgrade_idle_timeout: HumanDuration,
    /// How long a connection is read after its last response, so that a client that is still
    /// sending its body receives the response. 100ms to 10min. Default: 30s. After it the
    /// connection is reset.
    pub lingering_time: HumanDuration,
    /// The longest pause of the client in that time. 100ms to 10min. Default: 5s. After it the
    /// connection is closed.
    pub lingering_timeout: HumanDuration,
    /// The maximum number of bytes read and discarded in that time. Default: 64MiB. Above it the
    /// connection is reset.
    pub lingering_bytes: ByteSize,
    /// The maximum number of connections. Default: 20000. New ones above it are closed.
    pub connections: usize,
    /// The maximum number of connections of one peer address. Default: 20000: behind a proxy all
    /// connections have the same peer.
    pub connections_per_peer: usize,
    /// The longest wait that clients are asked for, at most 24h. A 429 of Keylatch with a longer
    /// `Retry-After` gets `x-should-retry: false`, because some client libraries sleep for the
    /// whole time. Default: 60s.
    pub client_retry_max: HumanDuration,
    /// The maximum number of requests on an HTTP/1 connection, after which it is closed. Default:
    /// 10000.
    pub requests_per_connection: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: ByteSize::kib(32),
            headers: 100,
            header_timeout: HumanDuration::secs(10),
            body_bytes: ByteSize::mib(64),
            read_ahead_bytes: ByteSize::mib(4),
            read_ahead_total_bytes: ByteSize::mib(256),
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
