//! Checks the trusted proxies: networks that may set the client address must not be too wide or outdated.

use ipnet::IpNet;
use keylatch_filters::contract::TrustConfig;

use super::Findings;
use crate::config::{Files, Settings};
use crate::operator::ranges;

/// The age, in days, from which a list of Cloudflare's ranges counts as outdated.
const RANGES_OLD_DAYS: u64 = 90;
/// Private, shared and local networks.
const OWN: [&str; 7] = ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

pub fn check(settings: &Settings, files: &Files, found: &mut Findings) {
    let config = &settings.trusted_proxies;
    let mut all = |names: &[String], place: &str| {
        names.iter().enumerate().for_each(|(index, name)| network(name, &format!("{place}[{index}]"), found));
    };
    all(&config.networks, "trusted_proxies.networks");
    all(&config.behind_cloudflare, "trusted_proxies.behind_cloudflare");
    for (index, listener) in settings.listeners.iter().enumerate() {
        all(&listener.proxy_protocol, &format!("listeners[{index}].proxy_protocol"));
    }
    age(config, files, found);
}

fn network(name: &str, place: &str, found: &mut Findings) {
    let wide = |network: IpNet| network.prefix_len() < if network.addr().is_ipv4() { 16 } else { 32 };
    let Some(network) = name.parse::<IpNet>().ok().filter(|network| wide(*network)) else {
        if name == "private" {
            let what = "`private` lets every machine and container of all private networks set the client address";
            found.warn(place, what, "list the networks or addresses of the proxies themselves");
        }
        return;
    };
    // The whole network must be inside, and not only its first address.
    let own = OWN.iter().filter_map(|own| own.parse::<IpNet>().ok()).find(|own| own.contains(&network));
    match own {
        Some(own) if own.addr().is_loopback() => {}
        Some(_) => {
            let what = format!("`{name}` lets every machine and container of a large network set the client address");
            found.warn(place, what, "list the networks or addresses of the proxies themselves");
        }
        None => {
            let what = format!("`{name}` is a large part of the internet, and every machine in it may claim any client address");
            found.bad(place, what, "list the proxies themselves");
        }
    }
}

/// Checks the age of Cloudflare's ranges, if they are used.
fn age(config: &TrustConfig, files: &Files, found: &mut Findings) {
    let uses_cloudflare = config.networks.iter().any(|name| name == "cloudflare") || !config.behind_cloudflare.is_empty();
    if let (true, Ok((_, about))) = (uses_cloudflare, ranges::in_force(config, files)) {
        let day = about.split("as of ").nth(1).map(|rest| rest.trim_end_matches('.').to_owned()).unwrap_or_default();
        let day = if day.len() == 7 { format!("{day}-01") } else { day };
        let then = humantime::parse_rfc3339(&format!("{day}T00:00:00Z")).ok();
        if then.and_then(|then| then.elapsed().ok()).is_some_and(|age| age.as_secs() / 86_400 > RANGES_OLD_DAYS) {
            let what = format!("Cloudflare's ranges are of {day}: clients that come through newer ranges are not identified");
            found.warn(
                "trusted_proxies.cloudflare_file",
                what,
                "set `cloudflare_refresh`, or run `keylatch cloudflare refresh` by the timer",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn wide_networks() {
        for (name, level) in [
            ("0.0.0.0/0", Some(Level::Bad)),
            ("127.0.0.0/1", Some(Level::Bad)),
            ("10.0.0.0/1", Some(Level::Bad)),
            ("12.0.0.0/8", Some(Level::Bad)),
            ("fc00::/6", Some(Level::Bad)),
            ("2000::/3", Some(Level::Bad)),
            ("10.0.0.0/8", Some(Level::Warn)),
            ("172.16.0.0/12", Some(Level::Warn)),
            ("fd00::/8", Some(Level::Warn)),
            ("private", Some(Level::Warn)),
            ("127.0.0.0/8", None),
            ("10.8.0.0/24", None),
            ("104.16.0.1", None),
            ("cloudflare", None),
            ("loopback", None),
        ] {
            let mut found = Findings::default();
            network(name, "here", &mut found);
            assert_eq!(found.0.first().map(|finding| finding.level), level, "{name}");
        }
    }
}
