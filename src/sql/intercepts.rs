//! Queries of intercepts for operators: pages by time, and groups by key or client. Contains only
//! the types; `postgres` and `sqlite` implement them.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::IpNet;
use keylatch_filters::contract::{KeyId, StoreError};
use serde::{Deserialize, Serialize};

/// The maximum number of rows that one query examines. Filters without an index are applied to
/// pages of this size, and each page returns the cursor of the next.
pub const EXAMINED_MAX: i64 = 20_000;
/// The maximum number of rows that are grouped: the latest ones.
pub const GROUPED_MAX: i64 = 10_000;

/// The suffix of the replica's name in rows of shadow mode: see the migration `0012_shadow` of
/// PostgreSQL.
pub(super) const SHADOW: &str = " (shadow)";

/// One row: equal intercepts within one minute.
#[derive(Clone, Debug, PartialEq)]
pub struct Intercepted {
    /// The row's position in the order.
    pub mark: InterceptCursor,
    /// The key's hint.
    pub hint: String,
    /// The networks of the key's binding at that time.
    pub networks: Vec<IpNet>,
    /// The client's `User-Agent`.
    pub user_agent: String,
    /// The number of intercepts.
    pub count: i64,
    /// The time of the first one, in milliseconds since 1970.
    pub first_ms: i64,
}

/// The primary key of a row, and its position in the order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterceptCursor {
    /// The minute of the last intercept, in milliseconds since 1970.
    pub minute_ms: i64,
    /// The key id.
    #[serde(with = "hex_id")]
    pub key: KeyId,
    /// The client address.
    pub client: IpAddr,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The route.
    pub route: String,
    /// The replica as it is stored; see [`InterceptCursor::replica_name`].
    pub replica: String,
    /// Whether the key was banned. Otherwise, the client was outside the key's networks.
    pub banned: bool,
    /// Whether the filter was in shadow mode: the requests were not refused.
    #[serde(default)]
    pub shadow: bool,
    /// The time of the last intercept, in milliseconds since 1970. It grows and is not part of the
    /// primary key.
    #[serde(default)]
    pub last_ms: i64,
}

/// Serializes a key id as hex, for cursors.
pub(super) mod hex_id {
    use keylatch_filters::contract::KeyId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &KeyId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&id.hex())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyId, D::Error> {
        KeyId::from_hex(&String::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("not a key id"))
    }
}

/// A query of intercepts. Rows are returned the latest first.
#[derive(Clone, Debug, Default)]
pub struct InterceptQuery {
    /// Only this key.
    pub key: Option<KeyId>,
    /// Only clients in this network.
    pub client: Option<IpNet>,
    /// Only this route.
    pub route: Option<String>,
    /// Only this method.
    pub method: Option<String>,
    /// Only paths with this prefix.
    pub path: Option<String>,
    /// Only banned keys, or only keys used outside their networks.
    pub banned: Option<bool>,
    /// Only intercepts in shadow mode, or only refused requests.
    pub shadow: Option<bool>,
    /// Only from this minute on, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Only before this minute.
    pub until_ms: Option<i64>,
    /// Only rows after this cursor.
    pub after: Option<InterceptCursor>,
    /// The maximum number of rows.
    pub limit: u32,
}

impl InterceptCursor {
    /// The replica's name; empty with a single replica.
    pub fn replica_name(&self) -> &str {
        self.replica.strip_suffix(SHADOW).filter(|_| self.shadow).unwrap_or(&self.replica)
    }
}

impl InterceptQuery {
    /// Whether the query has a filter without an index.
    pub(super) fn is_searched(&self) -> bool {
        self.route.is_some() || self.method.is_some() || self.path.is_some() || self.banned.is_some() || self.shadow.is_some()
    }
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T, M> {
    /// The rows found. Fewer than the limit if [`EXAMINED_MAX`] rows were examined.
    pub rows: Vec<T>,
    /// The cursor of the next page, if there is one.
    pub next: Option<M>,
}

/// The grouping of intercepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterceptGrouping {
    /// By key.
    Key,
    /// By client address.
    Client,
}

/// The intercepts of one key, or of one client.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The key id in hex, or the address.
    pub what: String,
    /// The key's hint; empty for a client.
    pub hint: String,
    /// The number of intercepts.
    pub count: i64,
    /// The number of distinct clients, or keys.
    pub others: i64,
    /// The time of the last one, in milliseconds since 1970.
    pub last_ms: i64,
}

/// Grouped intercepts.
#[derive(Clone, Debug, PartialEq)]
pub struct Groups {
    /// The groups, the largest first.
    pub groups: Vec<Group>,
    /// The number of rows examined. If it is [`GROUPED_MAX`], older rows were left out.
    pub examined: i64,
}

/// The store of intercepts.
#[async_trait]
pub trait Intercepts: Send + Sync {
    /// Returns a page of rows, the latest first.
    async fn intercepts(&self, wanted: &InterceptQuery) -> Result<Page<Intercepted, InterceptCursor>, StoreError>;
    /// Groups the latest rows and returns the `wanted.limit` largest groups.
    async fn intercept_groups(&self, by: InterceptGrouping, wanted: &InterceptQuery) -> Result<Groups, StoreError>;
}
