//! What operators do with bindings.

use std::time::SystemTime;

use keylatch_filters::contract::{KeyId, StoreError};
use sqlx::postgres::{PgPool, PgRow};
use sqlx::{AssertSqlSafe, Executor, QueryBuilder, Row};

use super::{JUDGED, Pg, audit, failed, judged};
use crate::store::audit::{Actor, Line};
use crate::store::intercepts::{EXAMINED_MAX, Page};
use crate::store::record::{COUNTED_MAX, Change, Changed, Mark, Query, Record, Sort, key_id, millis, range, roaming_columns, time};

const MORE: &str =
    "hint, made_by, note, labels, (extract(epoch FROM created_at) * 1e3)::bigint, (extract(epoch FROM last_used_at) * 1e3)::bigint";

fn record(row: &PgRow) -> Result<Record, StoreError> {
    let millis = |index: usize| row.try_get::<i64, _>(index).map(time).map_err(failed);
    Ok(Record {
        binding: judged(row)?,
        hint: row.try_get(9).map_err(failed)?,
        made_by: row.try_get(10).map_err(failed)?,
        note: row.try_get(11).map_err(failed)?,
        labels: row.try_get(12).map_err(failed)?,
        created_at: millis(13)?,
        last_used_at: millis(14)?,
    })
}

/// The conditions of which an index knows.
fn indexed(statement: &mut QueryBuilder<Pg>, query: &Query) {
    let (low, high) = range(&query.prefix);
    // Only what is asked for stands in it: with `$5 IS NULL OR …` no index but the first would ever be used.
    statement.push(" FROM bindings WHERE key_id >= ").push_bind(low).push(" AND key_id <= ").push_bind(high);
    if let Some(hint) = &query.hint {
        statement.push(" AND right(hint, 4) = right(").push_bind(hint.clone()).push(", 4) AND right(hint, length(");
        statement.push_bind(hint.clone()).push(")) = ").push_bind(hint.clone());
    }
    if let Some(net) = query.network {
        // In the order of networks, those within one stand behind it.
        statement.push(" AND (networks[1] = ANY(ARRAY(SELECT set_masklen(").push_bind(net.to_string());
        statement.push("::cidr, m) FROM generate_series(0, ").push_bind(i32::from(net.prefix_len())).push(") AS m)) OR (networks[1] >= ");
        statement.push_bind(net.to_string()).push("::cidr AND networks[1] <= ").push_bind(net.broadcast().to_string());
        statement.push("::inet::cidr) OR (cardinality(networks) > 1 AND EXISTS (SELECT 1 FROM unnest(networks) AS n WHERE n && ");
        statement.push_bind(net.to_string()).push("::cidr)))");
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

/// Those behind the mark, in their order.
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

fn mark(row: &PgRow, id: usize, at: usize) -> Result<Mark, StoreError> {
    Ok(Mark { id: key_id(row.try_get(id).map_err(failed)?)?, at: row.try_get(at).map_err(failed)? })
}

pub async fn list(pool: &PgPool, query: Query) -> Result<Page<Record, Mark>, StoreError> {
    let at = column(query.sort).map_or("0::bigint".into(), |column| format!("(extract(epoch FROM {column}) * 1e6)::bigint"));
    let mut statement = QueryBuilder::new(format!("SELECT {JUDGED}, {MORE}, {at} FROM (SELECT *"));
    indexed(&mut statement, &query);
    ordered(&mut statement, &query);
    statement.push_bind(EXAMINED_MAX).push(") AS b WHERE true");
    others(&mut statement, &query);
    sorted(&mut statement, &query);
    statement.push_bind(i64::from(query.limit));
    let mut tx = pool.begin().await.map_err(failed)?;
    // Longer than a request may take.
    tx.execute("SET LOCAL statement_timeout = '120s'").await.map_err(failed)?;
    let rows = statement.build().fetch_all(&mut *tx).await.map_err(failed)?;
    let next = match rows.last() {
        Some(last) if rows.len() >= query.limit as usize => Some(mark(last, 0, 15)?),
        _ if query.searches() => {
            let mut statement = QueryBuilder::new(format!("SELECT key_id, {at}"));
            indexed(&mut statement, &query);
            ordered(&mut statement, &query);
            statement.push("1 OFFSET ").push_bind(EXAMINED_MAX - 1);
            let row = statement.build().fetch_optional(&mut *tx).await.map_err(failed)?;
            row.as_ref().map(|row| mark(row, 0, 1)).transpose()?
        }
        _ => None,
    };
    Ok(Page { rows: rows.iter().map(record).collect::<Result<_, _>>()?, next })
}

pub async fn count(pool: &PgPool, query: Query) -> Result<Option<u64>, StoreError> {
    if query.searches() {
        return Ok(None);
    }
    let mut statement = QueryBuilder::new("SELECT count(*) FROM (SELECT 1");
    indexed(&mut statement, &query);
    statement.push(" LIMIT ").push_bind(COUNTED_MAX + 1).push(") AS b");
    let count: i64 = statement.build_query_scalar().fetch_one(pool).await.map_err(failed)?;
    Ok(u64::try_from(count).ok().filter(|_| count <= COUNTED_MAX))
}

/// The row, which nobody else changes from now on.
async fn held(tx: &mut sqlx::PgConnection, id: KeyId) -> Result<Option<Record>, StoreError> {
    let statement = format!("SELECT {JUDGED}, {MORE} FROM bindings WHERE key_id = $1 FOR UPDATE");
    let row = sqlx::query(AssertSqlSafe(statement)).bind(id.0).fetch_optional(tx).await.map_err(failed)?;
    row.as_ref().map(record).transpose()
}

pub async fn remove(pool: &PgPool, id: KeyId, expects: Option<i64>, actor: &Actor) -> Result<Changed<()>, StoreError> {
    let mut tx = pool.begin().await.map_err(failed)?;
    let Some(before) = held(&mut tx, id).await? else { return Ok(Changed::Missing) };
    if expects.is_some_and(|expects| expects != before.binding.version) {
        return Ok(Changed::Newer(before.binding.version));
    }
    sqlx::query("DELETE FROM bindings WHERE key_id = $1").bind(id.0).execute(&mut *tx).await.map_err(failed)?;
    audit::write(&mut tx, actor, Line::of(id, Some(&before), None)).await?;
    tx.commit().await.map_err(failed)?;
    Ok(Changed::Done(()))
}

pub async fn change(pool: &PgPool, id: KeyId, change: Change, actor: &Actor) -> Result<Changed<Record>, StoreError> {
    let rule = change.rule.as_ref().map(|terms| terms.rule.as_str());
    let networks = change.rule.as_ref().map(|terms| terms.networks.iter().map(ToString::to_string).collect::<Vec<_>>());
    let (networks_max, window_s) = roaming_columns(change.rule.as_ref().and_then(|terms| terms.roaming));
    let seen = vec![millis(SystemTime::now()); networks.as_ref().map_or(0, Vec::len)];
    let mut tx = pool.begin().await.map_err(failed)?;
    let before = held(&mut tx, id).await?;
    match (change.expects, &before) {
        (Some(_), None) => return Ok(Changed::Missing),
        (Some(expects), Some(before)) if expects != before.binding.version => return Ok(Changed::Newer(before.binding.version)),
        _ => {}
    }
    if let (Some(make), Some(rule)) = (&change.make, rule) {
        sqlx::query(
            "INSERT INTO bindings (key_id, hint, rule, networks, networks_max, window_s, version, made_by, created_at, last_used_at)
             VALUES ($1, $2, $3, $4::text[]::cidr[], $6, $7, keylatch_version(0), $5, to_timestamp($8::float8 / 1e3), now()) ON CONFLICT (key_id) DO NOTHING",
        )
        .bind(id.0)
        .bind(&make.hint)
        .bind(rule)
        .bind(&networks)
        .bind(&make.made_by)
        .bind(networks_max)
        .bind(window_s)
        .bind(millis(make.created_at))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    }
    // What somebody has changed by hand is meant: no upstream's word undoes it.
    let statement = format!(
        "UPDATE bindings SET rule = coalesce($2, rule), networks = coalesce($3::text[]::cidr[], networks),
             networks_max = CASE WHEN $2 IS NULL THEN networks_max ELSE $7 END,
             window_s = CASE WHEN $2 IS NULL THEN window_s ELSE $8 END,
             seen_ms = CASE WHEN $2 IS NULL THEN seen_ms WHEN $7 IS NULL THEN '{{}}' ELSE $9 END, banned = coalesce($4, banned),
             note = coalesce($5, note), labels = coalesce($6, labels), made_by = coalesce($10, made_by), confirmed = true,
             version = keylatch_version(version)
         WHERE key_id = $1 RETURNING {JUDGED}, {MORE}"
    );
    let row = sqlx::query(AssertSqlSafe(statement))
        .bind(id.0)
        .bind(rule)
        .bind(&networks)
        .bind(change.banned)
        .bind(&change.note)
        .bind(&change.labels)
        .bind(networks_max)
        .bind(window_s)
        .bind(seen)
        .bind(change.made_by())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
    let Some(after) = row.as_ref().map(record).transpose()? else { return Ok(Changed::Missing) };
    audit::write(&mut tx, actor, Line::of(id, before.as_ref(), Some(&after))).await?;
    tx.commit().await.map_err(failed)?;
    Ok(Changed::Done(after))
}
