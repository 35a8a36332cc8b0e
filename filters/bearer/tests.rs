//! Tests of `bearer`: valid tokens, a table of attacks with one named case per row, and invalid configurations.

use std::time::{Duration, SystemTime};

use super::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jsonwebtoken::{Algorithm, EncodingKey};
use pingora_http::RequestHeader;
use serde_json::{Value, json};

use crate::contract::{Dialect, Facts, Identity, Now};
use crate::testing::at_once;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_800_000_000;

fn bearer(config: Value) -> Bearer {
    compile(config).unwrap()
}

fn compile(config: Value) -> Result<Bearer, Invalid> {
    crate::testing::with_site(|site| Bearer::compile(crate::contract::decode(config)?, site))
}

/// The decision of the filter on a token at this time.
fn check(filter: &Bearer, token: &str, now_s: u64) -> Result<Identity, Rejected> {
    let (request, mut facts) = (RequestHeader::build("GET", b"/", None).unwrap(), Facts::default());
    let now = Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(now_s), ..Now::read() };
    let peer = "127.0.0.1".parse().unwrap();
    let cx = RequestCx { request: &request, facts: &mut facts, peer, route: "r", dialect: Dialect::OpenAi, now, shadow: false };
    match at_once(filter.decide(token, &cx)) {
        Decision::Accepted(verified) => Ok(verified.identity.clone()),
        Decision::Rejected(rejected) => Err(rejected),
        _ => panic!("a service was called"),
    }
}

fn hs() -> Bearer {
    bearer(json!({"accept": [{"jwt": {
        "issuer": "https://id.example", "audiences": ["api"], "algorithms": ["HS256"], "key": {"secret": SECRET}
    }}]}))
}

fn claims() -> Value {
    json!({"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": NOW + 60, "nbf": NOW - 60})
}

fn part(value: &Value) -> String {
    B64.encode(value.to_string())
}

/// Signs any header and claims with this secret.
fn sign_with(header: &Value, claims: &Value, secret: &[u8], algorithm: Algorithm) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), algorithm).unwrap();
    format!("{message}.{signature}")
}

fn sign(header: &Value, claims: &Value) -> String {
    sign_with(header, claims, SECRET.as_bytes(), Algorithm::HS256)
}

fn hs256() -> Value {
    json!({"alg": "HS256", "typ": "JWT"})
}

fn with(mut value: Value, name: &str, to: Value) -> Value {
    value[name] = to;
    value
}

fn without(mut value: Value, name: &str) -> Value {
    value.as_object_mut().unwrap().remove(name);
    value
}

#[test]
fn a_valid_token_yields_its_claims() {
    let identity = check(&hs(), &sign(&hs256(), &claims()), NOW).unwrap();
    assert_eq!(identity.subject.as_deref(), Some("alice"));
    assert_eq!(identity.claims["aud"], "api");
    for good in [
        with(claims(), "aud", json!(["other", "api"])),
        with(claims(), "exp", json!(NOW - 29)),
        with(claims(), "nbf", json!(NOW + 30)),
        with(claims(), "exp", json!(NOW as f64 + 0.5)),
        without(claims(), "nbf"),
    ] {
        assert!(check(&hs(), &sign(&hs256(), &good), NOW).is_ok(), "{good}");
    }
}

#[test]
fn the_table_of_attacks() {
    use Rejected::{Algorithm as Alg, Audience, Claims, Expired, Issuer, Malformed, NotYet, Signature};
    let good = sign(&hs256(), &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let forged = part(&with(claims(), "sub", json!("mallory")));
    let none = |alg: &str| format!("{}.{payload}.", part(&json!({"alg": alg})));
    let headers = |header: Value| sign(&header, &claims());
    let claimed = |claims: Value| sign(&hs256(), &claims);
    let attacks = [
        ("crit that is null", headers(with(hs256(), "crit", Value::Null)), Malformed),
        ("alg none, no signature", none("none"), Malformed),
        ("alg none with a signature", format!("{}.{payload}.{signature}", part(&json!({"alg": "none"}))), Alg),
        ("alg NONE", format!("{}.{payload}.x", part(&json!({"alg": "NONE"}))), Alg),
        ("alg in another case", headers(with(hs256(), "alg", json!("hs256"))), Alg),
        ("alg not a string", headers(with(hs256(), "alg", json!(["HS256"]))), Malformed),
        ("an algorithm that is not listed", sign_with(&json!({"alg": "HS512"}), &claims(), SECRET.as_bytes(), Algorithm::HS512), Alg),
        ("RS256 claimed", headers(with(hs256(), "alg", json!("RS256"))), Alg),
        ("signature stripped", message.to_owned(), Malformed),
        ("signature empty", format!("{message}."), Malformed),
        ("signature of another", format!("{header}.{forged}.{signature}"), Signature),
        ("signature cut", good[..good.len() - 2].to_owned(), Signature),
        ("signature padded", format!("{good}="), Signature),
        ("another secret", sign_with(&hs256(), &claims(), b"another secret of thirty-two byte", Algorithm::HS256), Signature),
        ("five parts (JWE)", format!("{good}.a.b"), Malformed),
        ("not JSON", format!("{}.{payload}.{signature}", B64.encode("{")), Malformed),
        ("not base64url", format!("{header}+.{payload}.{signature}"), Malformed),
        ("a header of a megabyte", headers(with(hs256(), "x", json!("x".repeat(1 << 20)))), Malformed),
        ("crit", headers(with(hs256(), "crit", json!(["exp"]))), Malformed),
        ("b64 false", headers(with(hs256(), "b64", json!(false))), Malformed),
        ("typ of another kind", headers(with(hs256(), "typ", json!("dpop+jwt"))), Claims),
        ("expired", claimed(with(claims(), "exp", json!(NOW - 31))), Expired),
        ("no exp", claimed(without(claims(), "exp")), Claims),
        ("exp as text", claimed(with(claims(), "exp", json!("9999999999"))), Claims),
        ("exp negative", claimed(with(claims(), "exp", json!(-1))), Claims),
        ("exp infinite", claimed(with(claims(), "exp", json!(1e300))), Claims),
        ("not yet valid", claimed(with(claims(), "nbf", json!(NOW + 31))), NotYet),
        ("nbf as text", claimed(with(claims(), "nbf", json!("0"))), Claims),
        ("another issuer", claimed(with(claims(), "iss", json!("https://evil.example"))), Issuer),
        ("issuer missing", claimed(without(claims(), "iss")), Issuer),
        ("issuer in a list", claimed(with(claims(), "iss", json!(["https://id.example"]))), Issuer),
        ("another audience", claimed(with(claims(), "aud", json!("other"))), Audience),
        ("audience missing", claimed(without(claims(), "aud")), Audience),
        ("audience a prefix", claimed(with(claims(), "aud", json!("ap"))), Audience),
        ("audience an object", claimed(with(claims(), "aud", json!({"api": 1}))), Audience),
        ("claims nested without end", format!("{header}.{}.{signature}", B64.encode("[".repeat(5000))), Malformed),
        ("claims that are no object", format!("{header}.{}.{signature}", B64.encode("[1]")), Malformed),
        ("claims that are not base64url", format!("{header}.####{payload}.{signature}"), Malformed),
        ("claims with unused bits", format!("{header}.AB.{signature}"), Malformed),
        ("spaces in the claims", format!("{header}.  {payload}.{signature}"), Malformed),
        ("empty", String::new(), Malformed),
        ("dots", "..".to_owned(), Malformed),
    ];
    for (attack, token, reason) in attacks {
        assert_eq!(check(&hs(), &token, NOW).err(), Some(reason), "{attack}");
    }
    // Keys that a token names or carries are ignored.
    for field in ["jku", "x5u"] {
        assert!(check(&hs(), &headers(with(hs256(), field, json!("https://evil.example"))), NOW).is_ok());
    }
    for field in ["kid", "jwk"] {
        let header = with(hs256(), field, json!("../../dev/null"));
        assert!(check(&hs(), &headers(header), NOW).is_ok(), "{field} is ignored if there is one key");
    }
}

#[test]
fn a_public_key_is_never_an_hmac_secret() {
    let pem = crate::testing::RSA_PUBLIC_PEM;
    let rs = bearer(json!({"accept": [{"jwt": {"algorithms": ["RS256"], "key": {"pem": pem}}}]}));
    let plain = json!({"exp": NOW + 60});
    let confused = sign_with(&json!({"alg": "HS256"}), &plain, pem.as_bytes(), Algorithm::HS256);
    assert_eq!(check(&rs, &confused, NOW).err(), Some(Rejected::Algorithm));
    let claimed = sign_with(&json!({"alg": "RS256"}), &plain, pem.as_bytes(), Algorithm::HS256);
    assert_eq!(check(&rs, &claimed, NOW).err(), Some(Rejected::Signature));
}

#[test]
fn each_family_verifies_its_signatures() {
    use crate::testing as keys;
    for (alg, algorithm, private, public) in [
        ("RS256", Algorithm::RS256, EncodingKey::from_rsa_pem(keys::RSA_PRIVATE_PEM.as_bytes()), keys::RSA_PUBLIC_PEM),
        ("PS512", Algorithm::PS512, EncodingKey::from_rsa_pem(keys::RSA_PRIVATE_PEM.as_bytes()), keys::RSA_PUBLIC_PEM),
        ("ES256", Algorithm::ES256, EncodingKey::from_ec_pem(keys::EC_PRIVATE_PEM.as_bytes()), keys::EC_PUBLIC_PEM),
        ("EdDSA", Algorithm::EdDSA, EncodingKey::from_ed_pem(keys::ED_PRIVATE_PEM.as_bytes()), keys::ED_PUBLIC_PEM),
    ] {
        let filter = bearer(json!({"accept": [{"jwt": {"algorithms": [alg], "key": {"pem": public}}}]}));
        let message = format!("{}.{}", part(&json!({"alg": alg})), part(&json!({"exp": NOW + 60})));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &private.unwrap(), algorithm).unwrap();
        assert!(check(&filter, &format!("{message}.{signature}"), NOW).is_ok(), "{alg}");
        let other = format!("{}.{}", part(&json!({"alg": alg})), part(&json!({"exp": NOW + 61})));
        assert_eq!(check(&filter, &format!("{other}.{signature}"), NOW).err(), Some(Rejected::Signature), "{alg}");
    }
}

#[test]
fn a_key_set_selects_by_kid() {
    let jwks = json!({"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "a", "use": "sig", "x": crate::testing::ED_PUBLIC_X},
        {"kty": "OKP", "crv": "Ed25519", "kid": "b", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "oct", "kid": "c", "k": "c2VjcmV0"},
        {"kty": "OKP", "crv": "Ed25519", "kid": "enc", "use": "enc", "x": crate::testing::ED_PUBLIC_X},
        {"kty": "OKP", "crv": "Ed25519", "kid": "ops", "key_ops": ["encrypt"], "x": crate::testing::ED_PUBLIC_X},
        {"kty": "OKP", "crv": "Ed25519", "kid": "ver", "key_ops": ["verify"], "x": crate::testing::ED_PUBLIC_X},
        {"kty": "made up", "kid": "x"},
    ]});
    let filter = bearer(json!({"accept": [{"jwt": {"algorithms": ["EdDSA"], "key": {"jwks": jwks.to_string()}}}]}));
    let token = |header: Value| {
        let message = format!("{}.{}", part(&header), part(&json!({"exp": NOW + 60})));
        let key = EncodingKey::from_ed_pem(crate::testing::ED_PRIVATE_PEM.as_bytes()).unwrap();
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).unwrap();
        format!("{message}.{signature}")
    };
    assert!(check(&filter, &token(json!({"alg": "EdDSA", "kid": "a"})), NOW).is_ok());
    assert_eq!(check(&filter, &token(json!({"alg": "EdDSA", "kid": "b"})), NOW).err(), Some(Rejected::Signature));
    assert_eq!(check(&filter, &token(json!({"alg": "EdDSA", "kid": "c"})), NOW).err(), Some(Rejected::Key));
    assert_eq!(check(&filter, &token(json!({"alg": "EdDSA", "kid": "../a"})), NOW).err(), Some(Rejected::Key));
    for other_purpose in ["enc", "ops", "x"] {
        assert_eq!(check(&filter, &token(json!({"alg": "EdDSA", "kid": other_purpose})), NOW).err(), Some(Rejected::Key));
    }
    assert!(check(&filter, &token(json!({"alg": "EdDSA", "kid": "ver"})), NOW).is_ok());
    assert!(check(&filter, &token(json!({"alg": "EdDSA"})), NOW).is_ok(), "without a kid, all fitting keys are tried");
}

#[test]
fn static_tokens_and_the_order_of_modes() {
    let sha = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"; // of "secret"
    let filter = bearer(json!({"accept": [
        {"static": {"tokens": [{"name": "ci", "sha256": sha, "expires": "2027-01-15T08:00:00Z"}]}},
        "well_formed",
    ]}));
    let subject = |token: &str, now| check(&filter, token, now).map(|identity| identity.subject);
    assert_eq!(subject("secret", NOW - 1), Ok(Some("ci".into())));
    assert_eq!(subject("other", NOW), Ok(None), "accepted by the second mode");
    assert_eq!(subject("a,b", NOW), Err(Rejected::Malformed));
    assert_eq!(subject("secret", NOW), Ok(None), "expired at NOW (2027-01-15T08:00:00Z): the second mode decides");
}

#[test]
fn a_cached_token_expires() {
    let (filter, token) = (hs(), sign(&hs256(), &claims()));
    assert!(check(&filter, &token, NOW).is_ok() && check(&filter, &token, NOW + 89).is_ok());
    assert_eq!(check(&filter, &token, NOW + 90).err(), Some(Rejected::Expired));
    assert_eq!((filter.misses.get(), filter.hits.get()), (1, 2));
}

#[test]
fn bad_configurations() {
    let jwt = |jwt: Value| json!({"accept": [{"jwt": jwt}]});
    for (config, path, says) in [
        (json!({"accept": []}), "accept", "at least one mode"),
        (json!({"accept": [{"static": {"tokens": []}}]}), "accept.[0].static.tokens", "at least one token"),
        (json!({"accept": [{"static": {"tokens": [{"name": "x", "sha256": "abc"}]}}]}), "accept.[0].static.tokens.[0].sha256", "64 hex"),
        (json!({"accept": ["well_formed"], "realm": "a\"b"}), "realm", "without quotes"),
        (jwt(json!({"algorithms": [], "key": {"secret": SECRET}})), "accept.[0].jwt.algorithms", "at least one algorithm"),
        (jwt(json!({"algorithms": ["HS256", "RS256"], "key": {"secret": SECRET}})), "accept.[0].jwt.algorithms.[1]", "different kinds"),
        (jwt(json!({"algorithms": ["none"], "key": {"secret": SECRET}})), "accept.[0].jwt.algorithms.[0]", "unknown variant"),
        (jwt(json!({"algorithms": ["HS256"], "key": {"secret": "short"}})), "accept.[0].jwt.key.secret", "at least 32 bytes"),
        (jwt(json!({"algorithms": ["RS256"], "key": {"secret": SECRET}})), "accept.[0].jwt.key.secret", "public key"),
        (jwt(json!({"algorithms": ["HS256"], "key": {"pem": "x"}})), "accept.[0].jwt.key.pem", "not a public key"),
        (jwt(json!({"algorithms": ["RS256"], "key": {"pem": "x"}})), "accept.[0].jwt.key.pem", "PEM"),
        (jwt(json!({"algorithms": ["RS256"], "key": {"jwks": "{\"keys\":[]}"}})), "accept.[0].jwt.key.jwks", "no signature key"),
        (jwt(json!({"algorithms": ["HS256"], "key": {"secret": SECRET}, "leeway": "1h"})), "accept.[0].jwt.leeway", "at most 5min"),
    ] {
        let error = compile(config).err().unwrap();
        assert_eq!(error.path.join("."), path);
        assert!(error.message.contains(says), "{}", error.message);
    }
}
