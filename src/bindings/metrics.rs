//! The metrics of the store.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// What the store counts.
pub struct Counters {
    pub hits: IntCounter,
    pub shared: IntCounter,
    pub misses: IntCounter,
    pub stale: IntCounter,
    pub dropped: IntCounter,
    pub intercepts: IntCounter,
    pub cut: IntCounter,
    pub away: IntGauge,
    pub hears: IntGauge,
    pub writable: IntGauge,
    pub tended: Option<IntCounterVec>,
}

impl Counters {
    /// Registers them. A name that is taken is counted unseen: counting never stops the work.
    pub fn new(metrics: &Registry) -> Self {
        let counter = |name: &str, help: &str| counter(metrics, name, help);
        let by = |name: &str, help: &str, label: &str| {
            let made = IntCounterVec::new(Opts::new(name, help), &[label]).ok()?;
            let _ = metrics.register(Box::new(made.clone()));
            Some(made)
        };
        let look_ups = by(
            "keylatch_binding_cache_requests_total",
            "Look-ups of bindings in the process cache, by result; `shared` are those misses that Redis answered.",
            "result",
        );
        let look_up = |result: &str| look_ups.as_ref().and_then(|vec| vec.get_metric_with_label_values(&[result]).ok());
        let away = gauge(metrics, "keylatch_store_away", "1 while the store does not answer and is asked only now and then.");
        let hears = gauge(
            metrics,
            "keylatch_store_notifications",
            "1 while changes made by other processes are heard of at once, 0 while they take up to 30 s.",
        );
        hears.set(1);
        let writable = gauge(metrics, "keylatch_store_writable", "1 while a first use could be written, by a test every 5 s.");
        writable.set(1);
        Self {
            hits: look_up("hit").unwrap_or_else(detached),
            shared: look_up("shared").unwrap_or_else(detached),
            misses: look_up("miss").unwrap_or_else(detached),
            stale: counter("keylatch_binding_stale_total", "Keys judged by what was known of them while the store did not answer."),
            dropped: counter(
                "keylatch_store_dropped_total",
                "Last uses, confirmations, releases and intercepts that were lost because too many waited.",
            ),
            intercepts: counter("keylatch_intercepts_total", "Requests refused because of the key's binding."),
            cut: counter(
                "keylatch_binding_streams_cut_total",
                "Open streams that were ended because their key was banned, unbound or bound elsewhere.",
            ),
            away,
            hears,
            writable,
            tended: by("keylatch_store_tended_total", "Rows that were archived, swept and trimmed.", "what"),
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

/// A counter that is shown nowhere, for a name that cannot be had: counting never stops the work.
fn detached() -> IntCounter {
    IntCounter::new("detached", "not shown").unwrap_or_else(|_| unreachable!("`detached` is a valid name"))
}
