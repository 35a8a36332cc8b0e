//! The API key of a request: where it is read from, and the id that stands for it everywhere else.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, header};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::Sha256;

use super::{hex, unhex};

/// The longest key there is, in bytes. JWTs with many claims are the longest in practice.
pub const KEY_BYTES_MAX: usize = 8192;

/// HMAC-SHA256(secret, key): what stands for a key in stores, logs and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 32]);

impl KeyId {
    /// From all 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    /// All 64 hex digits, in lower case.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// The first 12 hex digits, in lower case: what people see of it.
    pub fn short(&self) -> [u8; 12] {
        let nibbles = self.0.iter().take(6).flat_map(|byte| [byte >> 4, byte & 0xf]);
        let mut text = [0; 12];
        for (digit, nibble) in text.iter_mut().zip(nibbles) {
            *digit = b"0123456789abcdef"[usize::from(nibble)];
        }
        text
    }
}

impl fmt::Display for KeyId {
    /// The first 12 hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.short()).unwrap_or_default())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A fact: the key this request carries, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What stands for it.
    pub id: KeyId,
    /// What a person may recognise it by: `sk-…` and its last four characters.
    pub hint: String,
}

/// Which spellings of a key are the same key to the upstream, and so are the same here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyForm {
    /// Each is a key of its own.
    #[default]
    Exact,
    /// As New API and one-api read keys: `sk-` in front does not matter, nor what comes behind the next `-` (a channel).
    /// Not for services whose keys have dashes within, such as `sk-proj-…`.
    NewApi,
}

impl KeyForm {
    /// What makes it that key.
    fn essence(self, key: &str) -> &str {
        match self {
            KeyForm::Exact => key,
            KeyForm::NewApi => {
                let rest = key.strip_prefix("sk-").unwrap_or(key);
                rest.split_once('-').map_or(rest, |(key, _)| key)
            }
        }
    }
}

/// Turns keys into [`KeyId`]s. Holds the secret.
#[derive(Clone)]
pub struct KeyHasher {
    form: KeyForm,
    mac: Hmac<Sha256>,
    /// Under secrets that were used before.
    previous: Vec<Hmac<Sha256>>,
}

impl KeyHasher {
    /// `secret` may be of any length; 32 random bytes are right.
    pub fn new(secret: &[u8]) -> Self {
        Self { form: KeyForm::Exact, mac: mac(secret), previous: Vec::new() }
    }

    /// The same, with secrets that were used before it.
    pub fn with_previous<'s>(self, secrets: impl Iterator<Item = &'s [u8]>) -> Self {
        Self { previous: secrets.map(mac).collect(), ..self }
    }

    /// The same, for keys that are spelt in this form.
    pub fn of_form(self, form: KeyForm) -> Self {
        Self { form, ..self }
    }

    /// The id of `key`.
    pub fn id(&self, key: &str) -> KeyId {
        id(&self.mac, self.form.essence(key))
    }

    /// By which another secret, or another form, is told from this one. Tells nothing about the secret.
    pub fn fingerprint(&self) -> KeyId {
        let form = if self.form == KeyForm::Exact { "" } else { " (new_api)" };
        id(&self.mac, &format!("keylatch: the fingerprint of the key_hmac secret{form}"))
    }

    /// The ids that `key` had under the secrets before, the latest first.
    pub fn previous_ids(&self, key: &str) -> Vec<KeyId> {
        self.previous.iter().map(|mac| id(mac, self.form.essence(key))).collect()
    }

    /// The id and the hint of `key`.
    pub fn key(&self, key: &str) -> Key {
        Key { id: self.id(key), hint: hint(key) }
    }
}

fn mac(secret: &[u8]) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(secret) {
        Ok(mac) => mac,
        // HMAC takes keys of every length (RFC 2104).
        Err(_) => unreachable!("HMAC refuses no key length"),
    }
}

fn id(mac: &Hmac<Sha256>, key: &str) -> KeyId {
    let mut mac = mac.clone();
    mac.update(key.as_bytes());
    KeyId(mac.finalize().into_bytes().into())
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHasher(…)")
    }
}

/// Shows the last four characters only of keys long enough to stay secret without them.
fn hint(key: &str) -> String {
    const LONG_ENOUGH: usize = 16;
    let prefix = if key.starts_with("sk-") { "sk-…" } else { "…" };
    // A key is visible ASCII: bytes are characters.
    match key.len().checked_sub(4) {
        Some(start) if key.len() >= LONG_ENOUGH => format!("{prefix}{}", &key[start..]),
        _ => prefix.to_owned(),
    }
}

/// A header field that can carry the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
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
}

impl KeySource {
    /// All of them.
    pub const ALL: [KeySource; 6] = [
        KeySource::Authorization,
        KeySource::XApiKey,
        KeySource::ApiKey,
        KeySource::XGoogApiKey,
        KeySource::MjApiSecret,
        KeySource::SecWebsocketProtocol,
    ];

    /// What of a field's value may be a key.
    pub fn key_in(self, value: &str) -> Option<&str> {
        match self {
            KeySource::SecWebsocketProtocol => {
                let protocols = value.split(',').map(|protocol| protocol.trim_matches([' ', '\t']));
                protocols.filter_map(|protocol| protocol.strip_prefix("openai-insecure-api-key.")).next_back()
            }
            _ => Some(value.trim_matches([' ', '\t'])),
        }
    }

    /// The field's name.
    pub fn header(self) -> HeaderName {
        match self {
            KeySource::Authorization => header::AUTHORIZATION,
            KeySource::XApiKey => HeaderName::from_static("x-api-key"),
            KeySource::ApiKey => HeaderName::from_static("api-key"),
            KeySource::XGoogApiKey => HeaderName::from_static("x-goog-api-key"),
            KeySource::MjApiSecret => HeaderName::from_static("mj-api-secret"),
            KeySource::SecWebsocketProtocol => HeaderName::from_static("sec-websocket-protocol"),
        }
    }
}

/// Why no single key could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Two fields, or two lines of one field, with different keys.
    #[error("the request carries two different keys")]
    Two,
    /// Not a key: empty, too long, or with bytes that no key has.
    #[error("the key is malformed")]
    Malformed,
}

impl KeyError {
    /// The metric's word.
    pub fn reason(self) -> &'static str {
        match self {
            KeyError::Two => "two_keys",
            KeyError::Malformed => "malformed_key",
        }
    }
}

/// Reads the key from a request's header fields.
#[derive(Clone, Debug)]
pub struct KeyReader {
    sources: Vec<(KeySource, HeaderName)>,
}

impl Default for KeyReader {
    fn default() -> Self {
        Self::new(&KeySource::ALL)
    }
}

impl KeyReader {
    /// Looks at these fields only.
    pub fn new(sources: &[KeySource]) -> Self {
        Self { sources: sources.iter().map(|source| (*source, source.header())).collect() }
    }

    /// The one key in these fields. The same key twice is one key.
    pub fn read<'h>(&self, headers: &'h HeaderMap) -> Result<Option<&'h str>, KeyError> {
        let mut found: Option<&str> = None;
        for (source, name) in &self.sources {
            for value in headers.get_all(name) {
                let Some(text) = source.key_in(value.to_str().map_err(|_| KeyError::Malformed)?) else { continue };
                let key = match source {
                    KeySource::Authorization => credential(text)?,
                    _ => text,
                };
                if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(KeyError::Malformed);
                }
                match found {
                    Some(other) if other != key => return Err(KeyError::Two),
                    _ => found = Some(key),
                }
            }
        }
        Ok(found)
    }
}

/// Whether a query carries a key that is not `key`, under a name by which some services read one. Whoever sends it
/// may want to be judged by one key and served by another.
pub fn other_key_in_query(query: &str, key: &str) -> bool {
    const NAMES: [&str; 4] = ["key", "api_key", "api-key", "apikey"];
    query.split('&').filter_map(|pair| pair.split_once('=')).any(|(name, value)| {
        let decoded = |text| percent_encoding::percent_decode_str(text).decode_utf8_lossy();
        NAMES.iter().any(|known| decoded(name).eq_ignore_ascii_case(known)) && decoded(value) != key
    })
}

/// The key in an `Authorization` value. The scheme's case does not matter (RFC 9110, section 11.1), and what
/// stands there without a scheme is a key to many services, so it is one here. Another scheme is refused: the
/// upstream might find a key in it that nobody has judged.
fn credential(value: &str) -> Result<&str, KeyError> {
    match value.split_once([' ', '\t']) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_start_matches([' ', '\t'])),
        None if !value.eq_ignore_ascii_case("bearer") => Ok(value),
        _ => Err(KeyError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)]) -> Result<Option<String>, KeyError> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        KeyReader::default().read(&headers).map(|key| key.map(str::to_owned))
    }

    #[test]
    fn every_source_and_its_abuses() {
        let some = |key: &str| Ok(Some(key.to_owned()));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("authorization", "Bearer sk-1")]), some("sk-1"));
        assert_eq!(read(&[("authorization", "bEARER   sk-1 ")]), some("sk-1"));
        assert_eq!(read(&[("x-api-key", "sk-1")]), some("sk-1"));
        assert_eq!(read(&[("api-key", "sk-1")]), some("sk-1"));
        assert_eq!(read(&[("x-goog-api-key", "sk-1")]), some("sk-1"));
        // Whatever the upstream might take for a key is judged, or refused.
        assert_eq!(read(&[("authorization", "sk-1")]), some("sk-1"));
        assert_eq!(read(&[("authorization", "Bearer\tsk-1")]), some("sk-1"));
        assert_eq!(read(&[("authorization", "sk-1"), ("x-api-key", "sk-2")]), Err(KeyError::Two));
        assert_eq!(read(&[("authorization", "sk-1"), ("authorization", "Bearer sk-2")]), Err(KeyError::Two));
        assert_eq!(read(&[("authorization", "Basic Zm9v")]), Err(KeyError::Malformed));
        assert_eq!(read(&[("authorization", "Basic Zm9v"), ("x-api-key", "sk-1")]), Err(KeyError::Malformed));
        // The same key twice is one; two keys are an attempt to be judged by one and served by the other.
        assert_eq!(read(&[("authorization", "Bearer sk-1"), ("x-api-key", "sk-1")]), some("sk-1"));
        assert_eq!(read(&[("authorization", "Bearer sk-1"), ("x-api-key", "sk-2")]), Err(KeyError::Two));
        assert_eq!(read(&[("authorization", "Bearer sk-1"), ("authorization", "Bearer sk-2")]), Err(KeyError::Two));
        for wrong in ["Bearer", "Bearer ", "Bearer sk 1", "Bearer a,b c"] {
            assert_eq!(read(&[("authorization", wrong)]), Err(KeyError::Malformed), "{wrong}");
        }
        assert_eq!(read(&[("x-api-key", &"k".repeat(KEY_BYTES_MAX + 1))]), Err(KeyError::Malformed));
    }

    #[test]
    fn keys_in_queries() {
        for same in ["", "a=1", "key=sk-1", "a&KEY=sk%2D1&b=", "monkey=sk-2"] {
            assert!(!other_key_in_query(same, "sk-1"), "{same}");
        }
        for other in ["key=sk-2", "key=sk-1&key=sk-2", "%6bey=sk-2", "api_key=", "apikey=sk-1%20"] {
            assert!(other_key_in_query(other, "sk-1"), "{other}");
        }
    }

    #[test]
    fn keys_as_new_api_reads_them() {
        let (exact, hasher) = (KeyHasher::new(b"s"), KeyHasher::new(b"s").of_form(KeyForm::NewApi));
        for same in ["sk-abc", "abc", "sk-abc-7", "abc-7-x"] {
            assert_eq!(hasher.id(same), hasher.id("abc"), "{same}");
        }
        for other in ["abd", "sk-sk-abc", "sk-", "ab-c"] {
            assert_ne!(hasher.id(other), hasher.id("abc"), "{other}");
        }
        assert_ne!(exact.id("sk-abc"), exact.id("abc"));
        assert_eq!(exact.id("abc"), hasher.id("abc"));
        assert_ne!(exact.fingerprint(), hasher.fingerprint(), "what is bound under one is not to be read under the other");
    }

    #[test]
    fn keys_where_some_services_look_for_them() {
        let some = |key: &str| Ok(Some(key.to_owned()));
        let realtime = "realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1";
        assert_eq!(read(&[("sec-websocket-protocol", realtime)]), some("sk-1"));
        assert_eq!(read(&[("sec-websocket-protocol", "realtime")]), Ok(None));
        assert_eq!(read(&[("sec-websocket-protocol", realtime), ("authorization", "Bearer sk-2")]), Err(KeyError::Two));
        assert_eq!(read(&[("mj-api-secret", "sk-1")]), some("sk-1"));
        assert_eq!(read(&[("mj-api-secret", "sk-1"), ("authorization", "Bearer midjourney-proxy")]), Err(KeyError::Two));
    }

    #[test]
    fn ids_and_hints() {
        // RFC 4231, test case 2.
        let hasher = KeyHasher::new(b"Jefe");
        let id = hasher.id("what do ya want for nothing?");
        assert_eq!(id.to_string(), "5bdcc146bf60");
        assert_eq!(KeyId::from_hex(&id.hex()), Some(id));
        let rotated = KeyHasher::new(b"new").with_previous([b"Jefe".as_slice()].into_iter());
        assert_eq!(rotated.previous_ids("what do ya want for nothing?"), [id]);
        assert_ne!(rotated.id("what do ya want for nothing?"), id);
        assert_eq!(hint("sk-0123456789abcdef"), "sk-…cdef");
        assert_eq!(hint("0123456789abcdef"), "…cdef");
        assert_eq!(hint("sk-demo"), "sk-…");
        assert_eq!(hint("abc"), "…");
    }
}
