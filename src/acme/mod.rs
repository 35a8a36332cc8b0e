//! Certificates that are made by themselves, by ACME (RFC 8555): had made by one replica at a time, kept in the store, encrypted,
//! shown by all, and made anew long before they end.

mod client;
mod held;
mod order;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts, Registry};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

use crate::config::model::Acme as Config;
use crate::config::{Files, Snapshot};
use crate::service::sealed::Sealer;
use crate::store::Store;
use crate::store::record::millis;
pub use held::{ALPN, Held, Wanted};

/// How often it is looked whether one is missing, or old, or was made by another replica.
pub const LOOKED_EVERY: Duration = Duration::from_secs(3);
/// How long one replica may be at it until another tries.
const LEASE: Duration = Duration::from_secs(600);
/// After the first failure, and at most; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
/// A challenge that nobody has come for is nobody's.
const CHALLENGE_TIME: Duration = Duration::from_secs(900);
/// The store is asked for challenges that are not known here so often in a second at most: strangers may make them up. A CA
/// comes from a few places at once.
const ASKED_MAX: u32 = 50;
/// So long it is believed without the store: another order, of another replica, has another answer.
const KNOWN_TIME: Duration = Duration::from_secs(2);

/// A certificate as it is kept.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    chain: String,
    key: String,
    not_after_s: i64,
}

/// Has certificates made.
pub struct Acme {
    store: Arc<Store>,
    sealer: Sealer,
    replica: String,
    outcomes: IntCounterVec,
    challenges: Mutex<Challenges>,
    /// When it is tried again after a failure, by what is wanted; and how often it has failed.
    pauses: Mutex<HashMap<String, (SystemTime, u32)>>,
}

/// What a CA may come for, as far as it is known here.
#[derive(Default)]
struct Challenges {
    known: HashMap<String, (SystemTime, Vec<u8>)>,
    /// The second in which the store was asked last, and how often.
    asked: (i64, u32),
}

impl Challenges {
    fn note(&mut self, name: String, answer: &[u8]) {
        let now = SystemTime::now();
        self.known.retain(|_, (until, _)| *until > now);
        self.known.insert(name, (now + KNOWN_TIME, answer.to_vec()));
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.known.get(name).filter(|(until, _)| *until > SystemTime::now()).map(|(_, answer)| answer.clone())
    }

    fn may_ask(&mut self) -> bool {
        let second = millis(SystemTime::now()) / 1000;
        if self.asked.0 != second {
            self.asked = (second, 0);
        }
        self.asked.1 += 1;
        self.asked.1 <= ASKED_MAX
    }
}

/// Kept in clear: it is said to whoever asks.
fn challenge(kind: &str, name: &str) -> String {
    format!("acme challenge {kind} {name}")
}

impl Acme {
    /// `secret`: the admin API's, from which the key for what is kept follows.
    pub fn new(store: Arc<Store>, secret: &[u8], replica: String, registry: &Registry) -> Result<Self, String> {
        let opts = Opts::new("keylatch_acme_orders_total", "Certificates that were had made by this replica, or not.");
        let outcomes = IntCounterVec::new(opts, &["outcome"]).map_err(|e| e.to_string())?;
        registry.register(Box::new(outcomes.clone())).map_err(|e| e.to_string())?;
        let holder = format!("{replica} {}", std::process::id());
        let (challenges, pauses) = (Mutex::default(), Mutex::default());
        Ok(Self { store, sealer: Sealer::new(secret)?, replica: holder, outcomes, challenges, pauses })
    }

    /// Looks at what listeners want: takes what is kept into force, and has made what is missing or old. True: something has changed.
    pub async fn look(&self, snapshot: &Snapshot, files: &Files) -> bool {
        let Some(config) = &snapshot.settings.acme else { return false };
        let mut changed = false;
        for (held, wanted) in snapshot.entries.iter().filter_map(|entry| entry.acme.as_ref()) {
            let kept = self.kept(wanted).await;
            changed |= kept.as_ref().is_some_and(|kept| held.show(wanted, &kept.chain, &kept.key, kept.not_after_s));
            let due = kept.as_ref().is_none_or(|kept| is_due(config, kept, &held.begins(wanted)));
            if due && self.may_try(wanted) {
                changed |= self.order(config, files, held, wanted).await;
            }
        }
        changed
    }

    async fn kept(&self, wanted: &Wanted) -> Option<Kept> {
        let sealed = self.store.desk().fetch(&wanted.certificate()).await.ok()??;
        serde_json::from_slice(&self.sealer.open(&wanted.certificate(), &sealed)?).ok()
    }

    fn may_try(&self, wanted: &Wanted) -> bool {
        self.pauses.lock().get(&wanted.certificate()).is_none_or(|(until, _)| SystemTime::now() >= *until)
    }

    async fn order(&self, config: &Config, files: &Files, held: &Held, wanted: &Wanted) -> bool {
        let (desk, name) = (self.store.desk(), wanted.certificate());
        if !matches!(desk.lease(&name, &self.replica, LEASE).await, Ok(true)) {
            return false;
        }
        tracing::info!(names = wanted.names.join(", "), directory = config.directory, "a certificate is had made");
        let made = tokio::time::timeout(LEASE - Duration::from_secs(30), self.make(config, files, wanted)).await;
        let made = made.unwrap_or_else(|_| Err("the CA took too long".into()));
        // Nobody waits for it: the lease ends by itself.
        let _ = desk.let_go(&name, &self.replica).await;
        match made {
            Ok(kept) => {
                self.outcomes.with_label_values(&["made"]).inc();
                self.pauses.lock().remove(&name);
                tracing::info!(names = wanted.names.join(", "), "the certificate was made");
                held.show(wanted, &kept.chain, &kept.key, kept.not_after_s)
            }
            Err(error) => {
                self.outcomes.with_label_values(&["failed"]).inc();
                let mut pauses = self.pauses.lock();
                let failed = pauses.get(&name).map_or(0, |(_, failed)| *failed);
                let pause = (PAUSE_MIN * 2_u32.saturating_pow(failed)).min(PAUSE_MAX);
                pauses.insert(name, (SystemTime::now() + pause, failed.saturating_add(1)));
                tracing::error!(names = wanted.names.join(", "), error, again_in = ?pause, "no certificate was made; what there is is shown on");
                false
            }
        }
    }

    async fn make(&self, config: &Config, files: &Files, wanted: &Wanted) -> Result<Kept, String> {
        let account = order::account(self, config, files).await?;
        let (chain, key) = order::certificate(self, &account, config.challenge, &wanted.names).await?;
        let not_after_s = held::not_after_s(&chain)?;
        let kept = Kept { chain, key, not_after_s };
        let left = Duration::from_secs(u64::try_from(not_after_s - millis(SystemTime::now()) / 1000).unwrap_or(0));
        self.keep_sealed(&wanted.certificate(), &serde_json::to_vec(&kept).map_err(|e| e.to_string())?, left).await?;
        Ok(kept)
    }

    async fn keep_sealed(&self, name: &str, plain: &[u8], time: Duration) -> Result<(), String> {
        let sealed = self.sealer.seal(name, plain)?;
        self.store.desk().keep(name, &sealed, time).await.map_err(|e| format!("it cannot be kept: {e}"))
    }

    async fn keep_challenge(&self, kind: &str, name: &str, answer: &[u8]) -> Result<(), String> {
        let name = challenge(kind, name);
        self.store.desk().keep(&name, answer, CHALLENGE_TIME).await.map_err(|e| format!("the store is away: {e}"))?;
        self.challenges.lock().note(name, answer);
        Ok(())
    }

    async fn challenge(&self, kind: &str, name: &str) -> Option<Vec<u8>> {
        let name = challenge(kind, name);
        {
            let mut challenges = self.challenges.lock();
            if let Some(known) = challenges.get(&name) {
                return Some(known);
            }
            if !challenges.may_ask() {
                return None;
            }
        }
        let answer = self.store.desk().fetch(&name).await.ok()??;
        self.challenges.lock().note(name, &answer);
        Some(answer)
    }

    /// What the CA is to be told at `/.well-known/acme-challenge/TOKEN`.
    pub async fn answer_http(&self, token: &str) -> Option<Vec<u8>> {
        let plain = (16..=256).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if plain { self.challenge("http", token).await } else { None }
    }

    /// With what TLS is spoken with the CA that asks for this name by the protocol `acme-tls/1`.
    pub async fn answer_tls(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let digest = self.challenge("tls", &name.to_ascii_lowercase()).await?;
        held::challenge_config(name, &digest).inspect_err(|error| tracing::warn!(error, "a challenge cannot be answered")).ok()
    }
}

/// Whether it is in the time before its end in which it is made anew.
fn is_due(config: &Config, kept: &Kept, begins_s: &Option<i64>) -> bool {
    let now_s = millis(SystemTime::now()) / 1000;
    let lasts_s = begins_s.map_or(i64::MAX, |begins_s| kept.not_after_s - begins_s);
    let before_s = i64::try_from(config.renew_before.0.as_secs()).unwrap_or(i64::MAX).min(lasts_s / 3);
    now_s >= kept.not_after_s - before_s
}
