//! Renders a JSON Schema as rows of a table: one row for each key, with the full path of nested keys.

use serde_json::{Map, Value};

use super::markdown::code;

/// The maximum depth of nested keys in a table.
const DEPTH_MAX: usize = 6;

/// Rows for the keys of an object: path, type, description.
pub struct Rows<'a> {
    definitions: &'a Value,
    rows: Vec<Vec<String>>,
}

impl<'a> Rows<'a> {
    /// Rows for schemas that refer to these definitions.
    pub fn new(definitions: &'a Value) -> Self {
        Self { definitions, rows: Vec::new() }
    }

    /// The rows of one schema, below `prefix`.
    pub fn for_schema(mut self, schema: &'a Value, prefix: &str) -> Vec<Vec<String>> {
        self.object(schema, prefix, 0, false);
        self.rows
    }

    /// Adds the keys of an object, of the items of a list, and of every alternative that is an object. `is_form` marks one
    /// alternative among several.
    fn object(&mut self, schema: &'a Value, prefix: &str, depth: usize, is_form: bool) {
        if depth > DEPTH_MAX {
            return;
        }
        let schema = self.resolve(schema);
        if let Some(properties) = schema["properties"].as_object() {
            self.properties(schema, properties, prefix, depth, is_form && properties.len() == 1);
        }
        if let Some(items) = schema.get("items") {
            self.object(items, &format!("{prefix}[]"), depth, false);
        }
        let forms = self.forms(schema);
        let several = forms.len() > 1;
        for form in forms {
            self.object(form, prefix, depth, several);
        }
    }

    fn properties(&mut self, schema: &Value, properties: &'a Map<String, Value>, prefix: &str, depth: usize, is_choice: bool) {
        let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, about) in properties {
            let path = match prefix {
                "" => name.clone(),
                _ => format!("{prefix}.{name}"),
            };
            // The only key of an alternative selects it, so it is not marked as required.
            let must = if required.contains(&name.as_str()) && !is_choice { " (required)" } else { "" };
            let of_form = schema["description"].as_str().filter(|_| is_choice);
            let described = about["description"].as_str().or(of_form).or_else(|| self.resolve(about)["description"].as_str());
            let text = described.unwrap_or_default().replace('\n', " ");
            self.rows.push(vec![format!("{}{must}", code(&path)), self.kind(about), text]);
            if !is_filters(about) {
                self.object(about, &path, depth + 1, false);
            }
        }
    }

    /// The alternatives of a value, without `null`.
    fn forms(&self, schema: &'a Value) -> Vec<&'a Value> {
        let forms = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
        forms.filter(|form| form["type"] != "null").collect()
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        name.and_then(|name| self.definitions.get(name)).unwrap_or(schema)
    }

    /// The type of a value, in words.
    fn kind(&self, schema: &'a Value) -> String {
        if is_filters(schema) {
            return "list of filters".to_owned();
        }
        if let Some(known) = schema["$ref"].as_str().and_then(|path| scalar(path.rsplit('/').next().unwrap_or_default())) {
            return known.to_owned();
        }
        let schema = self.resolve(schema);
        if let Some(value) = schema["const"].as_str() {
            return code(value);
        }
        if let Some(values) = schema["enum"].as_array() {
            return values.iter().filter_map(Value::as_str).map(code).collect::<Vec<_>>().join(", ");
        }
        let forms = self.forms(schema);
        if !forms.is_empty() {
            let mut kinds: Vec<String> = forms.into_iter().map(|form| self.kind(form)).collect();
            kinds.dedup();
            return kinds.join(", ");
        }
        let names = match &schema["type"] {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            Value::String(name) => vec![name.as_str()],
            _ => Vec::new(),
        };
        match names.into_iter().find(|name| *name != "null") {
            Some("array") => format!("list of {}", schema.get("items").map_or_else(|| "values".to_owned(), |items| self.kind(items))),
            Some("object") => "map".to_owned(),
            Some(name) => name.to_owned(),
            None => "any".to_owned(),
        }
    }
}

/// Whether a schema is the list of filters, which has a page of its own.
fn is_filters(schema: &Value) -> bool {
    schema["items"]["$ref"].as_str().is_some_and(|path| path.ends_with("/FilterItem"))
}

/// The names of string types with a format of their own.
fn scalar(name: &str) -> Option<&'static str> {
    Some(match name {
        "Duration" => "duration",
        "ByteSize" => "size",
        "Rate" => "rate",
        "Secret" => "secret",
        "Timestamp" => "time",
        _ => return None,
    })
}
