//! The page `configuration.md`, generated from the JSON Schema.

use serde_json::Value;

use super::markdown::{begin, table};
use super::schema::Rows;

const INTRODUCTION: &str = "Every section and key of a configuration file. `config/keylatch.yaml` shows them all with their defaults. \
`keylatch check -c FILE` reports every error of a file, and `keylatch schema` prints the JSON Schema for editors.

`${NAME}` is replaced from the environment, `${NAME:-default}` if the variable is unset or empty; `$$` is a dollar sign. A secret may be \
`file:PATH`, relative to the file. Durations are `250ms`, `15s`, `5m`, `1h`; sizes are `512`, `64KiB`, `10MiB`; rates are `60/min`.

`x[].y` is the key `y` of an item of the list `x`. The filters have [a page of their own](filters.md).";

pub fn page(schema: &Value) -> String {
    let mut text = begin("Configuration", INTRODUCTION);
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, section) in schema["properties"].as_object().into_iter().flatten() {
        let must = if required.contains(&name.as_str()) { " Required." } else { "" };
        let about = section["description"].as_str().unwrap_or_default().replace('\n', " ");
        text.push_str(&format!("\n## {name}\n\n{}\n", super::markdown::wrap(&format!("{about}{must}"))));
        // The filters have a page of their own.
        let rows = if name == "filters" { Vec::new() } else { Rows::new(&schema["$defs"]).for_schema(section, name) };
        let rows = table(&["key", "type", "meaning"], &rows);
        if !rows.is_empty() {
            text.push_str(&format!("\n{rows}"));
        }
    }
    text
}
