//! Parses a signed token in compact form (RFC 7515, section 7.1) and verifies its signature against a key set.
//! It does not check claims.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keys::{Alg, KeySet};
use super::verdict::Rejected;

/// The maximum length of the header. A longer one has no legitimate use.
const HEADER_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
}

/// A parsed token. Its signature is not verified yet.
pub struct Jws<'t> {
    /// The algorithm; one of those that are accepted.
    pub alg: Alg,
    /// The key id in the header.
    pub kid: Option<String>,
    /// The media type in the header.
    pub typ: Option<String>,
    /// The signed part: header and payload.
    signed: &'t str,
    signature: &'t str,
    payload: &'t str,
}

impl<'t> Jws<'t> {
    /// Parses a token. Its algorithm must be one of `algorithms`.
    pub fn parse(token: &'t str, algorithms: &[Alg]) -> Result<Self, Rejected> {
        let mut parts = token.split('.');
        let (Some(header_text), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Rejected::Malformed);
        };
        if header_text.len() > HEADER_BYTES_MAX || signature.is_empty() {
            return Err(Rejected::Malformed);
        }
        let fields: Map<String, Value> = json(header_text)?;
        // A critical extension that is not understood makes the token invalid (RFC 7515, section 4.1.11).
        if fields.contains_key("crit") || fields.contains_key("b64") {
            return Err(Rejected::Malformed);
        }
        let header: Header = serde_json::from_value(fields.into()).map_err(|_| Rejected::Malformed)?;
        let alg = algorithms.iter().find(|alg| alg.name() == header.alg).copied().ok_or(Rejected::Algorithm)?;
        let signed = &token[..token.len() - signature.len() - 1];
        Ok(Jws { alg, kid: header.kid, typ: header.typ, signed, signature, payload })
    }

    /// The claims in the payload.
    pub fn claims(&self) -> Result<Map<String, Value>, Rejected> {
        json(self.payload)
    }

    /// Verifies that one of these keys has signed the token.
    pub fn verify_signature(&self, keys: &KeySet) -> Result<(), Rejected> {
        let found = keys.find(self.alg, self.kid.as_deref())?;
        if found.iter().any(|key| key.verify(self.alg, self.signed, self.signature)) { Ok(()) } else { Err(Rejected::Signature) }
    }
}

/// The claims of a token signed by one of these keys. Issuer, audience and dates are not checked.
pub fn signed_claims(token: &str, algorithms: &[Alg], keys: &KeySet) -> Result<Map<String, Value>, Rejected> {
    let jws = Jws::parse(token, algorithms)?;
    jws.verify_signature(keys)?;
    jws.claims()
}

/// Decodes a part of the token as JSON, from strict base64url without padding. Of duplicate members the last one counts; this
/// is safe because no later code parses the token again.
fn json<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, Rejected> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejected::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Rejected::Malformed)
}
