//! Reports of usage for operators: which key is meant, and what is known about the keys of a report.
//! It sums nothing; the store does.

use std::collections::HashMap;

use keylatch_filters::contract::KeyId;

use super::Fault;
use super::bindings::prefix;
use crate::bindings::Store;
use crate::sql::record::{Query, Record, range};

/// The key with this id, or with these first digits among the keys with usage.
pub async fn key(store: &Store, digits: &str) -> Result<KeyId, Fault> {
    let digits = digits.strip_prefix("key=").unwrap_or(digits).to_ascii_lowercase();
    if let Some(id) = KeyId::from_hex(&digits) {
        return Ok(id);
    }
    let (first, last) = range(&prefix(&digits)?);
    match store.admin_store().usage_keys(KeyId(first), KeyId(last)).await?.as_slice() {
        [id] => Ok(*id),
        [] => Err(Fault::NotFound(format!("no key with usage has an id that begins with `{digits}`"))),
        _ => Err(Fault::invalid("key_id", format!("`{digits}` matches several keys; give more digits"))),
    }
}

/// The bindings of these keys, as far as they are bound.
pub async fn bindings(store: &Store, keys: impl Iterator<Item = KeyId>) -> Result<HashMap<KeyId, Record>, Fault> {
    let mut ids: Vec<KeyId> = keys.collect();
    ids.sort_unstable_by_key(|id| id.0);
    ids.dedup();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let limit = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let found = store.list(Query { ids, limit, ..Query::default() }).await?.rows;
    Ok(found.into_iter().map(|record| (record.binding.id, record)).collect())
}
