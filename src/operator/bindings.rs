//! Bindings: which one is meant, and what becomes of it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use keylatch_filters::contract::{Bindings as _, KEY_BYTES_MAX, KeyHasher, KeyId, Roaming, Rule, canonical};

use super::Fault;
use crate::bindings::Store;
use crate::config::Settings;
use crate::sql::audit::Actor;
use crate::sql::record::{Change, Changed, Make, Query, Record, Terms};

/// Fewer digits would often fit several keys; logs show 12.
pub const DIGITS_MIN: usize = 6;
/// Networks of one binding.
const NETWORKS_MAX: usize = 256;

/// What operators do with bindings.
pub struct Bindings<'a> {
    /// Where they are.
    pub store: &'a Store,
    /// Turns keys into key ids.
    pub hasher: &'a KeyHasher,
    /// Who asks.
    pub actor: &'a Actor,
}

/// How somebody says which key he means.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// By the first digits of its id, or all of them.
    Id(&'a str),
    /// By the key itself.
    Key(&'a str),
}

/// A network, or an address as one.
pub fn network(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| format!("`{text}` is neither a network such as `192.0.2.0/24` nor an address"))
}

/// What is to be allowed: a network as it is said, or the network that a first use from an address would bind.
pub fn allowed(text: &str, settings: &Settings) -> Result<IpNet, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(settings.first_use_network(canonical(address))),
        Err(_) => network(text),
    }
}

/// A rule with what must go with it; `None` if nothing is said of either.
pub fn terms(rule: Option<Rule>, networks: Vec<IpNet>, roaming: Option<Roaming>) -> Result<Option<Terms>, Fault> {
    let rule = match (rule, networks.len(), roaming) {
        (Some(rule), _, _) => rule,
        (None, _, Some(_)) => Rule::Roaming,
        (None, 0, None) => return Ok(None),
        (None, 1, None) => Rule::Single,
        (None, _, None) => Rule::Multiple,
    };
    let wrong = |field, why: &str| Err(Fault::invalid(field, why));
    if let Some(roaming) = roaming.filter(|roaming| networks.len() > usize::from(roaming.networks_max)) {
        let why = format!("{} networks are more than the {} that networks_max lets there be", networks.len(), roaming.networks_max);
        return wrong("networks", &why);
    }
    if networks.len() > NETWORKS_MAX {
        return wrong("networks", &format!("a binding has at most {NETWORKS_MAX} networks"));
    }
    let fine = roaming.is_none_or(|r| (1..=64).contains(&r.networks_max) && r.window >= Duration::from_secs(60));
    let is_one_per_family = matches!(networks.as_slice(), [one, other] if one.addr().is_ipv4() != other.addr().is_ipv4());
    match (rule, networks.len(), roaming) {
        (Rule::Single, 2, None) if is_one_per_family => {}
        (Rule::Single, 1, None) | (Rule::Multiple, 1.., None) | (Rule::All, 0, None) => {}
        (Rule::Roaming, _, Some(_)) if fine => {}
        (Rule::Roaming, _, _) => return wrong("rule", "the rule `roaming` needs networks_max, 1 to 64, and window, at least 1min"),
        (_, _, Some(_)) => return wrong("networks_max", "networks_max and window go with the rule `roaming` only"),
        (Rule::Single, _, _) => return wrong("networks", "the rule `single` needs exactly one network, or one of IPv4 and one of IPv6"),
        (Rule::Multiple, _, _) => return wrong("networks", "the rule `multiple` needs at least one network"),
        (Rule::All, _, _) => return wrong("networks", "the rule `all` takes no network"),
    }
    Ok(Some(Terms { rule, networks, roaming }))
}

/// The digits of an id of which the first ones are given, also as `key=DIGITS`.
pub fn prefix(digits: &str) -> Result<Vec<u8>, Fault> {
    let digits = digits.strip_prefix("key=").unwrap_or(digits);
    let nibbles: Option<Vec<u8>> = digits.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    // What is not a key id may be a key: it is not repeated.
    let why = || format!("this is not a key id: give its first digits, {DIGITS_MIN} to 64, as logs show them");
    nibbles.filter(|nibbles| (DIGITS_MIN..=64).contains(&nibbles.len())).ok_or_else(|| Fault::invalid("key_id", why()))
}

fn unbound(id: KeyId) -> Fault {
    Fault::Missing(format!("{id} is not bound; give a rule and networks to make a binding"))
}

/// Somebody was faster.
pub fn newer<T>(changed: Changed<T>, id: KeyId) -> Result<T, Fault> {
    match changed {
        Changed::Done(done) => Ok(done),
        Changed::Missing => Err(unbound(id)),
        Changed::Newer(_) => Err(Fault::Conflict(format!("the binding of {id} was changed meanwhile; look at it again"))),
    }
}

impl Bindings<'_> {
    /// The id under which a key is bound, and its hint: where it was not used since the secret was changed, that is still
    /// the one under the secret before.
    pub async fn hashed(&self, key: &str) -> Result<(KeyId, String), Fault> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Fault::invalid("key", "not a key: it must be 1 to 32768 visible ASCII characters"));
        }
        let (previous, key) = (self.hasher.earlier_ids(key), self.hasher.key(key));
        if previous.is_empty() {
            return Ok((key.id, key.hint));
        }
        for id in std::iter::once(key.id).chain(previous) {
            if self.store.authoritative(id).await?.is_some() {
                return Ok((id, key.hint));
            }
        }
        Ok((key.id, key.hint))
    }

    /// The one binding that is meant.
    pub async fn find(&self, which: Which<'_>) -> Result<Record, Fault> {
        let digits = match which {
            Which::Key(key) => self.hashed(key).await?.0.hex(),
            Which::Id(digits) => digits.strip_prefix("key=").unwrap_or(digits).to_ascii_lowercase(),
        };
        let query = Query { prefix: prefix(&digits)?, limit: 2, ..Query::default() };
        let mut found = self.store.list(query).await?.rows;
        match (found.pop(), found.pop()) {
            (Some(record), None) => Ok(record),
            (Some(_), Some(_)) => Err(Fault::invalid("key_id", format!("`{digits}` fits several keys; give more digits"))),
            (None, _) => Err(Fault::Missing(format!(
                "no binding begins with `{}`",
                digits.get(..12).filter(|_| digits.len() == 64).unwrap_or(&digits)
            ))),
        }
    }

    /// The key that is meant, which need not be bound if all of it is said, and its hint.
    pub async fn meant(&self, which: Which<'_>) -> Result<(KeyId, String), Fault> {
        match which {
            Which::Key(key) => self.hashed(key).await,
            Which::Id(digits) => match KeyId::from_hex(digits) {
                Some(id) => Ok((id, String::new())),
                None => Ok((self.find(which).await?.binding.id, String::new())),
            },
        }
    }

    /// Changes what is there.
    pub async fn change(&self, id: KeyId, change: Change) -> Result<Record, Fault> {
        newer(self.store.change(id, change, self.actor.clone()).await?, id)
    }

    /// Sets what is said, and makes the binding if it is not there and a rule is said.
    pub async fn set(&self, which: Which<'_>, change: Change) -> Result<Record, Fault> {
        let (id, hint) = self.meant(which).await?;
        let make = (change.rule.is_some() && change.make.is_none()).then(|| Make::now(hint, self.actor.who.clone()));
        self.change(id, Change { make: make.or(change.make), ..change }).await
    }

    /// Refuses a key from everywhere, also one that was never used. Whether it was bound before.
    pub async fn ban(&self, which: Which<'_>, expects: Option<i64>) -> Result<(Record, bool), Fault> {
        let (id, hint) = self.meant(which).await?;
        let banned = Change { banned: Some(true), expects, ..Change::default() };
        if self.store.authoritative(id).await?.is_some() {
            return Ok((self.change(id, banned).await?, true));
        }
        // Nothing is known of where it would be used from. Should somebody use it right now, the ban wins.
        let everywhere = Terms { rule: Rule::All, networks: Vec::new(), roaming: None };
        let make = Make::now(hint, self.actor.who.clone());
        Ok((self.change(id, Change { rule: Some(everywhere), make: Some(make), ..banned }).await?, false))
    }

    /// Lets a banned key be used again, within its binding.
    pub async fn unban(&self, which: Which<'_>, expects: Option<i64>) -> Result<Record, Fault> {
        let id = self.find(which).await?.binding.id;
        self.change(id, Change { banned: Some(false), expects, ..Change::default() }).await
    }

    /// Removes a binding: the key's next use binds anew. What it was.
    pub async fn unbind(&self, which: Which<'_>, expects: Option<i64>) -> Result<Record, Fault> {
        let record = self.find(which).await?;
        let removed = self.store.remove(record.binding.id, expects, self.actor.clone()).await?;
        newer(removed, record.binding.id).map(|()| record)
    }

    /// Lets a key be used from one more network, as its rule allows: a binding of one network becomes one of several.
    pub async fn allow(&self, which: Which<'_>, net: IpNet, expects: Option<i64>) -> Result<Record, Fault> {
        let record = self.find(which).await?;
        let binding = &record.binding;
        if binding.rule == Rule::All || binding.networks.iter().any(|known| known.contains(&net)) {
            return Err(Fault::Conflict(format!("{} may be used from {net} already", binding.id)));
        }
        let mut networks: Vec<IpNet> = binding.networks.iter().filter(|known| !net.contains(*known)).copied().collect();
        networks.push(net);
        let rule = match binding.rule {
            Rule::Roaming => Rule::Roaming,
            _ if networks.len() == 1 => Rule::Single,
            _ => Rule::Multiple,
        };
        // A key that roams to one network more than it may forgets the one it used least lately: that is the first.
        let room = binding.roaming.map_or(NETWORKS_MAX, |roaming| usize::from(roaming.networks_max));
        networks.drain(..networks.len().saturating_sub(room));
        let rule = terms(Some(rule), networks, binding.roaming)?;
        // It stays what a first use has made; the version that was read is the one that is changed.
        self.change(binding.id, Change { rule, expects: expects.or(Some(binding.version)), ..Change::default() }).await
    }
}
