//! The peers that may state the client address in header fields, and the parsing of such addresses. It reads no requests.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::ranges::{CLOUDFLARE, ranges};
use super::{HumanDuration, Invalid, Resolve};

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

/// `trusted_proxies`: the peers that may state the client address.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// CIDRs, single addresses, and the names `loopback`, `private` and `cloudflare`; `none` for an empty list.
    pub networks: Vec<String>,
    /// The trusted proxies that are behind Cloudflare and pass on `CF-Connecting-IP` unchanged,
    /// such as a Caddy that only Cloudflare can reach.
    pub behind_cloudflare: Vec<String>,
    /// A file with the ranges of Cloudflare, one CIDR a line, in place of the embedded list.
    pub cloudflare_file: Option<String>,
    /// Refresh `cloudflare_file` periodically. Until the file exists, the embedded list applies. Default: no refresh.
    pub cloudflare_refresh: Option<CloudflareRefresh>,
}

/// The sources of the Cloudflare ranges, and the interval of the refresh.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CloudflareRefresh {
    /// The interval, 1m to 30days. Default: 24h.
    pub every: HumanDuration,
    /// Public https URLs, and files. The list is the union of all sources. Default: the two URLs that Cloudflare publishes.
    pub from: Vec<String>,
    /// Allow http and addresses that are not public. Default: false.
    pub allow_private: bool,
}

impl Default for CloudflareRefresh {
    fn default() -> Self {
        let from = ["https://www.cloudflare.com/ips-v4", "https://www.cloudflare.com/ips-v6"].map(String::from).to_vec();
        Self { every: HumanDuration::secs(86_400), from, allow_private: false }
    }
}

/// The compiled form of [`TrustConfig`].
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    /// The ranges of Cloudflare, trusted or not.
    cloudflare: Vec<IpNet>,
    trusts_cloudflare: bool,
    behind_cloudflare: Vec<IpNet>,
}

impl TrustedProxies {
    /// Resolves the names and parses the networks.
    pub fn compile(config: &TrustConfig, resolve: &dyn Resolve) -> Result<Self, Invalid> {
        if let Some(refresh) = &config.cloudflare_refresh {
            let wrong = |says: &str, key: &str| Err(Invalid::new(says).at(key).at("cloudflare_refresh"));
            if config.cloudflare_file.is_none() {
                return Err(Invalid::new("requires `cloudflare_file`, the file that it writes").at("cloudflare_refresh"));
            }
            if !(60..=30 * 86_400).contains(&refresh.every.0.as_secs()) {
                return wrong("must be between 1m and 30days", "every");
            }
            if refresh.from.is_empty() {
                return wrong("the list is empty; at least one is needed", "from");
            }
        }
        let missing = |path: &String| config.cloudflare_refresh.is_some() && !resolve.exists(path);
        let ranges = match &config.cloudflare_file {
            Some(path) if !missing(path) => {
                if !resolve.exists(path) {
                    let says = format!(
                        "`{path}` does not exist; run `keylatch cloudflare refresh`, or set `cloudflare_refresh: {{}}` to write it automatically"
                    );
                    return Err(Invalid::new(says).at("cloudflare_file"));
                }
                let text = resolve.file(path).map_err(|e| e.at("cloudflare_file"))?;
                ranges(&text).map_err(|e| e.at("cloudflare_file"))?
            }
            _ => ranges(CLOUDFLARE)?,
        };
        let mut trusted = Self { cloudflare: ranges.clone(), ..Self::default() };
        for (index, name) in config.networks.iter().enumerate() {
            let networks = named(name, &ranges).map_err(|e| e.index(index).at("networks"))?;
            trusted.trusts_cloudflare |= name == "cloudflare";
            trusted.networks.extend(networks);
        }
        for (index, name) in config.behind_cloudflare.iter().enumerate() {
            let wrong = |e: Invalid| e.index(index).at("behind_cloudflare");
            let networks = named(name, &ranges).map_err(wrong)?;
            if let Some(stranger) = networks.iter().find(|n| !trusted.networks.iter().any(|t| t.contains(*n))) {
                return Err(wrong(Invalid::new(format!("{stranger} is not among `networks`; trust it there first"))));
            }
            trusted.behind_cloudflare.extend(networks);
        }
        Ok(trusted)
    }

    /// Whether this peer is a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        contains(&self.networks, address)
    }

    /// Whether this peer is a Cloudflare address, and Cloudflare is trusted.
    pub fn is_cloudflare(&self, peer: IpAddr) -> bool {
        self.trusts_cloudflare && contains(&self.cloudflare, peer)
    }

    /// Whether a `CF-Connecting-IP` from this peer was set by Cloudflare. `hop` is the previous hop that the peer states.
    /// A client that reaches a proxy without Cloudflare can forge the field; its own address is then the hop.
    pub fn speaks_for_cloudflare(&self, peer: IpAddr, hop: Option<IpAddr>) -> bool {
        if self.is_cloudflare(peer) {
            return true;
        }
        let behind = |address| contains(&self.behind_cloudflare, address);
        behind(peer) && hop.is_none_or(|hop| contains(&self.cloudflare, hop) || behind(hop))
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

fn named(name: &str, cloudflare: &[IpNet]) -> Result<Vec<IpNet>, Invalid> {
    match name {
        "loopback" => all(&LOOPBACK),
        "private" => all(&PRIVATE),
        "cloudflare" => Ok(cloudflare.to_vec()),
        // For a list with one item from an environment variable.
        "none" => Ok(Vec::new()),
        network => {
            let parsed = network.parse::<IpNet>().or_else(|_| network.parse::<IpAddr>().map(IpNet::from));
            let parsed = parsed.map_err(|_| {
                Invalid::new(format!(
                    "`{network}` is not a CIDR, an address, or one of the names `loopback`, `private`, `cloudflare`, `none`"
                ))
            })?;
            if parsed.prefix_len() == 0 {
                return Err(Invalid::new(format!("`{network}` trusts the whole internet, so that any client could state any address")));
            }
            Ok(vec![parsed.trunc()])
        }
    }
}

fn all(networks: &[&str]) -> Result<Vec<IpNet>, Invalid> {
    networks.iter().map(|text| text.parse().map_err(|e| Invalid::new(format!("{text}: {e}")))).collect()
}

/// The canonical form of an address: IPv4-mapped IPv6 becomes IPv4.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    }
}

/// Parses an address from a header field: with or without port, brackets, zone id and quotes.
/// `None` for anything else (host names, `unknown`, obfuscated identifiers, invalid text).
pub fn parse_address(text: &str) -> Option<IpAddr> {
    const LONGEST: usize = 80;
    let text = text.trim_matches([' ', '\t']);
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    if text.is_empty() || text.len() > LONGEST {
        return None;
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        let port_ok = after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
        return port_ok.then(|| v6(inside)).flatten().map(|a| canonical(IpAddr::V6(a)));
    }
    if let Ok(address) = text.parse::<std::net::Ipv4Addr>() {
        return Some(IpAddr::V4(address));
    }
    if let Some((host, port)) = text.split_once(':')
        && is_port(port)
        && let Ok(address) = host.parse::<std::net::Ipv4Addr>()
    {
        return Some(IpAddr::V4(address));
    }
    v6(text).map(|a| canonical(IpAddr::V6(a)))
}

/// Writes an address in the form that [`parse_address`] reads. It is on the path of every request and several times faster
/// than a formatter.
pub fn write_address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => {
            let mut digits = itoa::Buffer::new();
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(digits.format(octet).as_bytes());
            }
        }
        IpAddr::V6(v6) => out.extend_from_slice(v6.to_string().as_bytes()),
    }
}

/// A zone id is meaningful only on the machine that wrote it, so that it is dropped.
fn v6(text: &str) -> Option<Ipv6Addr> {
    match text.split_once('%') {
        Some((address, zone)) if !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) => {
            address.parse().ok()
        }
        Some(_) => None,
        None => text.parse().ok(),
    }
}

/// A port, or an obfuscated port (RFC 7239, section 6).
fn is_port(text: &str) -> bool {
    if let Some(hidden) = text.strip_prefix('_') {
        return !hidden.is_empty() && hidden.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    }
    !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoFiles;
    impl Resolve for NoFiles {
        fn file(&self, path: &str) -> Result<String, Invalid> {
            match path {
                "good" => Ok("# fresh\n192.0.2.0/24\n".into()),
                "empty" => Ok("# nothing\n".into()),
                _ => Ok("0.0.0.0/0\n".into()),
            }
        }
    }

    fn compile(networks: &[&str], behind: &[&str], file: Option<&str>) -> Result<TrustedProxies, Invalid> {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let config = TrustConfig {
            networks: strings(networks),
            behind_cloudflare: strings(behind),
            cloudflare_file: file.map(Into::into),
            cloudflare_refresh: None,
        };
        TrustedProxies::compile(&config, &NoFiles)
    }

    #[test]
    fn names_networks_and_files() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let trusted = compile(&["loopback", "cloudflare", "203.0.113.7"], &["loopback"], None).unwrap();
        assert!(trusted.trusts(ip("127.9.9.9")) && trusted.trusts(ip("::1")) && trusted.trusts(ip("203.0.113.7")));
        assert!(trusted.trusts(ip("104.16.1.1")) && !trusted.trusts(ip("10.0.0.1")) && !trusted.trusts(ip("203.0.113.8")));
        assert!(trusted.speaks_for_cloudflare(ip("104.16.1.1"), None) && trusted.speaks_for_cloudflare(ip("127.0.0.1"), None));
        assert!(!trusted.speaks_for_cloudflare(ip("203.0.113.7"), None));
        assert!(trusted.speaks_for_cloudflare(ip("127.0.0.1"), Some(ip("172.64.0.1"))));
        assert!(!trusted.speaks_for_cloudflare(ip("127.0.0.1"), Some(ip("203.0.113.66"))), "not through Cloudflare");
        let other = compile(&["cloudflare"], &[], Some("good")).unwrap();
        assert!(other.trusts(ip("192.0.2.9")) && !other.trusts(ip("104.16.1.1")));
        assert!(!compile(&["none"], &["none"], None).unwrap().trusts(ip("127.0.0.1")));
        // `CF-Connecting-IP` counts only if Cloudflare is trusted.
        assert!(!compile(&["loopback"], &[], None).unwrap().speaks_for_cloudflare(ip("104.16.1.1"), None));
    }

    #[test]
    fn dangerous_configurations_are_refused() {
        assert!(compile(&["0.0.0.0/0"], &[], None).unwrap_err().message.contains("whole internet"));
        assert!(compile(&["::/0"], &[], None).is_err());
        assert!(compile(&["localhost"], &[], None).unwrap_err().message.contains("is not a CIDR"));
        assert!(compile(&[], &["loopback"], None).unwrap_err().message.contains("trust it there first"));
        assert!(compile(&[], &[], Some("empty")).unwrap_err().message.contains("no range"));
        assert!(compile(&[], &[], Some("wide")).unwrap_err().message.contains("too wide"));
    }

    #[test]
    fn spellings_of_addresses() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1\t", "192.0.2.1"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("\"[2001:db8::1]:443\"", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]", "fe80::1"),
        ] {
            assert_eq!(parse_address(text).map(|a| a.to_string()).unwrap_or_default(), address, "{text}");
        }
        for garbage in [
            "",
            " ",
            "unknown",
            "_hidden",
            "example.com",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:99999",
            "1.2.3.4:80:80",
            "[2001:db8::1",
            "2001:db8::1]",
            "[1.2.3.4]",
            "fe80::1%",
            "0x7f.1",
            "127.1",
            "1.2.3.4 5.6.7.8",
            "١.2.3.4",
        ] {
            assert_eq!(parse_address(garbage), None, "{garbage}");
        }
    }
}
