//! A filter's entry in the registry: everything about a type of filter, as data.

use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::{Erased, Filter, Hooks, Invalid, Site, decode};

/// Makes a filter from what stands under its key.
pub type Compile = fn(Value, &mut Site<'_>) -> Result<Arc<dyn Erased>, Invalid>;

/// One type of filter.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The YAML key.
    pub name: &'static str,
    /// The phases it takes part in.
    pub hooks: Hooks,
    /// The text of its file.
    pub source: &'static str,
    /// The JSON Schema of what stands under the key.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Makes one from its configuration.
    pub compile: Compile,
}

impl Kind {
    /// The entry of `F`.
    pub const fn of<F: Filter>() -> Self {
        Self {
            name: F::NAME,
            hooks: F::HOOKS,
            source: F::SOURCE,
            schema: |generator| F::Config::json_schema(generator),
            compile: |value, site| Ok(Arc::new(F::compile(decode::<F::Config>(value)?, site)?)),
        }
    }

    /// Its manual: the `//!` lines of its file, as Markdown.
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
