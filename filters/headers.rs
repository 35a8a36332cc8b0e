//! # headers
//!
//! Sets, adds and removes header fields, on the request to the upstream and on the response to the client. Values may come
//! from the environment or a file. A typical use replaces the client's key by the provider's key.
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
//! **Order.** `remove` runs first, then `set`, then `add`. `set` replaces all fields of that name. `add` keeps them and
//! appends one.
//!
//! **Limits.** Fields that frame a message or belong to one connection (`Content-Length`, `Transfer-Encoding`,
//! `Connection`, …) cannot be changed. In shadow mode the filter changes nothing.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    Filter, Hooks, Invalid, ResponseCx, Result, SecretRef, Site, UpstreamCx, failure, field_name, is_framing, remove_spellings,
};

/// The changes to the fields of one direction.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderChanges {
    /// Replace all fields of that name.
    pub set: BTreeMap<String, SecretRef>,
    /// Append a field and keep others of that name.
    pub add: BTreeMap<String, SecretRef>,
    /// Remove all fields of that name.
    pub remove: Vec<String>,
}

/// `headers`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadersConfig {
    /// Changes to the request to the upstream.
    pub request: HeaderChanges,
    /// Changes to the response to the client.
    pub response: HeaderChanges,
}

#[derive(Default)]
struct CompiledChanges {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

/// The compiled filter.
pub struct Headers {
    request: CompiledChanges,
    response: CompiledChanges,
}

fn changeable_field(text: &str) -> Result<HeaderName, Invalid> {
    let name = field_name(text)?;
    if is_framing(&name) {
        return Err(Invalid::new(format!("`{text}` frames messages or belongs to one connection; it cannot be changed")));
    }
    Ok(name)
}

impl CompiledChanges {
    fn compile(changes: &HeaderChanges, site: &Site<'_>) -> Result<Self, Invalid> {
        let fields = |fields: &BTreeMap<String, SecretRef>, key: &str| {
            let field = |(name, value): (&String, &SecretRef)| {
                let secret = site.secret(value)?;
                let mut compiled = HeaderValue::from_str(&secret)
                    .map_err(|_| Invalid::new("the value contains a character that is not allowed in header fields"))?;
                compiled.set_sensitive(true);
                Ok((changeable_field(name)?, compiled))
            };
            fields.iter().map(|entry| field(entry).map_err(|e: Invalid| e.at(entry.0).at(key))).collect::<Result<Vec<_>, _>>()
        };
        let remove = |(index, name): (usize, &String)| changeable_field(name).map_err(|e| e.index(index).at("remove"));
        Ok(Self {
            remove: changes.remove.iter().enumerate().map(remove).collect::<Result<_, _>>()?,
            set: fields(&changes.set, "set")?,
            add: fields(&changes.add, "add")?,
        })
    }
}

/// A macro, since the request and response header types have the same methods but no common trait.
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
    type Config = HeadersConfig;
    type State = ();

    fn compile(config: HeadersConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        Ok(Self {
            request: CompiledChanges::compile(&config.request, site).map_err(|e| e.at("request"))?,
            response: CompiledChanges::compile(&config.response, site).map_err(|e| e.at("response"))?,
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
