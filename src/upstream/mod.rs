//! Servers: which there are, which of them work, which one gets the next request. No filter logic.
//!
//! Selection and active health checks are those of `pingora-load-balancing`; names are resolved in the
//! background ([`resolve`]), and servers whose connections fail are left out for a while ([`passive`]).

mod passive;
mod resolve;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keylatch_filters::contract::Invalid;
use pingora::lb::health_check::{HttpHealthCheck, TcpHealthCheck};
use pingora::lb::selection::{BackendIter, BackendSelection, Consistent, Random, RoundRobin};
use pingora::lb::{Backend, Backends, LoadBalancer};
use pingora::protocols::Digest;
use pingora::upstreams::peer::{HttpPeer, PeerOptions};

use crate::config::Files;
use crate::config::model::{ActiveHealth, Balance, HttpVersion, Upstream as Config};
use passive::Passive;
use resolve::{Names, Target};
use tls::Tls;

/// More servers than this are looked through for one request only if the first ones are ill.
const LOOKED_AT_MAX: usize = 256;

/// A named group of servers.
pub struct Upstream {
    /// Its name.
    pub name: Arc<str>,
    /// How many other servers are tried when no connection can be made.
    pub retries: usize,
    config: Config,
    options: PeerOptions,
    tls: Option<Tls>,
    balancer: Balancer,
    passive: Passive,
    started: AtomicBool,
}

enum Balancer {
    RoundRobin(LoadBalancer<RoundRobin>),
    Random(LoadBalancer<Random>),
    ClientHash(LoadBalancer<Consistent>),
}

/// Does the same with whichever balancer it is.
macro_rules! each {
    ($balancer:expr, $inner:ident => $do:expr) => {
        match $balancer {
            Balancer::RoundRobin($inner) => $do,
            Balancer::Random($inner) => $do,
            Balancer::ClientHash($inner) => $do,
        }
    };
}

/// A chosen server.
pub struct Picked {
    /// Whom to connect to, and how.
    pub peer: Box<HttpPeer>,
    /// Its address, to be told what came of it.
    pub address: SocketAddr,
    /// The `Host` it is to get, if not the client's.
    pub host: Option<String>,
}

impl Upstream {
    /// From its configuration; starts nothing.
    pub fn compile(config: &Config, files: &Files) -> Result<Self, Invalid> {
        if config.name.is_empty() {
            return Err(Invalid::new("the name is empty").at("name"));
        }
        if config.servers.is_empty() {
            return Err(Invalid::new("the list is empty; at least one is needed").at("servers"));
        }
        let mut targets = Vec::new();
        for (index, server) in config.servers.iter().enumerate() {
            let wrong = |e: Invalid, key: &str| e.at(key).index(index).at("servers");
            targets.push(Target::parse(&server.address, server.weight).map_err(|e| wrong(e, "address"))?);
            if !(1..=100).contains(&server.weight) {
                return Err(wrong(Invalid::new("must be between 1 and 100"), "weight"));
            }
        }
        if config.retries > 10 {
            return Err(Invalid::new("at most 10").at("retries"));
        }
        if config.resolve_every.0 < Duration::from_secs(1) {
            return Err(Invalid::new("must be at least 1s").at("resolve_every"));
        }
        let plain = |text: &Option<String>| text.as_ref().is_none_or(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()));
        if !plain(&config.host) {
            return Err(Invalid::new("not a host").at("host"));
        }
        let a_name = |name: &String| rustls::pki_types::ServerName::try_from(name.as_str()).is_ok();
        if config.tls.as_ref().is_some_and(|tls| !plain(&tls.server_name) || !tls.server_name.as_ref().is_none_or(a_name)) {
            return Err(Invalid::new("not a host's name").at("server_name").at("tls"));
        }
        let tls = config.tls.as_ref().map(|tls| Tls::compile(tls, files)).transpose().map_err(|invalid| invalid.at("tls"))?;
        let shows = config.tls.as_ref().is_some_and(|tls| tls.client_certificate.is_some());
        if shows && config.health.active.as_ref().is_some_and(|health| health.path.is_none()) {
            let says = "is needed where servers are shown a client certificate: a connection alone would show none";
            return Err(Invalid::new(says).at("path").at("active").at("health"));
        }
        if let Some(health) = &config.health.active {
            check_health(health).map_err(|e| e.at("active").at("health"))?;
        }
        let names = || Backends::new(Box::new(Names::new(targets.clone())));
        let balancer = match config.balance {
            Balance::RoundRobin => Balancer::RoundRobin(balancer(names(), config, tls.as_ref())),
            Balance::Random => Balancer::Random(balancer(names(), config, tls.as_ref())),
            Balance::ClientHash => Balancer::ClientHash(balancer(names(), config, tls.as_ref())),
        };
        Ok(Self {
            name: config.name.as_str().into(),
            retries: config.retries,
            options: options(config),
            passive: Passive::new(config.health.passive.failures, config.health.passive.eject_for.0),
            config: config.clone(),
            tls,
            balancer,
            started: AtomicBool::new(false),
        })
    }

    /// Resolves names for the first time, and starts the tasks that go on resolving and checking for as
    /// long as this upstream is in use. Once started, it is not started again.
    pub async fn start(self: &Arc<Self>) {
        if self.started.swap(true, Ordering::SeqCst) {
            return;
        }
        const FIRST_MAX: Duration = Duration::from_secs(5);
        if tokio::time::timeout(FIRST_MAX, self.update()).await.is_err() {
            tracing::warn!(upstream = %self.name, "resolving names takes longer than {FIRST_MAX:?}; going on without");
        }
        let resolve_every = self.config.resolve_every.0;
        self.every(resolve_every, |upstream| async move { upstream.update().await });
        if let Some(health) = &self.config.health.active {
            if tokio::time::timeout(FIRST_MAX, self.check()).await.is_err() {
                tracing::warn!(upstream = %self.name, "the first health check takes longer than {FIRST_MAX:?}; going on without");
            }
            self.every(health.interval.0, |upstream| async move { upstream.check().await });
        }
    }

    /// Runs `work` again and again until nobody uses this upstream any more.
    fn every<F>(self: &Arc<Self>, period: Duration, work: impl Fn(Arc<Self>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                match weak.upgrade() {
                    Some(upstream) => work(upstream).await,
                    None => return,
                }
            }
        });
    }

    async fn update(&self) {
        if let Err(error) = each!(&self.balancer, lb => lb.update().await) {
            tracing::warn!(upstream = %self.name, %error, "names cannot be resolved; the last known addresses go on being used");
        }
    }

    async fn check(&self) {
        each!(&self.balancer, lb => lb.backends().run_health_check(true).await);
    }

    /// The server for a request of `client`, none of those `tried`. Servers that are ill or left out are
    /// taken only if there is no other: a guess beats a certain failure.
    pub fn pick(&self, client: IpAddr, tried: &[SocketAddr], now: Instant) -> Option<Picked> {
        let fresh = |backend: &Backend| address_of(backend).is_some_and(|address| !tried.contains(&address));
        let well = |backend: &Backend, healthy: bool| {
            healthy && fresh(backend) && address_of(backend).is_some_and(|address| self.passive.admits(address, now))
        };
        let backend = each!(&self.balancer, lb => {
            let key = hash_key(client);
            lb.select_with(&key, LOOKED_AT_MAX, well).or_else(|| lb.select_with(&key, LOOKED_AT_MAX, |backend, _| fresh(backend)))
        })?;
        self.picked(&backend)
    }

    fn picked(&self, backend: &Backend) -> Option<Picked> {
        let address = address_of(backend)?;
        let name = backend.ext.get::<resolve::ServerName>();
        let sni = self.config.tls.as_ref().map(|tls| match (&tls.server_name, name) {
            (Some(fixed), _) => fixed.clone(),
            (None, Some(name)) => name.host.to_string(),
            (None, None) => address.ip().to_string(),
        });
        let host = match (&self.config.host, &sni, name) {
            (Some(fixed), _, _) => Some(fixed.clone()),
            (None, Some(_), Some(name)) => Some(name.authority.to_string()),
            _ => None,
        };
        let mut peer = Box::new(HttpPeer::new(address, sni.is_some(), sni.unwrap_or_default()));
        peer.options = self.options.clone();
        if let Some(tls) = &self.tls {
            tls.apply(&mut peer);
        }
        Some(Picked { peer, address, host })
    }

    /// Whether the certificate of the server at the other end of a connection was revoked.
    pub fn is_revoked(&self, digest: Option<&Digest>) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_revoked(digest))
    }

    /// A connection to `address` was made.
    pub fn succeeded(&self, address: SocketAddr) {
        self.passive.succeeded(address);
    }

    /// A connection to `address` could not be made.
    pub fn failed(&self, address: SocketAddr, now: Instant) {
        if self.passive.failed(address, now) {
            tracing::warn!(upstream = %self.name, server = %address, "left out for a while: its connections fail");
        }
    }

    /// How many servers there are, and how many count as well.
    pub fn health(&self) -> (usize, usize) {
        let now = Instant::now();
        each!(&self.balancer, lb => {
            let all = lb.backends().get_backend();
            let well = |backend: &&Backend| lb.backends().ready(backend) && address_of(backend).is_some_and(|a| self.passive.admits(a, now));
            (all.len(), all.iter().filter(well).count())
        })
    }
}

fn address_of(backend: &Backend) -> Option<SocketAddr> {
    backend.addr.as_inet().copied()
}

fn hash_key(client: IpAddr) -> [u8; 16] {
    match client {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn check_health(health: &ActiveHealth) -> Result<(), Invalid> {
    if health.path.as_ref().is_some_and(|path| !path.starts_with('/') || path.parse::<http::Uri>().is_err()) {
        return Err(Invalid::new("must begin with `/` and be a path").at("path"));
    }
    if health.interval.0 < Duration::from_millis(500) {
        return Err(Invalid::new("must be at least 500ms").at("interval"));
    }
    if health.well_after == 0 || health.ill_after == 0 {
        return Err(Invalid::new("`well_after` and `ill_after` must be at least 1"));
    }
    Ok(())
}

fn balancer<S>(backends: Backends, config: &Config, tls: Option<&Tls>) -> LoadBalancer<S>
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    let mut balancer = LoadBalancer::from_backends(backends);
    if let Some(health) = &config.health.active {
        let name = config.tls.as_ref().and_then(|tls| tls.server_name.clone());
        let name = name.or_else(|| config.host.clone());
        let name =
            name.unwrap_or_else(|| config.servers.first().map(|server| resolve::host_of(&server.address).to_owned()).unwrap_or_default());
        match &health.path {
            Some(path) => {
                let mut check = HttpHealthCheck::new(&name, tls.is_some());
                check.peer_template.options = options(config);
                if let Some(tls) = tls {
                    tls.apply(&mut check.peer_template);
                }
                check.peer_template.options.read_timeout = Some(Duration::from_secs(5));
                check.consecutive_success = health.well_after;
                check.consecutive_failure = health.ill_after;
                if let Ok(uri) = path.parse() {
                    check.req.set_uri(uri);
                }
                balancer.set_health_check(Box::new(check));
            }
            None => {
                let mut check = if tls.is_some() { TcpHealthCheck::new_tls(&name) } else { TcpHealthCheck::new() };
                check.peer_template.options.ca = tls.and_then(|tls| tls.ca.clone());
                check.consecutive_success = health.well_after;
                check.consecutive_failure = health.ill_after;
                balancer.set_health_check(check);
            }
        }
    }
    balancer
}

fn options(config: &Config) -> PeerOptions {
    let mut options = PeerOptions::new();
    let timeouts = &config.timeouts;
    options.connection_timeout = Some(timeouts.connect.0);
    options.total_connection_timeout = Some(timeouts.connect.0);
    options.read_timeout = Some(timeouts.read.0);
    options.write_timeout = Some(timeouts.write.0);
    options.idle_timeout = Some(timeouts.idle.0);
    match (config.http, config.tls.is_some()) {
        (HttpVersion::Http2, _) => options.set_http_version(2, 2),
        (HttpVersion::Auto, true) => options.set_http_version(2, 1),
        (HttpVersion::Auto, false) | (HttpVersion::Http1, _) => options.set_http_version(1, 1),
    }
    options
}
