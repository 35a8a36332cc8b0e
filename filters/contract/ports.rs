//! The binding of an API key, and the port to the store of bindings. It does no I/O; `src/bindings` implements the port.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::ranges::is_worker_zone;
use super::{CancellationHandle, KeyId};

/// A boxed future, so that a trait with async functions can be used as a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The rule that decides which networks may use a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// One network; in dual-stack use, one for each address family.
    Single,
    /// Each network of a list.
    Multiple,
    /// Any network.
    All,
    /// A limited number of networks at a time; see [`Roaming`].
    Roaming,
}

/// The terms of the rule `roaming`, for users who move between home, office and phone: up to `networks_max` networks within
/// `window`. A network that was not used for `window` expires and makes room for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roaming {
    /// The number of networks, 1 to 64.
    pub networks_max: u8,
    /// The time after which an unused network expires, at least one minute.
    pub window: Duration,
}

impl Rule {
    /// The name in stores, APIs and commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Single => "single",
            Rule::Multiple => "multiple",
            Rule::All => "all",
            Rule::Roaming => "roaming",
        }
    }
}

impl std::str::FromStr for Rule {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "single" => Ok(Rule::Single),
            "multiple" => Ok(Rule::Multiple),
            "all" => Ok(Rule::All),
            "roaming" => Ok(Rule::Roaming),
            other => Err(format!("`{other}` is not a rule; use `single`, `multiple`, `all` or `roaming`")),
        }
    }
}

/// A key id and the networks that may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The id of the bound key.
    pub id: KeyId,
    /// How [`Self::networks`] applies.
    pub rule: Rule,
    /// The networks. At least one, unless the rule is `all` or `roaming`.
    pub networks: Vec<IpNet>,
    /// The terms of the rule `roaming`.
    pub roaming: Option<Roaming>,
    /// With `roaming`: the last use of each network, accurate to an eighth of the window.
    pub seen: Vec<SystemTime>,
    /// The key is banned: it is refused from every network.
    pub banned: bool,
    /// The labels that operators have set. Expressions read them.
    pub labels: Vec<String>,
    /// A first use has made the binding, and no operator has set its rule since.
    pub by_first_use: bool,
    /// The upstream has accepted the key, or no confirmation is required. An unconfirmed binding expires.
    pub confirmed: bool,
    /// Increases with every change, also across removal and re-creation of the row. An older version never replaces a
    /// newer one.
    pub version: i64,
}

/// Whether this may be a label of a binding: 1 to 64 letters, digits and `-_.:/@`.
pub fn is_label(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte))
}

impl Binding {
    /// Whether the key may be used from `address` now.
    pub fn admits(&self, address: IpAddr, now: SystemTime) -> bool {
        !self.banned
            && match &self.roaming {
                Some(roaming) => self.last_seen(address).is_some_and(|seen| within(seen, now, roaming.window)),
                None => self.covers(address),
            }
    }

    /// Whether a `roaming` binding must record now that `address` is still in use.
    pub fn is_due(&self, address: IpAddr, now: SystemTime) -> bool {
        let Some(roaming) = &self.roaming else { return false };
        self.last_seen(address).is_some_and(|seen| !within(seen, now, roaming.window / 8))
    }

    /// Whether the rule allows adding `network`, which is not yet part of the binding.
    pub fn has_room(&self, network: IpNet, now: SystemTime) -> bool {
        let Some(roaming) = &self.roaming else { return self.lacks_family(network.addr()) };
        self.seen.iter().filter(|seen| within(**seen, now, roaming.window)).count() < usize::from(roaming.networks_max)
    }

    /// Whether a use from `address` may add a network because the binding has none of its address family. Dual-stack clients
    /// use both families; the Workers of a zone have no other. Applies to bindings with the rule `single` that a first use has
    /// made.
    pub fn lacks_family(&self, address: IpAddr) -> bool {
        self.by_first_use
            && self.rule == Rule::Single
            && !is_worker_zone(address)
            && matches!(self.networks.as_slice(), [network]
                if network.addr().is_ipv4() != address.is_ipv4() && !is_worker_zone(network.addr()))
    }

    /// Records a use from `network`, if the rule includes it or has room for it. Returns whether the binding has changed.
    pub fn roam(&mut self, network: IpNet, now: SystemTime) -> bool {
        if self.banned {
            return false;
        }
        let Some(roaming) = self.roaming else {
            let joins = self.lacks_family(network.addr());
            self.networks.extend(joins.then_some(network));
            return joins;
        };
        let mut uses: Vec<(IpNet, SystemTime)> = self.networks.iter().copied().zip(self.seen.iter().copied()).collect();
        uses.retain(|(_, seen)| within(*seen, now, roaming.window));
        let room = uses.len() < usize::from(roaming.networks_max);
        match uses.iter_mut().find(|(known, _)| known.contains(&network)) {
            Some((_, seen)) => *seen = now.max(*seen),
            None if room => uses.push((network, now)),
            None => return false,
        }
        (self.networks, self.seen) = uses.into_iter().unzip();
        true
    }

    fn last_seen(&self, address: IpAddr) -> Option<SystemTime> {
        let uses = self.networks.iter().zip(&self.seen);
        uses.filter(|(network, _)| network.contains(&address)).map(|(_, seen)| *seen).max()
    }

    /// Whether `address` is in one of the networks; ignores a ban and expiry.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.rule == Rule::All || self.networks.iter().any(|network| network.contains(&address))
    }
}

/// A clock that was set back does not expire anything.
fn within(seen: SystemTime, now: SystemTime, window: Duration) -> bool {
    now.duration_since(seen).unwrap_or_default() < window
}

/// A use of a key, which a binding admits or not.
#[derive(Clone, Copy, Debug)]
pub struct KeyUse {
    /// The client address.
    pub client: IpAddr,
    /// The time of the request.
    pub at: SystemTime,
}

/// The first use of a key: bind it unless it is bound already.
#[derive(Clone, Debug)]
pub struct FirstUse {
    /// The key.
    pub id: KeyId,
    /// The hint by which a person recognises the key: `sk-…` and its last four characters.
    pub hint: String,
    /// The network to bind.
    pub network: IpNet,
    /// Bind with the rule `roaming` and these terms; `None`: with `single`.
    pub roaming: Option<Roaming>,
    /// The binding is permanent without confirmation by the upstream.
    pub confirmed: bool,
    /// The time of the use.
    pub at: SystemTime,
}

/// A request that was refused because its client address is outside the key's binding, or would have been without shadow mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercept {
    /// The key.
    pub id: KeyId,
    /// The hint of the key.
    pub hint: String,
    /// The client address.
    pub client: IpAddr,
    /// The networks of the binding.
    pub networks: Vec<IpNet>,
    /// The method of the request.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The user agent, truncated to 256 bytes.
    pub user_agent: String,
    /// The route's name.
    pub route: String,
    /// The key was banned; otherwise the address was outside the binding.
    pub banned: bool,
    /// The filter was in shadow mode: the request was not refused.
    pub shadow: bool,
    /// The time of the request.
    pub at: SystemTime,
}

/// A failed store operation. The text contains no key.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached.
    #[error("{0}")]
    Away(String),
    /// The store cannot be reached, and the row has changed since it was cached. Neither the cached row nor its absence may
    /// be used for a decision.
    #[error("{0}")]
    Unsettled(String),
    /// The store has answered, but the answer is unusable: an invalid row, or a read-only database.
    #[error("{0}")]
    Useless(String),
    /// The store cannot hold another row: its disk or memory is full.
    #[error("{0}")]
    Full(String),
}

/// The store of bindings, with the cache of this process in front of it.
pub trait Bindings: Send + Sync {
    /// The binding in the cache of this process, without waiting. It may admit a client and must not refuse one
    /// (`src/bindings/freshness.rs` has the rules). `None` says only that it is not cached; the key may be bound.
    fn cached(&self, id: &KeyId) -> Option<Arc<Binding>>;
    /// The binding in the authoritative store, read at most a moment ago. `None`: not bound. If a cached binding admits
    /// `key_use`, it is returned without asking the store. While the store cannot be reached, the last known binding is
    /// returned.
    fn authoritative(&self, id: KeyId, key_use: Option<KeyUse>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>>;
    /// Binds the key to the network unless it is bound already. Returns the binding that is in force.
    /// Of any number of concurrent callers, in any number of processes, exactly one makes the binding.
    fn bind_first_use(&self, first: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>>;
    /// Takes the first of the `previous` ids that has a binding, and moves this binding to `id`. The previous ids come from
    /// rotated secrets.
    fn adopt(&self, id: KeyId, previous: Vec<KeyId>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>>;
    /// Records a use from a network, if the rule includes it or has room for it: `roaming`, or `single` without a network of
    /// this address family. Returns the binding that is in force afterwards. `None`: it was removed.
    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>>;
    /// Registers a new stream of this key to this client. The stream is cancelled when the binding no longer admits the client.
    fn stream_cancellation(&self, id: KeyId, client: IpAddr) -> Arc<CancellationHandle>;
    /// The upstream has accepted the key. Written later, in a batch.
    fn confirm(&self, binding: &Binding);
    /// The upstream has refused the key. The binding is removed later, in a batch, unless it was confirmed or changed in the
    /// meantime.
    fn release(&self, binding: &Binding);
    /// Records the last use of a key. Written later, in a batch.
    fn used(&self, id: KeyId, at: SystemTime);
    /// Records an intercept. Written later, in a batch.
    fn intercepted(&self, intercept: Intercept);
}
