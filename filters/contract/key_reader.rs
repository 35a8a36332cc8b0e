//! Reads the API key of a request from header fields and query parameters.
//!
//! The key that Keylatch checks must be the key that the upstream uses. A request in which an upstream might read a different
//! key is an error. This module computes no ids and makes no decision.

use std::borrow::Cow;

use http::{HeaderName, header};
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{ByteSize, Invalid, KeyForm, field_name, is_framing};

/// The default maximum length of a key, in bytes.
pub const KEY_BYTES: usize = 8192;
/// The largest maximum length that a configuration can set, in bytes.
pub const KEY_BYTES_MAX: usize = 32 * 1024;

/// Checks the configured maximum length of a key or token; returns it in bytes.
pub fn key_bytes_bound(size: ByteSize) -> Result<usize, Invalid> {
    let bytes = usize::try_from(size.0).unwrap_or(usize::MAX);
    if (1024..=KEY_BYTES_MAX).contains(&bytes) { Ok(bytes) } else { Err(Invalid::new("must be between 1KiB and 32KiB")) }
}

/// Query parameters from which known services read a key. `access_token` is defined in RFC 6750, section 2.3.
const QUERY_NAMES: [&str; 5] = ["key", "api_key", "api-key", "apikey", "access_token"];
/// The placeholder that Midjourney clients send in `Authorization` when the key is in `mj-api-secret`.
const PLACEHOLDER: &str = "midjourney-proxy";

/// A place in a request that can carry the key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// `Authorization: Bearer …` (OpenAI and most others)
    Authorization,
    /// `x-api-key` (Anthropic)
    XApiKey,
    /// `api-key` (Azure OpenAI)
    ApiKey,
    /// `x-goog-api-key` (Gemini)
    XGoogApiKey,
    /// `mj-api-secret` (Midjourney clients)
    MjApiSecret,
    /// `openai-insecure-api-key.…` among the protocols of `sec-websocket-protocol` (OpenAI's Realtime API from a browser)
    SecWebsocketProtocol,
    /// The query parameter `key` (Gemini clients)
    QueryKey,
    /// Another header field, such as `cf-access-jwt-assertion`; the prefix `Bearer ` is allowed
    Header(String),
}

impl KeySource {
    /// The header fields from which known services read a key.
    pub const FIELDS: [KeySource; 6] = [
        KeySource::Authorization,
        KeySource::XApiKey,
        KeySource::ApiKey,
        KeySource::XGoogApiKey,
        KeySource::MjApiSecret,
        KeySource::SecWebsocketProtocol,
    ];

    /// The name of the header field; `None` for the query.
    pub fn header(&self) -> Result<Option<HeaderName>, Invalid> {
        Ok(Some(match self {
            KeySource::Authorization => header::AUTHORIZATION,
            KeySource::XApiKey => HeaderName::from_static("x-api-key"),
            KeySource::ApiKey => HeaderName::from_static("api-key"),
            KeySource::XGoogApiKey => HeaderName::from_static("x-goog-api-key"),
            KeySource::MjApiSecret => HeaderName::from_static("mj-api-secret"),
            KeySource::SecWebsocketProtocol => header::SEC_WEBSOCKET_PROTOCOL,
            KeySource::QueryKey => return Ok(None),
            KeySource::Header(name) => {
                let parsed = field_name(name).map_err(|invalid| invalid.at("header"))?;
                if is_framing(&parsed) || parsed == header::HOST || parsed == header::COOKIE {
                    return Err(Invalid::new(format!("`{parsed}` cannot carry a key")).at("header"));
                }
                parsed
            }
        }))
    }

    /// How a client sends a key in this place, as a sentence for a refusal.
    pub fn instruction(&self) -> String {
        match self {
            KeySource::Authorization => "Send it as `Authorization: Bearer YOUR_KEY`.".into(),
            KeySource::SecWebsocketProtocol => {
                "Send it as `openai-insecure-api-key.YOUR_KEY` among the protocols of `Sec-WebSocket-Protocol`.".into()
            }
            KeySource::QueryKey => "Send it as `?key=YOUR_KEY`.".into(),
            KeySource::XApiKey | KeySource::ApiKey | KeySource::XGoogApiKey | KeySource::MjApiSecret | KeySource::Header(_) => {
                let name = self.header().ok().flatten();
                format!("Send it as `{}: YOUR_KEY`.", name.as_ref().map_or("", HeaderName::as_str))
            }
        }
    }

    /// The keys in one line of the field. A line without a key yields none, or an empty one.
    fn keys<'v>(&self, value: &'v str, form: KeyForm) -> Keys<'v> {
        match self {
            KeySource::SecWebsocketProtocol => Keys::Protocols(value.split(','), form),
            KeySource::Authorization | KeySource::MjApiSecret | KeySource::Header(_) => Keys::One(Some(credential(value))),
            KeySource::XApiKey | KeySource::ApiKey | KeySource::XGoogApiKey | KeySource::QueryKey => {
                Keys::One(Some(Ok(value.trim_matches([' ', '\t']))))
            }
        }
    }

    /// Whether one line of the field carries a key, or text that an upstream might read as one.
    pub fn carries_key(&self, value: &[u8], form: KeyForm) -> bool {
        match self {
            KeySource::SecWebsocketProtocol => std::str::from_utf8(value).map_or(true, |text| self.keys(text, form).next().is_some()),
            _ => true,
        }
    }

    /// The line without the key; `None` if nothing remains.
    pub fn without_key(&self, value: &[u8], form: KeyForm) -> Option<String> {
        if *self != KeySource::SecWebsocketProtocol {
            return None;
        }
        let protocols = std::str::from_utf8(value).ok()?.split(',').map(|protocol| protocol.trim_matches([' ', '\t']));
        let rest: Vec<&str> = protocols.filter(|protocol| !protocol.is_empty() && protocol_key(protocol, form).is_none()).collect();
        (!rest.is_empty()).then(|| rest.join(", "))
    }
}

const PROTOCOL: &str = "openai-insecure-api-key.";

/// The key in one WebSocket subprotocol. Many versions of New API read the whole field as the key if no protocol has the
/// prefix. For that form, any protocol other than those of OpenAI's Realtime API is an error.
fn protocol_key(protocol: &str, form: KeyForm) -> Option<Result<&str, KeyError>> {
    if let Some(key) = protocol.strip_prefix(PROTOCOL) {
        return Some(Ok(key));
    }
    let known = protocol.is_empty() || protocol == "realtime" || protocol.starts_with("openai-");
    (form == KeyForm::NewApi && !known).then_some(Err(KeyError::Malformed))
}

enum Keys<'v> {
    One(Option<Result<&'v str, KeyError>>),
    Protocols(std::str::Split<'v, char>, KeyForm),
}

impl<'v> Iterator for Keys<'v> {
    type Item = Result<&'v str, KeyError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Keys::One(one) => one.take(),
            Keys::Protocols(protocols, form) => protocols.find_map(|protocol| protocol_key(protocol.trim_matches([' ', '\t']), *form)),
        }
    }
}

/// The key in an `Authorization` value. The case of the scheme does not matter (RFC 9110, section 11.1). Many services accept
/// a key without a scheme. Any other scheme is an error: the upstream might read a key from it that was not checked.
fn credential(value: &str) -> Result<&str, KeyError> {
    let value = value.trim_matches([' ', '\t']);
    match value.split_once([' ', '\t']) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_start_matches([' ', '\t'])),
        None if value.eq_ignore_ascii_case("bearer") => Ok(""),
        None => Ok(value),
        Some(_) => Err(KeyError::Malformed),
    }
}

/// Why the request does not carry exactly one readable key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Two places, or two lines of one field, carry different keys.
    #[error("the request carries two different keys")]
    Two,
    /// The value is not a key: it contains invalid bytes, or has another scheme than `Bearer`.
    #[error("the key is malformed")]
    Malformed,
    /// The key is longer than this many bytes.
    #[error("the key is longer than {0} bytes")]
    TooLong(usize),
    /// The key is only in the query, from which this reader does not read.
    #[error("the key is in the query")]
    InQuery,
}

impl KeyError {
    /// The reason for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            KeyError::Two => "two_keys",
            KeyError::Malformed => "malformed_key",
            KeyError::TooLong(_) => "key_too_long",
            KeyError::InQuery => "key_in_query",
        }
    }
}

/// How a reader without the query as a source treats a key in the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnlistedQuery {
    /// As an ordinary parameter.
    Ignored,
    /// As an error, unless it is the same key as in a header field.
    Refused,
}

/// Reads the key from a request.
#[derive(Clone, Debug)]
pub struct KeyReader {
    fields: Vec<(KeySource, HeaderName)>,
    bytes_max: usize,
    query: QueryUse,
    form: KeyForm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueryUse {
    Read,
    Unlisted(UnlistedQuery),
}

impl KeyReader {
    /// Reads from these sources only. `bytes_max` is the maximum length of the key.
    pub fn new(sources: &[KeySource], bytes_max: usize, query: UnlistedQuery, form: KeyForm) -> Result<Self, Invalid> {
        let mut fields = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            if sources.iter().take(index).any(|other| other == source) {
                return Err(Invalid::new("is listed twice").index(index));
            }
            if let Some(name) = source.header().map_err(|invalid| invalid.index(index))? {
                if fields.iter().any(|(_, other)| *other == name) {
                    return Err(Invalid::new(format!("`{name}` is listed twice")).index(index));
                }
                fields.push((source.clone(), name));
            }
        }
        let query = if sources.contains(&KeySource::QueryKey) { QueryUse::Read } else { QueryUse::Unlisted(query) };
        Ok(Self { fields, bytes_max, query, form })
    }

    /// Reads all known header fields and ignores the query.
    pub fn of_known_fields(form: KeyForm) -> Self {
        let fields = KeySource::FIELDS.into_iter().filter_map(|source| source.header().ok().flatten().map(|name| (source, name)));
        let query = QueryUse::Unlisted(UnlistedQuery::Ignored);
        Self { fields: fields.collect(), bytes_max: KEY_BYTES_MAX, query, form }
    }

    /// The key of a request. The same key in several places counts once; an empty key counts as none.
    pub fn read<'r>(&self, request: &'r RequestHeader) -> Result<Option<Cow<'r, str>>, KeyError> {
        let mut found: Option<&str> = None;
        // If `mj-api-secret` has the key, `midjourney-proxy` in `Authorization` is only a placeholder.
        let placeholder = self.form == KeyForm::NewApi && request.headers.get("mj-api-secret").is_some_and(|value| !value.is_empty());
        for (source, name) in &self.fields {
            let mut of_field = None;
            for line in request.headers.get_all(name) {
                let line = line.to_str().map_err(|_| KeyError::Malformed)?;
                for key in source.keys(line, self.form) {
                    let key = key?;
                    // An upstream may read the first or the last of several lines, even if that one is empty.
                    if of_field.is_some_and(|other| other != key) {
                        return Err(KeyError::Two);
                    }
                    of_field = Some(key);
                    if key.is_empty() || (placeholder && *source == KeySource::Authorization && key == PLACEHOLDER) {
                        continue;
                    }
                    self.check(key)?;
                    match found {
                        Some(other) if other != key => return Err(KeyError::Two),
                        _ => found = Some(key),
                    }
                }
            }
        }
        match (request.uri.query(), self.query) {
            (None, _) | (_, QueryUse::Unlisted(UnlistedQuery::Ignored)) => Ok(found.map(Cow::Borrowed)),
            (Some(query), how) => self.with_query(query, how, found),
        }
    }

    fn with_query<'r>(&self, query: &'r str, how: QueryUse, found: Option<&'r str>) -> Result<Option<Cow<'r, str>>, KeyError> {
        let mut found = found.map(Cow::Borrowed);
        for (name, value) in query_keys(query) {
            let listed = how == QueryUse::Read && name == "key";
            match &found {
                Some(other) if *other != value => return Err(KeyError::Two),
                Some(_) => {}
                None if listed => {
                    self.check(&value)?;
                    found = Some(value);
                }
                None => return Err(KeyError::InQuery),
            }
        }
        Ok(found)
    }

    fn check(&self, key: &str) -> Result<(), KeyError> {
        if key.len() > self.bytes_max {
            return Err(KeyError::TooLong(self.bytes_max));
        }
        if key.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err(KeyError::Malformed) }
    }
}

/// The non-empty query parameters that known services read as a key.
fn query_keys(query: &str) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
    // Some servers treat `;` like `&`.
    query.split(['&', ';']).flat_map(|pair| form_urlencoded::parse(pair.as_bytes())).filter_map(|(name, value)| {
        let name = QUERY_NAMES.into_iter().find(|known| name.eq_ignore_ascii_case(known))?;
        (!value.is_empty()).then_some((name, value))
    })
}

#[cfg(test)]
#[path = "key_reader_tests.rs"]
mod tests;
