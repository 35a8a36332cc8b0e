//! Prints a parsed configuration as YAML with its secrets masked; the schema marks them. Never
//! resolves a secret.

use keylatch_filters::contract::SecretRef;
use serde_json::Value as Json;

use super::yaml::{Key, Node, Value};

/// The text in place of a secret.
const MASK: &str = "••••••••";
/// The schema of secrets.
const SECRET: &str = "#/$defs/Secret";

/// The whole tree. Secrets are masked, except `file:` with its path.
pub fn text(tree: &Node, schema: &Json) -> String {
    // Pingora brings this archived crate in any case. Only its writer is used; `yaml.rs` reads.
    serde_yaml::to_string(&value(tree, &[schema], schema)).unwrap_or_else(|e| format!("# cannot be printed: {e}\n"))
}

/// A value with its secrets masked. `schemas`: the schemas that it may be parsed with.
fn value(tree: &Node, schemas: &[&Json], root: &Json) -> Json {
    let mut known = Vec::new();
    let secret = schemas.iter().fold(false, |secret, schema| secret | unfold(schema, root, &mut known));
    match &tree.value {
        Value::Scalar { text, .. } if secret && !text.starts_with("file:") && !tree.is_null() => Json::String(masked(text)),
        Value::Scalar { text, .. } => url_without_secrets(text).map_or_else(|| tree.to_json(), Json::String),
        Value::List(items) => items.iter().map(|item| value(item, &items_of(&known), root)).collect(),
        Value::Map(entries) => {
            let masked = |(key, node): &(Key, Node)| (key.name.clone(), value(node, &behind(&known, &key.name), root));
            entries.iter().map(masked).collect()
        }
    }
}

/// The schemas of the items of a list.
fn items_of<'a>(known: &[&'a Json]) -> Vec<&'a Json> {
    known.iter().filter_map(|schema| schema.get("items")).collect()
}

/// The schemas of the value of a key.
fn behind<'a>(known: &[&'a Json], key: &str) -> Vec<&'a Json> {
    let of = |schema: &'a Json| schema.get("properties").and_then(|all| all.get(key)).or_else(|| schema.get("additionalProperties"));
    known.iter().filter_map(|schema| of(schema)).collect()
}

/// All secrets with their places.
pub fn secrets(tree: &Node, schema: &Json) -> Vec<(Vec<String>, SecretRef)> {
    let mut found = Vec::new();
    collect(tree, &[schema], schema, &mut Vec::new(), &mut found);
    found
}

fn collect(tree: &Node, schemas: &[&Json], root: &Json, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, SecretRef)>) {
    let mut known = Vec::new();
    let secret = schemas.iter().fold(false, |secret, schema| secret | unfold(schema, root, &mut known));
    match &tree.value {
        Value::Scalar { text, .. } if secret && !tree.is_null() => found.push((path.clone(), SecretRef::new(text.as_str()))),
        Value::Scalar { .. } => {}
        Value::List(items) => {
            let below = items_of(&known);
            for (index, item) in items.iter().enumerate() {
                path.push(format!("[{index}]"));
                collect(item, &below, root, path, found);
                path.pop();
            }
        }
        Value::Map(entries) => {
            for (key, value) in entries {
                path.push(key.name.clone());
                collect(value, &behind(&known, &key.name), root, path, found);
                path.pop();
            }
        }
    }
}

/// Collects the schemas that a schema stands for. Returns whether one of them is the secret.
fn unfold<'a>(schema: &'a Json, root: &'a Json, known: &mut Vec<&'a Json>) -> bool {
    let mut secret = false;
    if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
        secret |= reference == SECRET;
        if let Some(meant) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer))
            && !known.iter().any(|one| std::ptr::eq(*one, meant))
        {
            secret |= unfold(meant, root, known);
        }
    }
    for several in ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|name| schema.get(name)?.as_array()) {
        secret |= several.iter().fold(false, |secret, one| secret | unfold(one, root, known));
    }
    known.push(schema);
    secret
}

/// Masks a secret. Of a database URL, only the password and the query are masked. Other URLs are
/// masked as a whole: the path of a webhook is often its secret.
fn masked(text: &str) -> String {
    let database = |scheme: &str| ["postgres", "postgresql", "redis", "rediss"].contains(&scheme);
    let parts = text.split_once("://").filter(|(scheme, _)| database(scheme)).and_then(|(scheme, rest)| {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = authority.rsplit_once('@')?;
        let user = user.split_once(':').map_or(MASK, |(user, _)| user);
        Some(format!("{scheme}://{user}:{MASK}@{host}/{}", path.split('?').next().unwrap_or_default()))
    });
    parts.unwrap_or_else(|| MASK.to_owned())
}

/// A web address with its user, password and query masked; `None`: it has none of them.
fn url_without_secrets(text: &str) -> Option<String> {
    let (scheme, rest) =
        text.split_once("://").filter(|(scheme, _)| ["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web)))?;
    let (before, query) = rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
    let (authority, path) = before.split_at(before.find('/').unwrap_or(before.len()));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if user.is_none() && query.is_none() {
        return None;
    }
    let user = if user.is_some() { format!("{MASK}@") } else { String::new() };
    let query = if query.is_some() { format!("?{MASK}") } else { String::new() };
    Some(format!("{scheme}://{user}{host}{path}{query}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn credentials_and_queries_of_urls_are_masked() {
        for (text, shown) in [
            ("https://id.example.com/introspect", None),
            ("https://u:p@id.example.com/introspect", Some("https://••••••••@id.example.com/introspect")),
            ("http://127.0.0.1:1/x?token=s", Some("http://127.0.0.1:1/x?••••••••")),
            ("https://a@b?c", Some("https://••••••••@b?••••••••")),
            ("HTTPS://a:b@c/d?e", Some("HTTPS://••••••••@c/d?••••••••")),
            ("/path?x", None),
            ("postgres://u:p@h/d", None),
        ] {
            assert_eq!(super::url_without_secrets(text).as_deref(), shown, "{text}");
        }
    }

    use super::super::{parse, schema};

    #[test]
    fn secrets_are_masked_and_the_rest_reads_the_same() {
        let text = r#"
listeners: [{address: "127.0.0.1:1", limits: {header_bytes: 8KiB, headers: 50}}]
storage: {postgres: {url: "postgres://kl:hunter2@db.internal:5432/keylatch?sslmode=verify-full"}}
secrets: {key_hmac: "hunter2-0123456789abcdef0123456789", previous: ["hunter2-b", "file:old.secret"]}
alerts: {intercepts: {count: 5}, webhooks: [{name: ops, url: "https://user:pw@hooks.example/hunter2", secret: hunter2c}]}
upstreams: [{name: u, servers: [{address: "127.0.0.1:2"}]}]
filters: [{client_ip: {}}, {headers: {request: {set: {Authorization: "Bearer hunter2"}, remove: [x-a]}}}]
routes:
  - {name: "yes: no", match: {paths: ["/v1/*", '5', 'null', 0x10, 1.50, 010, '# a', ' b ', 'yes', "a\nb"]}, upstream: u, filters: []}
  - name: own
    upstream: u
    filters: [{headers: {request: {set: {Authorization: "Bearer hunter2-of-the-route"}}}, shadow: true}]
"#;
        let parsed = parse(Path::new("k.yaml"), text, &|_| None).unwrap();
        let shown = parsed.masked();
        assert!(!shown.contains("hunter2"), "{shown}");
        for kept in ["postgres://kl:••••••••@db.internal:5432/keylatch", "file:old.secret", "headers: 50", "name: ops", "client_ip: {}"]
        {
            assert!(shown.contains(kept), "{kept} in {shown}");
        }
        let again = parse(Path::new("k.yaml"), &shown, &|_| None).unwrap_or_else(|e| panic!("{e}\n{shown}"));
        assert_eq!(again.masked(), shown);
        assert_eq!(again.tree.get("routes").unwrap().to_json()[0], parsed.tree.get("routes").unwrap().to_json()[0]);
        assert!(schema().pointer("/$defs/Secret").is_some(), "secrets are found by this name");
        let places: Vec<String> = parsed.secrets().into_iter().map(|(place, _)| place).collect();
        assert_eq!(
            places,
            [
                "storage.postgres.url",
                "secrets.key_hmac",
                "secrets.previous[0]",
                "secrets.previous[1]",
                "alerts.webhooks[0].url",
                "alerts.webhooks[0].secret",
                "filters[1].headers.request.set.Authorization",
                "routes[1].filters[0].headers.request.set.Authorization"
            ]
        );
    }
}
