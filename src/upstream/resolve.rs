//! Resolves names to addresses in the background, and chooses the address family. A request never
//! starts a look-up itself; it may wait for one that is running ([`Schedule`]).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::lb::Backend;
use pingora::lb::discovery::ServiceDiscovery;
use tokio::sync::{Notify, watch};

use super::Address;
use super::server::{Place, ServerName, Target};
use crate::config::model::AddressFamily;

/// The timeout of a look-up.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(5);
/// The delay before the first retry of a failed name; it doubles with each retry.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// The maximum retry delay, and the minimum interval between look-ups that failed connections
/// request.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Looks up a name.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// The addresses of `host:port`, in the order of preference.
    async fn lookup(&self, address: &str) -> io::Result<Vec<SocketAddr>>;
}

/// The resolver of the system.
pub struct System;

#[async_trait]
impl Lookup for System {
    async fn lookup(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(address).await?.collect())
    }
}

/// The servers of an upstream and the addresses of their names. A name that cannot be resolved
/// keeps its last addresses.
pub struct Names {
    targets: Vec<Target>,
    family: AddressFamily,
    lookup: Box<dyn Lookup>,
    known: Mutex<HashMap<Arc<str>, Name>>,
}

#[derive(Default)]
struct Name {
    addresses: Vec<SocketAddr>,
    failing: bool,
    /// Whether IPv6 is preferred if there are both; unset: the resolver's order decides.
    prefers_ipv6: Option<bool>,
}

impl Name {
    fn uses_ipv6(&self) -> bool {
        self.prefers_ipv6.unwrap_or_else(|| self.addresses.first().is_some_and(SocketAddr::is_ipv6))
    }

    /// The addresses of the family in use, or of the other one if there are none.
    fn in_use(&self) -> impl Iterator<Item = SocketAddr> {
        let uses_ipv6 = self.uses_ipv6();
        let both = self.addresses.iter().any(|one| one.is_ipv6() == uses_ipv6);
        self.addresses.iter().copied().filter(move |one| !both || one.is_ipv6() == uses_ipv6)
    }
}

impl Names {
    /// For these servers.
    pub fn new(targets: Vec<Target>, family: AddressFamily, lookup: Box<dyn Lookup>) -> Self {
        Self { targets, family, lookup, known: Mutex::default() }
    }

    fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.targets.iter().filter_map(|target| match &target.place {
            Place::Name(name) => Some(name),
            Place::Literal(..) | Place::Unix(_) => None,
        })
    }

    /// Whether there are names to resolve.
    pub fn any(&self) -> bool {
        self.names().next().is_some()
    }

    /// The names without an address.
    pub fn unresolved_names(&self) -> Vec<String> {
        let known = self.known.lock();
        let unresolved = self.names().filter(|name| known.get(&name.address).is_none_or(|name| name.addresses.is_empty()));
        unresolved.map(|name| name.address.to_string()).collect()
    }

    /// The number of names without an address.
    pub fn unresolved(&self) -> usize {
        self.unresolved_names().len()
    }

    /// Looks up all names in parallel, so that a slow name delays the others only up to its
    /// timeout.
    pub async fn resolve(&self, upstream: &str) {
        let all = self.names().map(|name| async move {
            let found = tokio::time::timeout(LOOKUP_TIME_MAX, self.lookup.lookup(&name.address)).await;
            let found = found.unwrap_or_else(|_| Err(io::Error::other(format!("no response within {LOOKUP_TIME_MAX:?}"))));
            self.learn(upstream, name, found);
        });
        futures::future::join_all(all).await;
    }

    fn learn(&self, upstream: &str, name: &ServerName, found: io::Result<Vec<SocketAddr>>) {
        let found = found.and_then(|mut found| {
            found.retain(|address| self.family.allows(address));
            match found.is_empty() {
                true => Err(io::Error::other(format!("the name has no address of the allowed family ({})", self.family))),
                false => Ok(found),
            }
        });
        let mut known = self.known.lock();
        let entry = known.entry(Arc::clone(&name.address)).or_default();
        match found {
            Ok(found) => {
                if std::mem::take(&mut entry.failing) {
                    tracing::info!(%upstream, server = %name.address, addresses = ?found, "DNS resolution recovered");
                }
                entry.addresses = found;
            }
            Err(error) => {
                if !std::mem::replace(&mut entry.failing, true) {
                    let kept = entry.addresses.len();
                    tracing::warn!(%upstream, server = %name.address, %error, kept, "DNS resolution failed; the last known addresses stay in use");
                }
            }
        }
    }

    /// The addresses of the same name in the other family: the alternatives for a failed
    /// connection.
    pub fn alternatives(&self, address: SocketAddr) -> Vec<SocketAddr> {
        let known = self.known.lock();
        let name = known.values().find(|name| name.addresses.contains(&address));
        name.map(|name| name.addresses.iter().copied().filter(|other| other.is_ipv6() != address.is_ipv6()).collect()).unwrap_or_default()
    }

    /// Notes that this address connected while its name's other family did not.
    pub fn prefer(&self, address: SocketAddr) {
        let mut known = self.known.lock();
        for name in known.values_mut().filter(|name| name.addresses.contains(&address)) {
            name.prefers_ipv6 = Some(address.is_ipv6());
        }
    }

    fn backends(&self) -> BTreeSet<Backend> {
        let known = self.known.lock();
        let mut backends = BTreeSet::new();
        for target in &self.targets {
            match &target.place {
                Place::Literal(_, address) => drop(backends.insert(target.backend(Address::Inet(*address)))),
                Place::Unix(address) => drop(backends.insert(target.backend(address.clone()))),
                Place::Name(name) => {
                    let addresses = known.get(&name.address).into_iter().flat_map(Name::in_use);
                    backends.extend(addresses.map(|address| target.backend(Address::Inet(address))));
                }
            }
        }
        backends
    }
}

/// The known addresses, for the balancer. It looks up nothing.
pub struct Discovery(pub Arc<Names>);

#[async_trait]
impl ServiceDiscovery for Discovery {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        Ok((self.0.backends(), HashMap::new()))
    }
}

/// Schedules look-ups: periodically, soon after a failure, and when a connection failed.
pub struct Schedule {
    resolve_every: Duration,
    passes: watch::Sender<Pass>,
    wanted: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    begun: u64,
    ended: u64,
    ended_at: Option<Instant>,
    /// When the last requested look-up began.
    requested_at: Option<Instant>,
    /// The passes in a row that left a name without an address.
    incomplete: u32,
}

impl Schedule {
    /// A look-up at least once per `resolve_every`.
    pub fn new(resolve_every: Duration) -> Self {
        Self { resolve_every, passes: watch::Sender::new(Pass::default()), wanted: Notify::new() }
    }

    /// Notes that a look-up begins.
    pub fn begin(&self) {
        self.passes.send_modify(|pass| pass.begun += 1);
    }

    /// Notes that a look-up ended and left this many names without an address.
    pub fn end(&self, unresolved: usize, now: Instant) {
        self.passes.send_modify(|pass| {
            pass.ended = pass.begun;
            pass.ended_at = Some(now);
            pass.incomplete = if unresolved > 0 { pass.incomplete.saturating_add(1) } else { 0 };
        });
    }

    /// The time from the end of the last look-up to the next scheduled one.
    fn pause(&self) -> Duration {
        match self.passes.borrow().incomplete {
            0 => self.resolve_every,
            n => (RETRY_MIN * 2u32.saturating_pow(n - 1).min(16)).min(RETRY_MAX).min(self.resolve_every),
        }
    }

    /// Requests a look-up.
    pub fn request(&self, now: Instant) -> Requested {
        let pass = *self.passes.borrow();
        self.wanted.notify_one();
        let under_way = pass.begun > pass.ended;
        let rested = pass.requested_at.is_none_or(|at| now.saturating_duration_since(at) >= RETRY_MAX);
        Requested { pass: if under_way { pass.begun } else { pass.begun + 1 }, at_once: under_way || rested }
    }

    /// Waits until the next look-up is due.
    pub async fn due(&self) {
        let rest = |since: Option<Instant>, pause: Duration| since.map_or(Duration::ZERO, |at| pause.saturating_sub(at.elapsed()));
        let (pass, pause) = (*self.passes.borrow(), self.pause());
        tokio::select! {
            () = tokio::time::sleep(rest(pass.ended_at, pause)) => {}
            () = self.wanted.notified() => {
                // Failed connections come in bursts: one look-up per interval serves them all.
                tokio::time::sleep(rest(pass.requested_at, RETRY_MAX).min(rest(pass.ended_at, pause))).await;
                self.passes.send_modify(|pass| pass.requested_at = Some(Instant::now()));
            }
        }
    }

    /// Waits for the end of a look-up. `false`: it did not end within `time_max`.
    pub async fn ended(&self, requested: &Requested, time_max: Duration) -> bool {
        let mut passes = self.passes.subscribe();
        let ended = passes.wait_for(|pass| pass.ended >= requested.pass);
        tokio::time::timeout(time_max, ended).await.is_ok_and(|ended| ended.is_ok())
    }
}

/// A requested look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requested {
    pass: u64,
    /// It is running, or begins at once.
    pub at_once: bool,
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
