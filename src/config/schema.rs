//! Generates the JSON Schema of a configuration file from the types of [`super::model`] and the
//! registry of filters. Descriptions come from those types; only a filter item is described here.

use std::borrow::Cow;

use keylatch_filters::ALL;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::model::{FilterItem, Settings};

impl JsonSchema for FilterItem {
    fn schema_name() -> Cow<'static, str> {
        "FilterItem".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut properties = Map::new();
        for kind in ALL {
            let config = (kind.schema)(generator);
            // `client_ip:` without a value is the filter with its defaults.
            properties.insert(kind.name.into(), json!({ "anyOf": [config, { "type": "null" }] }));
        }
        let one_of: Vec<Value> = ALL.iter().map(|kind| json!({ "required": [kind.name] })).collect();
        properties.insert(
            "shadow".into(),
            json!({ "type": "boolean", "default": false, "description": "Shadow mode: the filter decides, counts and logs, but changes nothing." }),
        );
        json_schema!({
            "description": "One filter: its name with its configuration, and optionally `shadow: true`.",
            "type": "object",
            "properties": properties,
            "oneOf": one_of,
            "additionalProperties": false,
        })
    }
}

/// The schema of the whole file (JSON Schema 2020-12).
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Settings>();
    schema.insert("title".into(), json!("Keylatch configuration"));
    schema.to_value()
}
