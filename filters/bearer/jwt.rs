//! The mode `jwt`: signed tokens (RFC 7515, 7517, 7519), verified as RFC 8725 recommends. It does not fetch keys.
//!
//! The order of the checks is fixed: form and size, algorithm against the list, claimed issuer (which selects the keys and is
//! unverified), key of the right family, signature, and only then the other claims.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::OnFailure;
use super::jws::Jws;
use super::keys::{Alg, Family, KeySet};
use super::remote_keys::{Refresh, SharedKeys};
use super::verdict::{Rejected, Verified};
use crate::contract::{Endpoint, HumanDuration, Identity, Invalid, SecretRef, Site};

/// The source of the key.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyConfig {
    /// A shared secret of at least 32 bytes, for HS algorithms.
    Secret(SecretRef),
    /// A binary shared secret, in base64 or base64url.
    SecretBase64(SecretRef),
    /// The path of a file with the shared secret as its bytes.
    SecretFile(String),
    /// A public key in PEM form, usually `file:PATH`. Certificates are not accepted.
    Pem(SecretRef),
    /// A JWK set as JSON, usually `file:PATH`; the token's `kid` chooses the key.
    Jwks(SecretRef),
    /// The URL of a JWK set.
    JwksUrl(Endpoint),
    /// The URL of the issuer. Its OpenID discovery document names the JWK set. `issuer` must be set to the same URL.
    Discovery(Endpoint),
}

/// `jwt`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// The required `iss`. Default: `iss` is not checked.
    pub issuer: Option<String>,
    /// The accepted audiences; `aud` must contain at least one. Default: none, and a token with `aud` is refused.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// The accepted signature algorithms. `none` is not available. HS algorithms cannot be combined with other families.
    pub algorithms: Vec<Alg>,
    /// The key.
    pub key: KeyConfig,
    /// The tolerated clock difference, at most 5min. Default: 30s.
    #[serde(default = "default_leeway")]
    pub leeway: HumanDuration,
    /// The required `typ` in the header of the token, such as `at+jwt`. Default: `JWT`, `at+jwt` or none.
    pub typ: Option<String>,
    /// Claims that must be present, with any value. `exp` is always required. Default: none.
    #[serde(default)]
    pub required_claims: Vec<String>,
    /// The refresh of keys from `jwks_url` or `discovery`.
    #[serde(default)]
    pub refresh: Refresh,
    /// The action on tokens while the keys from `jwks_url` or `discovery` were never fetched. Default: `closed`.
    #[serde(default)]
    pub on_failure: OnFailure,
}

fn default_leeway() -> HumanDuration {
    HumanDuration::secs(30)
}

enum Keys {
    Fixed(Arc<KeySet>),
    Remote(Arc<SharedKeys>),
}

/// The compiled item of `bearer.accept`.
pub struct Jwt {
    config: JwtConfig,
    keys: Keys,
}

/// The outcome of the verification.
pub enum Outcome {
    Verified(Verified),
    Rejected(Rejected),
    /// The keys were never fetched.
    NoKeys,
    /// The last fetched keys are too old.
    OldKeys,
}

impl Jwt {
    pub(super) fn compile(config: JwtConfig, site: &Site<'_>) -> Result<Self, Invalid> {
        let Some(first) = config.algorithms.first().copied() else {
            return Err(Invalid::new("list at least one algorithm").at("algorithms"));
        };
        // A key set states the family of each key. For a single key, and always for secrets, a list across families would
        // allow a public key to be used as an HMAC secret.
        let mixes = matches!(config.key, KeyConfig::Jwks(_) | KeyConfig::JwksUrl(_) | KeyConfig::Discovery(_));
        let fits = |alg: &Alg| {
            let secrets = alg.family() == Family::Secret || first.family() == Family::Secret;
            alg.family() == first.family() || (mixes && !secrets)
        };
        if let Some(index) = config.algorithms.iter().position(|alg| !fits(alg)) {
            let message = format!(
                "{} and {} need keys of different kinds; add one `jwt` item for each",
                config.algorithms[index].name(),
                first.name()
            );
            return Err(Invalid::new(message).index(index).at("algorithms"));
        }
        if config.leeway.0 > Duration::from_secs(300) {
            return Err(Invalid::new("must be at most 5min, because expired tokens stay valid for as long").at("leeway"));
        }
        let keys = keys(&config, first.family(), site)?;
        if matches!(keys, Keys::Fixed(_)) {
            let says = || Invalid::new("is allowed for `jwks_url` and `discovery` only");
            if config.refresh != Refresh::default() {
                return Err(says().at("refresh"));
            }
            if config.on_failure == OnFailure::Open {
                return Err(says().at("on_failure"));
            }
        }
        Ok(Self { config, keys })
    }

    /// Whether this generation of keys is still in use.
    pub(super) fn is_current_generation(&self, generation: u64, now: Instant) -> bool {
        self.generation(now) == generation
    }

    /// The generation of the key set in use.
    pub(super) fn generation(&self, now: Instant) -> u64 {
        match &self.keys {
            Keys::Fixed(_) => 0,
            Keys::Remote(shared) => shared.current(now).map_or(0, |(_, generation)| generation),
        }
    }

    fn had_keys(&self) -> bool {
        match &self.keys {
            Keys::Fixed(_) => true,
            Keys::Remote(shared) => shared.had_any(),
        }
    }

    /// Whether tokens pass while there are no keys.
    pub(super) fn fails_open(&self) -> bool {
        self.config.on_failure == OnFailure::Open
    }

    pub(super) async fn verify(&self, token: &str, now: Instant) -> Outcome {
        match self.examine(token, now).await {
            Ok(Some(verified)) => Outcome::Verified(verified),
            Ok(None) if self.had_keys() => Outcome::OldKeys,
            Ok(None) => Outcome::NoKeys,
            Err(rejected) => Outcome::Rejected(rejected),
        }
    }

    /// `None`: there are no usable keys.
    async fn examine(&self, token: &str, now: Instant) -> Result<Option<Verified>, Rejected> {
        let jws = Jws::parse(token, &self.config.algorithms)?;
        self.check_typ(jws.typ.as_deref())?;
        let claims = jws.claims()?;
        if let Some(issuer) = &self.config.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(Rejected::Issuer);
        }
        let Some(keys) = self.keys(&jws, now).await else { return Ok(None) };
        jws.verify_signature(&keys)?;
        self.check_claims(claims).map(Some)
    }

    /// The keys of the issuer, refreshed first if the token names an unknown key.
    async fn keys(&self, jws: &Jws<'_>, now: Instant) -> Option<Arc<KeySet>> {
        let shared = match &self.keys {
            Keys::Fixed(set) => return Some(Arc::clone(set)),
            Keys::Remote(shared) => shared,
        };
        let current = shared.current(now).map(|(set, _)| set);
        if current.as_ref().is_some_and(|set| set.find(jws.alg, jws.kid.as_deref()).is_ok()) {
            return current;
        }
        shared.refresh(now).await;
        shared.current(now).map(|(set, _)| set)
    }

    fn check_typ(&self, typ: Option<&str>) -> Result<(), Rejected> {
        // The prefix `application/` is optional and case does not matter (RFC 7515, section 4.1.9).
        let typ = typ.map(|typ| typ.to_ascii_lowercase());
        let typ = typ.as_deref().map(|typ| typ.strip_prefix("application/").unwrap_or(typ));
        let fits = match &self.config.typ {
            Some(wanted) => typ.is_some_and(|typ| typ.eq_ignore_ascii_case(wanted)),
            None => matches!(typ, None | Some("jwt" | "at+jwt")),
        };
        if fits { Ok(()) } else { Err(Rejected::Claims) }
    }

    fn check_claims(&self, claims: Map<String, Value>) -> Result<Verified, Rejected> {
        let leeway_s = self.config.leeway.0.as_secs();
        let Some(expires_s) = numeric_date(&claims, "exp")? else { return Err(Rejected::Claims) };
        let from_s = numeric_date(&claims, "nbf")?;
        // Without configured audiences, a token for any audience is refused (RFC 7519, section 4.1.3).
        let fits = match self.config.audiences.as_slice() {
            [] => !claims.contains_key("aud"),
            accepted => has_audience(&claims, accepted),
        };
        if !fits {
            return Err(Rejected::Audience);
        }
        if lacks_claim(&claims, &self.config.required_claims) {
            return Err(Rejected::Claims);
        }
        let subject = text_claim(&claims, "sub");
        Ok(Verified {
            expires_s: Some(expires_s.saturating_add(leeway_s)),
            from_s: from_s.map(|start| start.saturating_sub(leeway_s)),
            ..Verified::new(Identity { subject, claims: Arc::new(claims) })
        })
    }
}

/// A claim as text. Some issuers write the subject as a number, although it must be a string (RFC 7519, section 4.1.2).
pub(super) fn text_claim(claims: &Map<String, Value>, name: &str) -> Option<String> {
    match claims.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Whether `aud` contains one of these audiences.
pub fn has_audience(claims: &Map<String, Value>, accepted: &[String]) -> bool {
    let is_accepted = |named: &Value| named.as_str().is_some_and(|named| accepted.iter().any(|one| one == named));
    match claims.get("aud") {
        Some(Value::Array(several)) => several.iter().any(is_accepted),
        Some(one) => is_accepted(one),
        None => false,
    }
}

/// Whether one of these claims is missing or null. `iss`, `sub` and `jti` must be text (RFC 7519, section 4.1), not a list or
/// an object.
pub(super) fn lacks_claim(claims: &Map<String, Value>, required: &[String]) -> bool {
    required.iter().any(|name| match name.as_str() {
        "iss" | "sub" | "jti" => text_claim(claims, name).is_none(),
        name => claims.get(name).is_none_or(Value::is_null),
    })
}

/// A NumericDate (RFC 7519, section 2); fractions are truncated.
pub fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Rejected> {
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

/// Decodes a secret from base64 or base64url, with or without padding.
fn base64_secret(secret: &SecretRef, site: &Site<'_>) -> Result<Vec<u8>, Invalid> {
    let text = site.secret(secret)?;
    let text: String = text
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            c => c,
        })
        .collect();
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Invalid::new("must be base64 or base64url"))
}

fn keys(config: &JwtConfig, family: Family, site: &Site<'_>) -> Result<Keys, Invalid> {
    let fixed = |set: Result<KeySet, Invalid>, name: &str| set.map(|set| Keys::Fixed(Arc::new(set))).map_err(|e| e.at(name).at("key"));
    let remote = |endpoint: &Endpoint, issuer: Option<&str>, name: &str| {
        let shared = SharedKeys::compile(endpoint, issuer, &config.algorithms, config.refresh, site);
        shared.map(Keys::Remote).map_err(|e| if e.path.first().is_some_and(|at| at == "refresh") { e } else { e.at(name).at("key") })
    };
    match &config.key {
        KeyConfig::Secret(secret) => fixed(site.secret(secret).and_then(|secret| KeySet::secret(secret.as_bytes(), family)), "secret"),
        KeyConfig::SecretBase64(secret) => {
            fixed(base64_secret(secret, site).and_then(|secret| KeySet::secret(&secret, family)), "secret_base64")
        }
        KeyConfig::SecretFile(path) => {
            fixed(site.resolve.secret_bytes(path).and_then(|secret| KeySet::secret(&secret, family)), "secret_file")
        }
        KeyConfig::Pem(pem) => fixed(KeySet::pem(pem, family, &config.algorithms, site), "pem"),
        KeyConfig::Jwks(jwks) => {
            let set = site.secret(jwks).and_then(|text| KeySet::jwks(&text, &config.algorithms).map_err(Invalid::new));
            fixed(set, "jwks")
        }
        KeyConfig::JwksUrl(endpoint) => remote(endpoint, None, "jwks_url"),
        KeyConfig::Discovery(endpoint) => {
            let named = config.issuer.as_deref().filter(|issuer| issuer.trim_end_matches('/') == endpoint.url.trim_end_matches('/'));
            let Some(issuer) = named else {
                return Err(Invalid::new("must be set to the URL under `discovery`").at("issuer"));
            };
            remote(endpoint, Some(issuer), "discovery")
        }
    }
}
