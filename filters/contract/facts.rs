//! Facts about a request that filters share with each other, keyed by type. Filters never use string keys.

use std::any::{Any, TypeId};
use std::net::IpAddr;
use std::sync::Arc;

/// The facts of one request: at most one value of each type. With a handful of entries, a linear search beats a map.
#[derive(Default)]
pub struct Facts {
    entries: Vec<(TypeId, Box<dyn Any + Send + Sync>)>,
}

impl Facts {
    /// States a fact. It replaces a fact of the same type.
    pub fn put<T: Send + Sync + 'static>(&mut self, fact: T) {
        let id = TypeId::of::<T>();
        let value = Box::new(fact);
        match self.entries.iter_mut().find(|(known, _)| *known == id) {
            Some(entry) => entry.1 = value,
            None => {
                if self.entries.capacity() == 0 {
                    // Enough for the usual chain, in one allocation.
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

    /// Mutable access to the fact of this type.
    pub fn get_mut<T: Send + Sync + 'static>(&mut self) -> Option<&mut T> {
        let id = TypeId::of::<T>();
        self.entries.iter_mut().find(|(known, _)| *known == id)?.1.downcast_mut()
    }

    /// States that this filter could not reach a service it depends on and lets the request pass, as configured.
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

/// The model that a request names. Stated before the first filter that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestModel {
    /// Its name.
    Named(Arc<str>),
    /// The request names none.
    Absent,
    /// It cannot be known.
    Unknown(UnknownModel),
}

/// Why the model of a request is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownModel {
    /// The body was not given: a dry run.
    #[error("the model is unknown: no body was given")]
    NotGiven,
    /// The body cannot be read as JSON or a form, or parsers read it differently.
    #[error("the model is unknown: the body is not readable JSON or form data")]
    Unreadable,
    /// The body is compressed.
    #[error("the model is unknown: the body is compressed")]
    Compressed,
    /// It is not in the part of the body that may be read ahead.
    #[error("the model is unknown: it is not in the first `read_ahead_bytes` of the body")]
    TooFar,
    /// The bodies that were read ahead fill the memory that they may use.
    #[error("the model is unknown: the bodies read ahead fill `read_ahead_total_bytes`")]
    Busy,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The count only: values may contain claims.
        write!(f, "Facts({})", self.entries.len())
    }
}

/// The client address, and the source it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The address in canonical form: IPv4-mapped IPv6 is given as IPv4.
    pub address: IpAddr,
    /// `peer`, `cf-connecting-ip`, `cf-worker`, `x-real-ip`, `x-forwarded-for`, `forwarded`, or `unnamed`: the peer is a trusted proxy
    /// that did not name a client.
    pub source: &'static str,
}

/// The identity from a verified token or client certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The subject: the name of a static token, the `sub` claim, or the name in a certificate.
    pub subject: Option<String>,
    /// The claims; an empty object if there are none.
    pub claims: Arc<serde_json::Map<String, serde_json::Value>>,
}

impl Identity {
    /// The scopes: the words of `scope` (RFC 8693), or the list `scp` or `scopes`.
    pub fn scopes(&self) -> Vec<&str> {
        let listed = |name: &str| match self.claims.get(name) {
            Some(serde_json::Value::String(words)) => Some(words.split_ascii_whitespace().collect()),
            // A scope with a space would become two scopes in a space-separated list.
            Some(serde_json::Value::Array(words)) => {
                Some(words.iter().filter_map(serde_json::Value::as_str).filter(|word| !word.contains(char::is_whitespace)).collect())
            }
            _ => None,
        };
        ["scope", "scp", "scopes"].into_iter().find_map(listed).unwrap_or_default()
    }
}

/// Filters that could not reach a service they depend on and let this request pass, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetThrough(pub Vec<&'static str>);

/// Tags that rules have added to this request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags(pub Vec<Arc<str>>);

/// The names of the limits that rules have selected for this request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectedLimits(pub Vec<Arc<str>>);

/// The explanation of a request, for `explain`. Filters append one line for each step of their decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace(pub Vec<String>);

/// Marks a dry run: filters read counters and bindings and change neither. A [`Trace`] is always present with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DryRun;

/// The ids of this request in logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestIds {
    /// The request id, sent to the client and the upstream and logged.
    pub request_id: String,
    /// The trace id of a valid W3C `traceparent`.
    pub trace_id: Option<String>,
}
