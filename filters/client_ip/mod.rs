//! # client_ip
//!
//! Determines the client address, which bindings, limits and rules then use. Header fields count
//! only if the peer is one of `trusted_proxies`; the fields of every other peer are ignored. In
//! both cases the filter removes them and sends the upstream one clean `X-Forwarded-For`,
//! `X-Real-IP` and `X-Forwarded-Proto`.
//!
//! ```yaml
//! client_ip:
//!   sources: [cf-connecting-ip, x-forwarded-for]
//!   on_missing: peer
//! ```
//!
//! ## Sources
//!
//! The sources are tried in order. The first one that yields an address decides:
//!
//! - `cf-connecting-ip` counts only if the peer is a Cloudflare address, or a trusted proxy that is
//!   listed under `trusted_proxies.behind_cloudflare`. For such a proxy, the last hop in
//!   `X-Forwarded-For` must also be an address of Cloudflare or of that list. A client that reaches
//!   the proxy without Cloudflare therefore cannot forge its address.
//! - `x-real-ip` must occur once, with one address.
//! - `x-forwarded-for` and `forwarded` (RFC 7239) are read from the right. Trusted addresses are
//!   skipped; the first address that is not trusted is the client. Entries further left may be
//!   written by the client and are ignored. If an entry is not an address, the client is the last
//!   trusted address to the right of it.
//!
//! Empty entries are skipped. If the last entry of a list is unreadable, the list yields no address
//! and later sources are not tried. At most 64 entries are read, from the right.
//!
//! ## No address from a trusted proxy
//!
//! If the peer is a trusted proxy and no source yields an address, `on_missing` decides:
//!
//! - `peer` uses the address of the proxy. All keys of its clients then bind to the proxy. Such
//!   requests are counted in `keylatch_client_unnamed_total`, logged once as a warning, and have
//!   `client_source: unnamed` in the access log.
//! - `refuse` answers with 400. This includes health checks that the proxy sends itself.
//!
//! ## Cloudflare Workers
//!
//! Cloudflare Workers send requests to other zones from one network (`2a06:98c0:3600::/48`) and
//! name their zone in `CF-Worker`. The filter gives the Workers of each zone an address of their
//! own, `2a06:98c7:…::`, so that bindings and limits distinguish the zones. The `client_source` is
//! then `cf-worker`.
//!
//! ## Fields for the upstream
//!
//! `X-Forwarded-Proto` has the scheme that the client used with the first trusted proxy. It is read
//! from `X-Forwarded-Proto` or from `proto=` in `Forwarded`, at the position of the client address
//! in the list. Without a trusted proxy, it is the scheme of the connection.
//!
//! Proxies and platforms also state clients, users, schemes and targets in other fields, and many
//! upstreams trust them. `X-Original-URL` and `X-HTTP-Method-Override`, for example, make an
//! upstream serve another request than the one that was checked. Such fields reach the upstream
//! only from a trusted proxy. `proxy_fields` adds names to the list (`add`) or removes names from
//! it (`keep`):
//!
//! ```yaml
//! client_ip:
//!   proxy_fields: {add: [x-tenant-*], keep: [x-http-method-override]}
//! ```
//!
//! Replaced or removed for every peer: `CF-Connecting-IP`, `CF-Connecting-IPv6`, `CF-Pseudo-IPv4`,
//! `Client-IP`, `Fastly-Client-IP`, `Forwarded`, `True-Client-IP`, `X-Client-IP`,
//! `X-Cluster-Client-IP`, `X-Envoy-External-Address`, `X-Forwarded`, `X-Forwarded-For`,
//! `X-Original-Forwarded-For`, `X-Real-IP`.
//!
//! Removed unless a trusted proxy has sent them:
//!
//! - Addresses: `Ali-CDN-Real-IP`, `CDN-Real-IP`, `CDN-Src-IP`, `CF-IPCountry`,
//!   `CloudFront-Viewer-*`, `DO-Connecting-IP`, `EO-Connecting-IP`, `Fly-Client-IP`,
//!   `Forwarded-For`, `Forwarded-For-IP`, `Incap-Client-IP`, `Proxy-Client-IP`,
//!   `WL-Proxy-Client-IP`, `X-AppEngine-*`, `X-Azure-ClientIP`, `X-Azure-SocketIP`,
//!   `X-MS-Forwarded-Client-IP`, `X-NF-Client-Connection-IP`, `X-Originating-IP`, `X-ProxyUser-IP`,
//!   `X-Real-Client-IP`, `X-Remote-Addr`, `X-Remote-IP`, `X-Sucuri-ClientIP`, `X-True-Client-IP`,
//!   `X-Vercel-Forwarded-For`, `X-Vercel-IP-*`, `X-Vercel-Proxied-For`.
//! - Schemes: `CF-Visitor`, `CloudFront-Forwarded-Proto`, `Front-End-Https`, `X-ARR-SSL`,
//!   `X-Scheme`, `X-URL-Scheme`.
//! - Targets and methods: `Disguised-Host`, `Proxy`, `X-Accel-Mapping`, `X-Envoy-*`,
//!   `X-Forwarded-*`, `X-Host`, `X-HTTP-Method`, `X-HTTP-Method-Override`, `X-Method-Override`,
//!   `X-Middleware-*`, `X-Original-*`, `X-Override-URL`, `X-Rewrite-URL`, `X-Sendfile-Type`,
//!   `X-WAWS-Unencoded-URL`.
//! - Users: `CF-Access-*`, `Remote-Email`, `Remote-Groups`, `Remote-Name`, `Remote-User`,
//!   `SSL-Client-*`, `Tailscale-User-*`, `X-Amzn-OIDC-*`, `X-Auth-Request-*`, `X-Authentik-*`,
//!   `X-Client-Cert`, `X-Consumer-*`, `X-Credential-Identifier`, `X-Goog-Authenticated-User-*`,
//!   `X-Goog-IAP-JWT-Assertion`, `X-MS-Client-Principal*`, `X-Pomerium-*`, `X-Remote-*`,
//!   `X-SSL-Client-*`, `X-WebAuth-*`.
//!
//! The fields are removed on the way upstream, so that rules and other filters still see them. A
//! filter that sets one of these fields for the upstream (`bearer`, `headers`) must come after this
//! filter.
//!
//! ## Shadow mode
//!
//! In shadow mode the filter logs the address that it found. The address of the peer stays in
//! effect, and no field is removed. The same applies without this filter.

mod fields;
mod walk;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    ADDRESS_FIELDS, Arrival, ClientAddress, Filter, Flow, Hooks, Invalid, KeyHasher, Problem, ProxyFields, ProxyFieldsConfig, Reply,
    RequestCx, Result, Site, TrustedProxies, UpstreamCx, Vouched, WORKER_ZONES, failure, parse_address, write_address,
};
use fields::{elements, forwarded_for, forwarded_proto, scheme};
use walk::{HOPS_MAX, Walk, has_elements, nth_or_last};

const CF_WORKER: HeaderName = HeaderName::from_static("cf-worker");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The source `unnamed`: the peer is a trusted proxy that did not name a client.
pub const UNNAMED: &str = "unnamed";
/// The network from which Cloudflare Workers send requests to other zones.
const WORKERS: Ipv6Addr = Ipv6Addr::new(0x2a06, 0x98c0, 0x3600, 0, 0, 0, 0, 0);
const WORKERS_PREFIX: u32 = 48;
/// The maximum length of a zone name (RFC 1035, section 2.3.4).
const ZONE_BYTES_MAX: usize = 253;

/// A source of the client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `CF-Connecting-IP`, set by Cloudflare.
    CfConnectingIp,
    /// `X-Real-IP`, common with nginx.
    XRealIp,
    /// `X-Forwarded-For`, to which each proxy appends.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::CfConnectingIp => "cf-connecting-ip",
            Source::XRealIp => "x-real-ip",
            Source::XForwardedFor => "x-forwarded-for",
            Source::Forwarded => "forwarded",
        }
    }
}

/// The action for a request from a trusted proxy that does not name the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    /// Use the address of the proxy. The request is counted, and the log warns once.
    Peer,
    /// Refuse the request with 400.
    Refuse,
}

/// `client_ip`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientIpConfig {
    /// The sources of the address, tried in order. Default: `cf-connecting-ip`, `x-forwarded-for`.
    pub sources: Vec<Source>,
    /// The action if a trusted proxy does not name the client. Default: `peer`.
    pub on_missing: OnMissing,
    /// Changes to the list of fields that only a trusted proxy may send to the upstream. Default: none.
    pub proxy_fields: ProxyFieldsConfig,
}

impl Default for ClientIpConfig {
    fn default() -> Self {
        Self {
            sources: vec![Source::CfConnectingIp, Source::XForwardedFor],
            on_missing: OnMissing::Peer,
            proxy_fields: ProxyFieldsConfig::default(),
        }
    }
}

/// The compiled filter.
pub struct ClientIp {
    sources: Vec<Source>,
    proxy_fields: ProxyFields,
    trusted: Arc<TrustedProxies>,
    on_missing: OnMissing,
    /// Hashes the zone names of Workers.
    hasher: KeyHasher,
    unnamed: IntCounter,
}

impl ClientIp {
    /// The client address by the default sources, for requests without a chain, such as those of the admin API.
    pub fn by_default(trusted: &TrustedProxies, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let found = Walk { trusted, peer, vouched: Vouched::Nothing, headers }.find(&ClientIpConfig::default().sources);
        found.map_or(peer, |(address, _)| address)
    }

    /// The client address and its source.
    pub fn find(&self, peer: IpAddr, vouched: Vouched, headers: &HeaderMap) -> ClientAddress {
        let walk = Walk { trusted: &self.trusted, peer, vouched, headers };
        if !walk.is_trusted() {
            return ClientAddress { address: peer, source: "peer" };
        }
        match walk.find(&self.sources) {
            Some((address, Source::CfConnectingIp)) => match self.worker(address, headers) {
                Some(worker) => ClientAddress { address: worker, source: "cf-worker" },
                None => ClientAddress { address, source: Source::CfConnectingIp.name() },
            },
            Some((address, source)) => ClientAddress { address, source: source.name() },
            None => ClientAddress { address: peer, source: UNNAMED },
        }
    }

    /// The address that represents the Workers of one zone. Cloudflare sends all Workers' requests from one network and
    /// names the zone in a field.
    fn worker(&self, address: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let IpAddr::V6(v6) = address else { return None };
        if (v6.to_bits() ^ WORKERS.to_bits()) >> (128 - WORKERS_PREFIX) != 0 {
            return None;
        }
        let mut zones = headers.get_all(&CF_WORKER).iter();
        let (Some(zone), None) = (zones.next(), zones.next()) else { return None };
        let zone = zone.to_str().ok().filter(|zone| (1..=ZONE_BYTES_MAX).contains(&zone.len()))?;
        let id = self.hasher.id(&format!("cf-worker {}", zone.to_ascii_lowercase()));
        let hash = id.0.iter().take(4).fold(0_u32, |hash, byte| hash << 8 | u32::from(*byte));
        Some(IpAddr::V6(Ipv6Addr::from_bits(u128::from(WORKER_ZONES) << 96 | u128::from(hash) << 64)))
    }

    /// The scheme that the client used: stated by the trusted hop that saw the client, or else that of this connection.
    fn scheme(&self, cx: &UpstreamCx<'_>, trusted: bool, tls: bool) -> &'static str {
        let here = if tls { "https" } else { "http" };
        if !trusted {
            return here;
        }
        let headers = &cx.request.headers;
        // Each hop appends to both lists, so that the entry at the position of the client address is the one to read.
        let passed = |addresses: &mut dyn Iterator<Item = Option<IpAddr>>| {
            addresses.take(HOPS_MAX).take_while(|address| address.is_some_and(|address| self.trusted.trusts(address))).count()
        };
        let by_list = nth_or_last(
            elements(headers, &X_FORWARDED_PROTO).map(scheme),
            passed(&mut elements(headers, &X_FORWARDED_FOR).map(parse_address)),
        );
        let by_rfc = || {
            let hops = passed(&mut elements(headers, &header::FORWARDED).map(forwarded_for));
            nth_or_last(elements(headers, &header::FORWARDED).map(forwarded_proto), hops)
        };
        if has_elements(headers, &X_FORWARDED_PROTO) { by_list } else { by_rfc() }.unwrap_or(here)
    }
}

impl Filter for ClientIp {
    const NAME: &'static str = "client_ip";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = ClientIpConfig;
    type State = ();

    fn compile(config: ClientIpConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.sources.is_empty() {
            return Err(Invalid::new("name at least one source").at("sources"));
        }
        if let Some(index) = (1..config.sources.len()).find(|index| config.sources[..*index].contains(&config.sources[*index])) {
            return Err(Invalid::new("is listed twice").index(index).at("sources"));
        }
        let proxy_fields = ProxyFields::compile(&config.proxy_fields).map_err(|e| e.at("proxy_fields"))?;
        let outcome = match config.on_missing {
            OnMissing::Peer => "peer",
            OnMissing::Refuse => "refused",
        };
        Ok(Self {
            sources: config.sources,
            proxy_fields,
            trusted: Arc::clone(&site.trusted),
            on_missing: config.on_missing,
            hasher: site.ports.hasher.clone(),
            unnamed: site.counter("client_unnamed_total", "Requests for which a trusted proxy named no client.", ("outcome", outcome)),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let vouched = cx.facts.get::<Arrival>().map_or(Vouched::Nothing, |arrival| arrival.vouched);
        let found = self.find(cx.peer, vouched, cx.headers());
        if cx.shadow {
            let detail = format!("would use {} from {}", found.address, found.source);
            return Ok(Reply::new(Problem::BadRequest, "shadow", "found", "").detail(detail).into());
        }
        let unnamed = found.source == UNNAMED;
        cx.facts.put(found);
        if unnamed {
            if !cx.is_dry_run() {
                self.unnamed.inc();
            }
            if self.on_missing == OnMissing::Refuse {
                let message = "The proxy in front of this service did not state the client address.";
                return Ok(Reply::new(Problem::BadRequest, "client_address_missing", UNNAMED, message).into());
            }
        }
        Ok(Flow::Continue)
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, (): &mut ()) -> Result<()> {
        // Only a trusted proxy knows the scheme that the client used with it. Without one, the client connected here.
        let arrival = cx.facts.get::<Arrival>();
        let trusted = self.trusted.trusts(cx.peer) || arrival.is_some_and(|arrival| arrival.vouched != Vouched::Nothing);
        // Scanning the fields that are present is cheaper than removing every name on the list.
        let removed = |name: &&HeaderName| {
            let name = name.as_str();
            ADDRESS_FIELDS.contains(&name) || (!trusted && self.proxy_fields.has(name))
        };
        let removed: Vec<HeaderName> = cx.upstream.headers.keys().filter(removed).cloned().collect();
        removed.iter().for_each(|name| drop(cx.upstream.remove_header(name)));
        let scheme = HeaderValue::from_static(self.scheme(cx, trusted, arrival.is_some_and(|arrival| arrival.tls)));
        let address = cx.facts.client().unwrap_or(cx.peer);
        let mut text = Vec::with_capacity(16);
        write_address(address, &mut text);
        let text = HeaderValue::try_from(text).map_err(failure)?;
        let mut set = |name, value| cx.upstream.insert_header(name, value).map_err(failure);
        set(X_FORWARDED_FOR, text.clone())?;
        set(X_REAL_IP, text)?;
        set(X_FORWARDED_PROTO, scheme)?;
        if let Some(host) = cx.request.headers.get(header::HOST) {
            set(X_FORWARDED_HOST, host.clone())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
