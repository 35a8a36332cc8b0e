//! # client_ip
//!
//! Finds the client's address, which everything else is judged by. Header fields are believed only
//! when the peer is one of `trusted_proxies`; from anybody else they are ignored. Either way they are
//! removed, and the upstream gets one clean `X-Forwarded-For`, `X-Real-IP` and `X-Forwarded-Proto`.
//!
//! ```yaml
//! client_ip:
//!   sources: [cf-connecting-ip, x-forwarded-for]
//! ```
//!
//! The sources are tried in order; the first one that yields an address decides:
//!
//! - `cf-connecting-ip`: only when the peer is a Cloudflare address, or a trusted proxy listed under
//!   `trusted_proxies.behind_cloudflare`; and then only if the last hop it names in `X-Forwarded-For`
//!   is Cloudflare's or listed there too, so that nobody who reaches that proxy past Cloudflare is believed.
//! - `x-real-ip`: one field with one address.
//! - `x-forwarded-for`, `forwarded` (RFC 7239): walked from the right past trusted addresses; the first
//!   one that is not trusted is the client. What stands left of it was written by the client and is not
//!   looked at. An entry on the way that is no address ends the walk: the last trusted address before it
//!   is as far as can be known.
//!
//! If no source yields an address, the client is the peer. At most 64 entries from the right are walked.
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

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

use crate::contract::{
    ADDRESS_FIELDS, Arrival, ClientAddress, Filter, Flow, Hooks, Invalid, Problem, ProxyFields, ProxyFieldsConfig, Reply, RequestCx,
    Result, Site, TrustedProxies, UpstreamCx, Vouched, failure, parse_address, write_address,
};

/// The longest walk, in entries from the right. Real chains have fewer than ten.
const HOPS_MAX: usize = 64;

const CF_CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

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

/// `client_ip`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tried in this order. Default: `cf-connecting-ip`, `x-forwarded-for`.
    pub sources: Vec<Source>,
    /// Changes to the list of fields that only a trusted proxy may send to the upstream. Default: none.
    pub proxy_fields: ProxyFieldsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self { sources: vec![Source::CfConnectingIp, Source::XForwardedFor], proxy_fields: ProxyFieldsConfig::default() }
    }
}

/// The compiled filter.
pub struct ClientIp {
    sources: Vec<Source>,
    proxy_fields: ProxyFields,
    trusted: Arc<TrustedProxies>,
}

impl ClientIp {
    /// With the default sources: for what is no exchange, such as the admin API.
    pub fn of(trusted: Arc<TrustedProxies>) -> Self {
        Self { sources: Config::default().sources, proxy_fields: ProxyFields::default(), trusted }
    }

    /// Who is it really: the whole decision, without an exchange around it.
    pub fn find(&self, peer: IpAddr, vouched: Vouched, headers: &HeaderMap) -> ClientAddress {
        if self.trusted.trusts(peer) || vouched != Vouched::Nothing {
            for source in &self.sources {
                let found = match source {
                    Source::CfConnectingIp => self.cloudflares_word(peer, vouched, headers),
                    Source::XRealIp => single(headers, &X_REAL_IP),
                    Source::XForwardedFor => self.walk(entries_from_right(headers, &X_FORWARDED_FOR).map(parse_address)),
                    Source::Forwarded => self.walk(entries_from_right(headers, &header::FORWARDED).map(forwarded_for)),
                };
                if let Some(address) = found {
                    return ClientAddress { address, source: source.name() };
                }
            }
        }
        ClientAddress { address: peer, source: "peer" }
    }

    fn cloudflares_word(&self, peer: IpAddr, vouched: Vouched, headers: &HeaderMap) -> Option<IpAddr> {
        if vouched == Vouched::Cloudflare {
            return single(headers, &CF_CONNECTING_IP);
        }
        let hop = match entries_from_right(headers, &X_FORWARDED_FOR).next() {
            // A hop that cannot be read may be anybody.
            Some(entry) => Some(parse_address(entry)?),
            None => None,
        };
        let trusted = self.trusted.speaks_for_cloudflare(peer, hop);
        trusted.then(|| single(headers, &CF_CONNECTING_IP)).flatten()
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

/// The one address of a field that must stand once.
fn single(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse_address(value.to_str().ok()?),
        _ => None,
    }
}

/// The entries of a list, last line first, last entry first. Text that is not ASCII is an entry that
/// is no address.
fn entries_from_right<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    lines.into_iter().rev().flat_map(|line| line.to_str().unwrap_or("?").rsplit(','))
}

/// The address of the `for=` parameter of one `Forwarded` element.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in element.split(';') {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            if found.is_some() {
                return None;
            }
            found = Some(parse_address(value)?);
        }
    }
    found
}

impl Filter for ClientIp {
    const NAME: &'static str = "client_ip";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("client_ip.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.sources.is_empty() {
            return Err(Invalid::new("name at least one source").at("sources"));
        }
        let proxy_fields = ProxyFields::compile(&config.proxy_fields).map_err(|e| e.at("proxy_fields"))?;
        Ok(Self { sources: config.sources, proxy_fields, trusted: Arc::clone(&site.trusted) })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let vouched = cx.facts.get::<Arrival>().map_or(Vouched::Nothing, |arrival| arrival.vouched);
        let found = self.find(cx.peer, vouched, cx.headers());
        if cx.shadow {
            let detail = format!("would take {} from {}", found.address, found.source);
            return Ok(Reply::new(Problem::BadRequest, "shadow", "found", "").detail(detail).into());
        }
        cx.facts.put(found);
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
        let said = cx.request.headers.get(&X_FORWARDED_PROTO).filter(|_| trusted).map(HeaderValue::as_bytes);
        let here = if arrival.is_some_and(|arrival| arrival.tls) { "https" } else { "http" };
        let scheme = HeaderValue::from_static(match said {
            Some(b"https") => "https",
            Some(b"http") => "http",
            _ => here,
        });
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
#[path = "client_ip_tests.rs"]
mod tests;
