//! Tests of the import graph, by `use` lines and `crate::` paths: `src` has no cycles between folders or files, its lowest
//! folders import only folders below them, and filters do not import each other.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Every module below `root` (`src` or `filters`) with its code. Tests and comments are without tests.
fn modules(root: &str) -> BTreeMap<String, String> {
    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let joined = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
            if path.is_dir() && name != "tests" {
                walk(&path, &joined(&name), found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !name.ends_with("tests") {
                let module = if matches!(name.as_str(), "mod" | "lib" | "main") { prefix.to_owned() } else { joined(&name) };
                let text = std::fs::read_to_string(&path).unwrap();
                let code: String = text.lines().take_while(|line| *line != "#[cfg(test)]").map(|line| uncommented(line) + "\n").collect();
                found.insert(module, code);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root), "", &mut found);
    found.remove("");
    found
}

fn uncommented(line: &str) -> String {
    line.split("//").next().unwrap_or_default().to_owned()
}

/// The paths of a `use` tree: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn leaves(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else { return vec![tree.split(" as ").next().unwrap_or(tree).trim().to_owned()] };
    let body = &rest[..rest.rfind('}').unwrap_or(rest.len())];
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for letter in body.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(letter);
    }
    parts.iter().filter(|part| !part.trim().is_empty()).flat_map(|part| leaves(&format!("{head}{}", part.trim()))).collect()
}

/// The imports of a module: paths that begin with `crate`, `super` or `self`, made absolute.
fn imports(module: &str, code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let statement = statement.trim_start();
        let start = statement.rfind("\nuse ").map(|at| at + 1).or_else(|| statement.find("use ").filter(|at| *at < 12));
        match start {
            Some(at) => paths.extend(leaves(statement[at..].trim_start_matches("use ").trim())),
            None => paths.extend(inline(statement)),
        }
    }
    let absolute = |path: String| -> Option<String> {
        let mut base: Vec<&str> = module.split("::").collect();
        let mut parts: Vec<&str> = path.split("::").collect();
        match parts.first().copied()? {
            "crate" => return Some(parts[1..].join("::")),
            "super" | "self" => {
                while let Some(first) = parts.first().copied().filter(|part| matches!(*part, "super" | "self")) {
                    if first == "super" {
                        base.pop();
                    }
                    parts.remove(0);
                }
            }
            _ => return None,
        }
        base.extend(parts);
        Some(base.join("::"))
    };
    paths.into_iter().filter_map(absolute).collect()
}

/// The `crate::` and `super::` paths outside `use` lines.
fn inline(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':') {
                continue;
            }
            let end = code[at..].find(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == ':'));
            found.push(code[at..end.map_or(code.len(), |end| at + end)].trim_end_matches(':').to_owned());
        }
    }
    found
}

/// The import graph of files. Declarations and re-exports of submodules in `mod.rs` count as no import.
fn files() -> Graph {
    let modules = modules("src");
    let known = |path: &str| -> Option<String> {
        let mut parts: Vec<&str> = path.split("::").collect();
        while !parts.is_empty() {
            let name = parts.join("::");
            if modules.contains_key(&name) {
                return Some(name);
            }
            parts.pop();
        }
        None
    };
    let edges = |(module, code): (&String, &String)| {
        let targets = imports(module, code).iter().filter_map(|path| known(path)).filter(|target| target != module).collect();
        (module.clone(), targets)
    };
    modules.iter().map(edges).collect()
}

fn folders(files: &Graph) -> Graph {
    let top = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    let mut folders = Graph::new();
    for (module, targets) in files {
        let folder = folders.entry(top(module)).or_default();
        folder.extend(targets.iter().map(|target| top(target)).filter(|target| *target != top(module)));
    }
    folders
}

/// The modules in cycles, or with imports that lead into one. Removes modules without remaining imports until none is left to remove.
fn cycle(graph: &Graph) -> BTreeSet<String> {
    let mut left: BTreeSet<String> = graph.keys().cloned().collect();
    loop {
        let (inner, outer): (BTreeSet<String>, BTreeSet<String>) =
            left.iter().cloned().partition(|module| graph[module].iter().any(|target| left.contains(target)));
        if outer.is_empty() {
            return inner;
        }
        left = inner;
    }
}

#[test]
fn folders_form_layers() {
    let folders = folders(&files());
    assert!(folders.len() > 15, "{folders:?}");
    let rest = cycle(&folders);
    let edges: Vec<_> = rest.iter().map(|folder| (folder, folders[folder].intersection(&rest).collect::<Vec<_>>())).collect();
    assert!(edges.is_empty(), "import cycle among folders: {edges:?}");
}

#[test]
fn files_form_layers() {
    let files = files();
    assert!(files.len() > 200);
    let rest = cycle(&files);
    let edges: Vec<_> = rest.iter().map(|file| (file, files[file].intersection(&rest).collect::<Vec<_>>())).collect();
    assert!(edges.is_empty(), "import cycle among files: {edges:?}");
}

#[test]
fn the_lowest_folders_import_only_folders_below() {
    let folders = folders(&files());
    let allowed = [("util", &[][..]), ("config", &["util"][..]), ("sql", &["config", "util"]), ("redis", &["config", "sql", "util"])];
    for (folder, below) in allowed {
        let strays: Vec<_> = folders[folder].iter().filter(|target| !below.contains(&target.as_str())).collect();
        assert!(strays.is_empty(), "`{folder}` imports {strays:?}");
    }
}

/// Filters share code through `contract`, `expression` and `limiting`. No filter imports another filter.
#[test]
fn filters_do_not_import_each_other() {
    let modules = modules("filters");
    let top = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    let filters: BTreeSet<String> = keylatch_filters::ALL.iter().map(|kind| kind.name.to_owned()).collect();
    let strays = |module: &str, code: &str| -> Vec<String> {
        let others = |path: &String| filters.contains(&top(path)) && top(path) != top(module);
        imports(module, code).into_iter().filter(others).collect()
    };
    for filter in &filters {
        assert!(modules.keys().any(|module| top(module) == *filter), "the filter `{filter}` has no module of its name");
    }
    for (module, code) in &modules {
        let strays = strays(module, code);
        assert!(strays.is_empty(), "`filters::{module}` imports {strays:?}; move shared code to `contract` or `limiting`");
    }
    assert_eq!(strays("cors", "use crate::rules::config::Rule;"), ["rules::config::Rule"]);
    assert!(strays("rules::config", "use super::Rule;\nuse crate::contract::Site;").is_empty());
}

#[test]
fn use_trees_are_read() {
    assert_eq!(leaves("a::{b, c::{d as x, e}}"), ["a::b", "a::c::d", "a::c::e"]);
    assert_eq!(imports("m::n", "use super::{o, p::Q};\nfn f() { crate::x::y() }"), ["m::o", "m::p::Q", "x::y"]);
    let mut graph: Graph = [("a", "b"), ("b", "c"), ("c", "b")].map(|(from, to)| (from.to_owned(), [to.to_owned()].into())).into();
    assert_eq!(cycle(&graph).len(), 3, "modules that lead into a cycle are reported with it");
    graph.insert("c".to_owned(), BTreeSet::new());
    assert_eq!(cycle(&graph), BTreeSet::new());
}
