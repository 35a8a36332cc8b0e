//! Generates the reference pages of the manual from the code. Pages are text in memory; the command writes the files.
//!
//! The tables of metrics, log fields and error codes are here. `tests/reference.rs` proves that they match the code.

mod admin_api;
mod commands;
mod configuration;
mod error_codes;
mod filters;
mod log_fields;
mod markdown;
mod metrics;
mod schema;

pub use error_codes::{ERRORS, ErrorCode};
pub use log_fields::{FIELDS, LogField};
pub use metrics::{METRICS, Metric};

/// A page.
pub struct Page {
    /// The file name, such as `filters.md`.
    pub file: &'static str,
    /// The Markdown text.
    pub text: String,
}

/// All pages. `command` is the root of the command tree.
pub fn pages(command: clap::Command) -> Vec<Page> {
    let schema = crate::config::schema();
    let page = |file, text: String| Page { file, text: format!("{}\n", text.trim_end()) };
    vec![
        page("filters.md", filters::page(&schema)),
        page("configuration.md", configuration::page(&schema)),
        page("commands.md", commands::page(command)),
        page("metrics.md", metrics::page()),
        page("log-fields.md", log_fields::page()),
        page("error-codes.md", error_codes::page()),
        page("admin-api.md", admin_api::page()),
    ]
}

/// The JSON Schema of the configuration, as `keylatch schema` prints it and `config/schema.json` holds it.
pub fn schema_file() -> String {
    let text = serde_json::to_string_pretty(&crate::config::schema()).unwrap_or_default();
    format!("{text}\n")
}
