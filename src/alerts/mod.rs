//! Alerts: a key that is refused too often is told of, once in a while, whoever notices, and told until it is heard.
//!
//! Intercepts are counted where they are written: over all replicas, and none is lost to a cache that is away. An
//! alert is noted in the same transaction as the events that go out for it, and an event is gone once its receiver
//! has taken it: a crash loses none, and may send one twice, under the same id.

mod event;
mod webhook;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use keylatch_filters::contract::Invalid;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde_json::Value;

use crate::bindings::Store;
use crate::config::Files;
use crate::config::model::{Alerts as Config, InterceptAlert};
use crate::sql::outbox::{Attempted, Delivery, Hot, Threshold};
pub use webhook::Webhook;

/// How often it is looked.
pub const EVERY: Duration = Duration::from_secs(1);
/// How often keys are looked at of which another replica has written intercepts.
const LOOK_BACK_EVERY: Duration = Duration::from_secs(30);
/// For how long nobody else sends what one has taken: longer than any attempt may take.
const LEASE: Duration = Duration::from_secs(90);
/// The pause after the first attempt; it doubles up to the longest one.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(900);
/// After this an event is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(86_400);

/// What is configured, ready to be used.
#[derive(Default)]
pub struct Alerts {
    /// From when on, as the file says.
    pub threshold: Option<Threshold>,
    /// Where they go.
    webhooks: Vec<Arc<Webhook>>,
    /// Where they went before, and what was raised then still goes.
    before: Vec<Arc<Webhook>>,
}

impl Alerts {
    /// The same, going to this webhook instead. What is under way to the others goes on.
    pub fn going_to(&self, webhook: Webhook) -> Self {
        let threshold = self.threshold.unwrap_or_else(|| {
            let usual = InterceptAlert::default();
            Threshold { count: usual.count, window: usual.window.0, shadow: usual.shadow }
        });
        Self { threshold: Some(threshold), webhooks: vec![Arc::new(webhook)], before: self.webhooks.clone() }
    }

    /// Everything that is wrong, with its place below `alerts`.
    pub fn compile(config: Option<&Config>, files: &Files) -> Result<Self, Vec<Invalid>> {
        let Some(config) = config else { return Ok(Self::default()) };
        let InterceptAlert { count, window, shadow } = config.intercepts;
        let threshold = Threshold { count, window: window.0, shadow };
        let place = |index: usize| move |invalid: Invalid| invalid.index(index).at("webhooks");
        let compiled = config.webhooks.iter().enumerate().map(|(index, webhook)| Webhook::compile(webhook, files).map_err(place(index)));
        let (webhooks, wrong): (Vec<_>, Vec<_>) = compiled.partition(Result::is_ok);
        let wrong: Vec<Invalid> = wrong.into_iter().filter_map(Result::err).collect();
        if wrong.is_empty() {
            Ok(Self { threshold: Some(threshold), webhooks: webhooks.into_iter().flatten().map(Arc::new).collect(), before: Vec::new() })
        } else {
            Err(wrong)
        }
    }

    /// Sends every webhook a test, and says what came of each.
    pub async fn test(&self) -> Vec<(String, Result<(), String>)> {
        let now = SystemTime::now();
        let mut outcomes = Vec::new();
        for webhook in &self.webhooks {
            let sent = webhook.send(&fresh_id(), &event::test(now), now).await;
            outcomes.push((webhook.name.clone(), sent.map_err(|refused| refused.why)));
        }
        outcomes
    }
}

fn fresh_id() -> String {
    format!("evt_{}", uuid::Uuid::now_v7().simple())
}

/// Watches intercepts and sends what is due.
pub struct Watch {
    store: Arc<Store>,
    raised: IntCounter,
    sent: Option<IntCounterVec>,
    /// Webhooks that are being sent something.
    sending: Mutex<HashSet<String>>,
    looked_back: Mutex<Option<Instant>>,
    /// Nothing more is taken to be sent: who takes it and ends keeps it from others for [`LEASE`].
    ending: AtomicBool,
}

impl Watch {
    /// Over a store.
    pub fn new(store: Arc<Store>, metrics: &Registry) -> Arc<Self> {
        let raised = IntCounter::new("keylatch_alerts_total", "Alerts raised by this replica.");
        let raised = raised.unwrap_or_else(|_| unreachable!("the name is a valid one"));
        let _ = metrics.register(Box::new(raised.clone()));
        let sent =
            IntCounterVec::new(Opts::new("keylatch_webhooks_total", "Attempts to send an event, by outcome."), &["webhook", "outcome"]);
        let sent = sent.ok().inspect(|sent| {
            let _ = metrics.register(Box::new(sent.clone()));
        });
        Arc::new(Self { store, raised, sent, sending: Mutex::default(), looked_back: Mutex::default(), ending: AtomicBool::new(false) })
    }

    /// Looks once. The store logs nothing of its own here: what is away is tried again the next time.
    pub async fn look(self: &Arc<Self>, alerts: &Arc<Alerts>, threshold: Option<Threshold>) {
        let Some(threshold) = threshold else {
            // Nobody wants to know, and they would wait for ever.
            drop(self.store.take_intercepted());
            return;
        };
        if self.looks_back() {
            self.store.requeue_intercepted(threshold.window).await;
        }
        let ids = self.store.take_intercepted();
        if !ids.is_empty() {
            match self.store.hot(ids, threshold).await {
                Ok(hot) => {
                    for hot in hot {
                        self.raise(&hot, threshold, &alerts.webhooks).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "it is not known whether a key was refused too often; looking again in a moment"),
            }
        }
        for webhook in alerts.webhooks.iter().chain(&alerts.before) {
            self.send_due(webhook);
        }
    }

    /// The last look: what is raised is noted, and sent by whoever comes after.
    pub async fn look_last(self: &Arc<Self>, alerts: &Arc<Alerts>, threshold: Option<Threshold>) {
        self.ending.store(true, Ordering::Relaxed);
        self.look(alerts, threshold).await;
    }

    /// At the start, and now and then: another replica may have ended before it looked.
    fn looks_back(&self) -> bool {
        let mut last = self.looked_back.lock();
        let due = last.is_none_or(|last| last.elapsed() >= LOOK_BACK_EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    /// Sends a webhook what is due for it, unless that is under way: one that hangs holds up nobody else.
    fn send_due(self: &Arc<Self>, webhook: &Arc<Webhook>) {
        if self.ending.load(Ordering::Relaxed) || !self.sending.lock().insert(webhook.name.clone()) {
            return;
        }
        let (watch, webhook) = (Arc::clone(self), Arc::clone(webhook));
        tokio::spawn(async move {
            // While the store is away its own messages say so.
            let due = watch.store.due(vec![webhook.name.clone()], LEASE).await.unwrap_or_default();
            futures::future::join_all(due.into_iter().map(|delivery| watch.deliver(delivery, &webhook))).await;
            watch.sending.lock().remove(&webhook.name);
        });
    }

    async fn raise(&self, hot: &Hot, threshold: Threshold, webhooks: &[Arc<Webhook>]) {
        let event = event::intercepted(hot, threshold, SystemTime::now()).to_string();
        let events = webhooks.iter().map(|webhook| (fresh_id(), webhook.name.clone(), event.clone())).collect();
        match self.store.raise(hot.last.id, threshold.window, events).await {
            Ok(true) => {
                self.raised.inc();
                tracing::warn!(key = %hot.last.id, hint = hot.last.hint, intercepts = hot.intercepts, shadow = hot.shadow, clients = hot.clients, "a key was refused too often");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, key = %hot.last.id, "an alert could not be noted; trying again in a moment"),
        }
    }

    async fn deliver(&self, delivery: Delivery, webhook: &Webhook) {
        let event: Value = serde_json::from_str(&delivery.event).unwrap_or_default();
        let (now, id) = (SystemTime::now(), delivery.id.clone());
        let age = now.duration_since(delivery.raised_at).unwrap_or_default();
        let what = match webhook.send(&delivery.id, &event, now).await {
            Ok(()) => {
                self.count(&webhook.name, "delivered");
                tracing::info!(webhook = webhook.name, event = id, "an alert was delivered");
                Attempted::Done
            }
            Err(refused) if age > GIVEN_UP_AFTER => {
                self.count(&webhook.name, "given_up");
                tracing::error!(webhook = webhook.name, event = id, why = refused.why, "an alert was not taken for a day and is given up");
                Attempted::Done
            }
            Err(refused) => {
                self.count(&webhook.name, "failed");
                let pause =
                    PAUSE.saturating_mul(1 << delivery.attempts.saturating_sub(1).min(16)).max(refused.retry_after.unwrap_or_default());
                let pause = crate::util::breaker::with_jitter(pause.min(PAUSE_MAX));
                tracing::warn!(
                    webhook = webhook.name,
                    event = id,
                    attempt = delivery.attempts,
                    why = refused.why,
                    ?pause,
                    "an alert was not taken; trying again"
                );
                Attempted::Again(pause)
            }
        };
        if let Err(error) = self.store.attempted(id, what).await {
            tracing::warn!(%error, webhook = webhook.name, "what came of an alert could not be noted; it may be sent again");
        }
    }

    fn count(&self, webhook: &str, outcome: &str) {
        self.sent.iter().for_each(|sent| sent.with_label_values(&[webhook, outcome]).inc());
    }
}
