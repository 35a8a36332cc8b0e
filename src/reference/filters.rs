//! The page `filters.md`, generated from the manuals of the filters and the JSON Schema.

use keylatch_filters::ALL;
use serde_json::Value;

use super::markdown::{begin, code, table};
use super::schema::Rows;

const INTRODUCTION: &str = "The filters, in the order in which a chain usually lists them. A chain is the list `filters` of the file, \
then that of the route. `keylatch filters NAME` prints a manual in the terminal.

Each filter may have `shadow: true` beside it. It then decides, counts (`keylatch_filter_decisions_total` with `outcome=\"shadow\"`) and \
logs (`shadow` in the [access log](log-fields.md)), and refuses no request. The setting `shadow.NAME` does the same while the process runs.";

pub fn page(schema: &Value) -> String {
    let mut text = begin("Filters", INTRODUCTION);
    let items = &schema["$defs"]["FilterItem"]["properties"];
    for kind in ALL {
        text.push_str(&format!("\n{}\n", deeper(kind.manual().trim_end())));
        let rows = Rows::new(&schema["$defs"]).for_schema(&items[kind.name], "");
        let rows = table(&["key", "type", "meaning"], &rows);
        if !rows.is_empty() {
            text.push_str(&format!("\n### Keys of {}\n\n{rows}", code(kind.name)));
        }
    }
    text
}

/// The manual with every heading one level lower.
fn deeper(manual: &str) -> String {
    let mut in_block = false;
    let lines = manual.lines().map(|line| {
        in_block ^= line.starts_with("```");
        if line.starts_with('#') && !in_block { format!("#{line}") } else { line.to_owned() }
    });
    lines.collect::<Vec<_>>().join("\n")
}
