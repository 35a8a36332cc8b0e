//! Metrics of the bindings store.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The metrics.
pub struct Counters {
    pub hits: IntCounter,
    pub shared: IntCounter,
    pub misses: IntCounter,
    pub stale: IntCounter,
    pub dropped: IntCounter,
    pub intercepts: IntCounter,
    pub cut: IntCounter,
    pub away: IntGauge,
    pub notifications: IntGauge,
    pub writable: IntGauge,
    pub retention: Option<IntCounterVec>,
}

impl Counters {
    /// Registers the metrics. If a name is already registered, the new metric counts but is not exported.
    pub fn new(metrics: &Registry) -> Self {
        let counter = |name: &str, help: &str| counter(metrics, name, help);
        let by = |name: &str, help: &str, label: &str| {
            let made = IntCounterVec::new(Opts::new(name, help), &[label]).ok()?;
            let _ = metrics.register(Box::new(made.clone()));
            Some(made)
        };
        let look_ups = by(
            "keylatch_binding_cache_requests_total",
            "Look-ups of bindings in the process cache, by result. `shared`: misses that Redis answered.",
            "result",
        );
        let look_up = |result: &str| look_ups.as_ref().and_then(|vec| vec.get_metric_with_label_values(&[result]).ok());
        let away = gauge(metrics, "keylatch_store_away", "1 while the store does not answer and the circuit breaker is open.");
        let notifications = gauge(
            metrics,
            "keylatch_store_notifications",
            "1 while changes made by other processes arrive at once, 0 while they take up to 30 s.",
        );
        notifications.set(1);
        let writable = gauge(metrics, "keylatch_store_writable", "1 while a first use can be written, tested every 5 s.");
        writable.set(1);
        Self {
            hits: look_up("hit").unwrap_or_else(detached),
            shared: look_up("shared").unwrap_or_else(detached),
            misses: look_up("miss").unwrap_or_else(detached),
            stale: counter("keylatch_binding_stale_total", "Keys judged by stale bindings while the store did not answer."),
            dropped: counter(
                "keylatch_store_dropped_total",
                "Last uses, confirmations, releases and intercepts that were dropped because the queue was full.",
            ),
            intercepts: counter("keylatch_intercepts_total", "Requests refused because of the key's binding."),
            cut: counter(
                "keylatch_binding_streams_cut_total",
                "Open streams ended because their key was banned, unbound or bound elsewhere.",
            ),
            away,
            notifications,
            writable,
            retention: by("keylatch_retention_rows_total", "Rows archived and deleted by retention.", "what"),
        }
    }
}

fn gauge(metrics: &Registry, name: &str, help: &str) -> IntGauge {
    let gauge = IntGauge::new(name, help).or_else(|_| IntGauge::new("detached", "not shown"));
    let gauge = gauge.unwrap_or_else(|_| unreachable!("`detached` is a valid name"));
    let _ = metrics.register(Box::new(gauge.clone()));
    gauge
}

fn counter(metrics: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).unwrap_or_else(|_| detached());
    let _ = metrics.register(Box::new(counter.clone()));
    counter
}

/// A counter that is not exported, for a name that is taken.
fn detached() -> IntCounter {
    IntCounter::new("detached", "not shown").unwrap_or_else(|_| unreachable!("`detached` is a valid name"))
}
