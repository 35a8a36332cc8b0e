//! The metrics of the proxy. Names follow Prometheus' conventions: base units, `_total` for counters.
//! Labels come from closed lists (routes, filters, reasons, statuses), never from a request.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::logs;
use super::streams::Streams;
use super::top_k::Tops;
use crate::listener::policy::ListenerPolicy;

/// Where the buckets of times end, in seconds: answers of models take from milliseconds (cached, refused) to minutes (streams).
pub const BUCKETS: [f64; 14] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0];

/// All of them.
pub struct Metrics {
    /// Where they, and those of stores and filters, are registered.
    pub registry: Registry,
    /// Requests by route and status; `-` where no route was found, 0 where the client left unanswered.
    pub requests: IntCounterVec,
    /// From a complete header to the end of the response, by route.
    pub duration: HistogramVec,
    /// From a complete header to the upstream's first byte of data, by route.
    pub first_byte: HistogramVec,
    /// What filters decided, by filter, reason and whether it was carried out.
    pub decisions: IntCounterVec,
    /// What the gate refused, by reason.
    pub refused: IntCounterVec,
    /// Answers of upstreams that came after one of ours had gone out, by route and the upstream's status.
    pub late_answers: IntCounterVec,
    /// Lingering closes by how they ended.
    pub lingering: IntCounterVec,
    /// Fields of requests that were dropped, by reason.
    pub dropped_fields: IntCounterVec,
    /// Open client connections.
    pub connections: IntGauge,
    /// Failures upstream, by upstream and kind.
    pub upstream_errors: IntCounterVec,
    /// Reloads by result.
    pub reloads: IntCounterVec,
    /// Seconds since 1970 of the last reload that succeeded, the start included.
    pub last_reload: IntGauge,
    /// When the certificates that listeners show end, in seconds since 1970.
    certificates: IntGaugeVec,
    /// Sign-ins to the admin API by result.
    pub sign_ins: IntCounterVec,
    /// Lines of the access log that were lost.
    pub access_lost: IntCounter,
    /// Of event streams.
    pub streams: Arc<Streams>,
    /// Who asks most; not for Prometheus, to which it would be names without end.
    pub tops: Tops,
}

impl Metrics {
    /// Registers them all. Fails only on a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            requests: counters(&registry, "requests_total", "Requests by route and status.", &["route", "status"])?,
            duration: histograms(&registry, "request_duration_seconds", "From a complete header to the end of the response.")?,
            first_byte: histograms(
                &registry,
                "upstream_first_byte_seconds",
                "From a complete header to the first byte of data from upstream.",
            )?,
            decisions: counters(&registry, "filter_decisions_total", "Refusals by filters.", &["filter", "reason", "outcome"])?,
            refused: counters(&registry, "gate_refusals_total", "Requests and connections the gate refused.", &["reason"])?,
            late_answers: counters(
                &registry,
                "late_answers_total",
                "Answers from upstream after an early answer, by the upstream's status.",
                &["route", "status"],
            )?,
            lingering: counters(
                &registry,
                "lingering_closes_total",
                "Connections that were read after their last response, by how that ended.",
                &["outcome"],
            )?,
            dropped_fields: counters(&registry, "dropped_header_fields_total", "Fields of requests that were not passed on.", &["reason"])?,
            connections: gauge(&registry, "connections", "Open client connections.")?,
            upstream_errors: counters(&registry, "upstream_errors_total", "Failures upstream.", &["upstream", "error"])?,
            reloads: counters(&registry, "reloads_total", "Reloads of the configuration.", &["result"])?,
            last_reload: gauge(&registry, "last_reload_success_timestamp_seconds", "When the configuration in force was loaded.")?,
            certificates: gauges(
                &registry,
                "certificate_expiry_timestamp_seconds",
                "When a certificate that a listener shows ends.",
                &["listener", "name"],
            )?,
            sign_ins: counters(&registry, "admin_sign_ins_total", "Sign-ins to the admin API.", &["result"])?,
            access_lost: counter(&registry, "access_log_lost_total", "Lines of the access log lost because the reader was too slow.")?,
            streams: Streams::new(
                gauge(&registry, "open_streams", "Event streams and WebSockets that are open.")?,
                counter(&registry, "stream_frames_total", "Frames sent into silent responses.")?,
                // Milliseconds: fewer streams than that begin.
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
            ),
            tops: Tops::default(),
            registry,
        };
        metrics.registry.register(Box::new(logs::dropped()?))?;
        // What is not there cannot be seen to grow.
        for result in ["ok", "failed"] {
            metrics.reloads.with_label_values(&[result]);
        }
        metrics.dropped_fields.with_label_values(&["underscore"]);
        let build = gauges(&metrics.registry, "build_info", "Always 1; the version is a label.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(metrics)
    }

    /// Tells which certificates listeners show from now on.
    pub fn shows(&self, entries: &[Arc<ListenerPolicy>]) {
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

    /// All metrics as Prometheus' text format.
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
