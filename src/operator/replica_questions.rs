//! What replicas ask of each other.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// LimitSubject streams are open, behind this one, at most so many.
    Streams(Option<StreamMark>, usize),
    /// What the stream of this number is, if it is open.
    Stream(u64),
    /// End it.
    EndStream(u64),
    /// Who is near or over a limit.
    Limits,
    /// Give back what was used of a limit.
    GiveBack(LimitSubject),
}

/// One subject of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitSubject {
    /// The limit's name.
    #[schema(max_length = 256)]
    pub limit: String,
    /// Where its filter stands.
    #[schema(max_length = 1024)]
    pub place: String,
    /// Who it is.
    #[schema(max_length = 1024)]
    pub subject: String,
}

/// Where a page begins: when the stream before it began, its replica and its number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamMark(pub i64, pub String, pub u64);
