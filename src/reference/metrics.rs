//! The page `metrics.md`, and the table of all metrics.

use super::markdown::{begin, code, codes, table};
use crate::usage::metrics::{FIRST_TOKEN_BUCKETS, SPEED_BUCKETS};

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Its meaning.
    pub meaning: &'static str,
}

const fn counter(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: "counter", labels, meaning }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: "gauge", labels, meaning }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: "histogram", labels, meaning }
}

/// Every metric, in alphabetical order.
pub const METRICS: &[Metric] = &[
    counter("keylatch_access_log_lost_total", &[], "Access lines that were dropped because the reader of standard output was too slow."),
    counter("keylatch_acme_orders_total", &["outcome"], "Certificate orders of this replica: `made` or `failed`."),
    counter("keylatch_admin_sign_ins_total", &["result"], "Sign-ins to the admin API, by result."),
    counter("keylatch_alerts_total", &[], "Alerts that this replica raised."),
    counter("keylatch_bearer_cache_requests_total", &["result"], "Look-ups of verified tokens in the cache, by result."),
    counter(
        "keylatch_bearer_check_failures_total",
        &["outcome"],
        "Requests with a token that could not be checked, by outcome: refused or passed.",
    ),
    counter(
        "keylatch_binding_cache_requests_total",
        &["result"],
        "Look-ups of bindings: `hit` in the process, `shared` in Redis, or `miss`.",
    ),
    counter("keylatch_binding_stale_total", &[], "Requests judged by the last known binding while the store was unavailable."),
    counter(
        "keylatch_binding_store_failures_total",
        &["outcome"],
        "Requests with a binding that could not be looked up: refused (`closed`) or passed (`open`).",
    ),
    counter("keylatch_binding_streams_cut_total", &[], "Open streams that ended because their key was banned, unbound or bound elsewhere."),
    counter(
        "keylatch_budget_store_failures_total",
        &["outcome"],
        "Requests for which the store of budgets was unreachable, by the action taken: `deny`, `allow` or `local`.",
    ),
    gauge("keylatch_build_info", &["version"], "Always 1; the label is the version."),
    gauge(
        "keylatch_certificate_expiry_timestamp_seconds",
        &["listener", "name"],
        "End of each certificate of a listener, in seconds since 1970.",
    ),
    counter("keylatch_client_unnamed_total", &["outcome"], "Requests for which a trusted proxy named no client: `peer` or `refused`."),
    counter(
        "keylatch_concurrency_limit_requests_total",
        &["policy", "outcome"],
        "Requests by concurrency limit: `allowed`, `refused` or `shadow`.",
    ),
    counter(
        "keylatch_concurrency_limit_store_failures_total",
        &["outcome"],
        "Requests for which the shared concurrency limit was unavailable, by outcome.",
    ),
    gauge("keylatch_connections", &[], "Open client connections."),
    counter("keylatch_cost_total", &["route", "model", "currency"], "The cost of requests with a price, in units of the currency."),
    counter("keylatch_dropped_header_fields_total", &["reason"], "Request fields that were removed, by reason."),
    counter(
        "keylatch_filter_decisions_total",
        &["filter", "reason", "outcome"],
        "Refusals by filters, including those that shadow mode did not carry out.",
    ),
    counter(
        "keylatch_gate_refusals_total",
        &["reason"],
        "Requests and connections that the gate refused; see [error codes](error-codes.md).",
    ),
    counter("keylatch_intercepts_total", &[], "Requests refused because of the binding of their key."),
    gauge("keylatch_last_reload_success_timestamp_seconds", &[], "When the configuration in force was loaded, in seconds since 1970."),
    counter("keylatch_late_answers_total", &["route", "status"], "Responses of upstreams after an early answer, by their status."),
    counter("keylatch_lingering_closes_total", &["outcome"], "Connections that were read after their last response, by outcome."),
    counter("keylatch_log_lost_total", &[], "Log lines that were dropped because the reader of standard error was too slow."),
    gauge("keylatch_open_streams", &[], "Open event streams and WebSockets."),
    histogram("keylatch_output_tokens_per_second", &["route", "model"], "Output tokens per second of streams, from the first text on."),
    counter("keylatch_rate_limit_requests_total", &["policy", "outcome"], "Requests by rate limit and outcome."),
    counter(
        "keylatch_rate_limit_store_failures_total",
        &["outcome"],
        "Requests for which the shared rate limit was unavailable, by outcome.",
    ),
    gauge("keylatch_redis_away", &[], "1 while Redis does not answer."),
    counter("keylatch_redis_errors_total", &["kind"], "Errors of Redis, by [kind](../how-to/redis.md#errors)."),
    counter("keylatch_reloads_total", &["result"], "Reloads of the configuration: `ok` or `failed`."),
    histogram("keylatch_request_duration_seconds", &["route"], "From a complete header to the end of the response."),
    counter(
        "keylatch_requests_total",
        &["route", "status"],
        "Requests; route `-` without a route, status 0 if the client disconnected before.",
    ),
    counter("keylatch_retention_rows_total", &["what"], "Rows that retention `archived`, removed as `unconfirmed`, or `trimmed`."),
    counter(
        "keylatch_rules_total",
        &["rule", "outcome"],
        "Requests for which a rule was true, by outcome; `error` if its expression failed.",
    ),
    gauge("keylatch_store_away", &[], "1 while the store does not answer."),
    counter("keylatch_store_dropped_total", &[], "Queued writes that were lost because the queue was full."),
    gauge("keylatch_store_notifications", &[], "1 while notifications arrive; 0 while changes take up to 30 s."),
    gauge("keylatch_store_writable", &[], "1 while a first use could be written."),
    counter("keylatch_stream_frames_total", &[], "Heartbeat frames that were sent."),
    histogram("keylatch_time_to_first_token_seconds", &["route", "model"], "From a complete header to the first text of a stream."),
    counter(
        "keylatch_tokens_total",
        &["route", "model", "kind"],
        "Tokens by kind. `input` includes `cached_input` and `cache_write`; `output` includes `reasoning`.",
    ),
    counter("keylatch_upstream_errors_total", &["upstream", "error"], "Failures of upstreams, by kind."),
    histogram("keylatch_upstream_first_byte_seconds", &["route"], "From a complete header to the first byte of data of the upstream."),
    counter(
        "keylatch_usage_lost_total",
        &["what"],
        "Requests with usage that was lost because the queue was full: its `sums`, `latency` or row of the `log`.",
    ),
    gauge("keylatch_usage_queued", &[], "Sums of usage that wait to be written."),
    counter(
        "keylatch_usage_requests_total",
        &["route", "model", "source"],
        "Requests that the filter `usage` read, by the source of their counts: `reported`, `estimated` or `none`.",
    ),
    counter("keylatch_webhooks_total", &["webhook", "outcome"], "Deliveries to webhooks, by outcome."),
];

const INTRODUCTION: &str =
    "The metrics at `/metrics` on `admin.address`, in the text format of Prometheus. Counters start from zero with the \
process. The values of labels come from closed lists (routes, filters, reasons, statuses), never from a request, except `model`. A \
metric with labels appears with its first value; those of filters appear if a filter uses them.

Metrics have at most 100 models: the first ones that had requests with counts. The label of further models is `other`, and of \
requests without a model `-`.

[Logs and metrics](../how-to/logs.md#prometheus-and-grafana) describes alert rules and the dashboard.";

pub fn page() -> String {
    let rows: Vec<Vec<String>> = METRICS
        .iter()
        .map(|metric| vec![code(metric.name), metric.kind.to_owned(), codes(metric.labels.iter().copied()), metric.meaning.to_owned()])
        .collect();
    let buckets = crate::telemetry::metrics::BUCKETS.map(|end| end.to_string()).join(", ");
    let numbers = |bounds: &[f64]| bounds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (first_token, speed) = (numbers(&FIRST_TOKEN_BUCKETS), numbers(&SPEED_BUCKETS));
    let rows = table(&["metric", "type", "labels", "meaning"], &rows);
    let wrap = super::markdown::wrap;
    let buckets = wrap(&format!("Histograms of durations have these buckets, in seconds: {buckets}."));
    let usage = wrap(&format!("Those of the time to first token: {first_token}. Of tokens per second: {speed}."));
    format!("{}\n{rows}\n{buckets}\n\n{usage}\n", begin("Metrics", INTRODUCTION))
}
