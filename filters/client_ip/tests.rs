//! Tests of `client_ip`: a table of attacks and misconfigurations, one named case per row.

use super::*;
use crate::contract::{PROXY_FIELDS, Resolve, TrustConfig};

struct NoFiles;
impl Resolve for NoFiles {
    fn file(&self, path: &str) -> Result<String, Invalid> {
        Err(Invalid::new(format!("no file {path}")))
    }
}

/// 127/8 is a local Caddy behind Cloudflare; 10.1/16 is another proxy; 104.16/13 is Cloudflare.
fn filter(sources: &[Source]) -> ClientIp {
    let config = TrustConfig {
        networks: vec!["loopback".into(), "cloudflare".into(), "10.1.0.0/16".into()],
        behind_cloudflare: vec!["loopback".into()],
        cloudflare_file: None,
        cloudflare_refresh: None,
    };
    let trusted = TrustedProxies::compile(&config, &NoFiles).unwrap();
    ClientIp {
        sources: sources.to_vec(),
        proxy_fields: ProxyFields::default(),
        trusted: Arc::new(trusted),
        on_missing: OnMissing::Peer,
        hasher: KeyHasher::new(b"test"),
        unnamed: IntCounter::new("unnamed", "test").unwrap(),
    }
}

const CADDY: &str = "127.0.0.1";
const EDGE: &str = "104.16.0.9";
const STRANGER: &str = "203.0.113.66";

#[test]
fn the_table_of_attacks() {
    use Source::{CfConnectingIp as Cf, Forwarded as Fwd, XForwardedFor as Xff, XRealIp as Real};
    let long_list = format!("{}203.0.113.1", "198.51.100.9, ".repeat(10_000));
    let long_trusted = format!("203.0.113.1{}", ", 10.1.0.1".repeat(10_000));
    type Case<'a> = (&'a str, &'a [Source], &'a str, &'a [(&'a str, &'a str)], &'a str, &'a str);
    #[rustfmt::skip]
    let cases: &[Case<'_>] = &[
        // case, sources, peer, fields, expected address, expected source
        ("no field at all", &[Cf, Xff], CADDY, &[], CADDY, "unnamed"),
        ("an honest hop", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("a forged field from a stranger", &[Cf, Real, Xff, Fwd], STRANGER, &[("x-forwarded-for", "192.0.2.1"), ("x-real-ip", "192.0.2.1"), ("cf-connecting-ip", "192.0.2.1"), ("forwarded", "for=192.0.2.1")], STRANGER, "peer"),
        ("a forged entry on the left", &[Xff], CADDY, &[("x-forwarded-for", "192.0.2.1, 203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("a forged trusted address on the left", &[Xff], CADDY, &[("x-forwarded-for", "127.0.0.1, 203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("two trusted hops", &[Xff], CADDY, &[("x-forwarded-for", "192.0.2.1, 203.0.113.1, 10.1.2.3")], "203.0.113.1", "x-forwarded-for"),
        ("forged line before the honest one", &[Xff], CADDY, &[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("a line of its own for each hop", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1"), ("x-forwarded-for", "10.1.2.3")], "203.0.113.1", "x-forwarded-for"),
        ("only trusted addresses", &[Xff], CADDY, &[("x-forwarded-for", "10.1.0.7, 10.1.2.3")], "10.1.0.7", "x-forwarded-for"),
        ("garbage rightmost", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1, evil")], CADDY, "unnamed"),
        ("garbage behind a trusted hop", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1, evil, 10.1.2.3")], "10.1.2.3", "x-forwarded-for"),
        ("an empty entry rightmost", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1, ,")], "203.0.113.1", "x-forwarded-for"),
        ("an empty field", &[Xff], CADDY, &[("x-forwarded-for", "")], CADDY, "unnamed"),
        ("`unknown`", &[Xff], CADDY, &[("x-forwarded-for", "unknown")], CADDY, "unnamed"),
        ("bytes that are not ASCII", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1, é")], CADDY, "unnamed"),
        ("a port", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1:5555")], "203.0.113.1", "x-forwarded-for"),
        ("IPv6", &[Xff], CADDY, &[("x-forwarded-for", "2001:db8::1")], "2001:db8::1", "x-forwarded-for"),
        ("IPv6 in brackets with a port", &[Xff], CADDY, &[("x-forwarded-for", "[2001:db8::1]:443")], "2001:db8::1", "x-forwarded-for"),
        ("a zone id", &[Xff], CADDY, &[("x-forwarded-for", "fe80::1%eth0")], "fe80::1", "x-forwarded-for"),
        ("IPv4-mapped IPv6 is IPv4", &[Xff], CADDY, &[("x-forwarded-for", "::ffff:203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("a mapped trusted hop", &[Xff], CADDY, &[("x-forwarded-for", "203.0.113.1, ::ffff:10.1.2.3")], "203.0.113.1", "x-forwarded-for"),
        ("octal digits", &[Xff], CADDY, &[("x-forwarded-for", "0177.0.0.1")], CADDY, "unnamed"),
        ("a short form", &[Xff], CADDY, &[("x-forwarded-for", "127.1")], CADDY, "unnamed"),
        ("10,000 forged entries", &[Xff], CADDY, &[("x-forwarded-for", &long_list)], "203.0.113.1", "x-forwarded-for"),
        ("10,000 trusted entries: the walk is bounded", &[Xff], CADDY, &[("x-forwarded-for", &long_trusted)], "10.1.0.1", "x-forwarded-for"),
        ("Cloudflare's field from Cloudflare", &[Cf, Xff], EDGE, &[("cf-connecting-ip", "203.0.113.1"), ("x-forwarded-for", "192.0.2.1")], "203.0.113.1", "cf-connecting-ip"),
        ("Cloudflare's field through Caddy", &[Cf, Xff], CADDY, &[("cf-connecting-ip", "203.0.113.1"), ("x-forwarded-for", EDGE)], "203.0.113.1", "cf-connecting-ip"),
        ("Caddy reached without Cloudflare, with Cloudflare's field forged", &[Cf, Xff], CADDY, &[("cf-connecting-ip", "192.0.2.1"), ("x-forwarded-for", STRANGER)], STRANGER, "x-forwarded-for"),
        ("the same, with the hop garbled", &[Cf, Xff], CADDY, &[("cf-connecting-ip", "192.0.2.1"), ("x-forwarded-for", "evil")], CADDY, "unnamed"),
        ("a tunnel on this machine", &[Cf, Xff], CADDY, &[("cf-connecting-ip", "203.0.113.1"), ("x-forwarded-for", "127.0.0.1")], "203.0.113.1", "cf-connecting-ip"),
        ("Cloudflare's field from a proxy that is not behind it", &[Cf, Xff], "10.1.0.1", &[("cf-connecting-ip", "192.0.2.1"), ("x-forwarded-for", "203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("Cloudflare's field twice", &[Cf], EDGE, &[("cf-connecting-ip", "192.0.2.1"), ("cf-connecting-ip", "203.0.113.1")], EDGE, "unnamed"),
        ("Cloudflare's field with a list", &[Cf], EDGE, &[("cf-connecting-ip", "192.0.2.1, 203.0.113.1")], EDGE, "unnamed"),
        ("Cloudflare's field not configured", &[Xff], EDGE, &[("cf-connecting-ip", "192.0.2.1"), ("x-forwarded-for", "203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("X-Real-IP", &[Real], CADDY, &[("x-real-ip", "203.0.113.1")], "203.0.113.1", "x-real-ip"),
        ("X-Real-IP twice", &[Real], CADDY, &[("x-real-ip", "192.0.2.1"), ("x-real-ip", "203.0.113.1")], CADDY, "unnamed"),
        ("the order is the configured one", &[Xff, Real], CADDY, &[("x-real-ip", "192.0.2.1"), ("x-forwarded-for", "203.0.113.1")], "203.0.113.1", "x-forwarded-for"),
        ("the second source, when the first is missing", &[Cf, Real], "10.1.0.1", &[("x-real-ip", "203.0.113.1")], "203.0.113.1", "x-real-ip"),
        ("Forwarded", &[Fwd], CADDY, &[("forwarded", "for=203.0.113.1;proto=https;by=10.1.0.1")], "203.0.113.1", "forwarded"),
        ("Forwarded, forged on the left", &[Fwd], CADDY, &[("forwarded", "for=192.0.2.1, for=203.0.113.1, for=10.1.2.3")], "203.0.113.1", "forwarded"),
        ("Forwarded, quoted IPv6 with port", &[Fwd], CADDY, &[("forwarded", "For=\"[2001:db8::1]:4711\"")], "2001:db8::1", "forwarded"),
        ("Forwarded, obfuscated", &[Fwd], CADDY, &[("forwarded", "for=_hidden")], CADDY, "unnamed"),
        ("Forwarded, two for= in one element", &[Fwd], CADDY, &[("forwarded", "for=192.0.2.1;for=203.0.113.1")], CADDY, "unnamed"),
        ("Forwarded without for=", &[Fwd], CADDY, &[("forwarded", "proto=https")], CADDY, "unnamed"),
        ("Forwarded, a comma in quotes does not start an element", &[Fwd], CADDY, &[("forwarded", "for=\"192.0.2.1, for=203.0.113.1\"")], CADDY, "unnamed"),
    ];
    for (what, sources, peer, fields, address, source) in cases {
        let mut headers = HeaderMap::new();
        for (name, value) in *fields {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let found = filter(sources).find(peer.parse().unwrap(), Vouched::Nothing, &headers);
        assert_eq!((found.address.to_string().as_str(), found.source), (*address, *source), "{what}");
    }
}

#[test]
fn the_upstream_gets_one_clean_set() {
    let mut request = pingora_http::RequestHeader::build("GET", b"/", None).unwrap();
    for name in ADDRESS_FIELDS {
        request.append_header(name, "192.0.2.1").unwrap();
        request.append_header(name, "192.0.2.2").unwrap();
    }
    request.append_header("x-forwarded-proto", "https").unwrap();
    let mut upstream = request.clone();
    let mut facts = crate::contract::Facts::default();
    facts.put(ClientAddress { address: "203.0.113.1".parse().unwrap(), source: "peer" });
    let peer = STRANGER.parse().unwrap();
    let mut cx = UpstreamCx { upstream: &mut upstream, request: &request, facts: &mut facts, peer };
    Filter::upstream_request(&filter(&[Source::XForwardedFor]), &mut cx, &mut ()).unwrap();
    let mut left: Vec<_> = upstream.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    left.sort();
    assert_eq!(left, ["x-forwarded-for: 203.0.113.1", "x-forwarded-proto: http", "x-real-ip: 203.0.113.1"]);
}

/// The names of the fields that reach the upstream, of a request from this peer with one field for each name on the list and
/// some ordinary fields.
fn passed(peer: &str, vouched: Vouched) -> Vec<String> {
    let mut request = pingora_http::RequestHeader::build("GET", b"/", None).unwrap();
    for name in PROXY_FIELDS.map(|pattern| pattern.replace('*', "any")) {
        request.append_header(name, "evil").unwrap();
    }
    for name in ["accept", "x-stainless-lang", "x-goog-user-project"] {
        request.append_header(name, "a").unwrap();
    }
    let mut upstream = request.clone();
    let mut facts = crate::contract::Facts::default();
    facts.put(Arrival { vouched, ..Arrival::default() });
    let mut cx = UpstreamCx { upstream: &mut upstream, request: &request, facts: &mut facts, peer: peer.parse().unwrap() };
    Filter::upstream_request(&filter(&[Source::XForwardedFor]), &mut cx, &mut ()).unwrap();
    let mut names: Vec<String> = upstream.headers.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn proxy_fields_pass_only_from_trusted_proxies() {
    let own = ["accept", "x-forwarded-for", "x-forwarded-proto", "x-goog-user-project", "x-real-ip", "x-stainless-lang"];
    assert_eq!(passed(STRANGER, Vouched::Nothing), own);
    for (peer, vouched) in [(CADDY, Vouched::Nothing), (STRANGER, Vouched::Forwarded)] {
        assert_eq!(passed(peer, vouched).len(), own.len() + PROXY_FIELDS.len(), "{peer}");
    }
}

#[test]
fn the_manual_lists_every_field() {
    let manual: String = include_str!("mod.rs").lines().take_while(|line| line.starts_with("//!")).collect();
    let manual = manual.to_ascii_lowercase();
    for name in ADDRESS_FIELDS.into_iter().chain(PROXY_FIELDS) {
        assert!(manual.contains(&format!("`{name}`")), "{name}");
    }
}
