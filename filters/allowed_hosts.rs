//! # allowed_hosts
//!
//! Refuses requests with a `Host` that is not on a list, such as requests to the bare IP address, to
//! another name that resolves to this server, or with a made-up `Host`.
//!
//! ```yaml
//! allowed_hosts:
//!   hosts: [api.example.com, "*.tenants.example.com"]
//! ```
//!
//! - Matching ignores letter case, the port, and a dot at the end.
//! - `*.` matches one or more labels: `*.tenants.example.com` matches `a.tenants.example.com` and
//!   `a.b.tenants.example.com`, but not `tenants.example.com`.
//! - An IP address must be listed like a name; an IPv6 address is written in brackets.
//!
//! A request for another host gets 421 with the code `unknown_host`.

use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Filter, Flow, Hooks, Invalid, Problem, Reply, RequestCx, Result, Site, host_name};

/// `allowed_hosts`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowedHostsConfig {
    /// Host names and IP addresses, without ports. `*.` at the start matches all subdomains. At least one.
    pub hosts: Vec<String>,
}

/// The compiled filter.
pub struct AllowedHosts {
    exact: Vec<String>,
    /// Domains with allowed subdomains, with a leading dot.
    below: Vec<String>,
}

impl Filter for AllowedHosts {
    const NAME: &'static str = "allowed_hosts";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("allowed_hosts.rs");
    type Config = AllowedHostsConfig;
    type State = ();

    fn compile(config: AllowedHostsConfig, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.hosts.is_empty() {
            return Err(Invalid::new("name at least one host").at("hosts"));
        }
        let (mut exact, mut below) = (Vec::new(), Vec::new());
        for (index, host) in config.hosts.iter().enumerate() {
            let lower = host.to_ascii_lowercase();
            let (list, name) = match lower.strip_prefix("*.") {
                Some(rest) => (&mut below, rest),
                None => (&mut exact, lower.as_str()),
            };
            let literal =
                name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            if !literal && !plain {
                let says =
                    format!("`{host}` is not a host name; write a name such as `api.example.com` or `*.example.com`, without a port");
                return Err(Invalid::new(says).index(index).at("hosts"));
            }
            list.push(if lower.starts_with("*.") { format!(".{name}") } else { name.to_owned() });
        }
        Ok(Self { exact, below })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let host = cx.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if self.allows(host) {
            return Ok(Flow::Continue);
        }
        let message = "The requested host is not served here.";
        Ok(Reply::new(Problem::BadRequest, "unknown_host", "host", message).status(StatusCode::MISDIRECTED_REQUEST).into())
    }
}

impl AllowedHosts {
    fn allows(&self, host: &str) -> bool {
        let name = host_name(host);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.exact.contains(&name) || self.below.iter().any(|end| name.len() > end.len() && name.ends_with(end.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::with_site;

    fn hosts(hosts: &[&str]) -> std::result::Result<AllowedHosts, Invalid> {
        let config = AllowedHostsConfig { hosts: hosts.iter().map(|host| (*host).to_owned()).collect() };
        with_site(|site| AllowedHosts::compile(config, site))
    }

    #[test]
    fn names_ports_and_subdomains() {
        let filter = hosts(&["API.example.com", "*.tenants.example.com", "[2001:db8::1]", "127.0.0.1"]).unwrap();
        for host in
            ["api.example.com", "api.EXAMPLE.com:443", "api.example.com.", "a.b.tenants.example.com", "[2001:db8::1]:80", "127.0.0.1:8080"]
        {
            assert!(filter.allows(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "tenants.example.com",
            ".tenants.example.com",
            "eviltenants.example.com",
            "api.example.com.evil.org",
            "[2001:db8::2]",
        ] {
            assert!(!filter.allows(host), "{host}");
        }
    }

    #[test]
    fn invalid_hosts() {
        for wrong in [&[][..], &["*"], &["*."], &["a.example.com:443"], &["https://a"], &["a*b"], &["[::zz]"]] {
            assert!(hosts(wrong).is_err(), "{wrong:?}");
        }
    }
}
