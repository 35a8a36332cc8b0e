//! What filters need *done*: small traits, implemented elsewhere.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::KeyId;

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
}

impl Rule {
    /// The word in stores and interfaces.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Single => "single",
            Rule::Multiple => "multiple",
            Rule::All => "all",
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
            other => Err(format!("`{other}` is not a rule; there are `single`, `multiple` and `all`")),
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
    /// The networks, at least one unless the rule is `all`.
    pub networks: Vec<IpNet>,
    /// A banned key is refused from everywhere.
    pub banned: bool,
    /// The upstream has accepted the key, or nobody was to ask it. A binding that was never confirmed goes again.
    pub confirmed: bool,
    /// Grows with every change, also from a row that was removed to one that takes its place: an older version
    /// never replaces a newer one.
    pub version: i64,
}

impl Binding {
    /// Whether the key may be used from `address`.
    pub fn admits(&self, address: IpAddr) -> bool {
        !self.banned && self.covers(address)
    }

    /// Whether `address` is within it, banned or not.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.rule == Rule::All || self.networks.iter().any(|network| network.contains(&address))
    }
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
    /// The binding holds whatever the upstream says of the key.
    pub confirmed: bool,
    /// When.
    pub at: SystemTime,
}

/// A request was refused because its client address is outside the key's binding.
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
    /// When.
    pub at: SystemTime,
}

/// The store could not answer. The text names no key.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// The bindings, wherever they are kept.
pub trait Bindings: Send + Sync {
    /// What this process already knows, without waiting. `None` says nothing.
    fn peek(&self, id: &KeyId) -> Option<Arc<Binding>>;
    /// What the authority says now, or said a moment ago. `None`: not bound. Where it cannot be asked, what
    /// this process knew not too long ago is the answer.
    fn look_up(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>>;
    /// Binds the key to the network unless it is bound already; the answer is the binding that holds.
    /// Of any number of callers at once, in any number of processes, exactly one binds.
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>>;
    /// The upstream has accepted the key. Nobody waits for it; it is written later, in batches.
    fn confirm(&self, binding: &Binding);
    /// The upstream has refused the key: the binding goes, unless somebody confirmed or changed it meanwhile.
    /// Nobody waits for it.
    fn release(&self, binding: &Binding);
    /// Notes a use. Nobody waits for it; it is written later, in batches.
    fn used(&self, id: KeyId, at: SystemTime);
    /// Notes an intercept. Nobody waits for it; it is written later, in batches.
    fn intercepted(&self, intercept: Intercept);
}
