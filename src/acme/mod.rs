//! Obtains and renews certificates by ACME (RFC 8555). One replica at a time runs an order, under a
//! lease; certificates are kept in the store, encrypted, and served by all replicas. Listeners
//! choose the certificate of a connection.

mod challenges;
mod client;
mod order;
mod resolver;
mod storage;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use keylatch_filters::contract::hex;
use parking_lot::Mutex;
use prometheus::{IntCounterVec, Opts, Registry};
use rustls::ServerConfig;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bindings::Store;
use crate::config::Files;
use crate::config::model::Acme as AcmeConfig;
use crate::util::time::millis;
use challenges::Challenges;
pub use resolver::{ALPN, AcmeCertificates, WantedCertificate};
use storage::{AcmeStorage, StoredCertificate};

/// The interval at which missing, expiring and newly stored certificates are looked for.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(3);
/// The lease of an order. After it, another replica may try.
const LEASE: Duration = Duration::from_secs(600);
/// The back-off after the first failure, and its maximum; it doubles with each failure. A
/// `Retry-After` of the CA may extend it.
const BACKOFF_MIN: Duration = Duration::from_secs(60);
const BACKOFF_MAX: Duration = Duration::from_secs(6 * 3600);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(48 * 3600);
/// How long shutdown waits for orders to be cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The ACME orders of this process.
pub struct Acme {
    store: Arc<Store>,
    storage: AcmeStorage,
    /// The lease holder: the replica and the process id.
    holder: String,
    outcomes: IntCounterVec,
    challenges: Challenges,
    under_way: Mutex<HashMap<String, JoinHandle<()>>>,
    /// Certificates that were issued and are not stored yet.
    pending_writes: Mutex<HashMap<WantedCertificate, StoredCertificate>>,
    /// A certificate was installed since the last reconciliation.
    changed: AtomicBool,
    /// No order starts any more. Read and written under the lock of `under_way`.
    ended: watch::Sender<bool>,
    ending: tokio::sync::Mutex<()>,
}

/// One certificate to order, with the configuration for it.
struct Order {
    config: AcmeConfig,
    files: Files,
    certificates: Arc<AcmeCertificates>,
    wanted: WantedCertificate,
}

impl Order {
    /// The name of the back-off in the store. Another configuration has its own back-off.
    fn backoff_name(&self) -> String {
        format!("acme pause {} {}", self.wanted.storage_name(), hex(&Sha256::digest(format!("{:?}", self.config))[..8]))
    }
}

/// Removes an order from the running ones when it is dropped.
struct FinishedOrder {
    acme: Arc<Acme>,
    name: String,
}

impl Drop for FinishedOrder {
    fn drop(&mut self) {
        self.acme.challenges.finish_order(&self.name);
        self.acme.under_way.lock().remove(&self.name);
    }
}

impl Acme {
    /// `secret`: the admin API's secret, from which the encryption key is derived.
    pub fn new(store: Arc<Store>, secret: &[u8], replica: &str, registry: &Registry) -> Result<Arc<Self>, String> {
        let opts = Opts::new("keylatch_acme_orders_total", "ACME orders of this replica by outcome: `made` or `failed`.");
        let outcomes = IntCounterVec::new(opts, &["outcome"]).map_err(|e| e.to_string())?;
        registry.register(Box::new(outcomes.clone())).map_err(|e| e.to_string())?;
        for outcome in ["made", "failed"] {
            outcomes.with_label_values(&[outcome]);
        }
        Ok(Arc::new(Self {
            storage: AcmeStorage::new(Arc::clone(&store), secret)?,
            challenges: Challenges::new(Arc::clone(&store)),
            store,
            holder: format!("{replica} {}", std::process::id()),
            outcomes,
            under_way: Mutex::default(),
            pending_writes: Mutex::default(),
            changed: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            ending: tokio::sync::Mutex::default(),
        }))
    }

    /// Installs stored certificates and, if `orders`, starts orders for missing and expiring ones.
    /// Returns whether an installed certificate changed.
    pub async fn reconcile(
        self: &Arc<Self>,
        config: Option<&AcmeConfig>,
        listeners: &[(Arc<AcmeCertificates>, WantedCertificate)],
        files: &Files,
        orders: bool,
    ) -> bool {
        let Some(config) = config else { return false };
        let mut changed = self.changed.swap(false, Ordering::Relaxed);
        let mut due = Vec::new();
        for (certificates, wanted) in listeners {
            self.store_pending(wanted).await;
            match self.storage.certificate(wanted).await {
                Ok(Some(kept)) => {
                    changed |= certificates.install(wanted, &kept);
                    if is_due(config, &kept, &certificates.begins(wanted)) {
                        due.push((certificates, wanted));
                    }
                }
                Ok(None) => {
                    changed |= self.install_fallbacks(certificates, wanted).await;
                    due.push((certificates, wanted));
                }
                // The installed certificate stays. It is unknown whether the store has one, so
                // nothing is ordered.
                Err(error) => tracing::warn!(names = wanted.names.join(", "), error, "stored certificates cannot be read"),
            }
        }
        for (certificates, wanted) in due.into_iter().filter(|(_, wanted)| orders && !self.pending_writes.lock().contains_key(*wanted)) {
            let order =
                Order { config: config.clone(), files: files.apart(), certificates: Arc::clone(certificates), wanted: wanted.clone() };
            self.begin(order);
        }
        changed
    }

    /// Installs an earlier certificate for each name, until one for all wanted names exists.
    async fn install_fallbacks(&self, certificates: &AcmeCertificates, wanted: &WantedCertificate) -> bool {
        let mut changed = false;
        for name in &wanted.names {
            if certificates.for_name(name).is_some() {
                continue;
            }
            if let Ok(Some(kept)) = self.storage.for_name(&wanted.directory, name).await {
                let before = WantedCertificate { names: kept.names.clone(), directory: wanted.directory.clone() };
                changed |= certificates.install(&before, &kept);
            }
        }
        changed
    }

    fn begin(self: &Arc<Self>, order: Order) {
        let name = order.wanted.storage_name();
        let mut under_way = self.under_way.lock();
        if *self.ended.borrow() || under_way.contains_key(&name) {
            return;
        }
        let (this, key) = (Arc::clone(self), name.clone());
        let task = tokio::spawn(async move {
            let _finished = FinishedOrder { acme: Arc::clone(&this), name: key };
            this.order(&order).await;
        });
        under_way.insert(name, task);
    }

    /// Cancels all orders, so that another process can start them at once.
    pub async fn shut_down(&self) {
        // Concurrent shutdowns wait for the same orders.
        let _one = self.ending.lock().await;
        let under_way: Vec<_> = {
            let mut all = self.under_way.lock();
            self.ended.send_replace(true);
            all.drain().map(|(_, task)| task).collect()
        };
        // Each task releases its lease after its last store write. Without a store the lease
        // expires.
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, futures::future::join_all(under_way)).await;
    }

    async fn order(&self, order: &Order) {
        let (admin_store, wanted, name) = (self.store.admin_store(), &order.wanted, order.wanted.storage_name());
        let names = wanted.names.join(", ");
        let free = matches!(self.storage.is_backing_off(&order.backoff_name()).await, Ok(false));
        if !free || !matches!(admin_store.take_lease(&name, &self.holder, LEASE).await, Ok(true)) {
            return;
        }
        // Another replica may have stored one since the last read.
        let there = self.storage.certificate(wanted).await;
        let needed = there.is_ok_and(|kept| kept.is_none_or(|kept| is_due(&order.config, &kept, &resolver::begins_s(&kept.chain))));
        if needed {
            tracing::info!(names, directory = order.config.directory, "ACME order started");
            let retry_after_s = Arc::new(AtomicU64::new(0));
            let mut ended = self.ended.subscribe();
            let made = tokio::select! {
                made = tokio::time::timeout(LEASE - Duration::from_secs(30), self.issue(order, &retry_after_s)) => Some(made),
                _ = ended.wait_for(|ended| *ended) => None,
            };
            match made.map(|made| made.unwrap_or_else(|_| Err("the CA did not finish the order in time".into()))) {
                None => tracing::info!(names, "ACME order cancelled: this process is stopping or has been replaced"),
                Some(Ok(())) => {
                    self.outcomes.with_label_values(&["made"]).inc();
                    self.storage.clear_backoff(&order.backoff_name()).await;
                    tracing::info!(names, "ACME certificate issued");
                }
                Some(Err(error)) => {
                    self.outcomes.with_label_values(&["failed"]).inc();
                    let retry_after = Duration::from_secs(retry_after_s.load(Ordering::Relaxed)).min(RETRY_AFTER_MAX);
                    let backoff = |failed| (BACKOFF_MIN * 2_u32.saturating_pow(failed)).min(BACKOFF_MAX).max(retry_after);
                    let again_in = self.storage.record_failure(&order.backoff_name(), backoff).await.unwrap_or(BACKOFF_MIN);
                    tracing::error!(names, error, ?again_in, "ACME order failed; the current certificates stay in use");
                }
            }
        }
        let _ = admin_store.release_lease(&name, &self.holder).await;
    }

    /// Orders a certificate, installs it and stores it. `retry_after_s` receives the CA's
    /// `Retry-After`.
    async fn issue(&self, order: &Order, retry_after_s: &Arc<AtomicU64>) -> Result<(), String> {
        let (config, wanted) = (&order.config, &order.wanted);
        let (chain, key) = order::issue(self, order, retry_after_s).await?;
        let not_after_s = resolver::verify_chain(&chain, &key, &wanted.names)?;
        let kept = StoredCertificate { chain, key, not_after_s, names: wanted.names.clone() };
        self.changed.fetch_or(order.certificates.install(wanted, &kept), Ordering::Relaxed);
        self.pending_writes.lock().insert(wanted.clone(), kept.clone());
        self.store_pending(wanted).await;
        if is_due(config, &kept, &resolver::begins_s(&kept.chain)) {
            return Err("the issued certificate is already due for renewal: check the clock of this machine".into());
        }
        Ok(())
    }

    /// Stores a certificate that could not be stored when it was issued.
    async fn store_pending(&self, wanted: &WantedCertificate) {
        let Some(kept) = self.pending_writes.lock().get(wanted).cloned() else { return };
        match self.storage.store_certificate(wanted, &kept).await {
            Ok(()) => drop(self.pending_writes.lock().remove(wanted)),
            Err(error) => {
                tracing::error!(names = wanted.names.join(", "), error, "the certificate is in use, but could not be stored; retrying")
            }
        }
    }

    /// The response to `/.well-known/acme-challenge/TOKEN`; `None` for an unknown token.
    pub async fn answer_http(&self, token: &str) -> Option<Vec<u8>> {
        let plain = (16..=256).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if plain { self.challenges.answer("http", token).await } else { None }
    }

    /// The TLS configuration that answers a `TLS-ALPN-01` challenge for this name.
    pub async fn answer_tls(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let digest = self.challenges.answer("tls", &name.to_ascii_lowercase()).await?;
        resolver::challenge_config(name, &digest).inspect_err(|error| tracing::warn!(error, "an ACME challenge cannot be answered")).ok()
    }
}

/// Whether the renewal is due: `renew_before` its end, but not before two thirds of its lifetime.
fn is_due(config: &AcmeConfig, kept: &StoredCertificate, begins_s: &Option<i64>) -> bool {
    let now_s = millis(SystemTime::now()) / 1000;
    let lasts_s = begins_s.map_or(i64::MAX, |begins_s| kept.not_after_s - begins_s);
    let before_s = i64::try_from(config.renew_before.0.as_secs()).unwrap_or(i64::MAX).min(lasts_s / 3);
    now_s >= kept.not_after_s - before_s
}
