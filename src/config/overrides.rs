//! Live settings that override options of filters. They are applied before compilation, so that a
//! chain costs the same as if the file had them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::Settings;
use crate::config::model::FilterItem;

/// The setting that overrides every `on_store_failure`.
pub const FAILURE: &str = "key_binding.on_store_failure";

const SHADOW: &str = "shadow.";
const KEY_BINDING: &str = "key_binding";
const FIELD: &str = "on_store_failure";

/// The overrides in effect.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    shadow: BTreeMap<String, bool>,
    on_store_failure: Option<String>,
}

impl Overrides {
    /// Selects the overrides among the live settings.
    pub fn from_settings(set: &[(&'static str, Value)]) -> Self {
        let shadow = set.iter().filter_map(|(name, value)| Some((name.strip_prefix(SHADOW)?.to_owned(), value.as_bool()?)));
        let failure = set.iter().find(|(name, _)| *name == FAILURE).and_then(|(_, value)| value.as_str());
        Self { shadow: shadow.collect(), on_store_failure: failure.map(str::to_owned) }
    }

    /// Applies them to a configuration.
    pub fn apply(&self, settings: &mut Settings) {
        let routes = settings.routes.iter_mut().flat_map(|route| route.filters.iter_mut());
        for item in settings.filters.iter_mut().chain(routes) {
            if let Some(shadow) = self.shadow.get(&item.name) {
                item.shadow = *shadow;
            }
            if let (KEY_BINDING, Some(failure)) = (item.name.as_str(), &self.on_store_failure) {
                if item.config.is_null() {
                    item.config = serde_json::json!({});
                }
                if let Some(config) = item.config.as_object_mut() {
                    config.insert(FIELD.into(), failure.as_str().into());
                }
            }
        }
    }
}

fn items<'s>(settings: &'s Settings, name: &str) -> impl Iterator<Item = &'s FilterItem> {
    let all = settings.filters.iter().chain(settings.routes.iter().flat_map(|route| &route.filters));
    all.filter(move |item| item.name == name)
}

/// Whether all filters of a kind are in shadow mode in the file.
pub fn shadowed(settings: &Settings, name: &str) -> Value {
    let mut all = items(settings, name.trim_start_matches(SHADOW)).peekable();
    (all.peek().is_some() && all.all(|item| item.shadow)).into()
}

/// The first `on_store_failure` in the file, or its default.
pub fn on_store_failure(settings: &Settings, _name: &str) -> Value {
    let said = items(settings, KEY_BINDING).find_map(|item| item.config.get(FIELD).cloned());
    said.unwrap_or_else(|| "closed".into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::compile::{Compiler, check_ports};
    use crate::config::parse;

    #[test]
    fn overrides_replace_the_options_of_the_file() {
        let text = "listeners: [{address: \"127.0.0.1:1\"}]\nupstreams: [{name: u, servers: [{address: \"127.0.0.1:2\"}]}]\n\
            filters: [client_ip: {}, {flood_guard: {limit: 5/s}, shadow: true}]\nroutes: [{name: r, upstream: u, filters: [key_binding: ]}]\n";
        let parsed = parse(Path::new("k.yaml"), text, &|_| None).unwrap();
        let set = [("shadow.flood_guard", json!(false)), ("shadow.key_binding", json!(true)), (FAILURE, json!("open"))];
        let overrides = Overrides::from_settings(&set);
        let compile = |overrides: &Overrides| Compiler::new(check_ports()).compile(parsed.clone().with(overrides)).unwrap();
        let shadows = |snapshot: &crate::compile::Snapshot| snapshot.routes[0].chain.names().map(|(_, shadow)| shadow).collect::<Vec<_>>();
        assert_eq!(shadows(&compile(&Overrides::default())), [false, true, false]);
        let overridden = compile(&overrides);
        assert_eq!(shadows(&overridden), [false, false, true]);
        assert_eq!(on_store_failure(&overridden.settings, ""), "closed", "the value of the file is still known");
        assert_eq!(
            (shadowed(&overridden.settings, "shadow.flood_guard"), shadowed(&overridden.settings, "shadow.cors")),
            (json!(true), json!(false))
        );
    }
}
