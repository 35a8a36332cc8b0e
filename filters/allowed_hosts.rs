//! # allowed_hosts
//!
//! Refuses requests for other hosts than these: what is reached by the address alone, by another name that points
//! here, or by a `Host` that somebody made up.
//!
//! ```yaml
//! allowed_hosts:
//!   hosts: [api.example.com, "*.tenants.example.com"]
//! ```
//!
//! A name matches whatever its case and its port. `*.` stands for one label or more. Others get 421.

use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Filter, Flow, Hooks, Invalid, Problem, Reply, RequestCx, Result, Site, host_name};

/// `allowed_hosts`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names, with `*.` in front for everything below them, and addresses; without ports.
    pub hosts: Vec<String>,
}

/// The compiled filter.
pub struct AllowedHosts {
    exact: Vec<String>,
    /// With the dot in front.
    below: Vec<String>,
}

impl Filter for AllowedHosts {
    const NAME: &'static str = "allowed_hosts";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("allowed_hosts.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, _site: &mut Site<'_>) -> Result<Self, Invalid> {
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
                let says = format!("`{host}` is not a host; write a name such as `api.example.com` or `*.example.com`, without a port");
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
        let message = "This server does not serve the host that was asked for.";
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
        let config = Config { hosts: hosts.iter().map(|host| (*host).to_owned()).collect() };
        with_site(|site| AllowedHosts::compile(config, site))
    }

    #[test]
    fn names_ports_and_what_is_below() {
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
    fn what_is_no_host() {
        for wrong in [&[][..], &["*"], &["*."], &["a.example.com:443"], &["https://a"], &["a*b"], &["[::zz]"]] {
            assert!(hosts(wrong).is_err(), "{wrong:?}");
        }
    }
}
