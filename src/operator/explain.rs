//! Explains the outcome of a request, filter by filter. It sends nothing upstream, and stores nothing.

use std::net::IpAddr;

use http::{Method, header};
use keylatch_filters::body_scan::ModelSource;
use keylatch_filters::chain::{Chain, Explained};
use keylatch_filters::client_ip::UNNAMED;
use keylatch_filters::contract::{Arrival, ClientAddress, Dialect, DryRun, Facts, Key, Now, RequestCx, RequestModel, canonical};
use pingora::http::RequestHeader;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Fault;
use crate::compile::Snapshot;
use crate::http_proxy::errors;
use crate::listener::gate;
use crate::listener::path::Slashes;
use crate::listener::refusal::{HeadLimits, Policy};

/// Maximum header fields of one request.
const FIELDS_MAX: usize = 256;

/// The request to explain.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The address of the connection's peer.
    #[schema(value_type = String, example = "203.0.113.7")]
    pub peer: IpAddr,
    /// The method.
    #[serde(default = "get")]
    #[schema(default = "GET", max_length = 32)]
    pub method: String,
    /// The path, with or without a query.
    #[serde(default = "root")]
    #[schema(default = "/", max_length = 16384)]
    pub path: String,
    /// Header fields, each `NAME: VALUE`. They are neither logged nor stored.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub headers: Vec<String>,
    /// The model that the body names. Without it, expressions that use `request.model` fail, unless the path names the
    /// model.
    #[serde(default)]
    #[schema(max_length = 512)]
    pub model: Option<String>,
}

fn get() -> String {
    "GET".to_owned()
}

fn root() -> String {
    "/".to_owned()
}

/// The outcome of a request, explained.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Readable lines: the peer, the gate, the route, the result of each filter, rule and limit, the outcome.
    pub lines: Vec<String>,
    /// The id of the request's key, if a filter has read one.
    pub key_id: Option<String>,
    /// The client address.
    pub client: Option<String>,
    /// The status of Keylatch's own answer, if the request does not go upstream.
    pub status: Option<u16>,
}

/// Whether stores and services are queried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookups {
    /// They are queried, for the snapshot that serves. Counts and bindings do not change.
    Live,
    /// They are not: the snapshot is compiled from the file alone.
    Offline,
}

/// Explains a request.
pub async fn explain(snapshot: &Snapshot, question: &ExplainRequest, lookups: Lookups) -> Result<Explanation, Fault> {
    let mut request = request(question)?;
    let peer = canonical(question.peer);
    let mut explanation = Explanation::default();
    let trusted = if snapshot.trusted.trusts(peer) {
        "one of trusted_proxies"
    } else {
        "not one of trusted_proxies: its forwarding headers are ignored"
    };
    explanation.line("peer", format_args!("{peer}, {trusted}"));

    let passed = match gate::check(&mut request, None, &policy(snapshot)) {
        Ok(passed) => passed,
        Err(refused) => {
            explanation.line("gate", format_args!("refused with {}: {}", refused.status.as_u16(), refused.reason));
            return Ok(Explanation { status: Some(refused.status.as_u16()), ..explanation });
        }
    };
    let target = String::from_utf8_lossy(request.raw_path()).into_owned();
    explanation.line("gate", format_args!("passed; the target is {target}"));
    if let Some(spelled) = &passed.spelled_target {
        explanation.line("", format_args!("the upstream gets {spelled}"));
    }

    let mut facts = Facts::default();
    if lookups == Lookups::Live {
        facts.put(DryRun);
    }
    // The listener of the request is unknown: the first one is assumed.
    if let Some(origin) = snapshot.entries.first().and_then(|entry| entry.origin.as_ref()) {
        let Some(vouched) = origin.take(&mut request) else {
            explanation.line(
                "origin",
                format_args!("refused with 403: the first listener requires an `origin_secret` that the request does not carry"),
            );
            return Ok(Explanation { status: Some(403), ..explanation });
        };
        explanation.line("origin", format_args!("the origin secret is present"));
        facts.put(Arrival { vouched, ..Arrival::default() });
    }

    if let ModelSource::Header(model) =
        ModelSource::of_request(&request, has_body(&request, question), request.headers.contains_key(header::UPGRADE))
    {
        facts.put(model);
    } else if let Some(model) = &question.model {
        facts.put(RequestModel::Named(model.as_str().into()));
    }
    let host = request.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let Some((_, route)) = snapshot.route(&request.method, &host, request.uri.path()) else {
        explanation.line("route", format_args!("none: 404, unless a top-level filter answers first"));
        let dialect = Dialect::of_path(request.uri.path());
        return explanation.chain(&snapshot.unrouted, "-", dialect, &request, peer, facts, lookups).await;
    };
    if passed.encoded_slash && !route.allow_encoded_slash {
        explanation
            .line("route", format_args!("{}; refused with 400: the path contains `%2F`, and allow_encoded_slash is not set", route.name));
        return Ok(Explanation { status: Some(400), ..explanation });
    }
    let base = route.upstream.base_path().map(|base| format!(", as {base}{target}")).unwrap_or_default();
    explanation.line("route", format_args!("{}, to upstream {}{base}", route.name, route.upstream.name));
    let dialect = route.dialect.unwrap_or_else(|| Dialect::of_path(request.uri.path()));
    explanation.chain(&route.chain, &route.name, dialect, &request, peer, facts, lookups).await
}

/// Whether a body is assumed: a model is given, or a POST does not say that it has none.
fn has_body(request: &RequestHeader, question: &ExplainRequest) -> bool {
    let empty = request.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0");
    question.model.is_some() || request.method == Method::POST && !empty
}

/// The policy of the first listener: the listener of the request is unknown.
fn policy(snapshot: &Snapshot) -> Policy {
    let first = snapshot.settings.listeners.first();
    let limits = first.map(|listener| &listener.limits).cloned().unwrap_or_default();
    let limits = HeadLimits { bytes: limits.header_bytes.as_usize(), fields: limits.headers };
    let slashes = if first.is_none_or(|listener| listener.merge_slashes) { Slashes::Merge } else { Slashes::Keep };
    let underscores = first.map(|listener| listener.underscores_in_headers).unwrap_or_default();
    Policy { limits, slashes, underscores, scheme: if first.is_some_and(|listener| listener.tls.is_some()) { "https" } else { "http" } }
}

impl Explanation {
    fn line(&mut self, label: &str, text: std::fmt::Arguments<'_>) {
        self.lines.push(format!("{label:<9} {text}"));
    }

    /// Adds the result of each filter, in order.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request context")]
    async fn chain(
        mut self,
        chain: &Chain,
        route: &str,
        dialect: Dialect,
        request: &RequestHeader,
        peer: IpAddr,
        mut facts: Facts,
        lookups: Lookups,
    ) -> Result<Self, Fault> {
        let mut cx = RequestCx { request, facts: &mut facts, peer, route, dialect, now: Now::read(), shadow: false };
        let explained = chain.explain(&mut cx).await.map_err(|failure| Fault::External(failure.to_string()))?;
        let client = facts.get::<ClientAddress>();
        match client {
            Some(client) if client.source == UNNAMED => self.line(
                "client",
                format_args!("{}, the peer: a trusted proxy that names no client in any source of client_ip", client.address),
            ),
            Some(client) => self.line("client", format_args!("{}, from {}", client.address, client.source)),
            None => self.line("client", format_args!("{peer}, the peer: no client_ip in force in the chain")),
        }
        self.client = Some(client.map_or(peer, |client| client.address).to_string());
        self.key_id = facts.get::<Key>().map(|key| key.id.hex());
        let unknown = explained.iter().position(is_undecided);
        let outcome = explained.iter().position(|one| one.reply.is_some() && !one.shadow && !is_undecided(one));
        for (index, one) in explained.iter().enumerate() {
            let label = if index == 0 { "filters" } else { "" };
            self.line(label, format_args!("{:>2}. {}: {}", index + 1, one.filter, describe(one, lookups)));
            self.lines.extend(one.lines.iter().map(|line| format!("              {line}")));
        }
        let status = outcome.and_then(|index| explained.get(index)?.reply.clone()).map(|reply| errors::from_reply(*reply).status.as_u16());
        self.status = status.or((route == "-").then_some(404));
        match (status, unknown) {
            // The answer of a store or service may decide earlier.
            (Some(status), Some(open)) if Some(open) < outcome => {
                self.line("outcome", format_args!("{status}, unless an earlier lookup decides otherwise"));
            }
            (Some(status), _) => self.line("outcome", format_args!("{status}")),
            (None, _) if route == "-" => self.line("outcome", format_args!("404")),
            (None, None) if lookups == Lookups::Live => self.line("outcome", format_args!("goes upstream")),
            (None, _) => self.line("outcome", format_args!("goes upstream, unless a store or service refuses it")),
        }
        Ok(self)
    }
}

/// Whether the result depends on a store or service that has not answered.
fn is_undecided(one: &Explained) -> bool {
    one.let_through || one.reply.as_ref().is_some_and(|reply| matches!(reply.reason, "store_failure" | "store" | "unchecked"))
}

fn describe(one: &Explained, lookups: Lookups) -> String {
    let shadow = if one.shadow { " (shadow)" } else { "" };
    match &one.reply {
        _ if is_undecided(one) && lookups == Lookups::Live => format!("queries a store or a service, which does not answer{shadow}"),
        _ if is_undecided(one) => format!("queries a store or a service, which is skipped here{shadow}"),
        None => format!("passes{shadow}"),
        Some(reply) => {
            let status = errors::from_reply((**reply).clone()).status.as_u16();
            let detail = reply.detail.as_ref().map(|detail| format!("; {detail}")).unwrap_or_default();
            format!("answers with {status}, {}{detail}{shadow}", reply.reason)
        }
    }
}

/// Builds the request. A header value may be a key, so errors do not repeat it.
fn request(question: &ExplainRequest) -> Result<RequestHeader, Fault> {
    let mut request = RequestHeader::build(question.method.as_str(), question.path.as_bytes(), None)
        .map_err(|_| Fault::invalid("path", "the method or the path is malformed"))?;
    if question.headers.len() > FIELDS_MAX {
        return Err(Fault::invalid("headers", format!("at most {FIELDS_MAX} header fields can be given")));
    }
    for (index, field) in question.headers.iter().enumerate() {
        let wrong = |what: &str| Fault::invalid("headers", format!("header field {} {what}", index + 1));
        let (name, value) = field.split_once(':').ok_or_else(|| wrong("is not of the form `NAME: VALUE`"))?;
        request.append_header(name.trim().to_owned(), value.trim()).map_err(|_| wrong("is malformed"))?;
    }
    if !request.headers.contains_key("host") {
        request.insert_header("host", "localhost").map_err(|e| Fault::invalid("headers", e.to_string()))?;
    }
    Ok(request)
}
