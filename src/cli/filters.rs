//! `keylatch filters`: prints the manuals of the filters, from their own files and types.

use keylatch_filters::ALL;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::cli::terminal::outln;

pub fn filters(name: Option<&str>) -> Result<(), String> {
    let Some(name) = name else {
        outln!("Filters, in the usual order of a chain. `keylatch filters NAME` prints the manual of one.\n")?;
        for kind in ALL {
            let manual = kind.manual();
            let summary = manual.lines().skip_while(|line| line.starts_with('#') || line.is_empty()).take_while(|line| !line.is_empty());
            let summary = summary.collect::<Vec<_>>().join(" ");
            let first = summary.split_inclusive(". ").next().unwrap_or_default().trim();
            outln!("{:<14} {first}", kind.name)?;
        }
        return Ok(());
    };
    let kind = ALL.iter().find(|kind| kind.name == name).ok_or_else(|| {
        format!("unknown filter `{name}`; the filters are {}", ALL.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", "))
    })?;
    outln!("{}\n\n## Fields\n", kind.manual())?;
    let schema = (kind.schema)(&mut SchemaSettings::draft2020_12().into_generator()).to_value();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (field, definition) in schema["properties"].as_object().into_iter().flatten() {
        let must = if required.contains(&field.as_str()) { " (required)" } else { "" };
        let text = definition["description"].as_str().unwrap_or_default().replace('\n', " ");
        outln!("- `{field}`{must}: {text}")?;
    }
    Ok(())
}
