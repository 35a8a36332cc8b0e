//! The page `admin-api.md`, generated from the OpenAPI document.

use serde_json::Value;

use super::markdown::{begin, code, codes, table, wrap};

const INTRODUCTION: &str = "The calls of the admin API, on `admin.address`. The console and `keylatch api` use the same calls. \
`/admin/api/openapi.json` (OpenAPI 3.1) describes each call with its parameters, bodies and responses.

Every call except those for signing in needs `Authorization: Bearer TOKEN`: the token of a session, or one created for a script. \
The scope that a call needs is in the table; [roles](../how-to/operators.md#roles) have scopes. Errors are RFC 9457 documents \
(`application/problem+json`), with the `field` at fault where there is one.

Lists are paged: `next` in a response is the `cursor` of the next page. A response with an `ETag` has a version; a change with `If-Match` \
applies to that version only, and otherwise answers 412.";

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

pub fn page() -> String {
    let document: Value = serde_json::from_str(&crate::admin::document()).unwrap_or_default();
    let mut text = begin("Admin API", INTRODUCTION);
    for tag in document["tags"].as_array().into_iter().flatten() {
        let name = tag["name"].as_str().unwrap_or_default();
        text.push_str(&format!("\n## {name}\n\n{}\n\n", wrap(&format!("{}.", tag["description"].as_str().unwrap_or_default()))));
        let rows: Vec<Vec<String>> = calls(&document).filter(|(_, _, call)| call["tags"][0] == *name).map(row).collect();
        text.push_str(&table(&["call", "scope", "purpose", "parameters"], &rows));
    }
    text
}

fn calls(document: &Value) -> impl Iterator<Item = (&String, &'static str, &Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, item)| METHODS.into_iter().filter_map(move |method| Some((path, method, item.get(method)?))))
}

fn row((path, method, call): (&String, &'static str, &Value)) -> Vec<String> {
    let scopes = call["security"].as_array().map(|ways| {
        let scopes = ways.iter().flat_map(|way| way["bearer"].as_array().into_iter().flatten()).filter_map(Value::as_str);
        let scopes: Vec<&str> = scopes.collect();
        if scopes.is_empty() { "any sign-in".to_owned() } else { codes(scopes) }
    });
    let parameters = call["parameters"].as_array().into_iter().flatten().filter_map(|parameter| parameter["name"].as_str());
    vec![
        code(&format!("{} {path}", method.to_uppercase())),
        scopes.unwrap_or_else(|| "none".to_owned()),
        call["summary"].as_str().unwrap_or_default().to_owned(),
        codes(parameters),
    ]
}
