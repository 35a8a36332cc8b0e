//! Validates the configuration of an upstream and compiles its servers and balancer. It starts
//! nothing.

use std::time::Duration;

use keylatch_filters::contract::Invalid;
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::lb::{Backends, LoadBalancer};

use super::resolve::Discovery;
use super::server::{Place, Target};
use super::tls::Tls;
use super::{Balancer, SharedConnector, health};
use crate::config::model::{AddressFamily, Balance, Upstream as UpstreamConfig};

/// The most configurable retries. Pingora's own limit, in `server`, is higher.
const RETRIES_MAX: usize = 10;

/// Compiles the servers.
pub fn targets(config: &UpstreamConfig) -> Result<Vec<Target>, Invalid> {
    if config.servers.is_empty() {
        return Err(Invalid::new("the list is empty; at least one is needed").at("servers"));
    }
    let mut targets = Vec::new();
    for (index, server) in config.servers.iter().enumerate() {
        let wrong = |e: Invalid, key: &str| e.at(key).index(index).at("servers");
        let target = Target::parse(&server.address, server.weight).map_err(|e| wrong(e, "address"))?;
        if !(1..=100).contains(&server.weight) {
            return Err(wrong(Invalid::new("must be between 1 and 100"), "weight"));
        }
        match &target.place {
            Place::Literal(_, address) if !config.address_family.allows(address) => {
                let says = format!("the address `{}` is not {}, which `address_family` demands", server.address, config.address_family);
                return Err(wrong(Invalid::new(says), "address"));
            }
            Place::Unix(_) if config.tls.as_ref().is_some_and(|tls| tls.server_name.is_none()) => {
                return Err(Invalid::new("is required for TLS over a Unix socket, which has no name").at("server_name").at("tls"));
            }
            Place::Unix(_) if config.balance == Balance::ClientHash && config.servers.len() > 1 => {
                let says = "`client_hash` cannot choose among Unix sockets; `round_robin` and `random` can";
                return Err(Invalid::new(says).at("balance"));
            }
            Place::Literal(..) | Place::Name(_) | Place::Unix(_) => {}
        }
        targets.push(target);
    }
    let unix_only = targets.iter().all(|target| matches!(target.place, Place::Unix(_)));
    if unix_only && config.address_family != AddressFamily::default() {
        return Err(Invalid::new("has no effect on Unix sockets, and there are no other servers: remove it").at("address_family"));
    }
    Ok(targets)
}

/// Validates the rest of the configuration, except the files of `tls`.
pub fn check(config: &UpstreamConfig) -> Result<(), Invalid> {
    if config.name.is_empty() {
        return Err(Invalid::new("the name is empty").at("name"));
    }
    if config.retries > RETRIES_MAX {
        return Err(Invalid::new(format!("at most {RETRIES_MAX}")).at("retries"));
    }
    if config.resolve_every.0 < Duration::from_secs(1) {
        return Err(Invalid::new("must be at least 1s").at("resolve_every"));
    }
    let plain = |text: &Option<String>| text.as_ref().is_none_or(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()));
    if !plain(&config.host) {
        return Err(Invalid::new("not a host").at("host"));
    }
    if let Some(path) = &config.base_path {
        base_path(path).map_err(|invalid| invalid.at("base_path"))?;
    }
    let a_name = |name: &String| rustls::pki_types::ServerName::try_from(name.as_str()).is_ok();
    if config.tls.as_ref().is_some_and(|tls| !plain(&tls.server_name) || !tls.server_name.as_ref().is_none_or(a_name)) {
        return Err(Invalid::new("not a host name").at("server_name").at("tls"));
    }
    let presents_certificate = config.tls.as_ref().is_some_and(|tls| tls.client_certificate.is_some());
    if presents_certificate && config.health.active.as_ref().is_some_and(|health| health.path.is_none()) {
        let says = "is required with a client certificate: a TCP check would not present it";
        return Err(Invalid::new(says).at("path").at("active").at("health"));
    }
    if let Some(health) = &config.health.active {
        health::check(health).map_err(|e| e.at("active").at("health"))?;
    }
    Ok(())
}

fn base_path(path: &str) -> Result<(), Invalid> {
    let plain = path.bytes().all(|b| b.is_ascii_graphic() && !b"?#\\\"<>^`{|}".contains(&b));
    let segments = path.strip_prefix('/').map(|rest| rest.split('/'));
    let clean = segments.is_some_and(|mut all| all.all(|one| !matches!(one, "" | "." | "..")));
    // Each `%` begins an escape (RFC 3986, section 2.1).
    let escaped = path.split('%').skip(1).all(|after| after.as_bytes().get(..2).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit)));
    if plain && clean && escaped {
        return Ok(());
    }
    Err(Invalid::new(format!("`{path}` is not a path such as `/openai`: it begins with `/`, does not end with it, and has no query")))
}

/// The balancer over the discovered servers.
pub fn balancer(config: &UpstreamConfig, tls: Option<&Tls>, connector: &SharedConnector, discovery: Discovery) -> Balancer {
    match config.balance {
        // Pingora's hash ring supports IP addresses only. With one server there is no choice.
        Balance::ClientHash if config.servers.len() > 1 || !config.servers.iter().any(|one| one.address.starts_with("unix:")) => {
            Balancer::ClientHash(load_balancer(config, tls, connector, discovery))
        }
        Balance::RoundRobin | Balance::ClientHash => Balancer::RoundRobin(load_balancer(config, tls, connector, discovery)),
        Balance::Random => Balancer::Random(load_balancer(config, tls, connector, discovery)),
    }
}

fn load_balancer<S>(config: &UpstreamConfig, tls: Option<&Tls>, connector: &SharedConnector, discovery: Discovery) -> LoadBalancer<S>
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    let mut balancer = LoadBalancer::from_backends(Backends::new(Box::new(discovery)));
    if let Some(check) = health::active(config, tls, connector) {
        balancer.set_health_check(check);
    }
    balancer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_paths() {
        for good in ["/openai", "/a/b.c/v1", "/~x/%20"] {
            assert!(base_path(good).is_ok(), "{good}");
        }
        for wrong in ["", "/", "openai", "/openai/", "/a//b", "/a/../b", "/./a", "/a?b", "/a#b", "/a b", "/ä", "/%zz", "/a%2"] {
            assert!(base_path(wrong).is_err(), "{wrong}");
        }
    }
}
