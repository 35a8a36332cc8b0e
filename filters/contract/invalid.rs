//! A configuration error with its path of keys, and the decoder that reports it. A message does not name the filter or its
//! place in the file: the caller that knows the place adds it once.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::strict::Strict;

/// One error in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The path of the error, relative to the configuration of the reporter: keys, and indexes as `[3]`.
    pub path: Vec<String>,
    /// What is wrong and how to correct it, in one sentence without a full stop.
    pub message: String,
}

impl Invalid {
    /// An error of the whole value.
    pub fn new(message: impl Into<String>) -> Self {
        Self { path: Vec::new(), message: message.into() }
    }

    /// Prepends `key` to the path. The outermost key is added last.
    #[must_use]
    pub fn at(mut self, key: impl Into<String>) -> Self {
        self.path.insert(0, key.into());
        self
    }

    /// Prepends the index of a list item to the path.
    #[must_use]
    pub fn index(self, index: usize) -> Self {
        self.at(format!("[{index}]"))
    }
}

/// Decodes a value into a configuration type. The error has the path of the value that does not fit.
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
