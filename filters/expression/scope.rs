//! A request as expressions see it. What costs something is made when it is asked for, and once.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use http::header;
use percent_encoding::percent_decode;
use pingora_http::RequestHeader;

use super::value::Value;
use super::variables::Var;
use crate::contract::{Binding, ClientAddress, Facts, Identity, Key, RequestCx, Tags};
use crate::rate_limit::subject::client_network;

/// Nobody means anything by more layers.
const LAYERS_MAX: usize = 6;

/// One request, for any number of expressions.
pub struct Scope<'c> {
    request: &'c RequestHeader,
    facts: &'c Facts,
    peer: IpAddr,
    route: &'c str,
    /// The labels so far.
    pub tags: Vec<Arc<str>>,
    decoded: OnceCell<String>,
    client: OnceCell<String>,
    network: OnceCell<String>,
    peer_text: OnceCell<String>,
    key_id: OnceCell<String>,
}

impl<'c> Scope<'c> {
    /// Of this request.
    pub fn new(cx: &'c RequestCx<'_>) -> Self {
        Self {
            request: cx.request,
            facts: cx.facts,
            peer: cx.peer,
            route: cx.route,
            tags: cx.facts.get::<Tags>().map(|tags| tags.0.clone()).unwrap_or_default(),
            decoded: OnceCell::new(),
            client: OnceCell::new(),
            network: OnceCell::new(),
            peer_text: OnceCell::new(),
            key_id: OnceCell::new(),
        }
    }

    /// What a name stands for.
    pub(super) fn get(&self, var: Var) -> Value<'_> {
        match var {
            Var::Method => Value::text(self.request.method.as_str()),
            Var::Path => Value::text(self.request.uri.path()),
            Var::Query => Value::text(self.request.uri.query().unwrap_or_default()),
            Var::Decoded => match target(self.request) {
                plain if is_plain(plain) => Value::text(plain),
                other => Value::text(self.decoded.get_or_init(|| decoded(other))),
            },
            Var::Host => {
                let host = self.field(&header::HOST);
                let name = if host.starts_with('[') { host.split_inclusive(']').next() } else { host.split(':').next() };
                Value::owned(name.unwrap_or_default().to_ascii_lowercase())
            }
            Var::Headers => Value::Headers(&self.request.headers),
            Var::Params => Value::Params(self.request.uri.query().unwrap_or_default()),
            Var::UserAgent => Value::text(self.field(&header::USER_AGENT)),
            Var::Size => Value::Int(self.size()),
            Var::Client => Value::text(self.client.get_or_init(|| self.address().to_string())),
            Var::ClientNetwork => Value::text(self.network.get_or_init(|| match self.address() {
                IpAddr::V4(v4) => format!("{v4}/32"),
                v6 @ IpAddr::V6(_) => format!("{}/64", client_network(v6)),
            })),
            Var::Country => Value::text(self.country()),
            Var::Peer => Value::text(self.peer_text.get_or_init(|| self.peer.to_string())),
            Var::Subject => text_or_empty(self.identity().and_then(|identity| identity.subject.as_deref())),
            Var::Scopes => Value::List(self.identity().map(Identity::scopes).unwrap_or_default().into_iter().map(Value::text).collect()),
            Var::Claims => self.identity().map_or(Value::Null, |identity| Value::Claims(&identity.claims)),
            Var::Authenticated => Value::Bool(self.identity().is_some()),
            Var::KeyId => match self.facts.get::<Key>() {
                Some(key) => Value::text(self.key_id.get_or_init(|| key.id.to_string())),
                None => Value::text(""),
            },
            Var::KeyPresent => Value::Bool(self.facts.get::<Key>().is_some()),
            Var::BindingRule => text_or_empty(self.binding().map(|binding| binding.rule.as_str())),
            Var::BindingNetworks => {
                let networks = self.binding().map(|binding| binding.networks.as_slice()).unwrap_or_default();
                Value::List(networks.iter().map(|network| Value::owned(network.to_string())).collect())
            }
            Var::Bound => Value::Bool(self.binding().is_some()),
            Var::Route => Value::text(self.route),
            Var::Tags => Value::List(self.tags.iter().map(|tag| Value::text(tag)).collect()),
        }
    }

    pub(super) fn address(&self) -> IpAddr {
        self.facts.client().unwrap_or(self.peer)
    }

    fn identity(&self) -> Option<&Identity> {
        self.facts.get::<Identity>()
    }

    fn binding(&self) -> Option<&Binding> {
        self.facts.get::<Arc<Binding>>().map(|binding| &**binding)
    }

    fn field(&self, name: &header::HeaderName) -> &str {
        self.request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Cloudflare's word counts where it is Cloudflare who says who the client is.
    fn country(&self) -> &str {
        let cloudflares = self.facts.get::<ClientAddress>().is_some_and(|client| client.source == "cf-connecting-ip");
        let mut values = self.request.headers.get_all("cf-ipcountry").iter();
        match (values.next(), values.next()) {
            (Some(one), None) if cloudflares => one.to_str().unwrap_or_default(),
            _ => "",
        }
    }

    fn size(&self) -> i64 {
        match self.request.headers.get(header::CONTENT_LENGTH) {
            Some(length) => length.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MAX),
            None if self.request.headers.contains_key(header::TRANSFER_ENCODING) => -1,
            // An HTTP/2 request need not announce what comes, and may send nothing.
            None if self.request.version == http::Version::HTTP_2 && self.request.method != http::Method::GET => -1,
            None => 0,
        }
    }
}

fn text_or_empty(text: Option<&str>) -> Value<'_> {
    Value::text(text.unwrap_or_default())
}

fn target(request: &RequestHeader) -> &str {
    request.uri.path_and_query().map_or("", |target| target.as_str())
}

/// Whether there is nothing to decode.
fn is_plain(target: &str) -> bool {
    !target.bytes().any(|b| matches!(b, b'%' | b'+' | b'\\') || b.is_ascii_uppercase())
}

/// Path and query in the one form that is left when every layer of encoding is off.
fn decoded(target: &str) -> String {
    let mut text = target.replace('+', " ");
    for _ in 0..LAYERS_MAX {
        let next = one_layer(&text);
        if next == text {
            break;
        }
        text = next;
    }
    text.make_ascii_lowercase();
    text.replace('\\', "/")
}

/// `%xx`, and `%uxxxx` as some servers read it.
fn one_layer(text: &str) -> String {
    let mut units = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("%u").or_else(|| rest.find("%U")) {
        units.push_str(&rest[..at]);
        let code = rest.get(at + 2..at + 6).and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
        match code {
            Some(code) => {
                units.push(code);
                rest = &rest[at + 6..];
            }
            None => {
                units.push_str(&rest[at..at + 2]);
                rest = &rest[at + 2..];
            }
        }
    }
    units.push_str(rest);
    percent_decode(units.as_bytes()).decode_utf8_lossy().into_owned()
}
