//! # headers
//!
//! Sets, adds and removes header fields: on the request as it goes upstream, and on the response as it
//! goes to the client. Values may come from the environment or a file, so that a provider's own key
//! takes the place of the client's.
//!
//! ```yaml
//! headers:
//!   request:
//!     set:
//!       Authorization: Bearer provider-key
//!     remove: [X-Api-Key]
//!   response:
//!     add:
//!       Strict-Transport-Security: max-age=31536000
//!     remove: [Server, X-Powered-By]
//! ```
//!
//! `remove` comes first, then `set` (replaces every field of that name), then `add` (leaves others).
//! Fields that frame a message or belong to one connection (`Content-Length`, `Transfer-Encoding`,
//! `Connection`, …) cannot be touched. In shadow mode nothing is changed.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    Filter, Hooks, Invalid, ResponseCx, Result, SecretRef, Site, UpstreamCx, failure, field_name, is_framing, remove_spellings,
};

/// What to do with the fields of one direction.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Replaces every field of that name.
    pub set: BTreeMap<String, SecretRef>,
    /// Adds a field beside others of that name.
    pub add: BTreeMap<String, SecretRef>,
    /// Removes every field of that name.
    pub remove: Vec<String>,
}

/// `headers`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// On the request as it goes upstream.
    pub request: Changes,
    /// On the response as it goes to the client.
    pub response: Changes,
}

#[derive(Default)]
struct Compiled {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

/// The compiled filter.
pub struct Headers {
    request: Compiled,
    response: Compiled,
}

fn name_of(text: &str) -> Result<HeaderName, Invalid> {
    let name = field_name(text)?;
    if is_framing(&name) {
        return Err(Invalid::new(format!("`{text}` belongs to the framing of messages and cannot be changed here")));
    }
    Ok(name)
}

impl Compiled {
    fn compile(changes: &Changes, site: &Site<'_>) -> Result<Self, Invalid> {
        let fields = |fields: &BTreeMap<String, SecretRef>, key: &str| {
            let field = |(name, value): (&String, &SecretRef)| {
                let secret = site.secret(value)?;
                let mut compiled = HeaderValue::from_str(&secret)
                    .map_err(|_| Invalid::new("the value holds a character that no header field may hold"))?;
                compiled.set_sensitive(true);
                Ok((name_of(name)?, compiled))
            };
            fields.iter().map(|entry| field(entry).map_err(|e: Invalid| e.at(entry.0).at(key))).collect::<Result<Vec<_>, _>>()
        };
        let remove = |(index, name): (usize, &String)| name_of(name).map_err(|e| e.index(index).at("remove"));
        Ok(Self {
            remove: changes.remove.iter().enumerate().map(remove).collect::<Result<_, _>>()?,
            set: fields(&changes.set, "set")?,
            add: fields(&changes.add, "add")?,
        })
    }
}

/// Both header types have the same calls and no trait in common.
macro_rules! apply {
    ($changes:expr, $message:expr) => {{
        for name in &$changes.remove {
            $message.remove_header(name);
        }
        for (name, value) in &$changes.set {
            $message.insert_header(name.clone(), value.clone()).map_err(failure)?;
        }
        for (name, value) in &$changes.add {
            $message.append_header(name.clone(), value.clone()).map_err(failure)?;
        }
        Ok(())
    }};
}

impl Filter for Headers {
    const NAME: &'static str = "headers";
    const HOOKS: Hooks = Hooks { upstream_request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("headers.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        Ok(Self {
            request: Compiled::compile(&config.request, site).map_err(|e| e.at("request"))?,
            response: Compiled::compile(&config.response, site).map_err(|e| e.at("response"))?,
        })
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, (): &mut ()) -> Result<()> {
        self.request.remove.iter().for_each(|name| remove_spellings(cx.upstream, name));
        apply!(self.request, cx.upstream)
    }

    fn response(&self, cx: &mut ResponseCx<'_>, (): &mut ()) -> Result<()> {
        apply!(self.response, cx.response)
    }
}
