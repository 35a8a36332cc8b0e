//! The header fields that pass the identity to the upstream. Fields of these names from the client are always removed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::verdict::Verified;
use crate::contract::{Invalid, Result, failure, field_name, is_framing, remove_spellings};

/// `tell_upstream`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TellUpstream {
    /// The field for the subject. Default: none.
    pub subject: Option<String>,
    /// The field for the scopes, separated by spaces. Default: none.
    pub scopes: Option<String>,
    /// The fields for claims: claim name to field name. Text is sent as is, with characters that a field cannot hold
    /// percent-encoded; other values are sent as JSON. Default: none.
    pub claims: BTreeMap<String, String>,
}

/// The compiled form of [`TellUpstream`].
pub struct UpstreamFields {
    subject: Option<HeaderName>,
    scopes: Option<HeaderName>,
    claims: Vec<(String, HeaderName)>,
    /// All of these fields, and those that `forward_auth` may set.
    owned: Vec<HeaderName>,
}

impl UpstreamFields {
    pub fn compile(config: &TellUpstream, taken: Vec<HeaderName>) -> Result<Self, Invalid> {
        let name = |text: &Option<String>, key: &str| text.as_deref().map(field_name).transpose().map_err(|e| e.at(key));
        let (subject, scopes) = (name(&config.subject, "subject")?, name(&config.scopes, "scopes")?);
        let claim = |(claim, field): (&String, &String)| {
            let field = field_name(field).map_err(|e| e.at(claim.as_str()).at("claims"))?;
            Ok((claim.clone(), field))
        };
        let claims = config.claims.iter().map(claim).collect::<Result<Vec<_>, Invalid>>()?;
        let mut owned = taken;
        owned.extend(subject.iter().chain(&scopes).chain(claims.iter().map(|(_, field)| field)).cloned());
        if let Some(name) = owned.iter().find(|name| is_framing(name) || **name == header::HOST) {
            return Err(Invalid::new(format!("`{name}` controls message framing and cannot be set here")));
        }
        let twice = owned.iter().enumerate().find(|(index, name)| owned.iter().take(*index).any(|other| other == *name));
        if let Some((_, name)) = twice {
            return Err(Invalid::new(format!("`{name}` is set twice")));
        }
        Ok(Self { subject, scopes, claims, owned })
    }

    /// Removes the fields of the client and sets those of the identity.
    pub fn apply(&self, upstream: &mut RequestHeader, verified: Option<&Verified>) -> Result<()> {
        for name in &self.owned {
            remove_spellings(upstream, name);
        }
        let Some(verified) = verified else { return Ok(()) };
        let identity = &verified.identity;
        if let (Some(name), Some(subject)) = (&self.subject, identity.subject.as_ref().filter(|subject| !subject.is_empty())) {
            upstream.insert_header(name.clone(), value(subject)?).map_err(failure)?;
        }
        if let Some(name) = &self.scopes {
            upstream.insert_header(name.clone(), value(&identity.scopes().join(" "))?).map_err(failure)?;
        }
        for (claim, name) in &self.claims {
            let text = match identity.claims.get(claim) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
                Some(other) => Cow::Owned(other.to_string()),
            };
            upstream.insert_header(name.clone(), value(&text)?).map_err(failure)?;
        }
        for (name, value) in &verified.fields {
            upstream.append_header(name.clone(), value.clone()).map_err(failure)?;
        }
        Ok(())
    }
}

/// `%` is encoded as well, so that the encoding is reversible.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Encodes leading and trailing spaces, because they are stripped from field values in transit.
fn value(text: &str) -> Result<HeaderValue> {
    let inside = text.trim_matches(' ');
    let before = text.len() - text.trim_start_matches(' ').len();
    let after = if inside.is_empty() { 0 } else { text.len() - before - inside.len() };
    let encoded = utf8_percent_encode(inside, ENCODED);
    HeaderValue::try_from(format!("{}{encoded}{}", "%20".repeat(before), "%20".repeat(after))).map_err(failure)
}
