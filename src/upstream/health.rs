//! The status of an upstream, and its active health checks. It chooses no server; ejection is in
//! `passive`.

use std::time::Duration;

use keylatch_filters::contract::Invalid;
use pingora::lb::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};

use super::connect::options;
use super::server::host_of;
use super::tls::Tls;
use crate::config::model::{ActiveHealth, Upstream as UpstreamConfig};

/// A response that takes longer is a failure.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// The number of servers of an upstream, and of those that work. A name without an address counts
/// as one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// All servers.
    pub servers: usize,
    /// The servers that work according to connections and checks.
    pub working: usize,
}

/// The status of an upstream, or of all upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every server works.
    Ok,
    /// Some servers work.
    Degraded,
    /// No server works.
    Down,
}

impl Status {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

impl Health {
    /// The status.
    pub fn status(self) -> Status {
        match self.working {
            0 => Status::Down,
            n if n < self.servers => Status::Degraded,
            _ => Status::Ok,
        }
    }
}

/// Validates the configuration of active checks.
pub fn check(health: &ActiveHealth) -> Result<(), Invalid> {
    if health.path.as_ref().is_some_and(|path| !path.starts_with('/') || path.parse::<http::Uri>().is_err()) {
        return Err(Invalid::new("must be a path such as `/health`, without a host").at("path"));
    }
    if health.interval.0 < Duration::from_millis(500) {
        return Err(Invalid::new("must be at least 500ms").at("interval"));
    }
    if health.well_after == 0 || health.ill_after == 0 {
        return Err(Invalid::new("`well_after` and `ill_after` must be at least 1"));
    }
    Ok(())
}

/// The active check, if one is configured.
pub fn active(
    config: &UpstreamConfig,
    tls: Option<&Tls>,
    connector: &super::SharedConnector,
) -> Option<Box<dyn HealthCheck + Send + Sync>> {
    let health = config.health.active.as_ref()?;
    let name = config.tls.as_ref().and_then(|tls| tls.server_name.clone()).or_else(|| config.host.clone());
    let name = name.unwrap_or_else(|| config.servers.first().map(|server| host_of(&server.address).to_owned()).unwrap_or_default());
    Some(match &health.path {
        Some(path) => {
            let mut check = HttpHealthCheck::new(&name, tls.is_some());
            check.peer_template.options = options(config, connector);
            if let Some(tls) = tls {
                tls.apply(&mut check.peer_template);
            }
            check.peer_template.options.read_timeout = Some(ANSWER_TIME_MAX);
            check.consecutive_success = health.well_after;
            check.consecutive_failure = health.ill_after;
            if let Ok(uri) = path.parse() {
                check.req.set_uri(uri);
            }
            Box::new(check)
        }
        None => {
            let mut check = if tls.is_some() { TcpHealthCheck::new_tls(&name) } else { TcpHealthCheck::new() };
            check.peer_template.options.ca = tls.and_then(|tls| tls.ca.clone());
            check.peer_template.options.custom_l4 = Some(connector.clone());
            check.peer_template.options.total_connection_timeout = Some(config.timeouts.connect.0);
            check.consecutive_success = health.well_after;
            check.consecutive_failure = health.ill_after;
            check
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_an_upstream() {
        for (servers, working, status) in [(2, 2, Status::Ok), (2, 1, Status::Degraded), (2, 0, Status::Down), (0, 0, Status::Down)] {
            assert_eq!(Health { servers, working }.status(), status, "{working} of {servers}");
        }
    }
}
