//! Operations on bindings: find, change, ban, unbind, allow.
//! Access checks are the callers'; storage is `crate::bindings`'s.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use keylatch_filters::contract::{Bindings as _, KEY_BYTES_MAX, KeyHasher, KeyId, Roaming, Rule, canonical};

use super::Fault;
use crate::bindings::Store;
use crate::config::Settings;
use crate::sql::audit::Actor;
use crate::sql::record::{BindingTerms, Change, Changed, Creation, Query, Record};

/// Minimum digits of a key id prefix. Fewer would often match several keys; logs show 12.
pub const DIGITS_MIN: usize = 6;
/// Maximum networks of one binding.
const NETWORKS_MAX: usize = 256;

/// Operations on bindings on behalf of one actor.
pub struct Bindings<'a> {
    /// The store.
    pub store: &'a Store,
    /// Turns keys into key ids.
    pub hasher: &'a KeyHasher,
    /// The actor in audit entries.
    pub actor: &'a Actor,
}

/// Names a key.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Its id, or the first digits of it.
    Id(&'a str),
    /// The key itself.
    Key(&'a str),
}

/// Parses a network; an address becomes a network of one address.
pub fn network(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| format!("`{text}` is neither an address nor a network such as `192.0.2.0/24`"))
}

/// Parses a network to allow; an address becomes the network that a first use from it would bind.
pub fn allowed(text: &str, settings: &Settings) -> Result<IpNet, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(settings.first_use_network(canonical(address))),
        Err(_) => network(text),
    }
}

/// Checks a rule with its networks and roaming terms; `None` if none of them is given.
pub fn terms(rule: Option<Rule>, networks: Vec<IpNet>, roaming: Option<Roaming>) -> Result<Option<BindingTerms>, Fault> {
    let rule = match (rule, networks.len(), roaming) {
        (Some(rule), _, _) => rule,
        (None, _, Some(_)) => Rule::Roaming,
        (None, 0, None) => return Ok(None),
        (None, 1, None) => Rule::Single,
        (None, _, None) => Rule::Multiple,
    };
    let wrong = |field, why: &str| Err(Fault::invalid(field, why));
    if let Some(roaming) = roaming.filter(|roaming| networks.len() > usize::from(roaming.networks_max)) {
        let why = format!("{} networks exceed networks_max, {}", networks.len(), roaming.networks_max);
        return wrong("networks", &why);
    }
    if networks.len() > NETWORKS_MAX {
        return wrong("networks", &format!("a binding must have at most {NETWORKS_MAX} networks"));
    }
    let fine = roaming.is_none_or(|r| (1..=64).contains(&r.networks_max) && r.window >= Duration::from_secs(60));
    let is_one_per_family = matches!(networks.as_slice(), [one, other] if one.addr().is_ipv4() != other.addr().is_ipv4());
    match (rule, networks.len(), roaming) {
        (Rule::Single, 2, None) if is_one_per_family => {}
        (Rule::Single, 1, None) | (Rule::Multiple, 1.., None) | (Rule::All, 0, None) => {}
        (Rule::Roaming, _, Some(_)) if fine => {}
        (Rule::Roaming, _, _) => return wrong("rule", "the rule `roaming` requires networks_max (1 to 64) and window (at least 1min)"),
        (_, _, Some(_)) => return wrong("networks_max", "networks_max and window are valid with the rule `roaming` only"),
        (Rule::Single, _, _) => {
            return wrong("networks", "the rule `single` requires exactly one network, or one IPv4 and one IPv6 network");
        }
        (Rule::Multiple, _, _) => return wrong("networks", "the rule `multiple` requires at least one network"),
        (Rule::All, _, _) => return wrong("networks", "the rule `all` takes no network"),
    }
    Ok(Some(BindingTerms { rule, networks, roaming }))
}

/// Parses the first digits of a key id, also as `key=DIGITS`.
pub fn prefix(digits: &str) -> Result<Vec<u8>, Fault> {
    let digits = digits.strip_prefix("key=").unwrap_or(digits);
    let nibbles: Option<Vec<u8>> = digits.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    // Input that is not a key id may be a key, so the error does not repeat it.
    let why = || format!("not a key id: give its first {DIGITS_MIN} to 64 hex digits, as shown in logs");
    nibbles.filter(|nibbles| (DIGITS_MIN..=64).contains(&nibbles.len())).ok_or_else(|| Fault::invalid("key_id", why()))
}

fn unbound(id: KeyId) -> Fault {
    Fault::NotFound(format!("{id} is not bound; to create a binding, give a rule and networks"))
}

/// Turns a missing binding or a version conflict into a fault.
pub fn newer<T>(changed: Changed<T>, id: KeyId) -> Result<T, Fault> {
    match changed {
        Changed::Done(done) => Ok(done),
        Changed::Missing => Err(unbound(id)),
        Changed::Newer(_) => {
            Err(Fault::Conflict(format!("the binding of {id} was changed meanwhile; load the current version and try again")))
        }
    }
}

impl Bindings<'_> {
    /// The id under which a key is bound, and its hint. A key not used since a change of the HMAC secret is still bound
    /// under the id of the previous secret.
    pub async fn hashed(&self, key: &str) -> Result<(KeyId, String), Fault> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Fault::invalid("key", "not a key: a key has 1 to 32768 visible ASCII characters"));
        }
        let (previous, key) = (self.hasher.earlier_ids(key), self.hasher.key(key));
        if previous.is_empty() {
            return Ok((key.id, key.hint));
        }
        for id in std::iter::once(key.id).chain(previous) {
            if self.store.authoritative(id, None).await?.is_some() {
                return Ok((id, key.hint));
            }
        }
        Ok((key.id, key.hint))
    }

    /// Finds one binding. Fails if the digits match none or several.
    pub async fn find(&self, which: Which<'_>) -> Result<Record, Fault> {
        let digits = match which {
            Which::Key(key) => self.hashed(key).await?.0.hex(),
            Which::Id(digits) => digits.strip_prefix("key=").unwrap_or(digits).to_ascii_lowercase(),
        };
        let query = Query { prefix: prefix(&digits)?, limit: 2, ..Query::default() };
        let mut found = self.store.list(query).await?.rows;
        match (found.pop(), found.pop()) {
            (Some(record), None) => Ok(record),
            (Some(_), Some(_)) => Err(Fault::invalid("key_id", format!("`{digits}` matches several keys; give more digits"))),
            (None, _) => Err(Fault::NotFound(format!(
                "no binding has a key id that begins with `{}`",
                digits.get(..12).filter(|_| digits.len() == 64).unwrap_or(&digits)
            ))),
        }
    }

    /// The id of a key and its hint. A complete id or a key need not be bound.
    pub async fn meant(&self, which: Which<'_>) -> Result<(KeyId, String), Fault> {
        match which {
            Which::Key(key) => self.hashed(key).await,
            Which::Id(digits) => match KeyId::from_hex(digits) {
                Some(id) => Ok((id, String::new())),
                None => Ok((self.find(which).await?.binding.id, String::new())),
            },
        }
    }

    /// Changes an existing binding, or makes it if `change.make` is set.
    pub async fn change(&self, id: KeyId, change: Change) -> Result<Record, Fault> {
        newer(self.store.change(id, change, self.actor.clone()).await?, id)
    }

    /// Changes a binding; creates it if it does not exist and a rule is given.
    pub async fn set(&self, which: Which<'_>, change: Change) -> Result<Record, Fault> {
        let (id, hint) = self.meant(which).await?;
        let make = (change.rule.is_some() && change.make.is_none()).then(|| Creation::now(hint, self.actor.who.clone()));
        self.change(id, Change { make: make.or(change.make), ..change }).await
    }

    /// Bans a key, also one that was never used. Returns the binding, and whether it existed before.
    pub async fn ban(&self, which: Which<'_>, expects: Option<i64>) -> Result<(Record, bool), Fault> {
        let (id, hint) = self.meant(which).await?;
        let banned = Change { banned: Some(true), expects, ..Change::default() };
        if self.store.authoritative(id, None).await?.is_some() {
            return Ok((self.change(id, banned).await?, true));
        }
        // No network is known for this key. If its first use happens at the same time, the ban wins.
        let everywhere = BindingTerms { rule: Rule::All, networks: Vec::new(), roaming: None };
        let make = Creation::now(hint, self.actor.who.clone());
        Ok((self.change(id, Change { rule: Some(everywhere), make: Some(make), ..banned }).await?, false))
    }

    /// Lifts a ban. The key can be used again within its binding.
    pub async fn unban(&self, which: Which<'_>, expects: Option<i64>) -> Result<Record, Fault> {
        let id = self.find(which).await?.binding.id;
        self.change(id, Change { banned: Some(false), expects, ..Change::default() }).await
    }

    /// Removes a binding, so that the next use of the key binds it again. Returns the removed binding.
    pub async fn unbind(&self, which: Which<'_>, expects: Option<i64>) -> Result<Record, Fault> {
        let record = self.find(which).await?;
        let removed = self.store.remove(record.binding.id, expects, self.actor.clone()).await?;
        newer(removed, record.binding.id).map(|()| record)
    }

    /// Adds a network to a binding, within its rule: `single` becomes `multiple`.
    pub async fn allow(&self, which: Which<'_>, net: IpNet, expects: Option<i64>) -> Result<Record, Fault> {
        let record = self.find(which).await?;
        let binding = &record.binding;
        if binding.rule == Rule::All || binding.networks.iter().any(|known| known.contains(&net)) {
            return Err(Fault::Conflict(format!("{} is already allowed from {net}", binding.id)));
        }
        let mut networks: Vec<IpNet> = binding.networks.iter().filter(|known| !net.contains(*known)).copied().collect();
        networks.push(net);
        let rule = match binding.rule {
            Rule::Roaming => Rule::Roaming,
            _ if networks.len() == 1 => Rule::Single,
            _ => Rule::Multiple,
        };
        // A roaming binding that is full drops its least recently used network, the first one.
        let room = binding.roaming.map_or(NETWORKS_MAX, |roaming| usize::from(roaming.networks_max));
        networks.drain(..networks.len().saturating_sub(room));
        let rule = terms(Some(rule), networks, binding.roaming)?;
        // The change keeps the binding's origin and applies to the version that was read.
        self.change(binding.id, Change { rule, expects: expects.or(Some(binding.version)), ..Change::default() }).await
    }
}
