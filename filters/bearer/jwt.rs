//! Signed tokens: RFC 7515 (JWS), 7517 (JWK), 7519 (JWT), with the advice of RFC 8725.
//!
//! The order is fixed: form and size, algorithm against the list, key of the algorithm's family,
//! signature, and only then what the token claims.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Rejected, Verified};
use crate::contract::{HumanDuration, Identity, Invalid, SecretRef, Site};

/// A header with more than this has no honest reason.
const HEADER_BYTES_MAX: usize = 4096;
/// RFC 7518, section 3.2: an HS256 secret has at least 256 bits.
const SECRET_BYTES_MIN: usize = 32;

/// A signature algorithm (RFC 7518, section 3.1; RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Alg {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Secret,
    Rsa,
    Ec,
    Ed,
}

impl Alg {
    fn algorithm(self) -> Algorithm {
        match self {
            Alg::HS256 => Algorithm::HS256,
            Alg::HS384 => Algorithm::HS384,
            Alg::HS512 => Algorithm::HS512,
            Alg::RS256 => Algorithm::RS256,
            Alg::RS384 => Algorithm::RS384,
            Alg::RS512 => Algorithm::RS512,
            Alg::PS256 => Algorithm::PS256,
            Alg::PS384 => Algorithm::PS384,
            Alg::PS512 => Algorithm::PS512,
            Alg::ES256 => Algorithm::ES256,
            Alg::ES384 => Algorithm::ES384,
            Alg::EdDSA => Algorithm::EdDSA,
        }
    }

    fn family(self) -> Family {
        match self {
            Alg::HS256 | Alg::HS384 | Alg::HS512 => Family::Secret,
            Alg::RS256 | Alg::RS384 | Alg::RS512 | Alg::PS256 | Alg::PS384 | Alg::PS512 => Family::Rsa,
            Alg::ES256 | Alg::ES384 => Family::Ec,
            Alg::EdDSA => Family::Ed,
        }
    }
}

/// Where the key is.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyConfig {
    /// A shared secret of at least 32 bytes, for HS algorithms.
    Secret(SecretRef),
    /// A public key or certificate-free PEM, usually `file:PATH`.
    Pem(SecretRef),
    /// A JWK set as JSON, usually `file:PATH`; the token's `kid` chooses the key.
    Jwks(SecretRef),
}

/// `jwt`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// What `iss` must be. Without it, `iss` is not looked at.
    pub issuer: Option<String>,
    /// What `aud` must name at least one of. Without it, a token that names an audience is refused.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// The algorithms a token may be signed with, all of one family. `none` is none of them.
    pub algorithms: Vec<Alg>,
    /// The key.
    pub key: KeyConfig,
    /// How much clocks may differ, at most 5min. Default: 30s.
    #[serde(default = "default_leeway")]
    pub leeway: HumanDuration,
    /// What `typ` in the token's header must be, such as `at+jwt`. Without it, `JWT`, `at+jwt` or none.
    pub typ: Option<String>,
    /// Claims that must be there, whatever they say. `exp` always must.
    #[serde(default)]
    pub required_claims: Vec<String>,
}

fn default_leeway() -> HumanDuration {
    HumanDuration::secs(30)
}

struct Candidate {
    kid: Option<String>,
    alg: Option<String>,
    family: Family,
    key: DecodingKey,
}

/// The compiled mode.
pub struct Jwt {
    config: JwtConfig,
    keys: Vec<Candidate>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
    b64: Option<Value>,
}

impl Jwt {
    pub(super) fn compile(config: JwtConfig, site: &Site<'_>) -> Result<Self, Invalid> {
        let Some(first) = config.algorithms.first().copied() else {
            return Err(Invalid::new("list at least one algorithm").at("algorithms"));
        };
        // A list across families is how a public key gets used as a secret.
        if let Some(index) = config.algorithms.iter().position(|alg| alg.family() != first.family()) {
            let message =
                format!("{:?} and {first:?} need keys of different kinds; write one `jwt` item for each", config.algorithms[index]);
            return Err(Invalid::new(message).index(index).at("algorithms"));
        }
        if config.leeway.0 > Duration::from_secs(300) {
            return Err(Invalid::new("at most 5min: more makes expired tokens valid").at("leeway"));
        }
        let keys = keys(&config.key, first.family(), site).map_err(|e| e.at("key"))?;
        Ok(Self { config, keys })
    }

    pub(super) fn verify(&self, token: &str) -> Result<Verified, Rejected> {
        let mut parts = token.split('.');
        let (Some(header_text), Some(_), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Rejected::Malformed);
        };
        if header_text.len() > HEADER_BYTES_MAX || signature.is_empty() {
            return Err(Rejected::Malformed);
        }
        let header: Header = json(header_text)?;
        // Whoever marks something critical asks that those who do not know it refuse (RFC 7515, section 4.1.11).
        if header.crit.is_some() || header.b64.is_some() {
            return Err(Rejected::Malformed);
        }
        self.check_typ(header.typ.as_deref())?;
        let alg = self.config.algorithms.iter().find(|alg| format!("{alg:?}") == header.alg).ok_or(Rejected::Algorithm)?;
        let key = self.key(*alg, header.kid.as_deref())?;
        let signed = &token[..token.len() - signature.len() - 1];
        let valid = jsonwebtoken::crypto::verify(signature, signed.as_bytes(), key, alg.algorithm());
        if !valid.unwrap_or(false) {
            return Err(Rejected::Signature);
        }
        let payload = signed.split_once('.').map_or("", |(_, payload)| payload);
        self.check_claims(json(payload)?)
    }

    fn check_typ(&self, typ: Option<&str>) -> Result<(), Rejected> {
        // `application/` may be left out, and case does not matter (RFC 7515, section 4.1.9).
        let typ = typ.map(|typ| typ.to_ascii_lowercase());
        let typ = typ.as_deref().map(|typ| typ.strip_prefix("application/").unwrap_or(typ));
        let fits = match &self.config.typ {
            Some(wanted) => typ.is_some_and(|typ| typ.eq_ignore_ascii_case(wanted)),
            None => matches!(typ, None | Some("jwt" | "at+jwt")),
        };
        if fits { Ok(()) } else { Err(Rejected::Claims) }
    }

    /// The one key that fits; with several and no `kid` to choose by, none does.
    fn key(&self, alg: Alg, kid: Option<&str>) -> Result<&DecodingKey, Rejected> {
        let name = format!("{alg:?}");
        let mut fitting = self.keys.iter().filter(|key| {
            key.family == alg.family()
                && key.alg.as_ref().is_none_or(|only| *only == name)
                && match (&key.kid, kid) {
                    (Some(known), Some(asked)) => known == asked,
                    _ => true,
                }
        });
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(&one.key),
            _ => Err(Rejected::Key),
        }
    }

    fn check_claims(&self, claims: Map<String, Value>) -> Result<Verified, Rejected> {
        let leeway_s = self.config.leeway.0.as_secs();
        let Some(expires_s) = numeric_date(&claims, "exp")? else { return Err(Rejected::Claims) };
        let from_s = numeric_date(&claims, "nbf")?;
        if let Some(issuer) = &self.config.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(Rejected::Issuer);
        }
        let named: Vec<&str> = match claims.get("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            Some(_) => return Err(Rejected::Audience),
        };
        // A token made for somebody else is refused also by those who expect no audience (RFC 7519, section 4.1.3).
        let fits = match (self.config.audiences.as_slice(), claims.contains_key("aud")) {
            ([], named) => !named,
            (ours, _) => ours.iter().any(|one| named.contains(&one.as_str())),
        };
        if !fits {
            return Err(Rejected::Audience);
        }
        if self.config.required_claims.iter().any(|name| !claims.contains_key(name)) {
            return Err(Rejected::Claims);
        }
        let subject = claims.get("sub").and_then(Value::as_str).map(str::to_owned);
        Ok(Verified {
            identity: Identity { subject, claims: Arc::new(claims) },
            expires_s: Some(expires_s.saturating_add(leeway_s)),
            from_s: from_s.map(|start| start.saturating_sub(leeway_s)),
        })
    }
}

/// A part of the token as JSON. Strict base64url without padding; duplicate members are refused by
/// nobody here, and harm nobody: only one reading of the token exists behind this point.
fn json<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, Rejected> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejected::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Rejected::Malformed)
}

/// A NumericDate (RFC 7519, section 2); fractions are cut off.
fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Rejected> {
    const FURTHEST_S: f64 = 1e15;
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match (value.as_u64(), value.as_f64()) {
            (Some(seconds), _) => Ok(Some(seconds)),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the guard")]
            (None, Some(seconds)) if (0.0..FURTHEST_S).contains(&seconds) => Ok(Some(seconds as u64)),
            _ => Err(Rejected::Claims),
        },
    }
}

fn keys(config: &KeyConfig, family: Family, site: &Site<'_>) -> Result<Vec<Candidate>, Invalid> {
    let one = |key| Ok(vec![Candidate { kid: None, alg: None, family, key }]);
    match config {
        KeyConfig::Secret(secret) => {
            if family != Family::Secret {
                return Err(Invalid::new("the algorithms listed need a public key: `pem` or `jwks`").at("secret"));
            }
            let secret = site.secret(secret).map_err(|e| e.at("secret"))?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err(Invalid::new(format!("at least {SECRET_BYTES_MIN} bytes are needed (RFC 7518, section 3.2)")).at("secret"));
            }
            one(DecodingKey::from_secret(secret.as_bytes()))
        }
        KeyConfig::Pem(pem) => {
            let pem = site.secret(pem).map_err(|e| e.at("pem"))?;
            let key = match family {
                Family::Secret => return Err(Invalid::new("HS algorithms need a `secret`, not a public key").at("pem")),
                Family::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
                Family::Ec => DecodingKey::from_ec_pem(pem.as_bytes()),
                Family::Ed => DecodingKey::from_ed_pem(pem.as_bytes()),
            };
            one(key.map_err(|_| Invalid::new("not a public key in PEM form of the kind the algorithms need").at("pem"))?)
        }
        KeyConfig::Jwks(jwks) => jwk_set(&site.secret(jwks).map_err(|e| e.at("jwks"))?, family).map_err(|e| e.at("jwks")),
    }
}

fn jwk_set(text: &str, family: Family) -> Result<Vec<Candidate>, Invalid> {
    let set: JwkSet = serde_json::from_str(text).map_err(|e| Invalid::new(format!("not a JWK set: {e}")))?;
    let usable = |jwk: &Jwk| !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
    let mut keys = Vec::new();
    for jwk in set.keys.iter().filter(|jwk| usable(jwk) && family_of(jwk) == Some(family)) {
        let key = DecodingKey::from_jwk(jwk).map_err(|_| Invalid::new("a key of the set is malformed"))?;
        let alg = jwk.common.key_algorithm.map(|alg| alg.to_string());
        keys.push(Candidate { kid: jwk.common.key_id.clone(), alg, family, key });
    }
    if keys.is_empty() {
        return Err(Invalid::new("the set holds no signature key of the kind the algorithms need"));
    }
    Ok(keys)
}

fn family_of(jwk: &Jwk) -> Option<Family> {
    use jsonwebtoken::jwk::AlgorithmParameters as Params;
    match &jwk.algorithm {
        Params::RSA(_) => Some(Family::Rsa),
        Params::EllipticCurve(_) => Some(Family::Ec),
        Params::OctetKeyPair(_) => Some(Family::Ed),
        // A symmetric key in a set that may have been published is no secret.
        _ => None,
    }
}
