//! Networks as text ranges: SQLite stores addresses and networks as text and knows only their order
//! as text.

use std::net::IpAddr;

use ipnet::IpNet;

/// The text range, from included to excluded, that contains all addresses and networks within
/// `net`. It may contain others.
pub fn range(net: IpNet) -> (String, String) {
    let whole = match net.network() {
        IpAddr::V4(v4) => {
            let octets = v4.octets();
            let whole = usize::from(net.prefix_len() / 8).min(3);
            octets[..whole].iter().map(|octet| format!("{octet}.")).collect::<String>()
        }
        // After a group of zeros the text may be shortened anywhere.
        IpAddr::V6(v6) => {
            let whole = v6.segments().into_iter().take(usize::from(net.prefix_len() / 16).min(7)).take_while(|group| *group != 0);
            whole.map(|group| format!("{group:x}:")).collect::<String>()
        }
    };
    // `z` sorts after digits, letters, `.`, `/` and `:`.
    (whole.clone(), format!("{whole}z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_contains_all_within_the_network() {
        for (net, within) in [
            ("203.0.113.0/24", vec!["203.0.113.7/32", "203.0.113.128/25", "203.0.113.0/24", "203.0.113.255"]),
            ("203.0.0.0/12", vec!["203.0.113.7/32", "203.15.0.0/16"]),
            ("0.0.0.0/0", vec!["1.2.3.4", "255.255.255.255/32", "9.0.0.0/8"]),
            ("203.0.113.7/32", vec!["203.0.113.7/32", "203.0.113.7"]),
            ("2001:db8::/32", vec!["2001:db8::1/128", "2001:db8:1::/48", "2001:db8:0:1:1:1:1:1", "2001:db8::/32"]),
            ("2001:0:1::/48", vec!["2001:0:1::/48", "2001:0:1:2:3:4:5:6"]),
            ("::/0", vec!["::1", "fe80::1/128"]),
        ] {
            let (low, high) = range(net.parse().unwrap());
            for text in within {
                assert!(low.as_str() <= text && text < high.as_str(), "{net}: {text}");
            }
        }
        assert!(!"198.51.100.1".starts_with(&range("203.0.113.0/24".parse().unwrap()).0));
    }
}
