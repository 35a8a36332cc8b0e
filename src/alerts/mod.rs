//! Alerts: when a key is refused too often, each webhook gets one event, retried until it is
//! delivered. Refusals themselves are decided and stored elsewhere.
//!
//! Intercepts are counted in the database, over all replicas, so that a cache failure loses none.
//! An alert is stored in the same transaction as its events, and an event is removed once its
//! receiver has accepted it. A crash loses no event, and may send one twice, under the same id.

mod event;
mod webhook;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use keylatch_filters::contract::{Invalid, StoreError};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde_json::Value;

use crate::bindings::Store;
use crate::config::Files;
use crate::config::model::{Alerts as AlertsConfig, InterceptAlert};
use crate::sql::ledger::{LedgerAddition, LedgerRow};
use crate::sql::outbox::{Attempted, Delivery, KeyOverThreshold, Threshold};
use crate::usage::ledger::Spending;
pub use webhook::Webhook;

/// The interval between two checks.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The interval at which intercepts written by other replicas are checked, too.
const LOOK_BACK_INTERVAL: Duration = Duration::from_secs(30);
/// The lease of an event; longer than any attempt may take.
const LEASE: Duration = Duration::from_secs(90);
/// The back-off after the first attempt; it doubles up to the maximum.
const BACKOFF_MIN: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(900);
/// The time after which an undelivered event is dropped.
const DROPPED_AFTER: Duration = Duration::from_secs(86_400);

/// The compiled section `alerts`.
#[derive(Default)]
pub struct Alerts {
    /// The threshold in the file.
    pub threshold: Option<Threshold>,
    /// The receivers.
    webhooks: Vec<Arc<Webhook>>,
    /// The receivers before: events that were raised for them are still delivered.
    before: Vec<Arc<Webhook>>,
}

impl Alerts {
    /// The same with this webhook alone. Events raised for the other webhooks are still delivered.
    pub fn with_webhook(&self, webhook: Webhook) -> Self {
        let threshold = self.threshold.unwrap_or_else(|| {
            let default = InterceptAlert::default();
            Threshold { count: default.count, window: default.window.0, shadow: default.shadow }
        });
        Self { threshold: Some(threshold), webhooks: vec![Arc::new(webhook)], before: self.webhooks.clone() }
    }

    /// Reports every error, with its place below `alerts`.
    pub fn compile(config: Option<&AlertsConfig>, files: &Files) -> Result<Self, Vec<Invalid>> {
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

    /// Sends a test event to each webhook, and returns each name with the outcome.
    pub async fn test(&self) -> Vec<(String, Result<(), String>)> {
        let now = SystemTime::now();
        let mut outcomes = Vec::new();
        for webhook in &self.webhooks {
            let sent = webhook.send(&fresh_id(), &event::test(now), now).await;
            outcomes.push((webhook.name.clone(), sent.map_err(|failed| failed.why)));
        }
        outcomes
    }
}

fn fresh_id() -> String {
    format!("evt_{}", uuid::Uuid::now_v7().simple())
}

/// The highest share of a budget that is reached and that operators were not alerted of.
fn share_reached(addition: &LedgerAddition, row: &LedgerRow) -> Option<u8> {
    let reached = |percent: &u8| i128::from(row.spent) * 100 >= i128::from(row.amount_max) * i128::from(*percent);
    addition.alert_at.iter().copied().filter(reached).max().filter(|percent| i64::from(*percent) > row.alerted)
}

/// Turns intercepts into alerts, and delivers due events.
pub struct AlertMonitor {
    store: Arc<Store>,
    raised: IntCounter,
    sent: Option<IntCounterVec>,
    /// Webhooks with a delivery under way.
    sending: Mutex<HashSet<String>>,
    looked_back: Mutex<Option<Instant>>,
    /// No event is leased any more: a process that ends with a lease blocks the event for
    /// [`LEASE`].
    ending: AtomicBool,
}

impl AlertMonitor {
    /// Over a store; registers its metrics.
    pub fn new(store: Arc<Store>, metrics: &Registry) -> Arc<Self> {
        let raised = IntCounter::new("keylatch_alerts_total", "Alerts raised by this replica.");
        let raised = raised.unwrap_or_else(|_| unreachable!("the name is a valid one"));
        let _ = metrics.register(Box::new(raised.clone()));
        let sent =
            IntCounterVec::new(Opts::new("keylatch_webhooks_total", "Attempts to deliver an event, by outcome."), &["webhook", "outcome"]);
        let sent = sent.ok().inspect(|sent| {
            let _ = metrics.register(Box::new(sent.clone()));
        });
        Arc::new(Self { store, raised, sent, sending: Mutex::default(), looked_back: Mutex::default(), ending: AtomicBool::new(false) })
    }

    /// Runs one check. A store failure is retried at the next one.
    pub async fn check(self: &Arc<Self>, alerts: &Arc<Alerts>, threshold: Option<Threshold>) {
        let Some(threshold) = threshold else {
            // Alerts are off: the ids would pile up.
            drop(self.store.take_intercepted());
            return;
        };
        if self.is_look_back_due() {
            self.store.requeue_intercepted(threshold.window).await;
        }
        let ids = self.store.take_intercepted();
        if !ids.is_empty() {
            match self.store.keys_over_threshold(ids, threshold).await {
                Ok(hot) => {
                    for hot in hot {
                        self.raise(&hot, threshold, &alerts.webhooks).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "intercepts cannot be counted; retrying"),
            }
        }
        for webhook in alerts.webhooks.iter().chain(&alerts.before) {
            self.send_due(webhook);
        }
    }

    /// Raises alerts about budgets that were written since the last check.
    pub async fn check_budgets(&self, spending: &Spending, alerts: &Alerts) {
        for addition in spending.take_written() {
            if let Err(error) = self.check_budget(&addition, &alerts.webhooks).await {
                tracing::warn!(%error, "an alert about a budget cannot be stored; it is raised at the next change");
            }
        }
    }

    async fn check_budget(&self, addition: &LedgerAddition, webhooks: &[Arc<Webhook>]) -> Result<(), StoreError> {
        let admin = self.store.admin_store();
        let Some(row) = admin.ledger_row(&addition.name, addition.period).await? else { return Ok(()) };
        let Some(percent) = share_reached(addition, &row) else { return Ok(()) };
        let event = event::budget(addition, &row, percent, SystemTime::now()).to_string();
        let events = webhooks.iter().map(|webhook| (fresh_id(), webhook.name.clone(), event.clone())).collect();
        if admin.alert_of_share(&addition.name, addition.period, percent, events).await? {
            self.raised.inc();
            tracing::warn!(budget = %addition.name, percent, "a budget has reached a share: alert raised");
        }
        Ok(())
    }

    /// The last check before the end: raises alerts, and leaves their delivery to other processes.
    pub async fn check_last(self: &Arc<Self>, alerts: &Arc<Alerts>, threshold: Option<Threshold>) {
        self.ending.store(true, Ordering::Relaxed);
        self.check(alerts, threshold).await;
    }

    /// True at the start and every [`LOOK_BACK_INTERVAL`]: another replica may have ended before its
    /// check.
    fn is_look_back_due(&self) -> bool {
        let mut last = self.looked_back.lock();
        let due = last.is_none_or(|last| last.elapsed() >= LOOK_BACK_INTERVAL);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    /// Delivers the due events of a webhook, unless a delivery is under way. A slow webhook does
    /// not delay others.
    fn send_due(self: &Arc<Self>, webhook: &Arc<Webhook>) {
        if self.ending.load(Ordering::Relaxed) || !self.sending.lock().insert(webhook.name.clone()) {
            return;
        }
        let (monitor, webhook) = (Arc::clone(self), Arc::clone(webhook));
        tokio::spawn(async move {
            // The store reports its own failures.
            let due = monitor.store.lease_deliveries(vec![webhook.name.clone()], LEASE).await.unwrap_or_default();
            futures::future::join_all(due.into_iter().map(|delivery| monitor.deliver(delivery, &webhook))).await;
            monitor.sending.lock().remove(&webhook.name);
        });
    }

    async fn raise(&self, hot: &KeyOverThreshold, threshold: Threshold, webhooks: &[Arc<Webhook>]) {
        let event = event::intercepted(hot, threshold, SystemTime::now()).to_string();
        let events = webhooks.iter().map(|webhook| (fresh_id(), webhook.name.clone(), event.clone())).collect();
        match self.store.record_alert(hot.last.id, threshold.window, events).await {
            Ok(true) => {
                self.raised.inc();
                tracing::warn!(key = %hot.last.id, hint = hot.last.hint, intercepts = hot.intercepts, shadow = hot.shadow, clients = hot.clients, "key refused too often: alert raised");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, key = %hot.last.id, "an alert cannot be stored; retrying"),
        }
    }

    async fn deliver(&self, delivery: Delivery, webhook: &Webhook) {
        let event: Value = serde_json::from_str(&delivery.event).unwrap_or_default();
        let (now, id) = (SystemTime::now(), delivery.id.clone());
        let age = now.duration_since(delivery.raised_at).unwrap_or_default();
        let what = match webhook.send(&delivery.id, &event, now).await {
            Ok(()) => {
                self.count(&webhook.name, "delivered");
                tracing::info!(webhook = webhook.name, event = id, "alert delivered");
                Attempted::Done
            }
            Err(failed) if age > DROPPED_AFTER => {
                self.count(&webhook.name, "given_up");
                tracing::error!(webhook = webhook.name, event = id, why = failed.why, "alert dropped: not delivered within a day");
                Attempted::Done
            }
            Err(failed) => {
                self.count(&webhook.name, "failed");
                let backoff = BACKOFF_MIN
                    .saturating_mul(1 << delivery.attempts.saturating_sub(1).min(16))
                    .max(failed.retry_after.unwrap_or_default());
                let backoff = crate::util::breaker::with_jitter(backoff.min(BACKOFF_MAX));
                tracing::warn!(
                    webhook = webhook.name,
                    event = id,
                    attempt = delivery.attempts,
                    why = failed.why,
                    pause = ?backoff,
                    "alert delivery failed; retrying"
                );
                Attempted::Again(backoff)
            }
        };
        if let Err(error) = self.store.attempted(id, what).await {
            tracing::warn!(%error, webhook = webhook.name, "the outcome of an alert delivery cannot be stored; the alert may be sent again");
        }
    }

    fn count(&self, webhook: &str, outcome: &str) {
        self.sent.iter().for_each(|sent| sent.with_label_values(&[webhook, outcome]).inc());
    }
}
