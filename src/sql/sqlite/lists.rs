//! Pages of bindings in SQLite, for every order and filter. SQLite has no network type: rows found
//! by the texts of networks are filtered here.

use ipnet::IpNet;
use keylatch_filters::contract::{KeyId, StoreError};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row};

use super::bindings::JUDGED;
use super::manage::{MORE, record};
use super::{Db, Sqlite, failed, json, text};
use crate::sql::intercepts::{EXAMINED_MAX, Page};
use crate::sql::record::{BindingCursor, COUNTED_MAX, Query, Record, Sort, holders, key_id, range};

/// See `postgres/lists.rs`.
const NARROW_MAX: i64 = 5000;

/// The key ids that an index finds for one condition, if they are few. For a network, some others
/// are among them.
async fn narrowed(pool: &SqlitePool, query: &Query) -> Result<Option<Vec<String>>, StoreError> {
    let mut statement = QueryBuilder::new("SELECT hex(key_id) FROM (");
    match (&query.hint, query.network, &query.label) {
        (Some(hint), _, _) => {
            statement.push("SELECT key_id FROM bindings WHERE substr(hint, -4) = substr(").push_bind(hint.clone()).push(", -4)");
        }
        (None, Some(net), _) => {
            let (low, high) = text::range(net);
            statement.push("SELECT key_id FROM bindings WHERE networks IN (SELECT value FROM json_each(").push_bind(json(&holders(net)));
            statement.push(")) UNION ALL SELECT key_id FROM bindings WHERE networks >= ").push_bind(low).push(" AND networks < ");
            statement.push_bind(high).push(" UNION ALL SELECT key_id FROM bindings WHERE instr(networks, ',') > 0");
        }
        (None, None, Some(label)) => {
            statement.push("SELECT key_id FROM bindings WHERE labels <> '' AND instr(',' || labels || ',', ',' || ");
            statement.push_bind(label.clone()).push(" || ',') > 0");
        }
        (None, None, None) => return Ok(None),
    }
    statement.push(") LIMIT ").push_bind(NARROW_MAX + 1);
    let ids: Vec<String> = statement.build_query_scalar().fetch_all(pool).await.map_err(failed)?;
    Ok(i64::try_from(ids.len()).is_ok_and(|found| found <= NARROW_MAX).then_some(ids))
}

/// The conditions with an index, restricted to `ids` if they are known. For a network, some other
/// rows pass them.
fn indexed(statement: &mut QueryBuilder<Db>, query: &Query, ids: Option<&[String]>) {
    statement.push(" FROM bindings WHERE true");
    if !query.prefix.is_empty() {
        let (low, high) = range(&query.prefix);
        statement.push(" AND key_id >= ").push_bind(low.to_vec()).push(" AND key_id <= ").push_bind(high.to_vec());
    }
    if !query.ids.is_empty() {
        let ids: Vec<String> = query.ids.iter().map(KeyId::hex).collect();
        statement.push(" AND key_id IN (SELECT unhex(value) FROM json_each(").push_bind(json(&ids)).push("))");
    }
    if let Some(ids) = ids {
        statement.push(" AND key_id IN (SELECT unhex(value) FROM json_each(").push_bind(json(ids)).push("))");
    }
    if let Some(hint) = &query.hint {
        statement.push(" AND substr(hint, -4) = substr(").push_bind(hint.clone()).push(", -4) AND substr(hint, -length(");
        statement.push_bind(hint.clone()).push(")) = ").push_bind(hint.clone());
    }
    if let (Some(net), None) = (query.network, ids) {
        let (low, high) = text::range(net);
        statement.push(" AND (networks IN (SELECT value FROM json_each(").push_bind(json(&holders(net)));
        statement.push(")) OR (networks >= ").push_bind(low).push(" AND networks < ").push_bind(high);
        statement.push(") OR instr(networks, ',') > 0)");
    }
    if let Some(label) = &query.label {
        statement.push(" AND labels <> '' AND instr(',' || labels || ',', ',' || ").push_bind(label.clone()).push(" || ',') > 0");
    }
    if query.banned == Some(true) {
        statement.push(" AND banned");
    }
}

fn others(statement: &mut QueryBuilder<Db>, query: &Query) {
    if query.banned == Some(false) {
        statement.push(" AND NOT banned");
    }
    if let Some(rule) = query.rule {
        statement.push(" AND rule = ").push_bind(rule.as_str());
    }
    if let Some(made_by) = &query.made_by {
        statement.push(" AND made_by = ").push_bind(made_by.clone());
    }
}

/// The rows after the cursor, in their order.
fn ordered(statement: &mut QueryBuilder<Db>, query: &Query, few: bool) {
    let beyond = if query.descending { "<" } else { ">" };
    match (query.after, column(query.sort)) {
        (Some(after), Some(column)) => {
            statement.push(format!(" AND ({column}, key_id) {beyond} ("));
            statement.push_bind(after.at).push(", ").push_bind(after.id.0.to_vec()).push(")");
        }
        (Some(after), None) => {
            statement.push(format!(" AND key_id {beyond} ")).push_bind(after.id.0.to_vec());
        }
        (None, _) => {}
    }
    sorted(statement, query, few);
}

/// For few rows, a unary plus keeps SQLite from using the index of the order.
fn sorted(statement: &mut QueryBuilder<Db>, query: &Query, few: bool) {
    let plus = if few { "+" } else { "" };
    let way = if query.descending { "DESC" } else { "ASC" };
    statement.push(match column(query.sort) {
        Some(column) => format!(" ORDER BY {plus}{column} {way}, {plus}key_id {way} LIMIT "),
        None => format!(" ORDER BY {plus}key_id {way} LIMIT "),
    });
}

fn column(sort: Sort) -> Option<&'static str> {
    match sort {
        Sort::Key => None,
        Sort::Used => Some("last_used_ms"),
        Sort::Created => Some("created_ms"),
    }
}

fn cursor(row: &SqliteRow, id: usize, at: usize) -> Result<BindingCursor, StoreError> {
    Ok(BindingCursor { id: key_id(row.try_get(id).map_err(failed)?)?, at: row.try_get(at).map_err(failed)? })
}

impl Sqlite {
    pub(super) async fn select(&self, query: Query) -> Result<Page<Record, BindingCursor>, StoreError> {
        let ids = narrowed(&self.pool, &query).await?;
        let at = column(query.sort).unwrap_or("0");
        let mut statement = QueryBuilder::new(format!("SELECT {JUDGED}, {MORE}, {at} FROM (SELECT *"));
        indexed(&mut statement, &query, ids.as_deref());
        ordered(&mut statement, &query, ids.is_some());
        statement.push_bind(EXAMINED_MAX).push(") WHERE true");
        others(&mut statement, &query);
        sorted(&mut statement, &query, ids.is_some());
        statement.push_bind(i64::from(query.limit));
        let rows = statement.build().fetch_all(&self.pool).await.map_err(failed)?;
        let next = match rows.last() {
            Some(last) if rows.len() >= query.limit as usize => Some(cursor(last, 0, 15)?),
            _ if query.searches() => {
                let mut statement = QueryBuilder::new(format!("SELECT key_id, {at}"));
                indexed(&mut statement, &query, ids.as_deref());
                ordered(&mut statement, &query, ids.is_some());
                statement.push("1 OFFSET ").push_bind(EXAMINED_MAX - 1);
                let row = statement.build().fetch_optional(&self.pool).await.map_err(failed)?;
                row.as_ref().map(|row| cursor(row, 0, 1)).transpose()?
            }
            _ => None,
        };
        let mut rows = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        let within = |net: &IpNet, other: IpNet| net.contains(&other) || other.contains(net);
        rows.retain(|row| query.network.is_none_or(|other| row.binding.networks.iter().any(|net| within(net, other))));
        Ok(Page { rows, next })
    }

    pub(super) async fn count_rows(&self, query: Query) -> Result<Option<u64>, StoreError> {
        // For a network the statement finds more rows than match.
        if query.searches() || query.network.is_some() {
            return Ok(None);
        }
        let ids = narrowed(&self.pool, &query).await?;
        let mut statement = QueryBuilder::new("SELECT count(*) FROM (SELECT 1");
        indexed(&mut statement, &query, ids.as_deref());
        statement.push(" LIMIT ").push_bind(COUNTED_MAX + 1).push(")");
        let count: i64 = statement.build_query_scalar().fetch_one(&self.pool).await.map_err(failed)?;
        Ok(u64::try_from(count).ok().filter(|_| count <= COUNTED_MAX))
    }
}
