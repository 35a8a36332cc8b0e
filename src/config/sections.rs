//! From the tree to the types of [`super::model`]: every section and every item of a list on its own,
//! so that one mistake does not hide the next.

use keylatch_filters::ALL;
use keylatch_filters::contract::{Invalid, decode as decode_value};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::Report;
use super::model::{FilterItem, Match, RouteSettings, Settings};
use super::report::nearest;
use super::yaml::{Node, Value};

const SECTIONS: [&str; 15] = [
    "listeners",
    "acme",
    "admin",
    "trusted_proxies",
    "storage",
    "redis",
    "secrets",
    "retention",
    "alerts",
    "log",
    "shutdown",
    "workers",
    "upstreams",
    "filters",
    "routes",
];
/// No honest piece has more mistakes than this; it only ends the search.
const MISTAKES_MAX: usize = 16;

/// Decodes all sections. What is wrong is told, and left out of what is returned as far as that goes, so
/// that the rest can be looked at too: then the report is not empty. `None`: there is no rest.
pub fn decode(tree: &Node, report: &mut Report) -> Option<Settings> {
    if !matches!(tree.value, Value::Map(_)) {
        report.add(tree.position, Vec::new(), "a configuration is a map of sections, beginning with `listeners:`");
        return None;
    }
    for (key, _) in tree.entries() {
        if !SECTIONS.contains(&key.name.as_str()) {
            report.add(key.position, Vec::new(), format!("unknown section `{}`{}", key.name, advice(&key.name, &SECTIONS)));
        }
    }
    let mut reader = Reader { tree, report };
    let listeners = reader.list("listeners");
    let admin = reader.section("admin");
    let trusted_proxies = reader.section("trusted_proxies");
    let storage = reader.section("storage");
    let acme = reader.section("acme");
    let redis = reader.section("redis");
    let secrets = reader.section("secrets");
    let retention = reader.section("retention");
    let alerts = reader.section("alerts");
    let log = reader.section("log");
    let shutdown = reader.section("shutdown");
    let workers = reader.section("workers");
    let upstreams = reader.list("upstreams");
    let filters = tree.get("filters").map_or_else(|| Some(Vec::new()), |node| reader.filters(node, &path(&["filters"])));
    let routes = reader.routes();
    Some(Settings {
        listeners: listeners.unwrap_or_default(),
        admin: admin.unwrap_or_default(),
        trusted_proxies: trusted_proxies.unwrap_or_default(),
        storage: storage.unwrap_or_default(),
        acme: acme.unwrap_or_default(),
        redis: redis.unwrap_or_default(),
        secrets: secrets.unwrap_or_default(),
        retention: retention.unwrap_or_default(),
        alerts: alerts.unwrap_or_default(),
        log: log.unwrap_or_default(),
        shutdown: shutdown.unwrap_or_default(),
        workers: workers.unwrap_or_default(),
        upstreams: upstreams.unwrap_or_default(),
        filters: filters.unwrap_or_default(),
        routes: routes.unwrap_or_default(),
    })
}

struct Reader<'a> {
    tree: &'a Node,
    report: &'a mut Report,
}

fn path(segments: &[&str]) -> Vec<String> {
    segments.iter().map(|segment| (*segment).to_owned()).collect()
}

fn below(path: &[String], segment: impl Into<String>) -> Vec<String> {
    let mut longer = path.to_vec();
    longer.push(segment.into());
    longer
}

fn advice(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; there are {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

impl Reader<'_> {
    /// A section that may be left out.
    fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> Option<T> {
        match self.tree.get(name) {
            Some(node) if !node.is_null() => self.piece(node, node.to_json(), &path(&[name])),
            _ => Some(T::default()),
        }
    }

    fn items<'n>(&mut self, name: &str, node: Option<&'n Node>, at: &[String]) -> Option<&'n [Node]> {
        match node.map(|node| (&node.value, node.position)) {
            Some((Value::List(items), position)) if items.is_empty() => {
                self.report.add(position, at.to_vec(), "the list is empty; at least one is needed");
                None
            }
            Some((Value::List(items), _)) => Some(items),
            Some((_, position)) => {
                self.report.add(position, at.to_vec(), "a list is needed here: items that begin with `- `");
                None
            }
            None => {
                self.report.add(self.tree.position, Vec::new(), format!("the section `{name}` is missing"));
                None
            }
        }
    }

    fn list<T: DeserializeOwned>(&mut self, name: &str) -> Option<Vec<T>> {
        let at = path(&[name]);
        let items = self.items(name, self.tree.get(name), &at)?;
        let decoded: Vec<Option<T>> =
            items.iter().enumerate().map(|(index, node)| self.piece(node, node.to_json(), &below(&at, format!("[{index}]")))).collect();
        decoded.into_iter().collect()
    }

    fn routes(&mut self) -> Option<Vec<RouteSettings>> {
        let at = path(&["routes"]);
        let items = self.items("routes", self.tree.get("routes"), &at)?;
        let mut routes = Vec::new();
        for (index, node) in items.iter().enumerate() {
            let at = below(&at, format!("[{index}]"));
            let mut json = node.to_json();
            // The filters are decoded one by one, each under its own name.
            if let Json::Object(map) = &mut json {
                map.shift_remove("filters");
            }
            let filters = node.get("filters").map_or_else(|| Some(Vec::new()), |list| self.filters(list, &below(&at, "filters")));
            // One that is wrong keeps its place, so that its filters are looked at and those behind it stay what they are.
            let route = self.piece::<RouteSettings>(node, json, &at).unwrap_or_else(|| RouteSettings {
                name: format!("routes[{index}]"),
                matches: Match::default(),
                upstream: String::new(),
                filters: Vec::new(),
                allow_encoded_slash: false,
                dialect: None,
            });
            routes.push(RouteSettings { filters: filters.unwrap_or_default(), ..route });
        }
        Some(routes)
    }

    fn filters(&mut self, node: &Node, at: &[String]) -> Option<Vec<FilterItem>> {
        let items = match &node.value {
            Value::List(items) => items,
            _ if node.is_null() => return Some(Vec::new()),
            _ => {
                self.report.add(node.position, at.to_vec(), "a list of filters is needed here: items that begin with `- `");
                return None;
            }
        };
        let decoded: Vec<_> = items.iter().enumerate().map(|(index, item)| self.filter(item, &below(at, format!("[{index}]")))).collect();
        decoded.into_iter().collect()
    }

    fn filter(&mut self, node: &Node, at: &[String]) -> Option<FilterItem> {
        let names: Vec<&str> = ALL.iter().map(|kind| kind.name).collect();
        let unknown = |name: &str| format!("unknown filter `{name}`{}", advice(name, &names));
        if let Value::Scalar { text, .. } = &node.value {
            let wrong = if names.contains(&text.as_str()) { format!("write `- {text}: {{}}`") } else { unknown(text) };
            self.report.add(node.position, at.to_vec(), wrong);
            return None;
        }
        let (mut found, mut shadow, mut all_well) = (None, false, true);
        for (key, value) in node.entries() {
            match key.name.as_str() {
                "shadow" => match value.to_json() {
                    Json::Bool(on) => shadow = on,
                    _ => {
                        self.report.add(value.position, below(at, "shadow"), "must be `true` or `false`");
                        all_well = false;
                    }
                },
                name if !names.contains(&name) => {
                    self.report.add(key.position, at.to_vec(), unknown(name));
                    all_well = false;
                }
                name if found.is_some() => {
                    self.report.add(key.position, at.to_vec(), format!("a second filter in one item; begin a new one with `- {name}:`"));
                    all_well = false;
                }
                name => found = Some((name, value)),
            }
        }
        let Some((name, value)) = found else {
            if all_well {
                self.report.add(node.position, at.to_vec(), format!("a filter is needed here{}", advice("", &names)));
            }
            return None;
        };
        // `client_ip:` with nothing under it is the filter with its defaults.
        let config = if value.is_null() { Json::Object(Map::new()) } else { value.to_json() };
        all_well.then(|| FilterItem { name: name.to_owned(), config, shadow })
    }

    /// Decodes one piece. After a mistake the place of it is taken out and the rest is tried again, so
    /// that all mistakes of a piece are told.
    fn piece<T: DeserializeOwned>(&mut self, node: &Node, mut json: Json, at: &[String]) -> Option<T> {
        let mut taken_out: Vec<String> = Vec::new();
        for _ in 0..MISTAKES_MAX {
            let invalid = match decode_value::<T>(json.clone()) {
                Ok(piece) if taken_out.is_empty() => return Some(piece),
                Ok(_) => return None,
                Err(invalid) => invalid,
            };
            // What is missing because it was taken out has been told already.
            let echo = taken_out.iter().any(|name| invalid.message == format!("missing field `{name}`"));
            if !echo {
                tell(self.report, node, at, &invalid);
            }
            match take_out(&mut json, &invalid.path) {
                Some(name) => taken_out.push(name),
                None => return None,
            }
        }
        None
    }
}

/// Adds what a decoder or a filter found wrong below `node`, which stands at `at`.
pub fn tell(report: &mut Report, node: &Node, at: &[String], invalid: &Invalid) {
    let mut path = at.to_vec();
    path.extend(invalid.path.iter().cloned());
    report.add(node.locate(&invalid.path), path, plainly(&invalid.message));
}

/// serde's sentences in our words, with a guess at what was meant. What was found is not repeated where it
/// may be anything: a secret in the wrong place must not end up in a log.
fn plainly(message: &str) -> String {
    if message == "invalid socket address syntax" {
        return "an address with its port is needed here, such as `127.0.0.1:8080` or `[::]:8080`; names are not resolved".into();
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{field} is missing");
    }
    let Some((wrong, known)) = message.split_once(", expected ") else { return message.to_owned() };
    let quoted: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    match wrong.split('`').nth(1) {
        Some(word) if wrong.starts_with("unknown field") => return format!("unknown key `{word}`{}", advice(word, &quoted)),
        Some(word) if wrong.starts_with("unknown variant") => return format!("unknown `{word}`{}", advice(word, &quoted)),
        _ => {}
    }
    match known {
        "a boolean" => "must be `true` or `false`".into(),
        "a sequence" => "a list is needed here, such as `[a, b]`".into(),
        "a string" => "text is needed here".into(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number is needed here".into(),
        "newtype variant" | "struct variant" => "needs its settings below it".into(),
        _ if known.starts_with("struct ") || known == "a map" => "a map of keys is needed here".into(),
        _ => format!("{known} is needed here"),
    }
}

/// Removes what stands at the path, and names it. `None` if there is nothing to remove.
fn take_out(json: &mut Json, path: &[String]) -> Option<String> {
    let (last, way) = path.split_last()?;
    let mut inside = json;
    for segment in way {
        inside = match inside {
            Json::Object(map) => map.get_mut(segment)?,
            Json::Array(items) => items.get_mut(segment.trim_matches(['[', ']']).parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    match inside {
        Json::Object(map) => map.shift_remove(last).map(|_| last.clone()),
        // Taking an item out would move the others: their places would be told wrongly.
        _ => None,
    }
}
