//! What is wrong with a configuration, and where. The message names neither the filter nor its
//! place: whoever knows the place adds it once.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::strict::Strict;

/// One thing that is wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// Where, below the place whose configuration this is: keys, and indexes as `[3]`.
    pub path: Vec<String>,
    /// What is wrong and what would be right, in one sentence without a full stop.
    pub message: String,
}

impl Invalid {
    /// Wrong as a whole.
    pub fn new(message: impl Into<String>) -> Self {
        Self { path: Vec::new(), message: message.into() }
    }

    /// Says that it is under `key`. Outermost last.
    #[must_use]
    pub fn at(mut self, key: impl Into<String>) -> Self {
        self.path.insert(0, key.into());
        self
    }

    /// Says that it is the item `index` of a list.
    #[must_use]
    pub fn index(self, index: usize) -> Self {
        self.at(format!("[{index}]"))
    }
}

/// Turns a value into a configuration type, with the place of what does not fit.
pub fn decode<T: DeserializeOwned>(value: Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| {
        let path = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                serde_path_to_error::Segment::Seq { index } => Some(format!("[{index}]")),
                serde_path_to_error::Segment::Map { key } => Some(key.clone()),
                serde_path_to_error::Segment::Enum { variant } => Some(variant.clone()),
                serde_path_to_error::Segment::Unknown => None,
            })
            .collect();
        Invalid { path, message: error.inner().to_string() }
    })
}
