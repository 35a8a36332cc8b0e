//! Checks the invariants of the code map by reading the source: which folders may use which APIs, and the parts that each
//! file and filter must have.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keylatch_filters::ALL;
use keylatch_filters::contract::{Keep, Site};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, extension, found);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push((path.strip_prefix(root()).unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), extension, &mut found);
    found.sort();
    assert!(!found.is_empty());
    found
}

/// The code of a file, without comments and without its tests.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Asserts that the words occur only in the allowed folders.
fn only_in(words: &[&str], allowed: &[&str], why: &str) {
    let mut strays = Vec::new();
    for (path, text) in files("src", "rs").into_iter().chain(files("filters", "rs")) {
        let named = words.iter().find(|word| code(&text).contains(**word));
        if let Some(word) = named
            && !allowed.iter().any(|place| path.starts_with(place))
        {
            strays.push(format!("{}: `{word}`", path.display()));
        }
    }
    assert!(strays.is_empty(), "{why}: {strays:?}");
}

#[test]
fn apis_are_used_in_their_folders() {
    only_in(
        &["proxy::Session", "HttpSession", "ServerSession"],
        &["src/http_proxy", "src/listener/conn", "src/server"],
        "a filter sees contexts, never a session",
    );
    only_in(&["custom::server"], &["src/http_proxy/timed_session.rs"], "only one file uses this hidden trait of Pingora");
    only_in(&["sqlx::", "SELECT ", "INSERT INTO"], &["src/sql", "src/bindings/tests"], "SQL belongs to the stores");
    only_in(&["saphyr", "serde_yaml"], &["src/config"], "YAML belongs to the configuration");
    only_in(&["axum::"], &["src/admin", "src/cli/demo_upstream.rs"], "HTTP handlers belong to the admin listener");
    only_in(&["snapshot.store("], &["src/reload.rs"], "the snapshot has one writer");
    only_in(
        &["std::env::", "env::var"],
        &["src/cli", "src/compile/mod.rs", "src/config/mod.rs", "src/control", "src/process", "src/telemetry/logs.rs"],
        "only the outer layers read the environment",
    );
    only_in(
        &["SystemTime::now()", "Instant::now()"],
        &["src", "filters/contract/context.rs", "filters/limiting/gcra.rs"],
        "filters receive the time as an input",
    );
}

#[test]
fn filters_do_no_io() {
    for (path, text) in files("filters", "rs") {
        for word in ["tokio::", "std::fs", "std::net::Tcp", "pingora::", "keylatch::", "reqwest", "std::thread::"] {
            // The parser of expressions needs a stack of its own.
            let own_stack = word == "std::thread::" && path.ends_with("expression/parse.rs");
            assert!(own_stack || !code(&text).contains(word), "{}: filters do I/O through ports, not by `{word}`", path.display());
        }
    }
}

#[test]
fn every_file_has_a_header() {
    for (path, text) in
        files("src", "rs").into_iter().chain(files("filters", "rs")).chain(files("tests", "rs")).chain(files("benches", "rs"))
    {
        assert!(text.starts_with("//!"), "{} needs a header that states its purpose", path.display());
    }
    for (path, text) in files("tests", "py").into_iter().chain(files("benches", "py")) {
        assert!(text.starts_with("\"\"\""), "{} needs a header that states its purpose", path.display());
    }
}

#[test]
fn files_stay_small() {
    for (path, text) in files("src", "rs").into_iter().chain(files("filters", "rs")) {
        let lines = text.split("#[cfg(test)]").next().unwrap_or(&text).lines().count();
        let most = if path.ends_with("timed_session.rs") { 600 } else { 450 };
        assert!(lines <= most, "{} has {lines} lines without its tests, of at most {most}; split it", path.display());
    }
    let main = std::fs::read_to_string(root().join("src/main.rs")).unwrap();
    assert!(main.lines().count() < 80);
}

/// Compares registry entries with their files: names, manuals, examples, and declared hooks with overridden methods.
#[test]
fn every_filter_is_complete() {
    let mut names = BTreeSet::new();
    for kind in ALL {
        let name = kind.name;
        assert!(names.insert(name), "two filters are named {name}");
        let manual = kind.manual();
        assert!(manual.starts_with(&format!("# {name}\n")), "the manual of {name} must begin with its name");
        let example = manual.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
        let example = example.unwrap_or_else(|| panic!("the manual of {name} has no example"));
        compile(name, example);
        for (hook, declared) in [
            ("async fn request(", kind.hooks.request),
            ("fn request_body(", kind.hooks.request_body),
            ("fn upstream_request(", kind.hooks.upstream_request),
            ("    fn response(", kind.hooks.response),
            ("fn response_body(", kind.hooks.response_body),
            ("fn log(", kind.hooks.log),
        ] {
            let overridden = code(kind.source).contains(hook);
            assert_eq!(overridden, declared, "{name}: `{hook}` is overridden: {overridden}, declared in HOOKS: {declared}");
        }
    }
}

/// Compiles the example of a manual with the real loader.
fn compile(name: &str, example: &str) {
    let indented: String = example.lines().map(|line| format!("    {line}\n")).collect();
    // Examples with shared limits need Redis.
    let redis = if example.contains("scope: shared") { "redis: {url: \"redis://127.0.0.1:1\"}\n" } else { "" };
    // Budgets need prices, and the usage that they count.
    let (prices, usage) = if name == "budget" { ("prices: {models: [{model: \"*\", input: 1}]}\n", "  - usage: {}\n") } else { ("", "") };
    let text = format!(
        "{prices}{redis}listeners: [{{address: \"127.0.0.1:1\"}}]\nupstreams: [{{name: u, servers: [{{address: \"127.0.0.1:2\"}}]}}]\nroutes: [{{name: r, upstream: u}}]\nfilters:\n{usage}  -\n{indented}"
    );
    let parsed = keylatch::config::parse(Path::new("example"), &text, &|_| None).unwrap_or_else(|report| panic!("{name}: {report}"));
    let compiled = keylatch::compile::Compiler::new(keylatch::compile::check_ports()).compile(parsed);
    let snapshot = compiled.unwrap_or_else(|report| panic!("{name}: {report}"));
    assert_eq!(snapshot.routes[0].chain.names().last().map(|(last, _)| last), Some(name));
}

#[test]
fn configurations_refuse_unknown_keys() {
    struct NoFiles;
    impl keylatch_filters::contract::Resolve for NoFiles {
        fn file(&self, path: &str) -> Result<String, keylatch_filters::contract::Invalid> {
            Err(keylatch_filters::contract::Invalid::new(path))
        }
    }
    for kind in ALL {
        let ports = keylatch::compile::check_ports();
        let mut site = Site {
            place: "test".into(),
            trusted: Default::default(),
            prices: Default::default(),
            keep: &Keep::default(),
            ports: &ports,
            resolve: &NoFiles,
            uses_shared_counters: &Default::default(),
            reads_usage: &std::cell::Cell::new(true),
            budgets: &Default::default(),
            limits: &Default::default(),
            routes: &[],
            more_errors: &Default::default(),
        };
        // Some filters take a list.
        let map = serde_json::json!({ "no_such_key": 1 });
        let says = |error: &keylatch_filters::contract::Invalid| error.message.contains("no_such_key");
        let error = (kind.compile)(map.clone(), &mut site).err().filter(says).or_else(|| (kind.compile)(vec![map].into(), &mut site).err());
        assert!(error.is_some_and(|error| error.message.contains("no_such_key")), "{} accepts unknown keys", kind.name);
    }
}

/// The worked example of CONTRIBUTING.md is this file, compiled and run here.
#[path = "support/worked_example.rs"]
mod worked_example;

#[test]
fn the_guide_contains_the_compiled_example() {
    let guide = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let example = include_str!("support/worked_example.rs");
    let shown = guide.split("````rust\n").nth(1).and_then(|rest| rest.split("````").next()).expect("CONTRIBUTING.md has the example");
    assert_eq!(shown.trim(), example.trim(), "CONTRIBUTING.md and tests/support/worked_example.rs differ");
}

/// Words that make a sentence hard to read for a reader who is not a native speaker; the name of the thing is clearer.
#[test]
fn prose_names_things() {
    const WORDS: [&str; 8] = ["whoever", "somebody", "nobody", "whom", "whose", "he", "him", "his"];
    let folders =
        [("src", "rs"), ("src/console", "js"), ("filters", "rs"), ("tests", "py"), ("tests", "rs"), ("config", "yaml"), ("docs", "md")];
    let mut found = Vec::new();
    for (path, text) in folders.into_iter().flat_map(|(folder, extension)| files(folder, extension)) {
        // Vendored code, the other language, and the list above.
        if path.starts_with("src/console/vendor") || path.ends_with("zh.js") || path.ends_with("tidy.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let line = line.to_lowercase();
            let words: BTreeSet<&str> = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect();
            found.extend(
                WORDS.iter().filter(|word| words.contains(**word)).map(|word| format!("{}:{}: {word}", path.display(), number + 1)),
            );
        }
    }
    assert!(found.is_empty(), "say what it is:\n{}", found.join("\n"));
}
