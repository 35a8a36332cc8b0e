//! `keylatch explain`: what would become of a request, filter by filter, without sending or storing anything.

use clap::Args;
use keylatch_filters::chain::{Chain, Explained};
use keylatch_filters::client_ip::UNNAMED;
use keylatch_filters::contract::{Arrival, ClientAddress, Dialect, Facts, Now, RequestCx, canonical};
use pingora::http::RequestHeader;
use std::net::IpAddr;

use super::ConfigFile;
use crate::cli::terminal::say;
use crate::config::{Compiler, Snapshot, check_ports, parse_file};
use crate::proxy::errors;
use crate::proxy::gate::{self, HeadLimits, Policy};
use crate::proxy::path::Slashes;

#[derive(Args)]
pub struct Explain {
    #[command(flatten)]
    file: ConfigFile,
    /// The address the connection comes from
    #[arg(long, value_name = "ADDRESS")]
    peer: IpAddr,
    /// A header field, as often as you like
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The method
    #[arg(long, default_value = "GET")]
    method: String,
    /// The path, with its query if you like
    #[arg(long, default_value = "/")]
    path: String,
}

pub fn explain(asked: &Explain) -> Result<(), String> {
    let parsed = parse_file(&asked.file.config).map_err(|report| report.to_string())?;
    let snapshot = Compiler::new(check_ports()).compile(parsed).map_err(|report| report.to_string())?;
    let mut request = request(asked)?;
    let peer = canonical(asked.peer);
    let trusted = if snapshot.trusted.trusts(peer) {
        "one of trusted_proxies"
    } else {
        "not one of trusted_proxies: what it says of others is ignored"
    };
    say!("peer      {peer}, {trusted}")?;

    let passed = match gate::check(&mut request, None, &policy(&snapshot)) {
        Ok(passed) => passed,
        Err(refused) => {
            say!("gate      refused with {}: {}", refused.status.as_u16(), refused.reason)?;
            return Ok(());
        }
    };
    let target = String::from_utf8_lossy(request.raw_path()).into_owned();
    say!("gate      passed; the target is {target}")?;
    if let Some(spelled) = &passed.spelled_target {
        say!("          the upstream gets {spelled}")?;
    }

    let mut facts = Facts::default();
    // As the first listener would: which one it comes in at cannot be said.
    if let Some(origin) = snapshot.entries.first().and_then(|entry| entry.origin.as_ref()) {
        let Some(vouched) = origin.take(&mut request) else {
            return say!("origin    refused with 403: the first listener asks for a secret that this request has not");
        };
        say!("origin    the secret is there")?;
        facts.put(Arrival { vouched, ..Arrival::default() });
    }

    let host = request.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let Some((_, route)) = snapshot.route(&request.method, &host, request.uri.path()) else {
        say!("route     none: 404, unless a top-level filter answers before")?;
        let dialect = Dialect::of_path(request.uri.path());
        return chain(&snapshot.unrouted, "-", dialect, &request, peer, facts);
    };
    if passed.encoded_slash && !route.allow_encoded_slash {
        say!("route     {}; refused with 400: `%2F` in the path, and allow_encoded_slash is not set", route.name)?;
        return Ok(());
    }
    let base = route.upstream.base_path().map(|base| format!(", as {base}{target}")).unwrap_or_default();
    say!("route     {}, to upstream {}{base}", route.name, route.upstream.name)?;

    let dialect = route.dialect.unwrap_or_else(|| Dialect::of_path(request.uri.path()));
    chain(&route.chain, &route.name, dialect, &request, peer, facts)
}

/// By what the first listener judges: which one a request comes in at cannot be said.
fn policy(snapshot: &Snapshot) -> Policy {
    let first = snapshot.settings.listeners.first();
    let limits = first.map(|listener| &listener.limits).cloned().unwrap_or_default();
    let limits = HeadLimits { bytes: limits.header_bytes.as_usize(), fields: limits.headers };
    let slashes = if first.is_none_or(|listener| listener.merge_slashes) { Slashes::Merge } else { Slashes::Keep };
    let underscores = first.map(|listener| listener.underscores_in_headers).unwrap_or_default();
    Policy { limits, slashes, underscores, scheme: if first.is_some_and(|listener| listener.tls.is_some()) { "https" } else { "http" } }
}

/// What each filter says, in order.
fn chain(chain: &Chain, route: &str, dialect: Dialect, request: &RequestHeader, peer: IpAddr, mut facts: Facts) -> Result<(), String> {
    let mut cx = RequestCx { request, facts: &mut facts, peer, route, dialect, now: Now::read(), shadow: false };
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| e.to_string())?;
    let explained = runtime.block_on(chain.explain(&mut cx)).map_err(|failure| failure.to_string())?;
    match facts.get::<ClientAddress>() {
        Some(client) if client.source == UNNAMED => {
            say!("client    {}, the peer: it is a trusted proxy, and names no client in any of client_ip's sources", client.address)?
        }
        Some(client) => say!("client    {}, from {}", client.address, client.source)?,
        None => say!("client    {peer}, the peer: no client_ip in force in the chain")?,
    }
    let unknown = explained.iter().position(asks_somebody);
    let outcome = explained.iter().position(|one| one.reply.is_some() && !one.shadow && !asks_somebody(one));
    for (index, one) in explained.iter().enumerate() {
        let label = if index == 0 { "filters" } else { "" };
        say!("{label:<9} {:>2}. {}: {}", index + 1, one.filter, says(one))?;
        one.lines.iter().try_for_each(|line| say!("              {line}"))?;
    }
    let status = outcome.and_then(|index| explained.get(index)?.reply.clone()).map(|reply| errors::of_reply(*reply).status.as_u16());
    match (status, unknown) {
        // What somebody who is asked says may be what decides.
        (Some(status), Some(asked)) if Some(asked) < outcome => say!("outcome   {status}, if what is asked before says nothing else"),
        (Some(status), _) => say!("outcome   {status}"),
        (None, _) if route == "-" => say!("outcome   404"),
        (None, _) => say!("outcome   goes upstream, as far as this can be told without stores and services"),
    }
}

/// Stores and services are not asked here.
fn asks_somebody(one: &Explained) -> bool {
    one.let_through || one.reply.as_ref().is_some_and(|reply| matches!(reply.reason, "store_failure" | "store" | "unasked"))
}

fn says(one: &Explained) -> String {
    let shadow = if one.shadow { " (shadow)" } else { "" };
    match &one.reply {
        _ if asks_somebody(one) => format!("asks a store or a service, which is not done here{shadow}"),
        None => format!("passes{shadow}"),
        Some(reply) => {
            let status = errors::of_reply((**reply).clone()).status.as_u16();
            let detail = reply.detail.as_ref().map(|detail| format!("; {detail}")).unwrap_or_default();
            format!("answers with {status}, {}{detail}{shadow}", reply.reason)
        }
    }
}

fn request(asked: &Explain) -> Result<RequestHeader, String> {
    let mut request =
        RequestHeader::build(asked.method.as_str(), asked.path.as_bytes(), None).map_err(|e| format!("not a request: {e}"))?;
    for field in &asked.headers {
        let (name, value) = field.split_once(':').ok_or_else(|| format!("`{field}` is not `NAME: VALUE`"))?;
        request.append_header(name.trim().to_owned(), value.trim()).map_err(|_| format!("`{field}` is not a header field"))?;
    }
    if !request.headers.contains_key("host") {
        request.insert_header("host", "localhost").map_err(|e| e.to_string())?;
    }
    Ok(request)
}
