//! Validates ID tokens (OpenID Connect Core 1.0, section 3.1.3.7).

use std::time::{SystemTime, UNIX_EPOCH};

use keylatch_filters::bearer::{KeySet, Rejected, has_audience, numeric_date, signed_claims};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use super::client::ALGORITHMS;
use super::provider::Settings;
use crate::operator::Fault;

/// Allowed clock skew in seconds.
const LEEWAY_S: u64 = 60;
/// Maximum length of `sub` (OpenID Connect Core 1.0, section 2).
const SUBJECT_BYTES_MAX: usize = 255;

/// Checks issuer, audience and times.
fn in_force(claims: Map<String, Value>, settings: &Settings, now: SystemTime) -> Result<Map<String, Value>, &'static str> {
    let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let date = |name| numeric_date(&claims, name).map_err(|_| "a date is not a number");
    if claims.get("iss").and_then(Value::as_str) != Some(settings.issuer.as_str()) {
        return Err("it has another issuer");
    }
    if !has_audience(&claims, std::slice::from_ref(&settings.client_id)) {
        return Err("it has another audience");
    }
    if date("exp")?.ok_or("it has no `exp`")?.saturating_add(LEEWAY_S) < now_s {
        return Err("it has expired");
    }
    if date("nbf")?.is_some_and(|from_s| from_s > now_s.saturating_add(LEEWAY_S)) {
        return Err("it is not valid yet");
    }
    Ok(claims)
}

/// The claims of a token that passes all checks.
pub fn claims(token: &str, keys: &KeySet, settings: &Settings, nonce: &str) -> Result<Map<String, Value>, Fault> {
    let wrong = |says: &str| Fault::External(format!("the provider's ID token {says}"));
    let verified = signed_claims(token, &ALGORITHMS, keys).map_err(|rejected| match rejected {
        Rejected::Malformed => wrong("is not a JWT"),
        Rejected::Algorithm => wrong("is signed with an algorithm that is not supported"),
        Rejected::Key => wrong("is signed with a key that the provider does not publish"),
        _ => wrong("is not valid: its signature is wrong"),
    })?;
    let claims = in_force(verified, settings, SystemTime::now()).map_err(|says| wrong(&format!("is not valid: {says}")))?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    // With several audiences, `azp` must name this client.
    let several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    if (several || claims.contains_key("azp")) && text("azp") != Some(settings.client_id.as_str()) {
        return Err(wrong("was issued to another client (`azp`)"));
    }
    if !text("nonce").is_some_and(|said| bool::from(said.as_bytes().ct_eq(nonce.as_bytes()))) {
        return Err(wrong("has the `nonce` of another sign-in"));
    }
    match text("sub") {
        Some(subject) if (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && !subject.contains('\0') => {}
        _ => return Err(wrong("has no valid `sub`")),
    }
    Ok(claims)
}
