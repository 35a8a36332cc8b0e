//! The filters of usage in either database, as conditions of a statement. This file is compiled once
//! for each.

use sqlx::QueryBuilder;

use super::{Db, filter_label};
use crate::sql::usage::UsageFilter;
use crate::sql::usage::tables::key_bytes;

/// Adds the conditions of a filter to a query of a table with its columns.
pub fn filtered(statement: &mut QueryBuilder<Db>, filter: &UsageFilter) {
    if let Some(key) = filter.key {
        statement.push(" AND key_id = ").push_bind(key_bytes(Some(key)));
    }
    for (name, text) in [("subject", &filter.subject), ("model", &filter.model), ("route", &filter.route), ("upstream", &filter.upstream)] {
        if let Some(text) = text {
            statement.push(format!(" AND {name} = ")).push_bind(text.clone());
        }
    }
    if let Some(label) = &filter.label {
        statement.push(" AND key_id IN (");
        filter_label(statement, label);
        statement.push(")");
    }
}
