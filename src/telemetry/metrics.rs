//! The metrics of the proxy. Names follow the conventions of Prometheus: base units, `_total` for counters.
//!
//! Label values come from closed lists (routes, filters, reasons, statuses), never from a request.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::logs;
use super::streams::Streams;
use super::top_k::TopRequesters;
use crate::listener::policy::ListenerPolicy;

/// The upper bounds of histogram buckets, in seconds: model responses take milliseconds (cached, refused) to minutes (streams).
pub const BUCKETS: [f64; 14] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0];

/// The metrics of the proxy.
pub struct Metrics {
    /// The registry of all metrics, including those of stores and filters.
    pub registry: Registry,
    /// Requests by route and status; route `-` without a route, status 0 if the client disconnected before an answer.
    pub requests: IntCounterVec,
    /// From a complete header to the end of the response, by route.
    pub duration: HistogramVec,
    /// From a complete header to the upstream's first byte of data, by route.
    pub first_byte: HistogramVec,
    /// Refusals by filters, by filter, reason and outcome (refused or shadow).
    pub decisions: IntCounterVec,
    /// Refusals by the gate, by reason.
    pub refused: IntCounterVec,
    /// Responses of upstreams after an early answer, by route and upstream status.
    pub late_answers: IntCounterVec,
    /// Lingering closes by outcome.
    pub lingering: IntCounterVec,
    /// Removed header fields of requests, by reason.
    pub dropped_fields: IntCounterVec,
    /// Open client connections.
    pub connections: IntGauge,
    /// Failures of upstreams, by upstream and kind.
    pub upstream_errors: IntCounterVec,
    /// Reloads by result.
    pub reloads: IntCounterVec,
    /// The time of the last successful reload, the start included, in seconds since 1970.
    pub last_reload: IntGauge,
    /// The end of the certificates of listeners, in seconds since 1970.
    certificates: IntGaugeVec,
    /// Sign-ins to the admin API by result.
    pub sign_ins: IntCounterVec,
    /// Dropped lines of the access log.
    pub access_lost: IntCounter,
    /// Open streams.
    pub streams: Arc<Streams>,
    /// The keys and clients with the most requests. Not exported to Prometheus: the label values would be unbounded.
    pub top_requesters: TopRequesters,
}

impl Metrics {
    /// Registers all metrics. An error is a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            requests: counters(&registry, "requests_total", "Requests by route and status.", &["route", "status"])?,
            duration: histograms(&registry, "request_duration_seconds", "From a complete header to the end of the response.")?,
            first_byte: histograms(
                &registry,
                "upstream_first_byte_seconds",
                "From a complete header to the first byte of data of the upstream.",
            )?,
            decisions: counters(&registry, "filter_decisions_total", "Refusals by filters.", &["filter", "reason", "outcome"])?,
            refused: counters(&registry, "gate_refusals_total", "Requests and connections that the gate refused.", &["reason"])?,
            late_answers: counters(
                &registry,
                "late_answers_total",
                "Responses of upstreams after an early answer, by their status.",
                &["route", "status"],
            )?,
            lingering: counters(
                &registry,
                "lingering_closes_total",
                "Connections that were read after their last response, by how that ended.",
                &["outcome"],
            )?,
            dropped_fields: counters(
                &registry,
                "dropped_header_fields_total",
                "Request fields that were removed, by reason.",
                &["reason"],
            )?,
            connections: gauge(&registry, "connections", "Open client connections.")?,
            upstream_errors: counters(&registry, "upstream_errors_total", "Failures of upstreams, by kind.", &["upstream", "error"])?,
            reloads: counters(&registry, "reloads_total", "Reloads of the configuration.", &["result"])?,
            last_reload: gauge(
                &registry,
                "last_reload_success_timestamp_seconds",
                "When the configuration in force was loaded, in seconds since 1970.",
            )?,
            certificates: gauges(
                &registry,
                "certificate_expiry_timestamp_seconds",
                "End of each certificate of a listener, in seconds since 1970.",
                &["listener", "name"],
            )?,
            sign_ins: counters(&registry, "admin_sign_ins_total", "Sign-ins to the admin API.", &["result"])?,
            access_lost: counter(
                &registry,
                "access_log_lost_total",
                "Access lines that were dropped because the reader of standard output was too slow.",
            )?,
            streams: Streams::new(
                gauge(&registry, "open_streams", "Open event streams and WebSockets.")?,
                counter(&registry, "stream_frames_total", "Heartbeat frames that were sent.")?,
                // Ids start at the time in milliseconds: they stay unique over restarts, as fewer than 1000 streams/s begin.
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
            ),
            top_requesters: TopRequesters::default(),
            registry,
        };
        metrics.registry.register(Box::new(logs::dropped()?))?;
        // Series must exist before their first increment, so that Prometheus can compute a rate.
        for result in ["ok", "failed"] {
            metrics.reloads.with_label_values(&[result]);
        }
        metrics.dropped_fields.with_label_values(&["underscore"]);
        let build = gauges(&metrics.registry, "build_info", "Always 1; the label is the version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(metrics)
    }

    /// Sets the certificates that listeners present from now on.
    pub fn set_certificates(&self, entries: &[Arc<ListenerPolicy>]) {
        self.certificates.reset();
        for entry in entries {
            let made = entry.acme.as_ref().and_then(|(held, wanted)| Some((wanted.names.first()?.as_str(), held.ends(wanted)?)));
            if let Some((name, ends_s)) = made {
                self.certificates.with_label_values(&[entry.address.to_string().as_str(), name]).set(ends_s);
            }
            for shown in entry.shown() {
                let name = shown.names.first().map_or("-", String::as_str);
                self.certificates.with_label_values(&[entry.address.to_string().as_str(), name]).set(shown.not_after_s);
            }
        }
    }

    /// All metrics in the text format of Prometheus.
    pub fn text(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| format!("# {error}\n"))
    }
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    let made = IntCounterVec::new(Opts::new(format!("keylatch_{name}"), help), labels)?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let made = IntCounter::new(format!("keylatch_{name}"), help)?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let made = IntGauge::new(format!("keylatch_{name}"), help)?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    let made = IntGaugeVec::new(Opts::new(format!("keylatch_{name}"), help), labels)?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn histograms(registry: &Registry, name: &str, help: &str) -> prometheus::Result<HistogramVec> {
    let made = HistogramVec::new(HistogramOpts::new(format!("keylatch_{name}"), help).buckets(BUCKETS.to_vec()), &["route"])?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}
