//! Pages of bindings in PostgreSQL, for every order and filter.

use keylatch_filters::contract::StoreError;
use sqlx::postgres::PgRow;
use sqlx::{Executor, QueryBuilder, Row};

use super::bindings::JUDGED;
use super::manage::{MORE, record};
use super::session::{Pool, Session};
use super::{Pg, failed};
use crate::sql::intercepts::{EXAMINED_MAX, Page};
use crate::sql::record::{BindingCursor, COUNTED_MAX, Query, Record, Sort, holders, key_id, range};

/// Up to this number of matching rows, all are read and sorted. Past it, the rows are read in their
/// order and filtered, which fills a page soon. The planner cannot know which is the case.
const NARROW_MAX: i64 = 5000;

/// The key ids that an index finds for one condition, if they are few.
async fn narrowed(tx: &mut Session, query: &Query) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
    let mut statement = QueryBuilder::new("SELECT key_id FROM (");
    match (&query.hint, query.network, &query.label) {
        (Some(hint), _, _) => {
            statement.push("SELECT key_id FROM bindings WHERE right(hint, 4) = right(").push_bind(hint.clone()).push(", 4)");
        }
        (None, Some(net), _) => {
            // In the order of networks, those within a network follow it.
            statement.push("SELECT key_id FROM bindings WHERE networks[1] = ANY(").push_bind(holders(net));
            statement.push("::text[]::cidr[]) UNION ALL SELECT key_id FROM bindings WHERE networks[1] >= ").push_bind(net.to_string());
            statement.push("::cidr AND networks[1] <= ").push_bind(net.broadcast().to_string());
            statement.push("::inet::cidr UNION ALL SELECT key_id FROM bindings WHERE cardinality(networks) > 1");
        }
        (None, None, Some(label)) => {
            statement.push("SELECT key_id FROM bindings WHERE labels @> ARRAY[").push_bind(label.clone()).push("]");
        }
        (None, None, None) => return Ok(None),
    }
    statement.push(") AS found LIMIT ").push_bind(NARROW_MAX + 1);
    let ids: Vec<Vec<u8>> = statement.build_query_scalar().fetch_all(tx).await.map_err(failed)?;
    Ok(i64::try_from(ids.len()).is_ok_and(|found| found <= NARROW_MAX).then_some(ids))
}

/// The conditions with an index, restricted to `ids` if they are known.
fn indexed(statement: &mut QueryBuilder<Pg>, query: &Query, ids: Option<&[Vec<u8>]>) {
    // Only the given filters are added: with `$5 IS NULL OR …` PostgreSQL would use the first index
    // only.
    statement.push(" FROM bindings WHERE true");
    if !query.prefix.is_empty() {
        let (low, high) = range(&query.prefix);
        statement.push(" AND key_id >= ").push_bind(low).push(" AND key_id <= ").push_bind(high);
    }
    if !query.ids.is_empty() {
        statement.push(" AND key_id = ANY(").push_bind(query.ids.iter().map(|id| id.0.to_vec()).collect::<Vec<_>>()).push(")");
    }
    if let Some(ids) = ids {
        statement.push(" AND key_id = ANY(").push_bind(ids.to_vec()).push(")");
    }
    if let Some(hint) = &query.hint {
        statement.push(" AND right(hint, 4) = right(").push_bind(hint.clone()).push(", 4) AND right(hint, length(");
        statement.push_bind(hint.clone()).push(")) = ").push_bind(hint.clone());
    }
    if let Some(net) = query.network {
        statement.push(" AND EXISTS (SELECT 1 FROM unnest(networks) AS n WHERE n && ").push_bind(net.to_string()).push("::cidr)");
    }
    if let Some(label) = &query.label {
        statement.push(" AND labels @> ARRAY[").push_bind(label.clone()).push("]");
    }
    if query.banned == Some(true) {
        statement.push(" AND banned");
    }
}

fn others(statement: &mut QueryBuilder<Pg>, query: &Query) {
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
fn ordered(statement: &mut QueryBuilder<Pg>, query: &Query) {
    let beyond = if query.descending { "<" } else { ">" };
    match (query.after, column(query.sort)) {
        (Some(after), Some(column)) => {
            statement.push(format!(" AND ({column}, key_id) {beyond} (timestamptz 'epoch' + interval '1 microsecond' * "));
            statement.push_bind(after.at).push(", ").push_bind(after.id.0).push(")");
        }
        (Some(after), None) => {
            statement.push(format!(" AND key_id {beyond} ")).push_bind(after.id.0);
        }
        (None, _) => {}
    }
    sorted(statement, query);
}

fn sorted(statement: &mut QueryBuilder<Pg>, query: &Query) {
    let way = if query.descending { "DESC" } else { "ASC" };
    statement.push(match column(query.sort) {
        Some(column) => format!(" ORDER BY {column} {way}, key_id {way} LIMIT "),
        None => format!(" ORDER BY key_id {way} LIMIT "),
    });
}

fn column(sort: Sort) -> Option<&'static str> {
    match sort {
        Sort::Key => None,
        Sort::Used => Some("last_used_at"),
        Sort::Created => Some("created_at"),
    }
}

fn cursor(row: &PgRow, id: usize, at: usize) -> Result<BindingCursor, StoreError> {
    Ok(BindingCursor { id: key_id(row.try_get(id).map_err(failed)?)?, at: row.try_get(at).map_err(failed)? })
}

pub async fn list(pool: &Pool, query: Query) -> Result<Page<Record, BindingCursor>, StoreError> {
    let mut tx = pool.begin().await.map_err(failed)?;
    // Longer than a request may take.
    tx.execute("SET LOCAL statement_timeout = '120s'").await.map_err(failed)?;
    let ids = narrowed(&mut tx, &query).await?;
    let at = column(query.sort).map_or("0::bigint".into(), |column| format!("(extract(epoch FROM {column}) * 1e6)::bigint"));
    let mut statement = QueryBuilder::new(format!("SELECT {JUDGED}, {MORE}, {at} FROM (SELECT *"));
    indexed(&mut statement, &query, ids.as_deref());
    ordered(&mut statement, &query);
    statement.push_bind(EXAMINED_MAX).push(") AS b WHERE true");
    others(&mut statement, &query);
    sorted(&mut statement, &query);
    statement.push_bind(i64::from(query.limit));
    let rows = statement.build().fetch_all(&mut *tx).await.map_err(failed)?;
    let next = match rows.last() {
        Some(last) if rows.len() >= query.limit as usize => Some(cursor(last, 0, 15)?),
        _ if query.searches() => {
            let mut statement = QueryBuilder::new(format!("SELECT key_id, {at}"));
            indexed(&mut statement, &query, ids.as_deref());
            ordered(&mut statement, &query);
            statement.push("1 OFFSET ").push_bind(EXAMINED_MAX - 1);
            let row = statement.build().fetch_optional(&mut *tx).await.map_err(failed)?;
            row.as_ref().map(|row| cursor(row, 0, 1)).transpose()?
        }
        _ => None,
    };
    Ok(Page { rows: rows.iter().map(record).collect::<Result<_, _>>()?, next })
}

pub async fn count(pool: &Pool, query: Query) -> Result<Option<u64>, StoreError> {
    if query.searches() {
        return Ok(None);
    }
    let mut tx = pool.begin().await.map_err(failed)?;
    let ids = narrowed(&mut tx, &query).await?;
    if ids.is_none() && query.network.is_some() {
        return Ok(None);
    }
    let mut statement = QueryBuilder::new("SELECT count(*) FROM (SELECT 1");
    indexed(&mut statement, &query, ids.as_deref());
    statement.push(" LIMIT ").push_bind(COUNTED_MAX + 1).push(") AS b");
    let count: i64 = statement.build_query_scalar().fetch_one(&mut *tx).await.map_err(failed)?;
    Ok(u64::try_from(count).ok().filter(|_| count <= COUNTED_MAX))
}
