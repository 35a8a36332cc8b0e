//! # client_ip
//!
//! Finds the client's address, which everything else is judged by. Header fields are believed only
//! when the peer is one of `trusted_proxies`; from anybody else they are ignored. Either way they are
//! removed, and the upstream gets one clean `X-Forwarded-For`, `X-Real-IP` and `X-Forwarded-Proto`.
//!
//! ```yaml
//! client_ip:
//!   sources: [cf-connecting-ip, x-forwarded-for]
//!   on_missing: peer
//! ```
//!
//! The sources are tried in order; the first one that yields an address decides:
//!
//! - `cf-connecting-ip`: only when the peer is a Cloudflare address, or a trusted proxy listed under
//!   `trusted_proxies.behind_cloudflare`; and then only if the last hop it names in `X-Forwarded-For`
//!   is Cloudflare's or listed there too. A client that reaches that proxy without Cloudflare is not believed.
//! - `x-real-ip`: one field with one address.
//! - `x-forwarded-for`, `forwarded` (RFC 7239): walked from the right past trusted addresses; the first
//!   one that is not trusted is the client. What stands left of it was written by the client and is not
//!   looked at. An entry on the way that is no address ends the walk: the last trusted address before it
//!   is as far as can be known.
//!
//! Empty entries are skipped. If the last entry of a list is unreadable, the list yields no address and later sources are
//! not tried. At most 64 entries from the right are walked.
//!
//! If the peer is a trusted proxy and no source yields an address, `on_missing` decides: with `peer` the client is the proxy
//! itself, so that all keys would bind to it; this is counted in `keylatch_client_unnamed_total`, logged once as a warning, and
//! stands in the access log as `client_source: unnamed`. `refuse` answers with 400, also to health checks of the proxy's own.
//!
//! Cloudflare's Workers send requests to other zones from one address (`2a06:98c0:3600::/48`) and name their zone in
//! `CF-Worker`. Such a client is known by an address that stands for the zone, `2a06:98c7:…::`, so that bindings and limits
//! tell one zone's Workers from another's; its `client_source` is `cf-worker`.
//!
//! The upstream's `X-Forwarded-Proto` is what the trusted hop that saw the client says: `X-Forwarded-Proto`, or `proto=` in
//! `Forwarded`, at the place in the list that the client's address has in `X-Forwarded-For` or `Forwarded`.
//!
//! Proxies and platforms also name clients, users, schemes and targets in fields of their own, and many upstreams believe
//! them: `X-Original-URL` or `X-HTTP-Method-Override` asks for another request than the one that was judged. Such fields go
//! upstream only from a trusted proxy. `proxy_fields` makes the list longer (`add`) or shorter (`keep`):
//!
//! ```yaml
//! client_ip:
//!   proxy_fields: {add: [x-tenant-*], keep: [x-http-method-override]}
//! ```
//!
//! - Always replaced: `CF-Connecting-IP`, `CF-Connecting-IPv6`, `CF-Pseudo-IPv4`, `Client-IP`, `Fastly-Client-IP`, `Forwarded`,
//!   `True-Client-IP`, `X-Client-IP`, `X-Cluster-Client-IP`, `X-Envoy-External-Address`, `X-Forwarded`, `X-Forwarded-For`,
//!   `X-Original-Forwarded-For`, `X-Real-IP`.
//! - Removed from others than trusted proxies, addresses: `Ali-CDN-Real-IP`, `CDN-Real-IP`, `CDN-Src-IP`, `CF-IPCountry`,
//!   `CloudFront-Viewer-*`, `DO-Connecting-IP`, `EO-Connecting-IP`, `Fly-Client-IP`, `Forwarded-For`, `Forwarded-For-IP`,
//!   `Incap-Client-IP`, `Proxy-Client-IP`, `WL-Proxy-Client-IP`, `X-AppEngine-*`, `X-Azure-ClientIP`, `X-Azure-SocketIP`,
//!   `X-MS-Forwarded-Client-IP`, `X-NF-Client-Connection-IP`, `X-Originating-IP`, `X-ProxyUser-IP`, `X-Real-Client-IP`,
//!   `X-Remote-Addr`, `X-Remote-IP`, `X-Sucuri-ClientIP`, `X-True-Client-IP`, `X-Vercel-Forwarded-For`, `X-Vercel-IP-*`,
//!   `X-Vercel-Proxied-For`; schemes: `CF-Visitor`, `CloudFront-Forwarded-Proto`, `Front-End-Https`, `X-ARR-SSL`, `X-Scheme`,
//!   `X-URL-Scheme`; targets and methods: `Disguised-Host`, `Proxy`, `X-Accel-Mapping`, `X-Envoy-*`, `X-Forwarded-*`, `X-Host`,
//!   `X-HTTP-Method`, `X-HTTP-Method-Override`, `X-Method-Override`, `X-Middleware-*`, `X-Original-*`, `X-Override-URL`,
//!   `X-Rewrite-URL`, `X-Sendfile-Type`, `X-WAWS-Unencoded-URL`; users: `CF-Access-*`, `Remote-Email`, `Remote-Groups`,
//!   `Remote-Name`, `Remote-User`, `SSL-Client-*`, `Tailscale-User-*`, `X-Amzn-OIDC-*`, `X-Auth-Request-*`, `X-Authentik-*`,
//!   `X-Client-Cert`, `X-Consumer-*`, `X-Credential-Identifier`, `X-Goog-Authenticated-User-*`, `X-Goog-IAP-JWT-Assertion`,
//!   `X-MS-Client-Principal*`, `X-Pomerium-*`, `X-Remote-*`, `X-SSL-Client-*`, `X-WebAuth-*`.
//!
//! They are removed on the way upstream; rules and other filters see the request with them. A filter that sets one of them for
//! the upstream (`bearer`, `headers`) stands behind this one. Without this filter, and in shadow mode, nothing is removed: then
//! the address found is logged, and the peer's address stays in force.

mod fields;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    ADDRESS_FIELDS, Arrival, ClientAddress, Filter, Flow, Hooks, Invalid, KeyHasher, Problem, ProxyFields, ProxyFieldsConfig, Reply,
    RequestCx, Result, Site, TrustedProxies, UpstreamCx, Vouched, failure, parse_address, write_address,
};
use fields::{elements, forwarded_for, forwarded_proto, scheme, single};

/// The longest walk, in entries from the right. Real chains have fewer than ten.
const HOPS_MAX: usize = 64;

const CF_CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");
const CF_WORKER: HeaderName = HeaderName::from_static("cf-worker");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The source of an address that a trusted proxy should have named, and has not.
pub const UNNAMED: &str = "unnamed";
/// All Workers of Cloudflare send their requests to other zones from here.
const WORKERS: Ipv6Addr = Ipv6Addr::new(0x2a06, 0x98c0, 0x3600, 0, 0, 0, 0, 0);
const WORKERS_PREFIX: u32 = 48;
/// Addresses that stand for one zone's Workers: this and 32 bits of a keyed hash, as a /64. In Cloudflare's own block, which is
/// neither private nor another network's.
const ZONE: u32 = 0x2a06_98c7;
/// A zone's name has no more bytes (RFC 1035, section 2.3.4).
const ZONE_BYTES_MAX: usize = 253;

/// Where the address may be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Cloudflare's own field.
    CfConnectingIp,
    /// nginx's habit.
    XRealIp,
    /// The list everybody appends to.
    XForwardedFor,
    /// RFC 7239.
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

/// The action for a request from a trusted proxy that names no client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    /// The client is the proxy; it is counted, and the log warns once.
    Peer,
    /// 400.
    Refuse,
}

/// `client_ip`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tried in this order. Default: `cf-connecting-ip`, `x-forwarded-for`.
    pub sources: Vec<Source>,
    /// A trusted proxy that names no client. Default: `peer`.
    pub on_missing: OnMissing,
    /// Changes to the list of fields that only a trusted proxy may send to the upstream. Default: none.
    pub proxy_fields: ProxyFieldsConfig,
}

impl Default for Config {
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
    /// Tells the zones of Workers apart.
    hasher: KeyHasher,
    unnamed: IntCounter,
}

impl ClientIp {
    /// The client's address by the default sources: for requests that run through no chain, such as the admin API's.
    pub fn by_default(trusted: &TrustedProxies, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let found = Walk { trusted, peer, vouched: Vouched::Nothing, headers }.find(&Config::default().sources);
        found.map_or(peer, |(address, _)| address)
    }

    /// The client's address and where it was read.
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

    /// The address that stands for the Workers of one zone. Cloudflare sends all of them from one address, and names the zone.
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
        Some(IpAddr::V6(Ipv6Addr::from_bits(u128::from(ZONE) << 96 | u128::from(hash) << 64)))
    }

    /// The scheme by which the client came: what the trusted hop that saw the client says, or ours.
    fn scheme(&self, cx: &UpstreamCx<'_>, trusted: bool, tls: bool) -> &'static str {
        let here = if tls { "https" } else { "http" };
        if !trusted {
            return here;
        }
        let headers = &cx.request.headers;
        // Hops append to both lists: as many entries as addresses were passed belong to hops behind that one.
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
        if says_something(headers, &X_FORWARDED_PROTO) { by_list } else { by_rfc() }.unwrap_or(here)
    }
}

/// The item at this place, or the last one if there are fewer.
fn nth_or_last<T>(items: impl Iterator<Item = Option<T>>, index: usize) -> Option<T> {
    items.take(HOPS_MAX).enumerate().take_while(|(at, _)| *at <= index).last()?.1
}

/// Whether a list has any element.
fn says_something(headers: &HeaderMap, name: &HeaderName) -> bool {
    elements(headers, name).next().is_some()
}

/// One request's fields, and who sent them.
struct Walk<'r> {
    trusted: &'r TrustedProxies,
    peer: IpAddr,
    vouched: Vouched,
    headers: &'r HeaderMap,
}

impl Walk<'_> {
    fn is_trusted(&self) -> bool {
        self.trusted.trusts(self.peer) || self.vouched != Vouched::Nothing
    }

    /// The first of these sources that yields an address; `None` also if the peer is not trusted.
    fn find(&self, sources: &[Source]) -> Option<(IpAddr, Source)> {
        if !self.is_trusted() {
            return None;
        }
        for source in sources {
            let (field, address) = match source {
                Source::CfConnectingIp => (&CF_CONNECTING_IP, self.cloudflare()),
                Source::XRealIp => (&X_REAL_IP, single(self.headers, &X_REAL_IP)),
                Source::XForwardedFor => (&X_FORWARDED_FOR, self.walk(elements(self.headers, &X_FORWARDED_FOR).map(parse_address))),
                Source::Forwarded => (&header::FORWARDED, self.walk(elements(self.headers, &header::FORWARDED).map(forwarded_for))),
            };
            match address {
                Some(address) => return Some((address, *source)),
                // A list that cannot be read is no reason to believe a field that the client may have written.
                None if matches!(source, Source::XForwardedFor | Source::Forwarded) && says_something(self.headers, field) => return None,
                None => {}
            }
        }
        None
    }

    fn cloudflare(&self) -> Option<IpAddr> {
        if self.vouched == Vouched::Cloudflare || self.trusted.is_cloudflare(self.peer) {
            return single(self.headers, &CF_CONNECTING_IP);
        }
        let hop = match elements(self.headers, &X_FORWARDED_FOR).next() {
            // A hop that cannot be read may be anybody.
            Some(entry) => Some(parse_address(entry)?),
            None => None,
        };
        let trusted = self.trusted.speaks_for_cloudflare(self.peer, hop);
        trusted.then(|| single(self.headers, &CF_CONNECTING_IP)).flatten()
    }

    /// The first address from the right that is not trusted; or the leftmost trusted one, if all are.
    fn walk(&self, entries: impl Iterator<Item = Option<IpAddr>>) -> Option<IpAddr> {
        let mut last_trusted = None;
        for entry in entries.take(HOPS_MAX) {
            match entry {
                Some(address) if self.trusted.trusts(address) => last_trusted = Some(address),
                Some(address) => return Some(address),
                None => break,
            }
        }
        last_trusted
    }
}

impl Filter for ClientIp {
    const NAME: &'static str = "client_ip";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.sources.is_empty() {
            return Err(Invalid::new("name at least one source").at("sources"));
        }
        if let Some(index) = (1..config.sources.len()).find(|index| config.sources[..*index].contains(&config.sources[*index])) {
            return Err(Invalid::new("is in the list already").index(index).at("sources"));
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
            unnamed: site.counter("client_unnamed_total", "Requests of which a trusted proxy named no client.", ("outcome", outcome)),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let vouched = cx.facts.get::<Arrival>().map_or(Vouched::Nothing, |arrival| arrival.vouched);
        let found = self.find(cx.peer, vouched, cx.headers());
        if cx.shadow {
            let detail = format!("would take {} from {}", found.address, found.source);
            return Ok(Reply::new(Problem::BadRequest, "shadow", "found", "").detail(detail).into());
        }
        let unnamed = found.source == UNNAMED;
        cx.facts.put(found);
        if unnamed {
            if !cx.is_dry_run() {
                self.unnamed.inc();
            }
            if self.on_missing == OnMissing::Refuse {
                let message = "The proxy in front of this service did not say which client sent the request.";
                return Ok(Reply::new(Problem::BadRequest, "client_address_missing", UNNAMED, message).into());
            }
        }
        Ok(Flow::Continue)
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, (): &mut ()) -> Result<()> {
        // Only a trusted proxy knows how the client came to it; without one the client came to us.
        let arrival = cx.facts.get::<Arrival>();
        let trusted = self.trusted.trusts(cx.peer) || arrival.is_some_and(|arrival| arrival.vouched != Vouched::Nothing);
        // One look at what is there is cheaper than a removal of all that could be.
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
