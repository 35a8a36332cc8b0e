//! Measures the first verification of a JWT: the whole request hook of the filter, compared with the signature alone.
//!
//!     cargo bench --bench bearer

#![expect(clippy::unwrap_used, reason = "a panic ends the benchmark")]

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use keylatch::compile::check_ports;
use keylatch_filters::bearer::Bearer;
use keylatch_filters::contract::{Dialect, Facts, Filter, Flow, Invalid, Keep, Now, RequestCx, Resolve, Site, decode};
use pingora::http::RequestHeader;
use serde_json::json;

/// Distinct tokens per round.
const TOKENS: usize = 500;
const ROUNDS: usize = 7;

struct NoFiles;
impl Resolve for NoFiles {
    fn file(&self, path: &str) -> Result<String, Invalid> {
        Err(Invalid::new(path))
    }
}

fn filter(alg: &str, key: serde_json::Value) -> Bearer {
    let config = json!({"accept": [{"jwt": {"issuer": "https://id.example", "audiences": ["api"], "algorithms": [alg], "key": key}}]});
    let ports = check_ports();
    let mut site = Site {
        place: "bench".into(),
        trusted: Default::default(),
        prices: Default::default(),
        keep: &Keep::default(),
        ports: &ports,
        resolve: &NoFiles,
        uses_shared_counters: &Cell::default(),
        reads_usage: &Default::default(),
        budgets: &Default::default(),
        limits: &RefCell::default(),
        routes: &[],
        more_errors: &Default::default(),
    };
    Bearer::compile(decode(config).unwrap(), &mut site).unwrap()
}

fn tokens(alg: &str, algorithm: Algorithm, key: &EncodingKey) -> Vec<String> {
    let header = B64.encode(json!({ "alg": alg, "typ": "JWT" }).to_string());
    let token = |n: usize| {
        let claims = json!({"iss": "https://id.example", "aud": "api", "sub": format!("user-{n}"), "exp": 4_000_000_000_u64, "scope": "chat images"});
        let message = format!("{header}.{}", B64.encode(claims.to_string()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
        format!("{message}.{signature}")
    };
    (0..TOKENS).map(token).collect()
}

/// The time per token in µs: the minimum of all rounds, because disturbances only add time.
fn least(mut round: impl FnMut() -> Duration) -> f64 {
    let times = (0..ROUNDS).map(|_| round().as_secs_f64() * 1e6 / TOKENS as f64);
    times.fold(f64::INFINITY, f64::min)
}

/// A new private and public key, as PEM.
fn key_pair(terms: &[&str]) -> (String, String) {
    let openssl = |arguments: &[&str], input: &str| {
        let mut child =
            Command::new("openssl").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let private = openssl(&[&["genpkey"], terms].concat(), "");
    let public = openssl(&["pkey", "-pubout"], &private);
    (private, public)
}

/// The time of the signature check alone, per token in µs.
fn signature_alone(tokens: &[String], public: &DecodingKey, algorithm: Algorithm) -> f64 {
    least(|| {
        let begun = Instant::now();
        for token in tokens {
            let (message, signature) = token.rsplit_once('.').unwrap();
            assert!(jsonwebtoken::crypto::verify(signature, message.as_bytes(), public, algorithm).unwrap());
        }
        begun.elapsed()
    })
}

/// The time of the whole filter, per token in µs.
fn whole_filter(tokens: &[String], alg: &str, key: &serde_json::Value) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let requests: Vec<RequestHeader> = tokens
        .iter()
        .map(|token| {
            let mut request = RequestHeader::build("POST", b"/v1/chat/completions", None).unwrap();
            request.insert_header("authorization", format!("Bearer {token}")).unwrap();
            request
        })
        .collect();
    least(|| {
        // A new filter has an empty cache.
        let filter = filter(alg, key.clone());
        let begun = Instant::now();
        for request in &requests {
            let mut facts = Facts::default();
            let peer = [127, 0, 0, 1].into();
            let mut cx =
                RequestCx { request, facts: &mut facts, peer, route: "r", dialect: Dialect::OpenAi, now: Now::read(), shadow: false };
            let flow = runtime.block_on(filter.request(&mut cx, &mut None)).unwrap();
            assert!(matches!(flow, Flow::Continue), "a token was refused");
        }
        begun.elapsed()
    })
}

fn main() {
    println!("\n### First verification of a JWT (µs, minimum of {ROUNDS} rounds of {TOKENS} tokens)\n");
    println!("| algorithm | signature alone | whole filter | more |\n| --- | --- | --- | --- |");
    let secret = "0123456789abcdef0123456789abcdef";
    let (rsa, rsa_public) = key_pair(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let (ec, ec_public) = key_pair(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let (ed, ed_public) = key_pair(&["-algorithm", "ED25519"]);
    for (alg, algorithm, private, public, key) in [
        (
            "HS256",
            Algorithm::HS256,
            EncodingKey::from_secret(secret.as_bytes()),
            DecodingKey::from_secret(secret.as_bytes()),
            json!({ "secret": secret }),
        ),
        (
            "RS256",
            Algorithm::RS256,
            EncodingKey::from_rsa_pem(rsa.as_bytes()).unwrap(),
            DecodingKey::from_rsa_pem(rsa_public.as_bytes()).unwrap(),
            json!({ "pem": rsa_public }),
        ),
        (
            "ES256",
            Algorithm::ES256,
            EncodingKey::from_ec_pem(ec.as_bytes()).unwrap(),
            DecodingKey::from_ec_pem(ec_public.as_bytes()).unwrap(),
            json!({ "pem": ec_public }),
        ),
        (
            "EdDSA",
            Algorithm::EdDSA,
            EncodingKey::from_ed_pem(ed.as_bytes()).unwrap(),
            DecodingKey::from_ed_pem(ed_public.as_bytes()).unwrap(),
            json!({ "pem": ed_public }),
        ),
    ] {
        let tokens = tokens(alg, algorithm, &private);
        let (alone, whole) = (signature_alone(&tokens, &public, algorithm), whole_filter(&tokens, alg, &key));
        println!("| {alg} | {alone:.1} | {whole:.1} | {:+.1} |", whole - alone);
    }
}
