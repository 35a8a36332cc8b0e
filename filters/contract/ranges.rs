//! Lists of networks in files, such as Cloudflare's own.

use ipnet::IpNet;

use super::Invalid;

/// Cloudflare's ranges as they were when this was built; the first line says when that was.
pub const CLOUDFLARE: &str = include_str!("../../config/cloudflare-ips.txt");

/// A file of ranges, one CIDR a line, `#` before what is for people. Never empty, never a default route or nearly one: both would
/// be a mistake with a high price.
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
            return Err(Invalid::new(format!("line {} of the file is too wide for a proxy's range", number + 1)));
        }
        networks.push(network.trunc());
    }
    if networks.is_empty() {
        return Err(Invalid::new("the file holds no range"));
    }
    Ok(networks)
}

/// Networks of nobody's on the internet (RFC 6890), of which no CDN is a part.
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
/// Ranges together hold so many times what is known, at most.
const GROWTH_MAX: u128 = 4;

/// How many addresses these hold together, of one family; of IPv6 so many /64.
fn size(networks: &[IpNet], v4: bool) -> u128 {
    let of = |network: &IpNet| 1_u128 << ((if v4 { 32_u8 } else { 64 }).saturating_sub(network.prefix_len()));
    IpNet::aggregate(&networks.to_vec()).iter().filter(|network| network.addr().is_ipv4() == v4).map(of).sum()
}

/// What is fetched from elsewhere: a file of ranges, of which none may be a large part of the internet or somebody's own network, and
/// which may not have lost more than half of those that are `known`, or grown to more than four times of what they hold. In order,
/// each once.
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
        return Err(Invalid::new(format!("{wide} is too wide to be one CDN's")));
    }
    let lost = known.iter().filter(|network| !networks.iter().any(|fresh| fresh.contains(*network))).count();
    if lost * 2 > known.len() {
        return Err(Invalid::new(format!("{lost} of the {} ranges that are known are not there any more", known.len())));
    }
    let grown = |v4| size(known, v4) > 0 && size(&networks, v4) > GROWTH_MAX * size(known, v4);
    if grown(true) || grown(false) {
        return Err(Invalid::new(format!("they hold more than {GROWTH_MAX} times the addresses of those that are known")));
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_is_looked_at() {
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
            ("104.16.0.0/13", "are not there any more"),
        ] {
            let error = fetched_ranges(text, &known).unwrap_err().message;
            assert!(error.contains(says), "{text}: {error}");
        }
        let pieces: String = (0..64).map(|n| format!("5.{}.0.0/14\n", n * 4)).collect();
        let error = fetched_ranges(&format!("{CLOUDFLARE}\n{pieces}"), &known).unwrap_err().message;
        assert!(error.contains("more than 4 times"), "{error}");
        // A wider one holds what was there.
        assert!(fetched_ranges("104.16.0.0/12\n", &ranges("104.16.0.0/13\n104.24.0.0/14").unwrap()).is_ok());
    }
}
