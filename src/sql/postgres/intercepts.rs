//! Queries of intercepts in PostgreSQL.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::IpNet;
use keylatch_filters::contract::StoreError;
use sqlx::postgres::PgRow;
use sqlx::{QueryBuilder, Row};

use super::{Pg, Postgres, failed};
use crate::sql::intercepts::{
    EXAMINED_MAX, GROUPED_MAX, Group, Groups, InterceptCursor, InterceptGrouping, InterceptQuery, Intercepted, Intercepts, Page,
};
use crate::sql::record::{key_id, parsed_networks};

const MARK: &str = "minute, last_at, key_id, client, method, path, route, replica, banned";
const ORDER: &str = "
    ORDER BY minute DESC, last_at DESC, key_id DESC, client DESC, method DESC, path DESC, route DESC, replica DESC, banned DESC LIMIT ";
const ROW: &str = "(extract(epoch FROM minute) * 1e3)::bigint, key_id, host(client), method, path, route, replica, banned, hint,
    networks::text[], user_agent, count, (extract(epoch FROM first_at) * 1e3)::bigint, (extract(epoch FROM last_at) * 1e3)::bigint, shadow";

/// The rows after the cursor that an index finds.
fn indexed(query: &mut QueryBuilder<Pg>, wanted: &InterceptQuery) {
    query.push("SELECT * FROM intercepts WHERE true");
    for (condition, at) in [(" AND minute >= ", wanted.since_ms), (" AND minute < ", wanted.until_ms)] {
        if let Some(ms) = at {
            query.push(condition).push("timestamptz 'epoch' + interval '1 ms' * ").push_bind(ms);
        }
    }
    if let Some(key) = wanted.key {
        query.push(" AND key_id = ").push_bind(key.0);
    }
    match wanted.client {
        Some(net) if net.prefix_len() == net.max_prefix_len() => {
            query.push(" AND client = ").push_bind(net.addr().to_string()).push("::inet");
        }
        // An index knows the order of addresses, but not networks that are unknown when the query
        // is planned.
        Some(net) => {
            query.push(" AND client >= ").push_bind(net.network().to_string()).push("::inet AND client <= ");
            query.push_bind(net.broadcast().to_string()).push("::inet");
        }
        None => {}
    }
    if let Some(after) = &wanted.after {
        query.push(format!(" AND ({MARK}) < (timestamptz 'epoch' + interval '1 ms' * "));
        query.push_bind(after.minute_ms).push(", timestamptz 'epoch' + interval '1 ms' * ").push_bind(after.last_ms);
        query.push(", ").push_bind(after.key.0).push(", ").push_bind(after.client.to_string()).push("::inet");
        for text in [&after.method, &after.path, &after.route, &after.replica] {
            query.push(", ").push_bind(text.clone());
        }
        query.push(", ").push_bind(after.banned).push(")");
    }
}

/// The filters without an index. False: the query has none.
fn others(query: &mut QueryBuilder<Pg>, wanted: &InterceptQuery) -> bool {
    for (condition, text) in [(" AND route = ", &wanted.route), (" AND method = ", &wanted.method)] {
        if let Some(text) = text {
            query.push(condition).push_bind(text.clone());
        }
    }
    if let Some(path) = &wanted.path {
        query.push(" AND starts_with(path, ").push_bind(path.clone()).push(")");
    }
    if let Some(banned) = wanted.banned {
        query.push(" AND banned = ").push_bind(banned);
    }
    if let Some(shadow) = wanted.shadow {
        query.push(" AND shadow = ").push_bind(shadow);
    }
    wanted.is_searched()
}

fn cursor(row: &PgRow) -> Result<InterceptCursor, StoreError> {
    let client: String = row.try_get(2).map_err(failed)?;
    let read = || -> sqlx::Result<_> {
        Ok((
            row.try_get(0)?,
            row.try_get(3)?,
            row.try_get(4)?,
            row.try_get(5)?,
            row.try_get(6)?,
            row.try_get(7)?,
            row.try_get(13)?,
            row.try_get(14)?,
        ))
    };
    let (minute_ms, method, path, route, replica, banned, last_ms, shadow) = read().map_err(failed)?;
    let client: IpAddr =
        client.parse().map_err(|_| StoreError::Useless("an intercept has a malformed client address in the database".into()))?;
    Ok(InterceptCursor {
        minute_ms,
        key: key_id(row.try_get(1).map_err(failed)?)?,
        client,
        method,
        path,
        route,
        replica,
        banned,
        shadow,
        last_ms,
    })
}

fn intercepted(row: &PgRow) -> Result<Intercepted, StoreError> {
    let mark = cursor(row)?;
    let texts: Vec<String> = row.try_get(9).map_err(failed)?;
    let networks: Vec<IpNet> = parsed_networks(mark.key, &texts)?;
    let read = || -> sqlx::Result<Intercepted> {
        Ok(Intercepted {
            mark,
            hint: row.try_get(8)?,
            networks,
            user_agent: row.try_get(10)?,
            count: row.try_get(11)?,
            first_ms: row.try_get(12)?,
        })
    };
    read().map_err(failed)
}

#[async_trait]
impl Intercepts for Postgres {
    async fn intercepts(&self, wanted: &InterceptQuery) -> Result<Page<Intercepted, InterceptCursor>, StoreError> {
        let mut query = QueryBuilder::new(format!("SELECT {ROW} FROM ("));
        indexed(&mut query, wanted);
        query.push(ORDER).push_bind(EXAMINED_MAX).push(") AS i WHERE true");
        let searched = others(&mut query, wanted);
        query.push(ORDER).push_bind(i64::from(wanted.limit));
        self.with(async |pool| {
            let rows = query.build().fetch_all(&pool).await.map_err(failed)?;
            let rows = rows.iter().map(intercepted).collect::<Result<Vec<_>, _>>()?;
            let full = rows.len() >= wanted.limit as usize;
            let next = match rows.last() {
                Some(last) if full => Some(last.mark.clone()),
                _ if searched => {
                    let mut query = QueryBuilder::new(format!("SELECT {ROW} FROM ("));
                    indexed(&mut query, wanted);
                    query.push(ORDER).push_bind(1).push(" OFFSET ").push_bind(EXAMINED_MAX - 1).push(") AS i");
                    query.build().fetch_optional(&pool).await.map_err(failed)?.as_ref().map(cursor).transpose()?
                }
                _ => None,
            };
            Ok(Page { rows, next })
        })
        .await
    }

    async fn intercept_groups(&self, by: InterceptGrouping, wanted: &InterceptQuery) -> Result<Groups, StoreError> {
        let (what, hint, others_of) = match by {
            InterceptGrouping::Key => ("encode(key_id, 'hex')", "max(hint)", "client"),
            InterceptGrouping::Client => ("host(client)", "''", "key_id"),
        };
        let mut query = QueryBuilder::new(format!(
            "SELECT {what}, {hint}, sum(count)::bigint, count(DISTINCT {others_of}), (extract(epoch FROM max(last_at)) * 1e3)::bigint FROM ("
        ));
        indexed(&mut query, wanted);
        query.push(" ORDER BY minute DESC LIMIT ").push_bind(GROUPED_MAX).push(") AS i WHERE true");
        others(&mut query, wanted);
        query.push(" GROUP BY 1 ORDER BY 3 DESC, 1 LIMIT ").push_bind(i64::from(wanted.limit));
        let mut count = QueryBuilder::new("SELECT count(*) FROM (");
        indexed(&mut count, wanted);
        count.push(" LIMIT ").push_bind(GROUPED_MAX).push(") AS i");
        self.with(async |pool| {
            let rows = query.build().fetch_all(&pool).await.map_err(failed)?;
            let group = |row: &PgRow| -> sqlx::Result<Group> {
                Ok(Group {
                    what: row.try_get(0)?,
                    hint: row.try_get(1)?,
                    count: row.try_get(2)?,
                    others: row.try_get(3)?,
                    last_ms: row.try_get(4)?,
                })
            };
            let groups = rows.iter().map(|row| group(row).map_err(failed)).collect::<Result<_, _>>()?;
            Ok(Groups { groups, examined: count.build_query_scalar().fetch_one(&pool).await.map_err(failed)? })
        })
        .await
    }
}
