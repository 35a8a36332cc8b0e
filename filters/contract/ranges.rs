//! Lists of networks in files, such as Cloudflare's own.

use std::net::IpAddr;

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
        if network.prefix_len() < 8 {
            return Err(Invalid::new(format!("line {} of the file is too wide for a proxy's range", number + 1)));
        }
        networks.push(network.trunc());
    }
    if networks.is_empty() {
        return Err(Invalid::new("the file holds no range"));
    }
    Ok(networks)
}

/// What is fetched from elsewhere: a file of ranges, of which none may be somebody's own network, and which may not have lost more
/// than half of those that are `known`. In order, each once.
pub fn fetched_ranges(text: &str, known: &[IpNet]) -> Result<Vec<IpNet>, Invalid> {
    let mut networks = ranges(text)?;
    networks.sort_unstable();
    networks.dedup();
    let inside = |network: &&IpNet| match network.addr() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast(),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xe000) != 0x2000,
    };
    if let Some(own) = networks.iter().find(inside) {
        return Err(Invalid::new(format!("{own} is not a public network")));
    }
    let lost = known.iter().filter(|network| !networks.iter().any(|fresh| fresh.contains(*network))).count();
    if lost * 2 > known.len() {
        return Err(Invalid::new(format!("{lost} of the {} ranges that are known are not there any more", known.len())));
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
            ("fd00::/8", "not a public network"),
            ("104.16.0.0/13", "are not there any more"),
        ] {
            let error = fetched_ranges(text, &known).unwrap_err().message;
            assert!(error.contains(says), "{text}: {error}");
        }
        // A wider one holds what was there.
        assert!(fetched_ranges("104.16.0.0/12\n", &ranges("104.16.0.0/13\n104.24.0.0/14").unwrap()).is_ok());
    }
}
