//! The policy of the gate, and its refusals. The checks are in `gate`.

use http::StatusCode;

use super::path::{BadPath, Slashes};
use crate::config::model::Underscores;

/// The header limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// The size of the header, in bytes.
    pub bytes: usize,
    /// The number of fields.
    pub fields: usize,
}

/// The policy of the gate.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The header limits.
    pub limits: HeadLimits,
    /// The treatment of repeated slashes.
    pub slashes: Slashes,
    /// The treatment of field names with an underscore.
    pub underscores: Underscores,
    /// The scheme of the connection, in lower case.
    pub scheme: &'static str,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status for the client.
    pub status: StatusCode,
    /// The code for the client, and the label of the metric. From a closed list.
    pub reason: &'static str,
}

/// A request that is malformed or ambiguous: status 400.
pub const fn bad(reason: &'static str) -> Refused {
    Refused { status: StatusCode::BAD_REQUEST, reason }
}

impl From<BadPath> for Refused {
    fn from(path: BadPath) -> Self {
        bad(path.reason())
    }
}
