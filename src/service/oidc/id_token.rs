//! The ID token: who it is, by the provider's word (OpenID Connect Core 1.0, section 3.1.3.7).

use jsonwebtoken::{DecodingKey, Validation};
use keylatch_filters::bearer::KeySet;
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use super::super::Fault;
use super::provider::Settings;
use super::talk::ALGORITHMS;

/// How much clocks may differ, in seconds.
const LEEWAY_S: u64 = 60;
/// OpenID Connect Core 1.0, section 2.
const SUBJECT_BYTES_MAX: usize = 255;

/// What it claims, once all of it was checked.
pub fn claims(token: &str, keys: &KeySet, settings: &Settings, nonce: &str) -> Result<Map<String, Value>, Fault> {
    let wrong = |says: &str| Fault::Elsewhere(format!("the provider's ID token {says}"));
    let header = jsonwebtoken::decode_header(token).map_err(|_| wrong("is no JWT"))?;
    let alg = ALGORITHMS
        .into_iter()
        .find(|alg| alg.algorithm() == header.alg)
        .ok_or_else(|| wrong("is signed with an algorithm that is not taken"))?;
    let keys = keys.find(alg, header.kid.as_deref()).map_err(|_| wrong("is signed with a key that the provider does not publish"))?;
    let mut validation = Validation::new(header.alg);
    validation.set_issuer(&[&settings.issuer]);
    validation.set_audience(&[&settings.client_id]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_S;
    let read = |key: &&DecodingKey| jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation);
    let mut last = wrong("cannot be checked");
    let claims = keys.iter().find_map(|key| read(key).map_err(|error| last = wrong(&format!("is not valid: {error}"))).ok());
    let claims = claims.ok_or(last)?.claims;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    // A token for several is for us only where we are who asked for it.
    let several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    if (several || claims.contains_key("azp")) && text("azp") != Some(settings.client_id.as_str()) {
        return Err(wrong("was made for somebody else"));
    }
    if !text("nonce").is_some_and(|said| bool::from(said.as_bytes().ct_eq(nonce.as_bytes()))) {
        return Err(wrong("is of another sign-in"));
    }
    match text("sub") {
        Some(subject) if (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && !subject.contains('\0') => {}
        _ => return Err(wrong("names nobody")),
    }
    Ok(claims)
}
