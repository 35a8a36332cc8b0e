//! Bindings in memory, for trials and tests: gone with the process.

use std::collections::HashMap;

use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyId, Rule, StoreError};
use parking_lot::Mutex;

use super::{Authority, Batch};

const ROWS_MAX: usize = 1_000_000;

/// A map.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<KeyId, Binding>>);

impl Authority for Memory {
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        Box::pin(async move {
            let mut rows = self.0.lock();
            if rows.len() >= ROWS_MAX && !rows.contains_key(&first.id) {
                return Err(StoreError(format!("memory holds {ROWS_MAX} bindings and takes no more; use sqlite")));
            }
            let row = rows.entry(first.id).or_insert_with(|| Binding {
                id: first.id,
                rule: Rule::Single,
                networks: vec![first.network],
                banned: false,
                version: 1,
            });
            Ok(row.clone())
        })
    }

    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(async move { Ok(self.0.lock().get(&id).cloned()) })
    }

    fn write<'a>(&'a self, _batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}
