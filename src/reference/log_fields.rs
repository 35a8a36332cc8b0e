//! The page `log-fields.md`, and the table of the fields of the access log.

use super::markdown::{begin, code, table};

/// One field of the access log.
pub struct LogField {
    /// Its name in the JSON object.
    pub name: &'static str,
    /// Its type.
    pub kind: &'static str,
    /// The condition under which the field is present; empty if always.
    pub when: &'static str,
    /// Its meaning.
    pub meaning: &'static str,
}

const fn field(name: &'static str, kind: &'static str, when: &'static str, meaning: &'static str) -> LogField {
    LogField { name, kind, when, meaning }
}

/// Every field, in the order in which a line has them.
pub const FIELDS: &[LogField] = &[
    field("time", "string", "", "When the header of the request was complete: RFC 3339, UTC, milliseconds."),
    field("request_id", "string", "the filter `request_id` runs", "The id of the request, also sent to the client and the upstream."),
    field("trace_id", "string", "the request has a valid `traceparent`", "The W3C trace id."),
    field("client", "string", "", "The address of the client, as `client_ip` found it."),
    field("client_source", "string", "", "How that address was determined; see below."),
    field("peer", "string", "", "The address at the other end of the connection."),
    field("key", "string", "`key_binding` found a key", "The first 12 hex digits of the key id. Never the key."),
    field("subject", "string", "`bearer` or `client_certificate` identified the client", "The name or `sub` of the identity."),
    field("route", "string", "a route matched", "The name of the route."),
    field("method", "string", "", "The method; `-` if it could not be read."),
    field("path", "string", "", "The normalised path without the query; `-` if it could not be read."),
    field("http", "string", "", "`1.0`, `1.1` or `2`."),
    field("status", "number", "", "The status that the client got; 0 if the client disconnected before."),
    field("late_status", "number", "an early answer was sent before", "The status of the upstream after an early answer of Keylatch."),
    field(
        "answered_by",
        "string",
        "Keylatch answered, not the upstream",
        "A filter, or `gate`, `acme`, `maintenance`, `no_route`, `body_limit`, or `proxy` (a failure after admission).",
    ),
    field("reason", "string", "Keylatch answered", "The reason; see [error codes](error-codes.md)."),
    field(
        "detail",
        "string",
        "the reason has details",
        "Details of the reason, such as the name of a limit or a rule. Never sent to the client.",
    ),
    field("shadow", "list", "a filter in shadow mode would have refused", "What would have been refused: `filter:reason`."),
    field(
        "let_through",
        "list",
        "a check was skipped",
        "Filters that could not check the request and let it pass (`on_store_failure: open`, `on_failure: open`).",
    ),
    field("tags", "list", "rules tagged the request", "The tags."),
    field("upstream", "string", "a server was used", "The address of the server that answered."),
    field("model", "string", "the filter `usage` runs", "The model that the request names, or else the answer."),
    field("input_tokens", "number", "it is not 0", "Input tokens, with those of the prompt cache."),
    field("cached_input_tokens", "number", "it is not 0", "Input tokens read from the prompt cache."),
    field("cache_write_tokens", "number", "it is not 0", "Input tokens written to the prompt cache."),
    field("output_tokens", "number", "it is not 0", "Output tokens, with those of reasoning."),
    field("reasoning_tokens", "number", "it is not 0", "Output tokens of reasoning."),
    field("images", "number", "it is not 0", "Generated images."),
    field("audio_ms", "number", "it is not 0", "Transcribed audio, in ms."),
    field("characters", "number", "it is not 0", "Characters of spoken text."),
    field("cost", "number", "the model has a price", "The cost, in units of the currency."),
    field("currency", "string", "the model has a price", "The currency of the cost."),
    field("first_token_ms", "number", "a stream had text", "From the complete header to the first text of the stream, in ms."),
    field(
        "usage_source",
        "string",
        "the filter `usage` runs",
        "`reported` by the upstream, `estimated` from the texts, or `none`: the request used nothing, or its answer cannot be read.",
    ),
    field("bytes_in", "number", "", "Bytes of the body from the client."),
    field("bytes_out", "number", "", "Bytes of the body to the client."),
    field("first_byte_ms", "number", "the upstream answered", "From the complete header to the first byte of data of the upstream, in ms."),
    field("duration_ms", "number", "", "From the complete header to the end, in ms."),
    field("error", "string", "the request failed after it was admitted", "The failure."),
];

const INTRODUCTION: &str = "The access log has one JSON object a line for each request, on standard output (`log.access`). The fields come in \
the order of the table. A field without a value is absent. Keys, tokens and query strings are never written.";

const SOURCES: &[(&str, &str)] = &[
    ("peer", "The peer itself: it is not a trusted proxy."),
    ("cf-connecting-ip", "The field of Cloudflare."),
    ("cf-worker", "A Cloudflare Worker of another zone; the address stands for the zone."),
    ("x-forwarded-for", "The first address from the right that is not trusted."),
    ("x-real-ip", "The field, from a trusted proxy."),
    ("forwarded", "The field of RFC 7239, as `x-forwarded-for`."),
    ("unnamed", "The peer is a trusted proxy that named no client; the proxy counts as the client."),
];

const OTHER_LOG: &str = "All other messages go to standard error, as text or as JSON (`log.format`), from the level `log.level` on. A JSON \
line has `timestamp`, `level` and `fields`, where `fields.message` is the message. `KEYLATCH_LOG=debug` logs more of Keylatch.";

pub fn page() -> String {
    let mut text = begin("Log fields", INTRODUCTION);
    let rows: Vec<Vec<String>> = FIELDS
        .iter()
        .map(|field| {
            let when = if field.when.is_empty() { "always" } else { field.when };
            vec![code(field.name), field.kind.to_owned(), when.to_owned(), field.meaning.to_owned()]
        })
        .collect();
    text.push_str(&format!("\n{}", table(&["field", "type", "present if", "meaning"], &rows)));
    let rows: Vec<Vec<String>> = SOURCES.iter().map(|(name, meaning)| vec![code(name), (*meaning).to_owned()]).collect();
    text.push_str(&format!("\n## Values of client_source\n\n{}", table(&["value", "meaning"], &rows)));
    text.push_str(&format!("\n## The log of the process\n\n{}\n", super::markdown::wrap(OTHER_LOG)));
    text
}
