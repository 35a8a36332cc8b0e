//! The requests that replicas send each other, as they are serialised in the store's mailbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request from one replica to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaQuery {
    /// List open streams after this cursor, at most this number.
    Streams(Option<StreamCursor>, usize),
    /// Describe the stream with this id, if it is open.
    Stream(u64),
    /// End the stream with this id.
    EndStream(u64),
    /// List subjects that are near or over a limit.
    Limits,
    /// Reset the usage of a limit.
    #[serde(rename = "give_back")]
    ResetLimit(LimitSubject),
}

/// One subject of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitSubject {
    /// The limit's name.
    #[schema(max_length = 256)]
    pub limit: String,
    /// The position of its filter in the configuration.
    #[schema(max_length = 1024)]
    pub place: String,
    /// The subject, such as `key=…` or `client=…`.
    #[schema(max_length = 1024)]
    pub subject: String,
}

/// The cursor of a page of streams: start time of the last stream before it, its replica and its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamCursor(pub i64, pub String, pub u64);
