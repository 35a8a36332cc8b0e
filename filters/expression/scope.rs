//! The values of variables for one request. Expensive values are computed on first use and cached. It evaluates nothing.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use http::header;
use jiff::Timestamp;
use pingora_http::RequestHeader;
use serde_json::{Map, Value as Json};

use super::fuel::{EvalError, Fuel};
use super::members::field;
use super::value::Value;
use super::variables::Var;
use crate::contract::{Binding, ClientAddress, Facts, Identity, Key, RequestCx, RequestModel, Tags, UnknownModel, host_name};
use crate::limiting::client_network;

/// The number of encoding layers that are decoded. More is treated as an error.
const LAYERS_MAX: usize = 10;

/// The claims of a request without an identity.
static NO_CLAIMS: LazyLock<Map<String, Json>> = LazyLock::new(Map::new);

/// One request, for any number of expressions.
pub struct Scope<'c> {
    request: &'c RequestHeader,
    facts: &'c Facts,
    peer: IpAddr,
    route: &'c str,
    now: SystemTime,
    /// The tags of the request so far.
    pub tags: Vec<Arc<str>>,
    /// `request.decoded`. `None`: too many encoding layers.
    decoded: OnceCell<Option<String>>,
    client: OnceCell<String>,
    network: OnceCell<String>,
    peer_text: OnceCell<String>,
    key_id: OnceCell<String>,
}

impl<'c> Scope<'c> {
    /// The values for this request.
    pub fn new(cx: &'c RequestCx<'_>) -> Self {
        Self {
            request: cx.request,
            facts: cx.facts,
            peer: cx.peer,
            route: cx.route,
            now: cx.now.wall,
            tags: cx.facts.get::<Tags>().map(|tags| tags.0.clone()).unwrap_or_default(),
            decoded: OnceCell::new(),
            client: OnceCell::new(),
            network: OnceCell::new(),
            peer_text: OnceCell::new(),
            key_id: OnceCell::new(),
        }
    }

    /// The value of a variable.
    pub(super) fn get(&self, var: Var, fuel: &mut Fuel) -> Result<Value<'_>, EvalError> {
        Ok(match var {
            Var::Method => Value::text(self.request.method.as_str()),
            Var::Path => Value::text(self.request.uri.path()),
            Var::Query => Value::text(self.request.uri.query().unwrap_or_default()),
            Var::Decoded => match target(self.request) {
                plain if is_plain(plain) => Value::text(plain),
                other => {
                    fuel.burn(other.len() / 8)?;
                    Value::text(self.decoded.get_or_init(|| decoded(other)).as_deref().ok_or(EvalError::Layers)?)
                }
            },
            Var::Host => Value::owned(host_name(self.field(&header::HOST)).to_ascii_lowercase()),
            Var::Headers => Value::Headers(&self.request.headers),
            Var::Params => Value::Params(self.request.uri.query().unwrap_or_default()),
            Var::UserAgent => field(&self.request.headers, "user-agent", fuel)?,
            Var::Size => Value::Int(self.size()),
            Var::Model => match self.facts.get::<RequestModel>() {
                Some(RequestModel::Named(model)) => Value::text(model),
                Some(RequestModel::Absent) => Value::text(""),
                Some(RequestModel::Unknown(why)) => return Err(EvalError::Model(*why)),
                None => return Err(EvalError::Model(UnknownModel::NotGiven)),
            },
            Var::Time => Value::Timestamp(Timestamp::try_from(self.now).map_err(|_| EvalError::Range)?),
            Var::Client => Value::text(self.client.get_or_init(|| self.address().to_string())),
            Var::ClientNetwork => Value::text(self.network.get_or_init(|| match self.address() {
                IpAddr::V4(v4) => format!("{v4}/32"),
                v6 @ IpAddr::V6(_) => format!("{}/64", client_network(v6)),
            })),
            Var::Country => Value::text(self.country()),
            Var::Peer => Value::text(self.peer_text.get_or_init(|| self.peer.to_string())),
            Var::Subject => text_or_empty(self.identity().and_then(|identity| identity.subject.as_deref())),
            Var::Scopes => Value::list(self.identity().map(Identity::scopes).unwrap_or_default().into_iter().map(Value::text).collect()),
            Var::Claims => Value::Claims(self.identity().map_or(&*NO_CLAIMS, |identity| &identity.claims)),
            Var::Authenticated => Value::Bool(self.identity().is_some()),
            Var::KeyId => match self.facts.get::<Key>() {
                Some(key) => Value::text(self.key_id.get_or_init(|| key.id.to_string())),
                None => Value::text(""),
            },
            Var::KeyPresent => Value::Bool(self.facts.get::<Key>().is_some()),
            Var::BindingRule => text_or_empty(self.binding().map(|binding| binding.rule.as_str())),
            Var::BindingNetworks => {
                let networks = self.binding().map(|binding| binding.networks.as_slice()).unwrap_or_default();
                Value::list(networks.iter().map(|network| Value::owned(network.to_string())).collect())
            }
            Var::BindingLabels => {
                let labels = self.binding().map(|binding| binding.labels.as_slice()).unwrap_or_default();
                Value::list(labels.iter().map(|label| Value::text(label)).collect())
            }
            Var::Bound => Value::Bool(self.binding().is_some()),
            Var::Route => Value::text(self.route),
            Var::Tags => Value::list(self.tags.iter().map(|tag| Value::text(tag)).collect()),
        })
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

    /// CF-IPCountry is trusted only if the client address came from Cloudflare, and only if the field occurs once.
    fn country(&self) -> &str {
        let from_cloudflare = self.facts.get::<ClientAddress>().is_some_and(|client| client.source == "cf-connecting-ip");
        let mut values = self.request.headers.get_all("cf-ipcountry").iter();
        match (values.next(), values.next()) {
            (Some(one), None) if from_cloudflare => one.to_str().unwrap_or_default(),
            _ => "",
        }
    }

    fn size(&self) -> i64 {
        match self.request.headers.get(header::CONTENT_LENGTH) {
            Some(length) => length.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MAX),
            None if self.request.headers.contains_key(header::TRANSFER_ENCODING) => -1,
            // An HTTP/2 request may have a body without announcing its length.
            None if self.request.version == http::Version::HTTP_2 => -1,
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

/// Whether the target contains nothing to decode or convert.
fn is_plain(target: &str) -> bool {
    !target.bytes().any(|b| matches!(b, b'%' | b'+' | b'\\') || b.is_ascii_uppercase() || !b.is_ascii())
}

/// Path and query after removing all encoding layers, in lower case. `None`: more than [`LAYERS_MAX`] layers.
fn decoded(target: &str) -> Option<String> {
    let mut bytes = target.replace('+', " ").into_bytes();
    for _ in 0..LAYERS_MAX {
        let next = decode_layer(&bytes);
        if next == bytes {
            let mut text = String::from_utf8_lossy(&bytes).into_owned();
            text.make_ascii_lowercase();
            return Some(text.replace('\\', "/"));
        }
        bytes = next;
    }
    None
}

/// Decodes one layer: `%xx`, `%uxxxx` (as some servers do), full-width forms of ASCII, and overlong UTF-8.
fn decode_layer(bytes: &[u8]) -> Vec<u8> {
    let hex = |digits: Option<&[u8]>| u32::from_str_radix(std::str::from_utf8(digits?).ok()?, 16).ok();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        let (length, code) = match first {
            b'%' if matches!(after.first(), Some(b'u' | b'U')) => (6, hex(rest.get(2..6)).and_then(char::from_u32)),
            b'%' => {
                if let Some(byte) = hex(rest.get(1..3)).and_then(|byte| u8::try_from(byte).ok()) {
                    out.push(byte);
                    rest = rest.get(3..).unwrap_or_default();
                    continue;
                }
                (1, None)
            }
            0xc0 | 0xc1 => (2, after.first().map(|next| char::from((first & 1) << 6 | (next & 0x3f)))),
            0xe0 => match after {
                [0x80..=0x9f, last, ..] => (3, Some(char::from(last & 0x3f | (after[0] & 1) << 6))),
                _ => (1, None),
            },
            0xef => match after {
                [second, third, ..] => {
                    let code = u32::from(*second & 0x3f) << 6 | u32::from(*third & 0x3f) | 0xf000;
                    (3, char::from_u32(code).filter(|code| ('\u{ff01}'..='\u{ff5e}').contains(code)))
                }
                _ => (1, None),
            },
            _ => (1, None),
        };
        match code {
            Some(full_width @ '\u{ff01}'..='\u{ff5e}') => {
                out.extend(u8::try_from(u32::from(full_width) - 0xfee0));
                rest = rest.get(length..).unwrap_or_default();
            }
            Some(code) => {
                out.extend_from_slice(code.encode_utf8(&mut [0; 4]).as_bytes());
                rest = rest.get(length..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}
