//! By what a request's header is judged, and why it is refused.

use http::StatusCode;

use super::path::{BadPath, Slashes};
use crate::config::model::Underscores;

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the header.
    pub bytes: usize,
    /// Fields in it.
    pub fields: usize,
}

/// By what a request is judged.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The sizes that the listener allows.
    pub limits: HeadLimits,
    /// What happens to repeated slashes.
    pub slashes: Slashes,
    /// What happens to fields with an underscore in their names.
    pub underscores: Underscores,
    /// The scheme of the connection, in lower case.
    pub scheme: &'static str,
}

/// Why a request is refused: the status, and the metric's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the client gets.
    pub status: StatusCode,
    /// From a closed list.
    pub reason: &'static str,
}

/// Malformed or ambiguous.
pub const fn bad(reason: &'static str) -> Refused {
    Refused { status: StatusCode::BAD_REQUEST, reason }
}

impl From<BadPath> for Refused {
    fn from(path: BadPath) -> Self {
        bad(path.reason())
    }
}
