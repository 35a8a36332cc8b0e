//! Parses and validates lists of networks, such as the published ranges of Cloudflare. It does not fetch them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Invalid;

/// The ranges of Cloudflare at build time; the first line has the date.
pub const CLOUDFLARE: &str = include_str!("../../config/cloudflare-ips.txt");

/// The first 32 bits of the addresses that represent the Workers of one Cloudflare zone; 32 bits of a keyed hash complete a
/// /64. The block belongs to Cloudflare, so that such an address is neither private nor another client.
pub const WORKER_ZONES: u32 = 0x2a06_98c7;

/// Whether the address represents the Workers of a zone.
pub fn is_worker_zone(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_bits() >> 96 == u128::from(WORKER_ZONES))
}

/// Parses a file of ranges: one CIDR a line, comments after `#`. An empty list and a network that is nearly a default route
/// (IPv4 shorter than /8, IPv6 shorter than /16) are errors, because such a mistake grants trust widely.
pub fn ranges(text: &str) -> Result<Vec<IpNet>, Invalid> {
    let mut networks = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let network: IpNet = line.parse().map_err(|_| Invalid::new(format!("line {} of the file is not a CIDR", number + 1)))?;
        let least = if network.addr().is_ipv4() { 8 } else { 16 };
        if network.prefix_len() < least {
            return Err(Invalid::new(format!("line {} of the file is too wide for a proxy network", number + 1)));
        }
        networks.push(network.trunc());
    }
    if networks.is_empty() {
        return Err(Invalid::new("the file contains no range"));
    }
    Ok(networks)
}

/// Special-purpose networks (RFC 6890), which cannot belong to a CDN.
const SPECIAL: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
    "::/3",
    "4000::/2",
    "8000::/1",
];
/// A new list may contain at most this many times the addresses of the known list.
const GROWTH_MAX: u128 = 4;

/// The number of addresses of one family in these networks; for IPv6 the number of /64 networks.
fn size(networks: &[IpNet], v4: bool) -> u128 {
    let addresses = |network: &IpNet| 1_u128 << ((if v4 { 32_u8 } else { 64 }).saturating_sub(network.prefix_len()));
    IpNet::aggregate(&networks.to_vec()).iter().filter(|network| network.addr().is_ipv4() == v4).map(addresses).sum()
}

/// Validates a list of ranges from the network. A range must not be special-purpose or very wide. The list must cover at
/// least half of the `known` ranges and must not exceed four times their addresses. The result is sorted, without duplicates.
pub fn fetched_ranges(text: &str, known: &[IpNet]) -> Result<Vec<IpNet>, Invalid> {
    let mut networks = ranges(text)?;
    networks.sort_unstable();
    networks.dedup();
    let special: Vec<IpNet> = SPECIAL.iter().filter_map(|text| text.parse().ok()).collect();
    let overlaps = |network: &&IpNet| special.iter().any(|one| one.contains(*network) || network.contains(one));
    if let Some(own) = networks.iter().find(overlaps) {
        return Err(Invalid::new(format!("{own} is not a public network")));
    }
    let wide = |network: &&IpNet| network.prefix_len() < if network.addr().is_ipv4() { 10 } else { 20 };
    if let Some(wide) = networks.iter().find(wide) {
        return Err(Invalid::new(format!("{wide} is too wide to belong to one CDN")));
    }
    let lost = known.iter().filter(|network| !networks.iter().any(|fresh| fresh.contains(*network))).count();
    if lost * 2 > known.len() {
        return Err(Invalid::new(format!("{lost} of the {} known ranges are missing", known.len())));
    }
    let grown = |v4| size(known, v4) > 0 && size(&networks, v4) > GROWTH_MAX * size(known, v4);
    if grown(true) || grown(false) {
        return Err(Invalid::new(format!("the list contains more than {GROWTH_MAX} times the addresses of the known list")));
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetched_lists_are_validated() {
        let known = ranges(CLOUDFLARE).unwrap();
        assert_eq!(fetched_ranges(CLOUDFLARE, &known).unwrap().len(), known.len());
        assert!(CLOUDFLARE.lines().next().is_some_and(|line| line.contains("as of 20")));
        for (text, says) in [
            ("", "no range"),
            ("<html>", "not a CIDR"),
            ("0.0.0.0/0", "too wide"),
            ("::/0", "too wide"),
            ("10.0.0.0/8", "not a public network"),
            ("fd00::/8", "too wide"),
            ("fd12:3456::/32", "not a public network"),
            ("172.0.0.0/8", "not a public network"),
            ("169.0.0.0/8", "not a public network"),
            ("192.0.0.0/9", "not a public network"),
            ("100.64.0.0/10", "not a public network"),
            ("104.0.0.0/9", "too wide to be"),
            ("2400::/16", "too wide to be"),
            ("104.16.0.0/13", "known ranges are missing"),
        ] {
            let error = fetched_ranges(text, &known).unwrap_err().message;
            assert!(error.contains(says), "{text}: {error}");
        }
        let pieces: String = (0..64).map(|n| format!("5.{}.0.0/14\n", n * 4)).collect();
        let error = fetched_ranges(&format!("{CLOUDFLARE}\n{pieces}"), &known).unwrap_err().message;
        assert!(error.contains("more than 4 times"), "{error}");
        // A wider range covers the known ranges.
        assert!(fetched_ranges("104.16.0.0/12\n", &ranges("104.16.0.0/13\n104.24.0.0/14").unwrap()).is_ok());
    }
}
