//! Decodes the tree into the types of [`super::model`], each section and each item of a list
//! separately, so that one error does not hide the next. Knows no meaning of a value.

use keylatch_filters::ALL;
use keylatch_filters::contract::{Invalid, decode as decode_value};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::Report;
use super::model::{FilterItem, Match, RouteSettings, Settings};
use super::report::nearest;
use super::yaml::{Node, Value};

const SECTIONS: [&str; 18] = [
    "listeners",
    "acme",
    "admin",
    "trusted_proxies",
    "storage",
    "redis",
    "secrets",
    "retention",
    "usage",
    "alerts",
    "prices",
    "log",
    "shutdown",
    "workers",
    "scheduling",
    "upstreams",
    "filters",
    "routes",
];
/// The maximum number of errors reported for one section or item.
const MISTAKES_MAX: usize = 16;

/// Decodes all sections. Invalid parts are reported and left out as far as possible, so that the
/// rest can be checked. `None`: nothing is left to check.
pub fn decode(tree: &Node, report: &mut Report) -> Option<Settings> {
    if !matches!(tree.value, Value::Map(_)) {
        report.add(tree.position, Vec::new(), "the configuration must be a map of sections, such as `listeners:`");
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
    let usage = reader.section("usage");
    let alerts = reader.section("alerts");
    let prices = reader.section("prices");
    let log = reader.section("log");
    let shutdown = reader.section("shutdown");
    let workers = reader.section("workers");
    let scheduling = reader.section("scheduling");
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
        usage: usage.unwrap_or_default(),
        alerts: alerts.unwrap_or_default(),
        prices: prices.unwrap_or_default(),
        log: log.unwrap_or_default(),
        shutdown: shutdown.unwrap_or_default(),
        workers: workers.unwrap_or_default(),
        scheduling: scheduling.unwrap_or_default(),
        upstreams: upstreams.unwrap_or_default(),
        filters: filters.unwrap_or_default(),
        routes: routes.unwrap_or_default(),
    })
}

/// Decodes a file that is a list.
pub fn decode_list<T: DeserializeOwned>(tree: &Node, report: &mut Report) -> Option<Vec<T>> {
    let Value::List(items) = &tree.value else {
        report.add(tree.position, Vec::new(), "must be a list, with items that begin with `- `");
        return None;
    };
    let mut reader = Reader { tree, report };
    let each = |(index, node): (usize, &Node)| reader.piece(node, node.to_json(), &path(&[&format!("[{index}]")]));
    // All items, so that one error does not hide the next.
    let decoded: Vec<Option<T>> = items.iter().enumerate().map(each).collect();
    decoded.into_iter().collect()
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
        None => format!("; expected one of {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

impl Reader<'_> {
    /// An optional section.
    fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> Option<T> {
        match self.tree.get(name) {
            Some(node) if !node.is_null() => self.piece(node, node.to_json(), &path(&[name])),
            _ => Some(T::default()),
        }
    }

    fn items<'n>(&mut self, name: &str, node: Option<&'n Node>, at: &[String]) -> Option<&'n [Node]> {
        match node.map(|node| (&node.value, node.position)) {
            Some((Value::List(items), position)) if items.is_empty() => {
                self.report.add(position, at.to_vec(), "the list is empty; at least one item is required");
                None
            }
            Some((Value::List(items), _)) => Some(items),
            Some((_, position)) => {
                self.report.add(position, at.to_vec(), "must be a list, with items that begin with `- `");
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
            // Filters are decoded one by one, each by its own name.
            if let Json::Object(map) = &mut json {
                map.shift_remove("filters");
            }
            let filters = node.get("filters").map_or_else(|| Some(Vec::new()), |list| self.filters(list, &below(&at, "filters")));
            // An invalid route keeps its index, so that its filters are checked and later routes
            // keep theirs.
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
                self.report.add(node.position, at.to_vec(), "must be a list of filters, with items that begin with `- `");
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
                    self.report.add(key.position, at.to_vec(), format!("the item has a second filter; start a new item with `- {name}:`"));
                    all_well = false;
                }
                name => found = Some((name, value)),
            }
        }
        let Some((name, value)) = found else {
            if all_well {
                self.report.add(node.position, at.to_vec(), format!("the item has no filter{}", advice("", &names)));
            }
            return None;
        };
        // `client_ip:` without a value is the filter with its defaults.
        let config = if value.is_null() { Json::Object(Map::new()) } else { value.to_json() };
        all_well.then(|| FilterItem { name: name.to_owned(), config, shadow })
    }

    /// Decodes one section or item. After an error, the invalid value is removed and the rest is
    /// decoded again, so that all errors are reported.
    fn piece<T: DeserializeOwned>(&mut self, node: &Node, mut json: Json, at: &[String]) -> Option<T> {
        let mut removed: Vec<String> = Vec::new();
        for _ in 0..MISTAKES_MAX {
            let invalid = match decode_value::<T>(json.clone()) {
                Ok(piece) if removed.is_empty() => return Some(piece),
                Ok(_) => return None,
                Err(invalid) => invalid,
            };
            // A field that is missing because it was removed has already been reported.
            let echo = removed.iter().any(|name| invalid.message == format!("missing field `{name}`"));
            if !echo {
                add_invalid(self.report, node, at, &invalid);
            }
            match remove_value(&mut json, &invalid.path) {
                Some(name) => removed.push(name),
                None => return None,
            }
        }
        None
    }
}

/// Reports an error of a decoder or a filter below `node`, which is at `at`.
pub fn add_invalid(report: &mut Report, node: &Node, at: &[String], invalid: &Invalid) {
    let mut path = at.to_vec();
    path.extend(invalid.path.iter().cloned());
    report.add(node.locate(&invalid.path), path, readable(&invalid.message));
}

/// Rewrites serde's messages, with a suggestion. The found value is not quoted where it may be
/// anything: a misplaced secret must not reach a log.
fn readable(message: &str) -> String {
    if message == "invalid socket address syntax" {
        return "must be an IP address with a port, such as `127.0.0.1:8080` or `[::]:8080`".into();
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{field} is missing");
    }
    let Some((wrong, known)) = message.split_once(", expected ") else { return message.to_owned() };
    let quoted: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    match wrong.split('`').nth(1) {
        Some(word) if wrong.starts_with("unknown field") => return format!("unknown key `{word}`{}", advice(word, &quoted)),
        Some(word) if wrong.starts_with("unknown variant") => return format!("unknown value `{word}`{}", advice(word, &quoted)),
        _ => {}
    }
    match known {
        "a boolean" => "must be `true` or `false`".into(),
        "a sequence" => "must be a list, such as `[a, b]`".into(),
        "a string" => "must be text".into(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "must be a whole number".into(),
        "newtype variant" | "struct variant" => "must be a map with its settings".into(),
        _ if known.starts_with("struct ") || known == "a map" => "must be a map".into(),
        _ => format!("must be {known}"),
    }
}

/// Removes the value at the path and returns its key. `None`: there is nothing to remove.
fn remove_value(json: &mut Json, path: &[String]) -> Option<String> {
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
        // Removing an item would shift the indexes of the others.
        _ => None,
    }
}
