//! Certificates that are made by themselves, by ACME (RFC 8555): had made by one replica at a time, kept in the store, encrypted,
//! shown by all, and made anew long before they end.

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
use crate::config::model::Acme as Config;
use crate::util::time::millis;
use challenges::Challenges;
pub use resolver::{ALPN, Held, Wanted};
use storage::{Kept, Shelf};

/// How often it is looked whether one is missing, or old, or was made by another replica.
pub const LOOKED_EVERY: Duration = Duration::from_secs(3);
/// How long one replica may be at it until another tries.
const LEASE: Duration = Duration::from_secs(600);
/// After the first failure, and at most; each further one doubles it. A CA may ask for more.
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
const PAUSE_ASKED_MAX: Duration = Duration::from_secs(48 * 3600);
/// How long the end waits for orders to be given up.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// Has certificates made.
pub struct Acme {
    store: Arc<Store>,
    shelf: Shelf,
    /// Who this is among replicas, and among the processes of one.
    holder: String,
    outcomes: IntCounterVec,
    challenges: Challenges,
    under_way: Mutex<HashMap<String, JoinHandle<()>>>,
    /// What was made, and could not be kept yet.
    unkept: Mutex<HashMap<Wanted, Kept>>,
    /// Something is shown that was not, since the last look.
    changed: AtomicBool,
    /// Nothing is begun any more; read and written under the lock of what is under way.
    ended: watch::Sender<bool>,
    ending: tokio::sync::Mutex<()>,
}

/// One certificate, and what it takes to have it made.
struct Order {
    config: Config,
    files: Files,
    held: Arc<Held>,
    wanted: Wanted,
}

impl Order {
    /// Under which name it is waited after a failure: asked for in another way, it may not fail.
    fn pause(&self) -> String {
        format!("acme pause {} {}", self.wanted.certificate(), hex(&Sha256::digest(format!("{:?}", self.config))[..8]))
    }
}

/// An order that has come to its end, whatever that was.
struct Over {
    acme: Arc<Acme>,
    name: String,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.acme.challenges.over(&self.name);
        self.acme.under_way.lock().remove(&self.name);
    }
}

impl Acme {
    /// `secret`: the admin API's, from which the key for what is kept follows.
    pub fn new(store: Arc<Store>, secret: &[u8], replica: &str, registry: &Registry) -> Result<Arc<Self>, String> {
        let opts = Opts::new("keylatch_acme_orders_total", "Certificates that were had made by this replica, or not.");
        let outcomes = IntCounterVec::new(opts, &["outcome"]).map_err(|e| e.to_string())?;
        registry.register(Box::new(outcomes.clone())).map_err(|e| e.to_string())?;
        for outcome in ["made", "failed"] {
            outcomes.with_label_values(&[outcome]);
        }
        Ok(Arc::new(Self {
            shelf: Shelf::new(Arc::clone(&store), secret)?,
            challenges: Challenges::new(Arc::clone(&store)),
            store,
            holder: format!("{replica} {}", std::process::id()),
            outcomes,
            under_way: Mutex::default(),
            unkept: Mutex::default(),
            changed: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            ending: tokio::sync::Mutex::default(),
        }))
    }

    /// Looks at what listeners want: takes what is kept into force, and, if `orders`, begins to have made what is missing or old. True:
    /// something else is shown than before.
    pub async fn look(self: &Arc<Self>, config: Option<&Config>, listeners: &[(Arc<Held>, Wanted)], files: &Files, orders: bool) -> bool {
        let Some(config) = config else { return false };
        let mut changed = self.changed.swap(false, Ordering::Relaxed);
        let mut due = Vec::new();
        for (held, wanted) in listeners {
            self.keep_now(wanted).await;
            match self.shelf.certificate(wanted).await {
                Ok(Some(kept)) => {
                    changed |= held.show(wanted, &kept);
                    if is_due(config, &kept, &held.begins(wanted)) {
                        due.push((held, wanted));
                    }
                }
                Ok(None) => {
                    changed |= self.show_others(held, wanted).await;
                    due.push((held, wanted));
                }
                // What is shown is shown on. Whether there is none is not known: nothing is asked for.
                Err(error) => tracing::warn!(names = wanted.names.join(", "), error, "certificates that are kept cannot be read"),
            }
        }
        for (held, wanted) in due.into_iter().filter(|(_, wanted)| orders && !self.unkept.lock().contains_key(*wanted)) {
            let order = Order { config: config.clone(), files: files.apart(), held: Arc::clone(held), wanted: wanted.clone() };
            self.begin(order);
        }
        changed
    }

    /// Until there is one for all the names that are wanted, each is shown with one that was made for it before, with others.
    async fn show_others(&self, held: &Held, wanted: &Wanted) -> bool {
        let mut changed = false;
        for name in &wanted.names {
            if held.of_name(name).is_some() {
                continue;
            }
            if let Ok(Some(kept)) = self.shelf.of_name(&wanted.directory, name).await {
                let before = Wanted { names: kept.names.clone(), directory: wanted.directory.clone() };
                changed |= held.show(&before, &kept);
            }
        }
        changed
    }

    fn begin(self: &Arc<Self>, order: Order) {
        let name = order.wanted.certificate();
        let mut under_way = self.under_way.lock();
        if *self.ended.borrow() || under_way.contains_key(&name) {
            return;
        }
        let (this, key) = (Arc::clone(self), name.clone());
        let task = tokio::spawn(async move {
            let _over = Over { acme: Arc::clone(&this), name: key };
            this.order(&order).await;
        });
        under_way.insert(name, task);
    }

    /// Has nothing made any more: another process may begin at once.
    pub async fn end(&self) {
        // Whoever comes second waits as long.
        let _one = self.ending.lock().await;
        let under_way: Vec<_> = {
            let mut all = self.under_way.lock();
            self.ended.send_replace(true);
            all.drain().map(|(_, task)| task).collect()
        };
        // Each lets its lease go by itself, after whatever it has on its way to the store. Without a store the lease ends in time.
        let _ = tokio::time::timeout(ENDED_WITHIN, futures::future::join_all(under_way)).await;
    }

    async fn order(&self, order: &Order) {
        let (admin_store, wanted, name) = (self.store.admin_store(), &order.wanted, order.wanted.certificate());
        let names = wanted.names.join(", ");
        let free = matches!(self.shelf.is_paused(&order.pause()).await, Ok(false));
        if !free || !matches!(admin_store.take_lease(&name, &self.holder, LEASE).await, Ok(true)) {
            return;
        }
        // Another replica may have had it made since it was looked for.
        let there = self.shelf.certificate(wanted).await;
        let needed = there.is_ok_and(|kept| kept.is_none_or(|kept| is_due(&order.config, &kept, &resolver::begins_s(&kept.chain))));
        if needed {
            tracing::info!(names, directory = order.config.directory, "a certificate is had made");
            let asked = Arc::new(AtomicU64::new(0));
            let mut ended = self.ended.subscribe();
            let made = tokio::select! {
                made = tokio::time::timeout(LEASE - Duration::from_secs(30), self.make(order, &asked)) => Some(made),
                _ = ended.wait_for(|ended| *ended) => None,
            };
            match made.map(|made| made.unwrap_or_else(|_| Err("the CA took too long".into()))) {
                None => tracing::info!(names, "the order is given up: this process ends, or another serves in its place"),
                Some(Ok(())) => {
                    self.outcomes.with_label_values(&["made"]).inc();
                    self.shelf.go_on(&order.pause()).await;
                    tracing::info!(names, "the certificate was made");
                }
                Some(Err(error)) => {
                    self.outcomes.with_label_values(&["failed"]).inc();
                    let asked = Duration::from_secs(asked.load(Ordering::Relaxed)).min(PAUSE_ASKED_MAX);
                    let pause = |failed| (PAUSE_MIN * 2_u32.saturating_pow(failed)).min(PAUSE_MAX).max(asked);
                    let again_in = self.shelf.pause(&order.pause(), pause).await.unwrap_or(PAUSE_MIN);
                    tracing::error!(names, error, ?again_in, "no certificate was made; what there is for these names is shown on");
                }
            }
        }
        let _ = admin_store.release_lease(&name, &self.holder).await;
    }

    /// Has one made, shows it and keeps it. `asked`: for how many seconds the CA has asked not to be asked.
    async fn make(&self, order: &Order, asked: &Arc<AtomicU64>) -> Result<(), String> {
        let (config, wanted) = (&order.config, &order.wanted);
        let (chain, key) = order::made(self, order, asked).await?;
        let not_after_s = resolver::look_at(&chain, &key, &wanted.names)?;
        let kept = Kept { chain, key, not_after_s, names: wanted.names.clone() };
        self.changed.fetch_or(order.held.show(wanted, &kept), Ordering::Relaxed);
        self.unkept.lock().insert(wanted.clone(), kept.clone());
        self.keep_now(wanted).await;
        if is_due(config, &kept, &resolver::begins_s(&kept.chain)) {
            return Err("the certificate that was made is to be made anew at once: see whether this machine's clock is right".into());
        }
        Ok(())
    }

    /// Keeps what could not be kept when it was made.
    async fn keep_now(&self, wanted: &Wanted) {
        let Some(kept) = self.unkept.lock().get(wanted).cloned() else { return };
        match self.shelf.keep_certificate(wanted, &kept).await {
            Ok(()) => drop(self.unkept.lock().remove(wanted)),
            Err(error) => tracing::error!(names = wanted.names.join(", "), error, "the certificate is shown, but not kept yet"),
        }
    }

    /// What the CA is to be told at `/.well-known/acme-challenge/TOKEN`.
    pub async fn answer_http(&self, token: &str) -> Option<Vec<u8>> {
        let plain = (16..=256).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if plain { self.challenges.answer("http", token).await } else { None }
    }

    /// With what TLS is spoken with the CA that asks for this name by the protocol `acme-tls/1`.
    pub async fn answer_tls(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let digest = self.challenges.answer("tls", &name.to_ascii_lowercase()).await?;
        resolver::challenge_config(name, &digest).inspect_err(|error| tracing::warn!(error, "a challenge cannot be answered")).ok()
    }
}

/// Whether it is in the time before its end in which it is made anew.
fn is_due(config: &Config, kept: &Kept, begins_s: &Option<i64>) -> bool {
    let now_s = millis(SystemTime::now()) / 1000;
    let lasts_s = begins_s.map_or(i64::MAX, |begins_s| kept.not_after_s - begins_s);
    let before_s = i64::try_from(config.renew_before.0.as_secs()).unwrap_or(i64::MAX).min(lasts_s / 3);
    now_s >= kept.not_after_s - before_s
}
