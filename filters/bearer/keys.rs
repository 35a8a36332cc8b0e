//! Verification keys: algorithms, PEM, and JWK sets (RFC 7517). It fetches no keys and verifies no signatures.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use schemars::JsonSchema;
use serde::Deserialize;

use super::signature::VerifyingKey;
use super::verdict::Rejected;
use crate::contract::{Invalid, SecretRef, Site};

/// The minimum length of a shared secret (RFC 7518, section 3.2: 256 bits for HS256).
const SECRET_BYTES_MIN: usize = 32;
/// The most keys tried if the token does not name one.
const TRIED_MAX: usize = 8;
/// The most keys read from a set; the rest is ignored. No issuer uses more.
const KEYS_MAX: usize = 100;

/// A signature algorithm (RFC 7518, section 3.1; RFC 8037; RFC 9864).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the standards define each name")]
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
    ES512,
    EdDSA,
    Ed25519,
}

/// The family of an algorithm: the kind of key that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A shared secret.
    Secret,
    /// RSA.
    Rsa,
    /// ECDSA on a NIST curve.
    Ec,
    /// EdDSA on an Edwards curve.
    Ed,
}

impl Alg {
    /// The name in the header of a token.
    pub fn name(self) -> &'static str {
        match self {
            Alg::HS256 => "HS256",
            Alg::HS384 => "HS384",
            Alg::HS512 => "HS512",
            Alg::RS256 => "RS256",
            Alg::RS384 => "RS384",
            Alg::RS512 => "RS512",
            Alg::PS256 => "PS256",
            Alg::PS384 => "PS384",
            Alg::PS512 => "PS512",
            Alg::ES256 => "ES256",
            Alg::ES384 => "ES384",
            Alg::ES512 => "ES512",
            Alg::EdDSA => "EdDSA",
            Alg::Ed25519 => "Ed25519",
        }
    }

    /// The algorithm of `jsonwebtoken`; `None` if the library does not support it.
    pub fn algorithm(self) -> Option<Algorithm> {
        Some(match self {
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
            Alg::ES512 => return None,
            // `EdDSA` is the older name of `Ed25519` (RFC 9864, section 2.2).
            Alg::EdDSA | Alg::Ed25519 => Algorithm::EdDSA,
        })
    }

    /// The family of keys that it needs.
    pub fn family(self) -> Family {
        match self {
            Alg::HS256 | Alg::HS384 | Alg::HS512 => Family::Secret,
            Alg::RS256 | Alg::RS384 | Alg::RS512 | Alg::PS256 | Alg::PS384 | Alg::PS512 => Family::Rsa,
            Alg::ES256 | Alg::ES384 | Alg::ES512 => Family::Ec,
            Alg::EdDSA | Alg::Ed25519 => Family::Ed,
        }
    }
}

/// One key of a set.
pub struct Candidate {
    kid: Option<String>,
    /// The only algorithm that the key may be used with; `None`: every algorithm of its family.
    alg: Option<String>,
    family: Family,
    key: VerifyingKey,
}

/// The keys of an issuer.
pub struct KeySet(Vec<Candidate>);

impl KeySet {
    /// The candidate keys for a signature: those with a matching `kid`. If the token or a key has no `kid`, every key that fits
    /// the algorithm is a candidate, up to a limit.
    pub fn find(&self, alg: Alg, kid: Option<&str>) -> Result<Vec<&VerifyingKey>, Rejected> {
        let fits = |key: &&Candidate| {
            key.family == alg.family()
                && key.alg.as_ref().is_none_or(|only| *only == alg.name() || (alg.family() == Family::Ed && is_ed25519(only)))
                && match (&key.kid, kid) {
                    (Some(own), Some(wanted)) => own == wanted,
                    _ => true,
                }
        };
        let fitting: Vec<&VerifyingKey> = self.0.iter().filter(fits).map(|candidate| &candidate.key).take(TRIED_MAX).collect();
        if fitting.is_empty() { Err(Rejected::Key) } else { Ok(fitting) }
    }

    /// Parses a published JWK set. An empty set is valid: the issuer has withdrawn all keys.
    pub fn published(text: &str, algorithms: &[Alg]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        match serde_json::from_str::<Set>(text) {
            Ok(set) if set.keys.is_empty() => Ok(Self(Vec::new())),
            _ => Self::jwks(text, algorithms),
        }
    }

    /// Makes a set of one shared secret.
    pub fn secret(secret: &[u8], family: Family) -> Result<Self, Invalid> {
        if family != Family::Secret {
            return Err(Invalid::new("the listed algorithms need a public key; use `pem`, `jwks`, `jwks_url` or `discovery`"));
        }
        if secret.len() < SECRET_BYTES_MIN {
            return Err(Invalid::new(format!("must have at least {SECRET_BYTES_MIN} bytes (RFC 7518, section 3.2)")));
        }
        Ok(Self::one(family, VerifyingKey::Library(DecodingKey::from_secret(secret))))
    }

    /// Makes a set of one public key in PEM form.
    pub fn pem(pem: &SecretRef, family: Family, algorithms: &[Alg], site: &Site<'_>) -> Result<Self, Invalid> {
        let pem = site.secret(pem)?;
        // Each curve belongs to one algorithm.
        if algorithms.contains(&Alg::ES512)
            && let Some(key) = VerifyingKey::p521_pem(&pem)
        {
            return Ok(Self(vec![Candidate { kid: None, alg: Some(Alg::ES512.name().into()), family, key }]));
        }
        let key = match family {
            Family::Secret => return Err(Invalid::new("HS algorithms need a `secret`, not a public key")),
            Family::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
            Family::Ec => DecodingKey::from_ec_pem(pem.as_bytes()),
            Family::Ed => DecodingKey::from_ed_pem(pem.as_bytes()),
        };
        let key = key.map_err(|_| Invalid::new("not a public key in PEM form for the listed algorithms"))?;
        VerifyingKey::new(key, family).map(|key| Self::one(family, key)).map_err(Invalid::new)
    }

    /// Parses a JWK set. Malformed keys and keys of other families are skipped, because a published set may contain keys for
    /// other purposes. An error if no key remains.
    pub fn jwks(text: &str, algorithms: &[Alg]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_str(text).map_err(|e| format!("not a JWK set: {e}"))?;
        let (mut keys, mut unfit) = (Vec::new(), None);
        for jwk in set.keys.into_iter().take(KEYS_MAX) {
            match candidate(jwk, algorithms) {
                Ok(key) => keys.extend(key),
                Err(why) => unfit = Some(why),
            }
        }
        if keys.is_empty() {
            let why = unfit.map(|why| format!(": {why}")).unwrap_or_default();
            return Err(format!("the set contains no signature key for the listed algorithms{why}"));
        }
        Ok(Self(keys))
    }

    fn one(family: Family, key: VerifyingKey) -> Self {
        Self(vec![Candidate { kid: None, alg: None, family, key }])
    }
}

/// One key of a set. `Ok(None)`: the key is malformed or for another purpose. An error: the key is relevant but unusable.
fn candidate(value: serde_json::Value, algorithms: &[Alg]) -> Result<Option<Candidate>, String> {
    // The library does not know every algorithm name.
    let alg = value.get("alg").and_then(serde_json::Value::as_str).map(str::to_owned);
    let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { return Ok(None) };
    let family = family_of(&jwk).filter(|family| algorithms.iter().any(|alg| alg.family() == *family));
    let (Some(family), Ok(key)) = (family, DecodingKey::from_jwk(&jwk)) else { return Ok(None) };
    if !verifies(&jwk) {
        return Ok(None);
    }
    let alg = alg.or_else(|| curve_alg(&jwk).map(str::to_owned));
    let key = match (&jwk.algorithm, key.try_get_as_bytes()) {
        (AlgorithmParameters::EllipticCurve(parameters), Ok(point)) if parameters.curve == EllipticCurve::P521 => {
            let Some(key) = VerifyingKey::p521(point) else { return Ok(None) };
            key
        }
        _ => VerifyingKey::new(key, family)?,
    };
    Ok(Some(Candidate { kid: jwk.common.key_id, alg, family, key }))
}

/// Whether this is one of the two names of the supported EdDSA algorithm.
fn is_ed25519(name: &str) -> bool {
    [Alg::EdDSA, Alg::Ed25519].iter().any(|alg| alg.name() == name)
}

/// Whether `use` and `key_ops` allow the key to verify signatures (RFC 7517, sections 4.2 and 4.3).
fn verifies(jwk: &Jwk) -> bool {
    let encrypts = matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption));
    let operations = jwk.common.key_operations.as_ref();
    !encrypts && operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify))
}

/// The algorithm of a curve (RFC 7518, section 3.4).
fn curve_alg(jwk: &Jwk) -> Option<&'static str> {
    match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Some("ES256"),
            EllipticCurve::P384 => Some("ES384"),
            EllipticCurve::P521 => Some("ES512"),
            // A curve without a supported algorithm.
            _ => Some("-"),
        },
        _ => None,
    }
}

fn family_of(jwk: &Jwk) -> Option<Family> {
    use AlgorithmParameters as Params;
    match &jwk.algorithm {
        Params::RSA(_) => Some(Family::Rsa),
        Params::EllipticCurve(_) => Some(Family::Ec),
        Params::OctetKeyPair(_) => Some(Family::Ed),
        // A symmetric key in a set that may be public is not a secret.
        _ => None,
    }
}
