//! Intercepts as operators look at them: lists by time, and who causes most of them.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::IpNet;
use keylatch_filters::contract::{KeyId, StoreError};
use serde::{Deserialize, Serialize};

/// Rows that one question looks at, at most: what has no index is searched for piece by piece, and each piece says where
/// the next begins.
pub const EXAMINED_MAX: i64 = 20_000;
/// Rows that are put together, at most: the latest ones.
pub const GROUPED_MAX: i64 = 10_000;

/// Behind a replica's name in rows of shadow mode: see the migration `0012_shadow` of PostgreSQL.
pub(super) const SHADOW: &str = " (shadow)";

/// One row: the same refusals of one minute.
#[derive(Clone, Debug, PartialEq)]
pub struct Intercepted {
    /// Where it stands in the order of all.
    pub mark: Mark,
    /// What people recognise the key by.
    pub hint: String,
    /// Where the key may be used from, as it was then.
    pub networks: Vec<IpNet>,
    /// What the client called itself.
    pub user_agent: String,
    /// How often.
    pub count: i64,
    /// The first time, in milliseconds since 1970.
    pub first_ms: i64,
}

/// What makes a row one, and its place in the order of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The minute of the last time, in milliseconds since 1970.
    pub minute_ms: i64,
    /// The key.
    #[serde(with = "hex_id")]
    pub key: KeyId,
    /// The client.
    pub client: IpAddr,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The route.
    pub route: String,
    /// As it is stored: [`Mark::replica_name`].
    pub replica: String,
    /// The key was banned, not used from elsewhere.
    pub banned: bool,
    /// The filter is in shadow mode: the requests were not refused.
    #[serde(default)]
    pub shadow: bool,
    /// The last time, in milliseconds since 1970. It grows, and is not part of what makes a row one.
    #[serde(default)]
    pub last_ms: i64,
}

/// A key id in hex, for marks.
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

/// Which intercepts, the latest first.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this key.
    pub key: Option<KeyId>,
    /// Of clients in this network.
    pub client: Option<IpNet>,
    /// On this route.
    pub route: Option<String>,
    /// With this method.
    pub method: Option<String>,
    /// On paths that begin so.
    pub path: Option<String>,
    /// Because the key is banned, or because it is bound elsewhere.
    pub banned: Option<bool>,
    /// In shadow mode, or refused.
    pub shadow: Option<bool>,
    /// Not before this minute, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Before this minute.
    pub until_ms: Option<i64>,
    /// Those behind this one.
    pub after: Option<Mark>,
    /// At most so many.
    pub limit: u32,
}

impl Mark {
    /// Which replica it was; empty where there is only one.
    pub fn replica_name(&self) -> &str {
        self.replica.strip_suffix(SHADOW).filter(|_| self.shadow).unwrap_or(&self.replica)
    }
}

impl Wanted {
    /// Whether something is wanted that no index knows.
    pub(super) fn is_searched(&self) -> bool {
        self.route.is_some() || self.method.is_some() || self.path.is_some() || self.banned.is_some() || self.shadow.is_some()
    }
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct Page<T, M> {
    /// What was found; fewer than were wanted where much had to be looked through.
    pub rows: Vec<T>,
    /// Behind which it goes on, if it does.
    pub next: Option<M>,
}

/// By what intercepts are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The key.
    Key,
    /// The client's address.
    Client,
}

/// Intercepts of one key, or of one client.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The key id in hex, or the address.
    pub what: String,
    /// The key's hint; empty for a client.
    pub hint: String,
    /// How many intercepts.
    pub count: i64,
    /// How many different clients, or keys.
    pub others: i64,
    /// The last one, in milliseconds since 1970.
    pub last_ms: i64,
}

/// What was put together.
#[derive(Clone, Debug, PartialEq)]
pub struct Groups {
    /// The largest first.
    pub groups: Vec<Group>,
    /// How many rows were looked at. [`GROUPED_MAX`]: only the latest ones were.
    pub examined: i64,
}

/// Lists of intercepts.
#[async_trait]
pub trait Intercepts: Send + Sync {
    /// Rows, the latest first.
    async fn intercepts(&self, wanted: &Wanted) -> Result<Page<Intercepted, Mark>, StoreError>;
    /// Who causes most of them; `wanted.limit` groups of the latest rows.
    async fn intercept_groups(&self, by: By, wanted: &Wanted) -> Result<Groups, StoreError>;
}
