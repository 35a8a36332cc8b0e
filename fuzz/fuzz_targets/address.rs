//! Client address: header fields of an untrusted peer never count, and no input panics.
#![no_main]

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};
use keylatch_filters::client_ip::ClientIp;
use keylatch_filters::contract::{Filter, Invalid, Keep, Resolve, Site, TrustConfig, TrustedProxies, Vouched, decode, parse_address};
use libfuzzer_sys::fuzz_target;

struct NoFiles;
impl Resolve for NoFiles {
    fn file(&self, path: &str) -> Result<String, Invalid> {
        Err(Invalid::new(path))
    }
}

fuzz_target!(|data: &[u8]| {
    let config = TrustConfig {
        networks: vec!["loopback".into(), "cloudflare".into()],
        behind_cloudflare: vec!["loopback".into()],
        cloudflare_file: None,
        cloudflare_refresh: None,
    };
    let Ok(trusted) = TrustedProxies::compile(&config, &NoFiles) else { return };
    let ports = keylatch::compile::check_ports();
    let mut site = Site {
        place: String::new(),
        trusted: trusted.into(),
        prices: Default::default(),
        keep: &Keep::default(),
        ports: &ports,
        resolve: &NoFiles,
        uses_shared_counters: &Default::default(),
        reads_usage: &Default::default(),
        budgets: &Default::default(),
        limits: &Default::default(),
        routes: &[],
        more_errors: &Default::default(),
    };
    let sources = r#"{"sources": ["cf-connecting-ip", "forwarded", "x-real-ip", "x-forwarded-for"]}"#;
    let Ok(filter) = decode(sources.parse().unwrap_or_default()).and_then(|config| ClientIp::compile(config, &mut site)) else { return };
    let mut headers = HeaderMap::new();
    for (index, line) in data.split(|byte| *byte == b'\n').take(64).enumerate() {
        let name = ["x-forwarded-for", "forwarded", "x-real-ip", "cf-connecting-ip"][index % 4];
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
        if let Ok(text) = std::str::from_utf8(line)
            && let Some(address) = parse_address(text)
        {
            assert_eq!(parse_address(&address.to_string()), Some(address), "the printed form of an address parses to the same address");
        }
    }
    let stranger = IpAddr::from([203, 0, 113, 66]);
    assert_eq!(filter.find(stranger, Vouched::Nothing, &headers).address, stranger);
    let _ = filter.find(IpAddr::from([127, 0, 0, 1]), Vouched::Nothing, &headers);
});
