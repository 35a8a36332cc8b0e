//! Upstreams: the servers, their health, and the choice of a server for a request. No filter logic.
//!
//! Selection and active health checks are those of `pingora-load-balancing`. Names are resolved in
//! the background ([`resolve`]); servers with failing connections are ejected until one succeeds
//! ([`passive`]).

mod background;
mod compile;
mod connect;
mod health;
mod passive;
mod resolve;
mod retry;
pub mod reuse;
mod server;
mod tls;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keylatch_filters::contract::Invalid;
use pingora::ErrorType;
use pingora::lb::selection::{Consistent, Random, RoundRobin};
use pingora::lb::{Backend, LoadBalancer};
use pingora::protocols::Digest;
use pingora::upstreams::peer::{HttpPeer, PeerOptions};
use tokio::sync::Notify;

use crate::config::Files;
use crate::config::model::Upstream as UpstreamConfig;
use connect::Connector;
pub use health::{Health, Status};
use passive::Passive;
use resolve::{Discovery, Lookup, Names, Schedule, System};
pub use retry::{Attempts, is_unprocessed};
use server::ServerName;
use tls::Tls;

/// The address of a server: an IP address and a port, or a Unix socket.
pub type Address = pingora::protocols::l4::socket::SocketAddr;

/// The address of a server in logs and lists.
pub fn server_name(address: &Address) -> String {
    match address {
        Address::Inet(address) => address.to_string(),
        Address::Unix(_) => format!("unix:{address}"),
    }
}

type SharedConnector = Arc<Connector>;

/// The most servers that are examined in one selection.
const EXAMINED_MAX: usize = 256;

/// A named group of servers.
pub struct Upstream {
    /// Its name.
    pub name: Arc<str>,
    config: UpstreamConfig,
    options: PeerOptions,
    tls: Option<Tls>,
    balancer: Balancer,
    passive: Passive,
    names: Arc<Names>,
    schedule: Arc<Schedule>,
    /// Notified when a name switches to its other address family.
    changed: Arc<Notify>,
    connector: SharedConnector,
    keep_alive: Arc<reuse::ServerIdleLimits>,
    started: AtomicBool,
}

enum Balancer {
    RoundRobin(LoadBalancer<RoundRobin>),
    Random(LoadBalancer<Random>),
    ClientHash(LoadBalancer<Consistent>),
}

/// Evaluates an expression for any kind of balancer.
macro_rules! each {
    ($balancer:expr, $inner:ident => $do:expr) => {
        match $balancer {
            Balancer::RoundRobin($inner) => $do,
            Balancer::Random($inner) => $do,
            Balancer::ClientHash($inner) => $do,
        }
    };
}

use each;

/// A chosen server.
pub struct Picked {
    /// The connection parameters.
    pub peer: Box<HttpPeer>,
    /// Its address, for reporting success or failure.
    pub address: Address,
    /// The `Host` for the server, if it differs from the client's.
    pub host: Option<String>,
}

impl Upstream {
    /// Compiles an upstream; starts nothing.
    pub fn compile(config: &UpstreamConfig, files: &Files) -> Result<Self, Invalid> {
        Self::with(config, files, Box::new(System))
    }

    fn with(config: &UpstreamConfig, files: &Files, lookup: Box<dyn Lookup>) -> Result<Self, Invalid> {
        compile::check(config)?;
        let names = Arc::new(Names::new(compile::targets(config)?, config.address_family, lookup));
        let tls = config.tls.as_ref().map(|tls| Tls::compile(tls, files)).transpose().map_err(|invalid| invalid.at("tls"))?;
        let changed = Arc::new(Notify::new());
        let keep_alive = Arc::<reuse::ServerIdleLimits>::default();
        let connector = Connector::new(Arc::clone(&names), config.timeouts.connect.0, Arc::clone(&changed), Arc::clone(&keep_alive));
        let connector = Arc::new(connector);
        Ok(Self {
            name: config.name.as_str().into(),
            options: connect::options(config, &connector),
            balancer: compile::balancer(config, tls.as_ref(), &connector, Discovery(Arc::clone(&names))),
            passive: Passive::new(config.health.passive.failures, config.health.passive.eject_for.0),
            schedule: Arc::new(Schedule::new(config.resolve_every.0)),
            keep_alive,
            started: AtomicBool::new(false),
            config: config.clone(),
            tls,
            names,
            changed,
            connector,
        })
    }

    fn backends(&self) -> Arc<BTreeSet<Backend>> {
        each!(&self.balancer, lb => lb.backends().get_backend())
    }

    /// Chooses a server for a request of `client`. Ejected servers, and those that have failed this
    /// request, are used only as a last resort.
    pub fn pick(&self, client: IpAddr, attempts: &Attempts, now: Instant) -> Option<Picked> {
        let reachable = |backend: &Backend| !attempts.unreachable.contains(&backend.addr);
        let works = |backend: &Backend, healthy: bool| healthy && reachable(backend) && self.passive.admits(&backend.addr, now);
        let other = |backend: &Backend, healthy: bool| works(backend, healthy) && !attempts.failed.contains(&backend.addr);
        let backend = each!(&self.balancer, lb => {
            let key = hash_key(client);
            let first = lb.select_with(&key, EXAMINED_MAX, other);
            let any_working = || if attempts.failed.is_empty() { None } else { lb.select_with(&key, EXAMINED_MAX, works) };
            first.or_else(any_working).or_else(|| lb.select_with(&key, EXAMINED_MAX, |backend, _| reachable(backend)))
        })?;
        self.log_retry(&backend.addr);
        Some(self.picked(backend, attempts.new_connection))
    }

    fn picked(&self, backend: Backend, new_connection: bool) -> Picked {
        let (address, name) = (backend.addr, backend.ext.get::<ServerName>());
        let sni = self.config.tls.as_ref().map(|tls| match (&tls.server_name, name) {
            (Some(fixed), _) => fixed.clone(),
            (None, Some(name)) => name.host.to_string(),
            // A Unix socket has no name; `compile` requires `server_name`.
            (None, None) => String::new(),
        });
        let host = match (&self.config.host, &sni, name) {
            (Some(fixed), _, _) => Some(fixed.clone()),
            (None, Some(_), Some(name)) => Some(name.authority.to_string()),
            (None, Some(sni), None) => Some(sni.clone()),
            (None, None, _) => None,
        };
        let mut peer = Box::new(HttpPeer {
            _address: address.clone(),
            scheme: pingora::upstreams::peer::Scheme::from_tls_bool(sni.is_some()),
            sni: sni.unwrap_or_default(),
            proxy: None,
            client_cert_key: None,
            group_key: 0,
            options: self.options.clone(),
        });
        if let Some(tls) = &self.tls {
            tls.apply(&mut peer);
        }
        let idle = self.keep_alive.limit(&address, self.config.timeouts.idle.0, Instant::now());
        peer.options.idle_timeout = Some(idle);
        if new_connection || idle.is_zero() {
            // A unique key matches no pooled connection, and pools none.
            static UNIQUE: AtomicU64 = AtomicU64::new(0);
            peer.group_key ^= u64::MAX - UNIQUE.fetch_add(1, Ordering::Relaxed);
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        Picked { peer, address, host }
    }

    /// Requests a DNS look-up, and waits for it if it runs at once or if no address is known.
    /// `false`: there was nothing to wait for, or it took longer than the connect timeout.
    pub async fn wait_for_addresses(&self) -> bool {
        if !self.names.any() {
            return false;
        }
        let requested = self.schedule.request(Instant::now());
        let wanted = requested.at_once || self.backends().is_empty();
        wanted && self.schedule.ended(&requested, self.config.timeouts.connect.0).await
    }

    /// Whether [`wait_for_addresses`](Self::wait_for_addresses) may find another address.
    pub fn may_find_addresses(&self) -> bool {
        self.names.any() && self.schedule.request(Instant::now()).at_once
    }

    /// The number of retries per request.
    pub fn retries(&self) -> usize {
        self.config.retries
    }

    /// Whether a request that was certainly not received is retried, and connections may end under
    /// one.
    pub fn retries_unsent(&self) -> bool {
        self.config.retry_unsent && self.keep_alive.ends()
    }

    /// Whether every connection is HTTP/1.1; `false` if ALPN decides.
    pub fn is_http1(&self) -> bool {
        self.options.alpn.get_max_http_version() == 1
    }

    /// Whether a connection may be HTTP/1.1: always, or by ALPN.
    pub fn may_speak_http1(&self) -> bool {
        self.options.alpn.get_min_http_version() == 1
    }

    /// The prefix of the path of each request.
    pub fn base_path(&self) -> Option<&str> {
        self.config.base_path.as_deref()
    }

    /// Whether the server certificate of a connection was revoked.
    pub fn is_revoked(&self, digest: Option<&Digest>) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_revoked(digest))
    }

    /// Notes the response header of a server.
    pub fn observe(&self, server: &Address, headers: &http::HeaderMap) {
        self.keep_alive.observe(server, headers);
    }

    /// Notes a successful connection to a server.
    pub fn succeeded(&self, server: &Address) {
        if let Some(outage) = self.passive.succeeded(server, Instant::now()) {
            tracing::info!(upstream = %self.name, server = server_name(server), "server recovered after {} s", outage.as_secs());
        }
    }

    /// Notes a failed connection to a server.
    pub fn failed(&self, server: &Address, error: &ErrorType) {
        use ErrorType::{ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout};
        let plain = matches!(error, ConnectRefused | ConnectNoRoute | ConnectError) || (self.tls.is_none() && *error == ConnectTimedout);
        self.note_failure(server, !plain, &error.as_str());
        if self.names.any() {
            self.schedule.request(Instant::now());
        }
    }

    fn note_failure(&self, server: &Address, by_request: bool, error: &dyn std::fmt::Display) {
        let passive = &self.config.health.passive;
        if self.passive.failed(server, by_request, Instant::now()) {
            let (upstream, server, every) = (&self.name, server_name(server), passive.eject_for.0);
            match passive.failures {
                0 => tracing::warn!(%upstream, %server, %error, "connections to the server fail; it stays in use"),
                n => {
                    tracing::warn!(%upstream, %server, %error, "server ejected after {n} failed connections; retried every {every:?}")
                }
            }
        }
    }

    fn log_retry(&self, server: &Address) {
        if self.passive.retries(server, Instant::now()) {
            tracing::info!(upstream = %self.name, server = server_name(server), "retrying an ejected server");
        }
    }

    /// The number of servers, and of those that work.
    pub fn health(&self) -> Health {
        let all = self.backends();
        let works = |backend: &&Backend| {
            let ready = each!(&self.balancer, lb => lb.backends().ready(backend));
            ready && self.passive.is_working(&backend.addr)
        };
        Health { servers: all.len() + self.names.unresolved(), working: all.iter().filter(works).count() }
    }
}

fn hash_key(client: IpAddr) -> [u8; 16] {
    match client {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
