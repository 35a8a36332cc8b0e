//! What filters need *done*: small traits, implemented elsewhere.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::{KeyId, Leash};

/// A future behind a pointer, so that a trait of async functions can be an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which networks may use a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The one network it is bound to.
    Single,
    /// Each of a list of networks.
    Multiple,
    /// Everybody who has the key.
    All,
    /// A few networks at a time, as [`Roaming`] says.
    Roaming,
}

/// For people who move between home, office and phone: up to so many networks within a time. A network that
/// was not used for that long makes room for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roaming {
    /// How many networks, 1 to 64.
    pub networks_max: u8,
    /// Within how long, at least a minute.
    pub window: Duration,
}

impl Rule {
    /// The word in stores and interfaces.
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
            other => Err(format!("`{other}` is not a rule; there are `single`, `multiple`, `all` and `roaming`")),
        }
    }
}

/// A key id and the networks that may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Whose binding this is.
    pub id: KeyId,
    /// How [`Self::networks`] are meant.
    pub rule: Rule,
    /// The networks, at least one unless the rule is `all` or `roaming`.
    pub networks: Vec<IpNet>,
    /// The terms of the rule `roaming`.
    pub roaming: Option<Roaming>,
    /// With `roaming`: when each of the networks was used last, give or take an eighth of the window.
    pub seen: Vec<SystemTime>,
    /// A banned key is refused from everywhere.
    pub banned: bool,
    /// Made by a first use, and given no rule by an operator since.
    pub by_first_use: bool,
    /// The upstream has accepted the key, or nobody was to ask it. A binding that was never confirmed goes again.
    pub confirmed: bool,
    /// Grows with every change, also from a row that was removed to one that takes its place: an older version
    /// never replaces a newer one.
    pub version: i64,
}

impl Binding {
    /// Whether the key may be used from `address` at this time.
    pub fn admits(&self, address: IpAddr, now: SystemTime) -> bool {
        !self.banned
            && match &self.roaming {
                Some(roaming) => self.last_seen(address).is_some_and(|seen| within(seen, now, roaming.window)),
                None => self.covers(address),
            }
    }

    /// Whether its `roaming` should note now that `address` is still used.
    pub fn is_due(&self, address: IpAddr, now: SystemTime) -> bool {
        let Some(roaming) = &self.roaming else { return false };
        self.last_seen(address).is_some_and(|seen| !within(seen, now, roaming.window / 8))
    }

    /// Whether its rule has room for `network`, which is not among its own.
    pub fn has_room(&self, network: IpNet, now: SystemTime) -> bool {
        let Some(roaming) = &self.roaming else { return self.lacks_family(network.addr()) };
        self.seen.iter().filter(|seen| within(**seen, now, roaming.window)).count() < usize::from(roaming.networks_max)
    }

    /// Whether it holds a network of one address family only, and a use from `address`, of the other family, may add one:
    /// clients with IPv4 and IPv6 use either. True of what a first use has made, with the rule `single`.
    pub fn lacks_family(&self, address: IpAddr) -> bool {
        self.by_first_use
            && self.rule == Rule::Single
            && matches!(self.networks.as_slice(), [network] if network.addr().is_ipv4() != address.is_ipv4())
    }

    /// Uses it from `network`, if its rule has it or has room for it. Whether anything has changed.
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

    /// Whether `address` is within it, banned or not.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.rule == Rule::All || self.networks.iter().any(|network| network.contains(&address))
    }
}

/// A clock that was set back makes nothing old.
fn within(seen: SystemTime, now: SystemTime, window: Duration) -> bool {
    now.duration_since(seen).unwrap_or_default() < window
}

/// A key is seen; bind it if nobody has.
#[derive(Clone, Debug)]
pub struct FirstUse {
    /// The key.
    pub id: KeyId,
    /// What people recognise it by.
    pub hint: String,
    /// The network it gets bound to.
    pub network: IpNet,
    /// Bind with the rule `roaming` on these terms, not with `single`.
    pub roaming: Option<Roaming>,
    /// The binding holds whatever the upstream says of the key.
    pub confirmed: bool,
    /// When.
    pub at: SystemTime,
}

/// A request was refused because its client address is outside the key's binding, or would have been in shadow mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercept {
    /// The key.
    pub id: KeyId,
    /// What people recognise it by.
    pub hint: String,
    /// Who tried.
    pub client: IpAddr,
    /// What the key is bound to.
    pub networks: Vec<IpNet>,
    /// The method of the request.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// Its user agent, cut to 256 bytes.
    pub user_agent: String,
    /// The route's name.
    pub route: String,
    /// Refused because banned, not because of the address.
    pub banned: bool,
    /// The filter is in shadow mode: the request was not refused.
    pub shadow: bool,
    /// When.
    pub at: SystemTime,
}

/// The store has no answer. The text names no key.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be asked now.
    #[error("{0}")]
    Away(String),
    /// It cannot be asked now, and the row is known to have changed, but not how: nobody may pass on what was known
    /// before, nor as one of whom nothing is known.
    #[error("{0}")]
    Unsettled(String),
    /// It was asked, and what it says is of no use: a row that makes no sense, a database that is read-only.
    #[error("{0}")]
    Useless(String),
    /// It answers, and has no room for another row: its disk or its memory is full.
    #[error("{0}")]
    Full(String),
}

/// The bindings, wherever they are kept.
pub trait Bindings: Send + Sync {
    /// What this process already knows, without waiting. `None` says nothing.
    fn peek(&self, id: &KeyId) -> Option<Arc<Binding>>;
    /// What the replicas remember together, where they share anything: asked when this process knows nothing. Never an
    /// error: `None` says nothing.
    fn recall(&self, id: KeyId) -> BoxFuture<'_, Option<Arc<Binding>>>;
    /// What the authority says now, or said a moment ago. `None`: not bound. Where it cannot be asked, what
    /// this process knew not too long ago is the answer.
    fn look_up(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>>;
    /// Binds the key to the network unless it is bound already; the answer is the binding that holds.
    /// Of any number of callers at once, in any number of processes, exactly one binds.
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>>;
    /// The binding under the first of these ids that has one, moved to `id`: ids under secrets that were used before.
    fn adopt(&self, id: KeyId, previous: Vec<KeyId>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>>;
    /// Uses a binding from a network, if its rule has it or has room for it: `roaming`, or `single` without a network of
    /// this address family. The answer is the binding that holds then. `None`: it is gone.
    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>>;
    /// For a stream of this key to this client that begins: pulled when the key may not be used from there any more.
    fn leash(&self, id: KeyId, client: IpAddr) -> Arc<Leash>;
    /// The upstream has accepted the key. Nobody waits for it.
    fn confirm(&self, binding: &Binding);
    /// The upstream has refused the key: the binding goes, unless somebody confirmed or changed it meanwhile.
    /// Nobody waits for it.
    fn release(&self, binding: &Binding);
    /// Notes a use. Nobody waits for it; it is written later, in batches.
    fn used(&self, id: KeyId, at: SystemTime);
    /// Notes an intercept. Nobody waits for it; it is written later, in batches.
    fn intercepted(&self, intercept: Intercept);
}
