//! The page `error-codes.md`, and the table of all responses that Keylatch sends itself.

use super::markdown::{begin, code, codes, table};

/// An error code, as one filter or the gate answers it.
pub struct ErrorCode {
    /// `error.code` in the body.
    pub code: &'static str,
    /// The HTTP status.
    pub status: &'static str,
    /// `answered_by` in the access log; empty if the request was admitted and failed later.
    pub by: &'static str,
    /// `reason` in the access log.
    pub reasons: &'static [&'static str],
    /// The cause, and the remedy if there is one.
    pub meaning: &'static str,
}

const fn error(
    by: &'static str,
    status: &'static str,
    code: &'static str,
    reasons: &'static [&'static str],
    meaning: &'static str,
) -> ErrorCode {
    ErrorCode { code, status, by, reasons, meaning }
}

/// A refusal by the gate. The reason is also the code.
const fn gate(status: &'static str, reasons: &'static [&'static str], meaning: &'static str) -> ErrorCode {
    ErrorCode { code: "", status, by: "gate", reasons, meaning }
}

/// Every code.
pub const ERRORS: &[ErrorCode] = &[
    gate("400", &["request_line", "version", "line_end", "bare_lf"], "The first line is malformed, or a line ending is invalid."),
    gate("400", &["header_name", "header_value", "folded_header"], "A header field is malformed or folded."),
    gate(
        "400",
        &["target", "path_escape", "path_ambiguous", "path_above_root", "path_not_utf8"],
        "The target is malformed, or servers could interpret it in different ways.",
    ),
    gate("400", &["path_encoded_slash"], "The path has `%2F`, and the route does not set `allow_encoded_slash`."),
    gate("400", &["host", "host_missing", "host_twice", "host_and_target_differ"], "The host is missing, malformed or contradictory."),
    gate("400", &["content_length", "transfer_encoding", "length_and_chunked"], "The framing of the body is malformed or contradictory."),
    gate("400", &["connection_nomination"], "`Connection` names a field that must not be removed, or an invalid token."),
    gate("400", &["cookie"], "The `Cookie` fields cannot be joined."),
    gate("400", &["underscore_in_header"], "A field name has an underscore, and the listener refuses those."),
    gate("403", &["client_certificate"], "The client certificate of the connection is missing or no longer valid."),
    gate("403", &["origin_secret"], "The request lacks the secret of the CDN (`listeners[].origin_secret`)."),
    gate("405", &["method"], "The method is `CONNECT`, `TRACE` or too long."),
    gate("408", &["header_timeout"], "The header did not arrive in time. No access line."),
    gate("414", &["target_bytes"], "The target is longer than 65,534 bytes."),
    gate("421", &["target_scheme"], "The scheme of the target is not that of the connection."),
    gate("431", &["header_bytes", "header_count"], "The header is larger than the listener allows."),
    error("no_route", "404", "unknown_path", &["no_route"], "No route matches."),
    error("body_limit", "413", "body_too_large", &["body_bytes"], "The announced body is larger than the listener allows."),
    error("maintenance", "503", "maintenance", &["maintenance"], "The setting `maintenance` is on."),
    error("client_ip", "400", "client_address_missing", &["unnamed"], "A trusted proxy named no client, and `on_missing` is `refuse`."),
    error("flood_guard", "429", "rate_limit_exceeded", &["flood"], "Too many requests from one address."),
    error("allowed_hosts", "421", "unknown_host", &["host"], "The host is not in the list."),
    error("cors", "204", "preflight", &["preflight"], "Not an error: the response to a preflight."),
    error("body_limit", "413", "body_too_large", &["announced"], "The announced body is larger than the route allows."),
    error(
        "client_certificate",
        "403",
        "client_certificate_required",
        &["no_certificate", "name_not_allowed"],
        "The client presented no certificate, or its name is not allowed.",
    ),
    error("bearer", "401", "missing_token", &["missing_token"], "No token was sent."),
    error(
        "bearer",
        "400",
        "invalid_request",
        &["two_keys", "malformed_key", "key_too_long", "key_in_query"],
        "The request does not have exactly one well-formed token.",
    ),
    error(
        "bearer",
        "401",
        "invalid_token",
        &[
            "unknown_token",
            "malformed_token",
            "algorithm",
            "no_key",
            "signature",
            "inactive",
            "expired",
            "not_yet_valid",
            "issuer",
            "audience",
            "claims",
        ],
        "The token is not valid.",
    ),
    error("bearer", "403", "insufficient_scope", &["forbidden"], "The service that checks tokens answered 403."),
    error("bearer", "401, 403, …", "refused", &["forward_auth"], "The service refused, with its own status and body (`refusal: theirs`)."),
    error("bearer", "503", "authentication_unavailable", &["unchecked"], "The token could not be checked. Retry later."),
    error("key_binding", "401", "missing_api_key", &["missing_key", "key_in_query"], "No key was sent, or it was in the query."),
    error(
        "key_binding",
        "400",
        "malformed_api_key",
        &["two_keys", "malformed_key", "key_too_long"],
        "The key is malformed or too long, or there are two.",
    ),
    error(
        "key_binding",
        "403",
        "key_not_allowed_here",
        &["other_network", "banned", "unknown_key"],
        "The key is bound to another network, banned, or unknown and not enrolled.",
    ),
    error("key_binding", "429", "too_many_new_keys", &["new_keys"], "Too many first uses from one address (`new_keys_per_client`)."),
    error("key_binding", "503", "binding_unavailable", &["store_failure"], "The store is unavailable and the key is unknown. Retry later."),
    error("rules", "403 or `deny.status`", "denied_by_rule", &["rule"], "A rule denied the request; `detail` has its name."),
    error("rate_limit", "429", "rate_limit_exceeded", &["limit"], "A limit is reached; `detail` has its name. See `Retry-After`."),
    error("rate_limit", "503", "limits_unavailable", &["store"], "Redis is unavailable, and `on_store_failure` is `deny`."),
    error(
        "budget",
        "429",
        "insufficient_quota",
        &["spent", "reserved"],
        "The budget is spent, or its rest does not cover the request; `detail` has the amounts. See `Retry-After`.",
    ),
    error("budget", "403", "model_without_price", &["no_price"], "The model has no price, and `on_missing_price` is `refuse`."),
    error("budget", "503", "limits_unavailable", &["store"], "The counts are unavailable, and `on_store_failure` is `deny`."),
    error("concurrency_limit", "429", "concurrency_limit_exceeded", &["limit"], "Too many requests are open."),
    error("concurrency_limit", "503", "limits_unavailable", &["store"], "Redis is unavailable, and `on_store_failure` is `deny`."),
    error(
        "",
        "400",
        "malformed_body",
        &[],
        "The framing of the body is malformed, or data follows a request to upgrade before its answer.",
    ),
    error("", "400", "two_models", &[], "The body names two models, and an expression of the route uses `request.model`."),
    error("", "403", "key_not_allowed_here", &[], "The key of an open stream was banned, unbound or bound elsewhere."),
    error("", "408", "request_timeout", &[], "The body took too long, or arrived too slowly."),
    error("", "413", "body_too_large", &[], "The body grew beyond a limit."),
    error("", "500", "internal_error", &[], "A filter or Keylatch failed; `error` in the access log says more."),
    error("", "502", "upstream_unreachable", &[], "No connection to a server of the upstream could be made."),
    error("", "502", "upstream_error", &[], "The upstream ended the response too early, or sent invalid HTTP."),
    error("", "503", "upstream_unavailable", &[], "No server of the upstream can be chosen."),
    error("", "503", "stream_ended", &[], "An operator ended the stream."),
    error("", "503", "stopping", &[], "The process is stopping."),
    error("", "504", "upstream_timeout", &[], "The upstream took too long (`timeouts`, `first_byte`)."),
    error("", "504", "stream_max_age", &[], "The stream reached `max_age`."),
];

/// Reasons of `keylatch_gate_refusals_total` without a response: the connection is closed.
const CONNECTIONS: &[(&str, &str)] = &[
    ("connections", "The listener has as many connections as `limits.connections` or `limits.connections_per_peer` allow."),
    ("idle_timeout", "No request came within `limits.idle_timeout`."),
    ("handshake_timeout", "TLS or the PROXY protocol took too long."),
    ("tls_handshake", "The TLS handshake failed."),
    ("proxy_protocol", "The header of the PROXY protocol is missing or malformed, or the peer may not send one."),
    ("listener", "The listener is not in the configuration in force."),
    ("body_min_rate", "A body arrived too slowly; the client gets `request_timeout`."),
];

const INTRODUCTION: &str = "Everything that Keylatch answers itself. Responses of the upstream are forwarded unchanged.

The body is JSON in the form of the API that the route speaks. In OpenAI's form, `error.code` is the code of the tables below, \
`error.message` is a sentence for people, and `error.request_id` is the id of the request. Other APIs have other forms; not all of them \
have a place for the code. Filters can be configured to answer with other statuses (`rules`, `forward_auth`).

In a stream that has begun, the error is the last event. A 429 and a 503 have `Retry-After`. A 429 with a wait beyond \
`limits.client_retry_max` also has `x-should-retry: false`. In the access log, `answered_by` and `reason` show what refused the request.";

pub fn page() -> String {
    let mut text = begin("Error codes", INTRODUCTION);
    let gate = ERRORS.iter().filter(|each| each.code.is_empty());
    let rows: Vec<Vec<String>> =
        gate.map(|each| vec![codes(each.reasons.iter().copied()), each.status.to_owned(), each.meaning.to_owned()]).collect();
    text.push_str("\n## The gate\n\nThe code is also the `reason` in the access log, and the label of `keylatch_gate_refusals_total`.\n\n");
    text.push_str(&table(&["code", "status", "cause"], &rows));
    let rows: Vec<Vec<String>> = CONNECTIONS.iter().map(|(reason, meaning)| vec![code(reason), (*meaning).to_owned()]).collect();
    text.push_str("\nThe metric also counts connections that are closed without such a response:\n\n");
    text.push_str(&table(&["reason", "cause"], &rows));
    let filters = ERRORS.iter().filter(|each| !each.code.is_empty() && !each.by.is_empty());
    let row = |each: &ErrorCode| {
        vec![code(each.code), each.status.to_owned(), code(each.by), codes(each.reasons.iter().copied()), each.meaning.to_owned()]
    };
    text.push_str("\n## Routing and filters\n\n");
    text.push_str(&table(&["code", "status", "answered by", "reasons", "cause"], &filters.map(row).collect::<Vec<_>>()));
    let later = ERRORS.iter().filter(|each| each.by.is_empty());
    let row = |each: &ErrorCode| vec![code(each.code), each.status.to_owned(), each.meaning.to_owned()];
    text.push_str("\n## After the request was admitted\n\nThe access log has `error`. If no response had begun, `answered_by` is `proxy` and `reason` is the code.\n\n");
    text.push_str(&table(&["code", "status", "cause"], &later.map(row).collect::<Vec<_>>()));
    text
}
