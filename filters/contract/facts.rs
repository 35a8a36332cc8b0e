//! What filters tell each other about an exchange: by type, never by string keys.

use std::any::{Any, TypeId};
use std::net::IpAddr;
use std::sync::Arc;

/// At most one value of each type. A handful of entries, so a list that is searched beats a map.
#[derive(Default)]
pub struct Facts {
    entries: Vec<(TypeId, Box<dyn Any + Send + Sync>)>,
}

impl Facts {
    /// States a fact; a fact of the same type is replaced.
    pub fn put<T: Send + Sync + 'static>(&mut self, fact: T) {
        let id = TypeId::of::<T>();
        let value = Box::new(fact);
        match self.entries.iter_mut().find(|(known, _)| *known == id) {
            Some(entry) => entry.1 = value,
            None => {
                if self.entries.capacity() == 0 {
                    // As many as the usual chain states, at once.
                    self.entries.reserve_exact(8);
                }
                self.entries.push((id, value));
            }
        }
    }

    /// The fact of this type, if it was stated.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let id = TypeId::of::<T>();
        self.entries.iter().find(|(known, _)| *known == id)?.1.downcast_ref()
    }

    /// The fact of this type, to be changed.
    pub fn get_mut<T: Send + Sync + 'static>(&mut self) -> Option<&mut T> {
        let id = TypeId::of::<T>();
        self.entries.iter_mut().find(|(known, _)| *known == id)?.1.downcast_mut()
    }

    /// States that this filter could not ask whom it had to ask, and lets the exchange pass all the same.
    pub fn let_through(&mut self, filter: &'static str) {
        match self.get_mut::<LetThrough>() {
            Some(known) => known.0.push(filter),
            None => self.put(LetThrough(vec![filter])),
        }
    }

    /// The client's address, once `client_ip` has run.
    pub fn client(&self) -> Option<IpAddr> {
        self.get::<ClientAddress>().map(|client| client.address)
    }
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Types only: values may hold claims.
        write!(f, "Facts({})", self.entries.len())
    }
}

/// Who is it really, and by which rule we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The address, canonical: IPv4-mapped IPv6 is IPv4.
    pub address: IpAddr,
    /// `peer`, `cf-connecting-ip`, `cf-worker`, `x-real-ip`, `x-forwarded-for`, `forwarded`, or `unnamed`: the peer is a trusted proxy
    /// that names no client.
    pub source: &'static str,
}

/// Who a checked bearer says it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The token's name, or the `sub` claim.
    pub subject: Option<String>,
    /// The claims of a JWT; an empty object otherwise.
    pub claims: Arc<serde_json::Map<String, serde_json::Value>>,
}

impl Identity {
    /// What it may do: the words of `scope` (RFC 8693), or the list `scp` or `scopes`.
    pub fn scopes(&self) -> Vec<&str> {
        let listed = |name: &str| match self.claims.get(name) {
            Some(serde_json::Value::String(words)) => Some(words.split_ascii_whitespace().collect()),
            // With a space in it, one would become two wherever they are written in a row.
            Some(serde_json::Value::Array(words)) => {
                Some(words.iter().filter_map(serde_json::Value::as_str).filter(|word| !word.contains(char::is_whitespace)).collect())
            }
            _ => None,
        };
        ["scope", "scp", "scopes"].into_iter().find_map(listed).unwrap_or_default()
    }
}

/// Filters that could not ask whom they had to ask, and let this exchange pass all the same, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetThrough(pub Vec<&'static str>);

/// Labels that rules have put on this exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags(pub Vec<Arc<str>>);

/// The limits that rules have chosen for this exchange, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen(pub Vec<Arc<str>>);

/// Where somebody wants to know what filters do with an exchange, and not only what comes of it: they say it here, a
/// line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace(pub Vec<String>);

/// The request is only explained: filters look at counts and bindings, and change neither. Beside it stands a [`Trace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DryRun;

/// The names under which this exchange is found in logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestIds {
    /// Goes to the client, the upstream and the log.
    pub request_id: String,
    /// The trace id of a valid W3C `traceparent`.
    pub trace_id: Option<String>,
}
