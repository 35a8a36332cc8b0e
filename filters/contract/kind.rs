//! The registry entry of a filter type: its name, hooks, manual, schema and compile function. It names no filter.

use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::{ErasedFilter, Filter, Hooks, Invalid, Site, decode};

/// Compiles a filter from the configuration under its YAML key.
pub type Compile = fn(Value, &mut Site<'_>) -> Result<Arc<dyn ErasedFilter>, Invalid>;

/// The registry entry of one filter type.
#[derive(Clone, Copy)]
pub struct FilterKind {
    /// The YAML key.
    pub name: &'static str,
    /// The hooks it implements.
    pub hooks: Hooks,
    /// The source text of its main file.
    pub source: &'static str,
    /// The JSON Schema of its configuration.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Compiles a filter from its configuration.
    pub compile: Compile,
}

impl FilterKind {
    /// The entry of the filter type `F`.
    pub const fn for_filter<F: Filter>() -> Self {
        Self {
            name: F::NAME,
            hooks: F::HOOKS,
            source: F::SOURCE,
            schema: |generator| F::Config::json_schema(generator),
            compile: |value, site| Ok(Arc::new(F::compile(decode::<F::Config>(value)?, site)?)),
        }
    }

    /// The manual: the `//!` lines of the main file, as Markdown.
    pub fn manual(&self) -> String {
        manual_of(self.source)
    }
}

/// The `//!` lines of a source file.
pub fn manual_of(source: &str) -> String {
    source
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n")
}
