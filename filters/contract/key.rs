//! The id that replaces an API key in stores, logs and metrics, and the rules by which spellings are the same key.
//! It does not read requests and does not store keys.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::Sha256;

use super::{hex, unhex};

/// HMAC-SHA256(secret, key): identifies a key in stores, logs and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 32]);

impl KeyId {
    /// Parses all 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    /// All 64 hex digits, in lower case.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// The first 12 hex digits, in lower case: the form shown to people.
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

/// The key of a request as a fact: its id and hint, without the key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The id.
    pub id: KeyId,
    /// The hint by which a person recognises the key: `sk-…` and its last four characters.
    pub hint: String,
}

/// The rule by which different spellings are the same key. It must match the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyForm {
    /// Each spelling is a separate key. A signed token (JWS) is identified without its signature, because a signature can be
    /// rewritten into another valid one.
    #[default]
    Exact,
    /// As New API and one-api read keys: a leading `sk-`, everything after the next `-` (a channel) and letter case (which
    /// MySQL ignores) do not matter. Unsuitable for keys that contain dashes, such as `sk-proj-…`. Signed tokens are identified
    /// as with `exact`.
    NewApi,
}

impl KeyForm {
    /// The part of a key that identifies it.
    fn essence(self, key: &str) -> Cow<'_, str> {
        if let Some(signed) = signed_part(key) {
            return signed;
        }
        match self {
            KeyForm::Exact => Cow::Borrowed(key),
            KeyForm::NewApi => {
                let name = new_api_name(key);
                if name.bytes().any(|byte| byte.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
            }
        }
    }

    /// The part that identified the key in earlier versions, if it was a different one.
    fn earlier_essence(self, key: &str) -> Option<&str> {
        let earlier = match self {
            KeyForm::Exact => key,
            KeyForm::NewApi => new_api_name(key),
        };
        (self.essence(key) != earlier).then_some(earlier)
    }
}

fn new_api_name(key: &str) -> &str {
    let rest = key.strip_prefix("sk-").unwrap_or(key);
    rest.split_once('-').map_or(rest, |(key, _)| key)
}

/// `header.payload` of a key in JWS compact form (RFC 7515, section 7.1), recognised by a JSON header with `alg`. The result is
/// normalised: padding and stray bits that lenient verifiers accept are removed. `None` for an encrypted token (`enc`).
pub fn signed_part(key: &str) -> Option<Cow<'_, str>> {
    let (header_text, rest) = key.split_once('.')?;
    let (payload_text, _) = rest.split_once('.')?;
    let decoded = |text: &str| LENIENT.decode(text.trim_end_matches('=')).ok();
    let header = decoded(header_text)?;
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header).ok()?;
    if !fields.contains_key("alg") || fields.contains_key("enc") {
        return None;
    }
    let header = LENIENT.encode(header);
    let payload = decoded(payload_text).map_or(Cow::Borrowed(payload_text), |payload| LENIENT.encode(payload).into());
    if header == header_text && payload == payload_text {
        return key.get(..header_text.len() + 1 + payload_text.len()).map(Cow::Borrowed);
    }
    Some(format!("{header}.{payload}").into())
}

/// Decodes everything that a lenient verifier may accept.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Computes [`KeyId`]s. Holds the HMAC secret.
#[derive(Clone)]
pub struct KeyHasher {
    form: KeyForm,
    mac: Hmac<Sha256>,
    /// HMACs of earlier secrets.
    previous: Vec<Hmac<Sha256>>,
}

impl KeyHasher {
    /// `secret` can have any length; 32 random bytes are recommended.
    pub fn new(secret: &[u8]) -> Self {
        Self { form: KeyForm::Exact, mac: mac(secret), previous: Vec::new() }
    }

    /// Adds the secrets that were used before, the latest first.
    pub fn with_previous<'s>(self, secrets: impl Iterator<Item = &'s [u8]>) -> Self {
        Self { previous: secrets.map(mac).collect(), ..self }
    }

    /// Sets the form of the keys.
    pub fn of_form(self, form: KeyForm) -> Self {
        Self { form, ..self }
    }

    /// The form of the keys.
    pub fn form(&self) -> KeyForm {
        self.form
    }

    /// The id of `key`.
    pub fn id(&self, key: &str) -> KeyId {
        id(&self.mac, &self.form.essence(key))
    }

    /// A fingerprint that changes with the secret or the form. It reveals nothing about the secret.
    pub fn fingerprint(&self) -> KeyId {
        let form = if self.form == KeyForm::Exact { "" } else { " (new_api)" };
        id(&self.mac, &format!("keylatch: the fingerprint of the key_hmac secret{form}"))
    }

    /// The ids under which `key` may still be stored: with earlier secrets, the latest first, and by the part that identified
    /// it in earlier versions.
    pub fn earlier_ids(&self, key: &str) -> Vec<KeyId> {
        let essence = self.form.essence(key);
        let mut ids: Vec<KeyId> = self.previous.iter().map(|mac| id(mac, &essence)).collect();
        if let Some(earlier) = self.form.earlier_essence(key) {
            ids.extend(std::iter::once(&self.mac).chain(&self.previous).map(|mac| id(mac, earlier)));
        }
        ids
    }

    /// The id and the hint of `key`.
    pub fn key(&self, key: &str) -> Key {
        Key { id: self.id(key), hint: hint(key) }
    }
}

fn mac(secret: &[u8]) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(secret) {
        Ok(mac) => mac,
        // HMAC accepts keys of every length (RFC 2104).
        Err(_) => unreachable!("HMAC accepts every key length"),
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

/// The last four characters are shown only if the rest of the key is long enough to stay secret.
fn hint(key: &str) -> String {
    const LONG_ENOUGH: usize = 16;
    let prefix = if key.starts_with("sk-") { "sk-…" } else { "…" };
    // A key is visible ASCII, so that bytes are characters.
    match key.len().checked_sub(4) {
        Some(start) if key.len() >= LONG_ENOUGH => format!("{prefix}{}", &key[start..]),
        _ => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_api_spellings() {
        let (exact, hasher) = (KeyHasher::new(b"s"), KeyHasher::new(b"s").of_form(KeyForm::NewApi));
        for same in ["sk-abc", "abc", "sk-abc-7", "abc-7-x", "ABC", "sk-aBc"] {
            assert_eq!(hasher.id(same), hasher.id("abc"), "{same}");
        }
        for other in ["abd", "sk-sk-abc", "sk-", "ab-c"] {
            assert_ne!(hasher.id(other), hasher.id("abc"), "{other}");
        }
        assert_ne!(exact.id("sk-abc"), exact.id("abc"));
        assert_eq!(exact.id("abc"), hasher.id("abc"));
        assert_ne!(exact.fingerprint(), hasher.fingerprint(), "a store of one form must not be read with the other");
    }

    /// A token with this header, the payload `{}` and this signature.
    fn token(header: &str, signature: &str) -> String {
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
        format!("{header}.e30.{signature}")
    }

    #[test]
    fn the_signature_does_not_identify_a_key() {
        let hasher = KeyHasher::new(b"s").with_previous([b"old".as_slice()].into_iter());
        let first = token(r#"{"alg":"ES256"}"#, "AAAA");
        for same in ["BBBB", "", "AAA", "AAAA==", "AAAB", "AAAA.BBBB", "."] {
            assert_eq!(hasher.id(&token(r#"{"alg":"ES256"}"#, same)), hasher.id(&first), "{same}");
        }
        for other in [token(r#"{"alg":"ES384"}"#, "AAAA"), token(r#"{"alg":"ES256"}"#, "AAAA").replace("e30", "eyJhIjoxfQ")] {
            assert_ne!(hasher.id(&other), hasher.id(&first), "{other}");
        }
        // A key that only resembles a JWS is an ordinary key.
        for key in ["a.b.c".to_owned(), token("{}", "AAAA"), token("[1]", "AAAA"), "sk-1".into(), "..".into(), token("alg", "AAAA")] {
            assert_eq!(signed_part(&key), None, "{key}");
        }
        // Padding and stray bits do not matter.
        for spelled in ["eyJhbGciOiJFUzI1NiJ9==.e30.AA", "eyJhbGciOiJFUzI1NiJ9.e30=.AA", "eyJhbGciOiJFUzI1NiJ9.e31.AA"] {
            assert_eq!(signed_part(spelled).as_deref(), Some("eyJhbGciOiJFUzI1NiJ9.e30"), "{spelled}");
        }
        assert_eq!(signed_part(&token(r#"{"alg":"dir","enc":"A256GCM"}"#, "AA.BB.CC")), None, "encrypted");
        assert_eq!(hasher.earlier_ids(&first).len(), 3, "with the earlier secret, and unnormalised with both secrets");
        assert_eq!(hasher.earlier_ids("sk-1").len(), 1);
    }

    #[test]
    fn ids_and_hints() {
        // RFC 4231, test case 2.
        let hasher = KeyHasher::new(b"Jefe");
        let id = hasher.id("what do ya want for nothing?");
        assert_eq!(id.to_string(), "5bdcc146bf60");
        assert_eq!(KeyId::from_hex(&id.hex()), Some(id));
        let rotated = KeyHasher::new(b"new").with_previous([b"Jefe".as_slice()].into_iter());
        assert_eq!(rotated.earlier_ids("what do ya want for nothing?"), [id]);
        assert_ne!(rotated.id("what do ya want for nothing?"), id);
        assert_eq!(hint("sk-0123456789abcdef"), "sk-…cdef");
        assert_eq!(hint("0123456789abcdef"), "…cdef");
        assert_eq!(hint("sk-demo"), "sk-…");
        assert_eq!(hint("abc"), "…");
    }
}
