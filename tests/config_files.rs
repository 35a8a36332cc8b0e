//! Invalid configurations get exact error reports, and shipped configurations are valid.

use std::path::Path;

use keylatch::compile::{Compiler, check_ports};
use keylatch::config::{parse, schema};

/// A valid file, the base of the cases.
const GOOD: &str = "\
listeners:
  - address: 127.0.0.1:8080
upstreams:
  - name: model
    servers:
      - address: 127.0.0.1:3000
filters:
  - client_ip: {}
routes:
  - name: api
    match: {paths: [/v1/*]}
    upstream: model
    filters:
      - rate_limit:
          per: key
          limit: 60/min
";

fn report(text: &str) -> String {
    let env = |name: &str| (name == "SET").then(|| "value".to_owned());
    let parsed = match parse(Path::new("k.yaml"), text, &env) {
        Ok(parsed) => parsed,
        Err(report) => return report.to_string(),
    };
    match Compiler::new(check_ports()).compile(parsed) {
        Ok(_) => "fine".into(),
        Err(report) => report.to_string(),
    }
}

#[test]
fn the_base_file_is_valid() {
    assert_eq!(report(GOOD), "fine");
}

#[test]
fn invalid_files_get_the_expected_reports() {
    let cases = include_str!("broken.txt");
    let (mut count, mut wrong) = (0, String::new());
    for case in cases.split("\n\n").filter(|case| !case.trim().is_empty() && !case.starts_with('#')) {
        let (change, expected) = case.split_once("\n=> ").expect("a case is a change and `=> `");
        let (from, to) = change.split_once(" >>> ").expect("a change is `from >>> to`");
        let unescape = |text: &str| text.replace("\\n", "\n");
        let (from, to) = (unescape(from), unescape(to));
        let text = if from == "*" { to } else { GOOD.replacen(&from, &to, 1) };
        assert!(from == "*" || text != GOOD, "changes nothing: {change}");
        let expected = expected.trim_end().replace("\n=> ", "\n");
        let said = report(&text);
        if said != expected {
            wrong.push_str(&format!("{change}\n=> {}\n\n", said.replace('\n', "\n=> ")));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "these cases report something else:\n\n{wrong}");
    assert!(count >= 40, "only {count} cases");
}

#[test]
fn every_shipped_file_is_valid() {
    let mut count = 0;
    let folders = [concat!(env!("CARGO_MANIFEST_DIR"), "/config"), concat!(env!("CARGO_MANIFEST_DIR"), "/config/recipes")];
    for entry in folders.into_iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            // Values without a default come from the environment of a container.
            let text = std::fs::read_to_string(&path).unwrap();
            let env = |name: &str| match name {
                "KEYLATCH_DATABASE_URL" => Some("postgres://a:b@127.0.0.1/c".to_owned()),
                "KEYLATCH_REDIS_URL" => Some("redis://127.0.0.1".to_owned()),
                "KEYLATCH_KEY_HMAC" | "TOKEN_SHA256" => Some("0123456789abcdef".repeat(4)),
                name if name.ends_with("_API_KEY") => Some("key-of-the-provider".to_owned()),
                _ => None,
            };
            let parsed = parse(&path, &text, &env).unwrap_or_else(|report| panic!("{report}"));
            Compiler::new(check_ports()).compile(parsed).map(|_| ()).unwrap_or_else(|report| panic!("{report}"));
            count += 1;
        }
    }
    assert!(count >= 17, "only {count} files");
}

#[test]
fn the_schema_has_every_section_and_filter() {
    let schema = schema();
    for section in
        ["listeners", "admin", "trusted_proxies", "storage", "secrets", "log", "shutdown", "workers", "upstreams", "filters", "routes"]
    {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
    let items = &schema["$defs"]["FilterItem"]["properties"];
    for kind in keylatch_filters::ALL {
        assert!(items[kind.name].is_object(), "{}", kind.name);
    }
}

/// The reference file names every key of every section, so that operators can find it.
#[test]
fn the_reference_names_every_key() {
    let reference = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/keylatch.yaml")).unwrap();
    let schema = schema();
    let mut missing = Vec::new();
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        // The modes of `bearer` and the changes of `headers` are documented in `keylatch filters`.
        if ["JwtConfig", "StaticConfig", "StaticToken", "KeyConfig", "HeaderChanges", "Mode"].contains(&name.as_str()) {
            continue;
        }
        for key in definition["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            if !reference.contains(&format!("{key}:")) {
                missing.push(format!("{name}.{key}"));
            }
        }
    }
    missing.extend(missing_keys_of_filters(&reference, &schema));
    assert!(missing.is_empty(), "not in config/keylatch.yaml: {missing:?}");
}

/// The keys of filters that are not named between the name of their filter and that of the next one.
fn missing_keys_of_filters(reference: &str, schema: &serde_json::Value) -> Vec<String> {
    let Some(filters) = schema["$defs"]["FilterItem"]["properties"].as_object() else { return vec!["FilterItem".into()] };
    let mut sections: Vec<(usize, &str)> = Vec::new();
    for name in filters.keys() {
        for start in [format!("- {name}:"), format!("- {{{name}:")] {
            sections.extend(reference.match_indices(&start).map(|(at, _)| (at, name.as_str())));
        }
    }
    sections.sort_unstable();
    let ends = sections.iter().skip(1).map(|(at, _)| *at).chain([reference.len()]);
    let sections: Vec<(&str, &str)> = sections.iter().zip(ends).map(|((at, name), end)| (*name, &reference[*at..end])).collect();
    let named = |filter: &str, key: &str| sections.iter().any(|(name, text)| *name == filter && text.contains(&format!("{key}:")));
    let resolved = |form: &serde_json::Value| match form["$ref"].as_str() {
        Some(path) => schema["$defs"][path.rsplit('/').next().unwrap_or_default()].clone(),
        None => form.clone(),
    };
    let mut missing = Vec::new();
    for (filter, definition) in filters {
        let forms = definition["anyOf"].as_array().cloned().unwrap_or_else(|| vec![definition.clone()]);
        for form in forms.iter().map(resolved) {
            let keys = form["properties"].as_object().into_iter().flatten().map(|(key, _)| key);
            missing.extend(keys.filter(|key| !named(filter, key)).map(|key| format!("{filter}.{key}")));
        }
    }
    missing
}
