//! Pages of lists, and the opaque cursors between them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::problem::Problem;

/// Default page size in rows.
pub const LIMIT: u32 = 50;
/// Maximum page size in rows.
pub const LIMIT_MAX: u32 = 1000;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListPage<T> {
    /// The rows. A page may hold fewer than `limit`, even none, while `next` still continues the search.
    pub items: Vec<T>,
    /// The `cursor` of the next page; `null` on the last page.
    pub next: Option<String>,
    /// The total number of rows, on the first page only; `null` if counting is too expensive.
    pub total: Option<u64>,
}

/// Checks the page size.
pub fn limit(requested: Option<u32>) -> Result<u32, Problem> {
    match requested.unwrap_or(LIMIT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        _ => Err(Problem::invalid("limit", format!("must be 1 to {LIMIT_MAX}"))),
    }
}

/// Encodes a position as a cursor.
pub fn cursor<M: Serialize>(mark: &M) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(mark).unwrap_or_default())
}

/// Decodes a cursor.
pub fn parse_cursor<M: DeserializeOwned>(cursor: Option<&str>) -> Result<Option<M>, Problem> {
    let read = |text: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    let wrong = || Problem::invalid("cursor", "invalid cursor; use `next` of the previous page");
    cursor.map(|text| read(text).ok_or_else(wrong)).transpose()
}

impl<T> ListPage<T> {
    /// A list with a single page.
    pub fn all(items: Vec<T>) -> Self {
        let total = Some(items.len() as u64);
        Self { items, next: None, total }
    }
}
