//! Checks that a filter judges every credential: paths on which an API reads keys, and tokens that only the upstream verifies.

use http::{HeaderName, Method};
use keylatch_filters::contract::KeySource;
use keylatch_filters::expression::Expression;
use serde::Deserialize;
use serde_json::Value;

use super::Findings;
use crate::compile::Snapshot;
use crate::config::model::{FilterItem, Underscores};

/// Filters that judge the identity of the client.
const JUDGES: [&str; 3] = ["key_binding", "bearer", "client_certificate"];
/// Requests in which New API, one-api, and the APIs of OpenAI, Anthropic and Gemini read a key: one for each group of paths.
const READ_KEYS: [(Method, &str); 12] = [
    (Method::POST, "/v1/chat/completions"),
    (Method::POST, "/v1/messages"),
    (Method::POST, "/v1beta/models/m:generateContent"),
    (Method::POST, "/mj/submit/imagine"),
    (Method::POST, "/fast/mj/submit/imagine"),
    (Method::POST, "/api/mj/submit/imagine"),
    (Method::POST, "/suno/submit/music"),
    (Method::POST, "/kling/v1/videos/text2video"),
    (Method::POST, "/jimeng/"),
    (Method::GET, "/dashboard/billing/usage"),
    (Method::GET, "/api/usage/token/"),
    (Method::GET, "/api/log/token"),
];

pub fn check(snapshot: &Snapshot, found: &mut Findings) {
    unjudged_paths(snapshot, found);
    unverified_tokens(snapshot, found);
    dropped_fields(snapshot, found);
}

/// Routes without a judging filter that forward such a request to a server that another route guards.
fn unjudged_paths(snapshot: &Snapshot, found: &mut Findings) {
    let judging = |(name, shadow): (&str, bool)| !shadow && JUDGES.contains(&name);
    let judges = |index: usize| snapshot.routes.get(index).is_some_and(|route| route.chain.names().any(judging));
    // Compared by server, because two upstreams may have the same one.
    let servers = |index: usize| {
        let name = snapshot.routes.get(index).map(|route| &*route.upstream.name);
        let upstreams = snapshot.settings.upstreams.iter().filter(move |upstream| Some(upstream.name.as_str()) == name);
        upstreams.flat_map(|upstream| &upstream.servers).map(|server| server.address.as_str())
    };
    let guarded: Vec<&str> = (0..snapshot.routes.len()).filter(|index| judges(*index)).flat_map(servers).collect();
    // Each host of a route is tried, because routes may match by host.
    let mut hosts: Vec<String> =
        snapshot.settings.routes.iter().flat_map(|route| &route.matches.hosts).map(|host| host.replace('*', "a")).collect();
    hosts.push("localhost".into());
    for (index, route) in snapshot.routes.iter().enumerate() {
        if judges(index) || !servers(index).any(|server| guarded.contains(&server)) {
            continue;
        }
        let takes = |method: &Method, path: &str| {
            hosts.iter().any(|host| snapshot.route(method, host, path).is_some_and(|(taken, _)| taken == index))
        };
        let paths: Vec<&str> = READ_KEYS.iter().filter(|(method, path)| takes(method, path)).map(|(_, path)| *path).collect();
        if !paths.is_empty() {
            found.bad(
                format!("routes: {}", route.name),
                format!("forwards API keys that no filter checks, for example on {}", paths.join(", ")),
                "add these paths to the route with `key_binding`; config/behind-cloudflare.yaml has those of New API",
            );
        }
    }
}

/// Filters that read a field which every listener removes.
fn dropped_fields(snapshot: &Snapshot, found: &mut Findings) {
    let settings = &snapshot.settings;
    if settings.listeners.iter().any(|listener| listener.underscores_in_headers == Underscores::Allow) {
        return;
    }
    let routes = settings.routes.iter().flat_map(|route| &route.filters);
    let mut names: Vec<String> = settings.filters.iter().chain(routes).flat_map(|item| read_fields(&item.config)).collect();
    names.retain(|name| name.contains('_'));
    names.sort_unstable();
    names.dedup();
    for name in names {
        found.bad(
            "filters",
            format!("a filter reads the field `{name}`, which the listeners remove or refuse because of its underscore"),
            "name the field with `-`, or set `underscores_in_headers: allow` for the listener",
        );
    }
}

/// The request fields that a filter's configuration names: in options `header`, in the list `send` of `forward_auth`, and in
/// expressions.
fn read_fields(config: &Value) -> Vec<String> {
    match config {
        Value::Object(options) => options
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(name) if key == "header" => vec![name.clone()],
                Value::Array(names) if key == "send" => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                other => read_fields(other),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(read_fields).collect(),
        Value::String(text) if text.contains("headers") => Expression::header_fields(text),
        _ => Vec::new(),
    }
}

/// `confirm: immediate` without a filter before it that verifies the token which is bound.
fn unverified_tokens(snapshot: &Snapshot, found: &mut Findings) {
    let settings = &snapshot.settings;
    for route in &settings.routes {
        let place = format!("routes: {}", route.name);
        // The places from which a filter reads the tokens that it verifies, for each such filter.
        let mut verified: Vec<Vec<Place>> = Vec::new();
        for item in settings.filters.iter().chain(&route.filters) {
            if verifies(item) {
                verified.push(places(item, &[KeySource::Authorization]));
            }
            let immediate = item.config.get("confirm").and_then(|value| value.as_str()) == Some("immediate");
            if item.name != "key_binding" || !immediate {
                continue;
            }
            let bound = places(item, &KeySource::FIELDS);
            if verified.is_empty() {
                found.warn(
                    &place,
                    "`confirm: immediate` binds a key that nothing has verified: an attacker can forge the header and payload of a token, \
                     and so bind it before its owner does",
                    "put `bearer` with `static`, `jwt`, `introspection` or `forward_auth` before it, or set `confirm: upstream`",
                );
            } else if verified.iter().all(|checked| may_differ(checked, &bound)) {
                found.warn(
                    &place,
                    "`bearer` and `key_binding` read different places (`from`): a request with a verified token in one and any key in \
                     the other binds that key, because of `confirm: immediate`",
                    "give `key_binding` the `from` of `bearer`, or set `confirm: upstream`",
                );
            }
        }
    }
}

/// A place of a key: a header field, or the query (`None`).
type Place = Option<HeaderName>;

/// The places from which a filter reads a key.
fn places(item: &FilterItem, default: &[KeySource]) -> Vec<Place> {
    let named: Option<Vec<KeySource>> = item.config.get("from").and_then(|from| Vec::deserialize(from).ok());
    named.as_deref().unwrap_or(default).iter().filter_map(|source| source.header().ok()).collect()
}

/// Whether a request can carry a token that only `bearer` reads beside a key that only `key_binding` reads. A filter that reads
/// both places refuses two different keys.
fn may_differ(checked: &[Place], bound: &[Place]) -> bool {
    checked.iter().any(|place| !bound.contains(place)) && bound.iter().any(|place| !checked.contains(place))
}

/// Whether the filter verifies each token, and not only its form. With `on_failure: open` a token passes unverified while
/// the issuer cannot be reached.
fn verifies(item: &FilterItem) -> bool {
    let Some(modes) = item.config.get("accept").and_then(Value::as_array) else { return false };
    let passes = |mode: &Value| mode.as_str() == Some("well_formed") || mode.get("well_formed").is_some() || has_open_failure(mode);
    item.name == "bearer" && !item.shadow && !modes.iter().any(passes)
}

fn has_open_failure(mode: &Value) -> bool {
    let options = mode.as_object().into_iter().flat_map(|mode| mode.values());
    options.flat_map(|options| options.get("on_failure")).any(|choice| choice.as_str() == Some("open"))
}
