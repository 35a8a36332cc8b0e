//! Lists in pieces, each of which says where the next begins.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::problem::Problem;

/// Rows of a page, where nobody says how many.
pub const LIMIT: u32 = 50;
/// Rows of a page at most.
pub const LIMIT_MAX: u32 = 1000;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    /// What was found. May be fewer than were asked for, even none, where `next` says that the search goes on.
    pub items: Vec<T>,
    /// Where the next page begins: to be sent as `cursor`. `null`: this is the last one.
    pub next: Option<String>,
    /// How many there are in all; `null` where counting would be dear. Only on the first page.
    pub total: Option<u64>,
}

/// The rows of a page.
pub fn limit(asked: Option<u32>) -> Result<u32, Problem> {
    match asked.unwrap_or(LIMIT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        _ => Err(Problem::invalid("limit", format!("a page has 1 to {LIMIT_MAX} rows"))),
    }
}

/// A mark as clients hold it.
pub fn cursor<M: Serialize>(mark: &M) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(mark).unwrap_or_default())
}

/// The mark of a cursor.
pub fn mark<M: DeserializeOwned>(cursor: Option<&str>) -> Result<Option<M>, Problem> {
    let read = |text: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok();
    let wrong = || Problem::invalid("cursor", "this is no cursor; take it from `next` of the page before");
    cursor.map(|text| read(text).ok_or_else(wrong)).transpose()
}

impl<T> List<T> {
    /// A list that is one page.
    pub fn all(items: Vec<T>) -> Self {
        let total = Some(items.len() as u64);
        Self { items, next: None, total }
    }
}
