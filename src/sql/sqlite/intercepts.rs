//! Queries of intercepts in SQLite.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::IpNet;
use keylatch_filters::contract::StoreError;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite as Db};

use super::{Sqlite, failed, json, text};
use crate::sql::intercepts::{
    EXAMINED_MAX, GROUPED_MAX, Group, Groups, InterceptCursor, InterceptGrouping, InterceptQuery, Intercepted, Intercepts, Page,
};
use crate::sql::record::{key_id, parsed_networks};

const MARK: &str = "minute_ms, last_ms, key_id, client, method, path, route, banned, shadow";
const ORDER: &str = "
    ORDER BY minute_ms DESC, last_ms DESC, key_id DESC, client DESC, method DESC, path DESC, route DESC, banned DESC, shadow DESC LIMIT ";
const ROW: &str = "minute_ms, key_id, client, method, path, route, banned, hint, networks, user_agent, count, first_ms, last_ms, shadow";

/// Reads in the order of the primary key. The planner of newer versions of SQLite may sort the whole
/// table instead.
const PRIMARY_KEY: &str = "INDEXED BY sqlite_autoindex_intercepts_1";

/// Up to this number of clients of a network, each is looked up. Past it, the texts in the
/// network's range are filtered.
const CLIENTS_MAX: usize = 5000;

/// The clients with intercepts in the queried network; each is then found by one index look-up.
/// `None`: one address or no network was queried, or the network has more than [`CLIENTS_MAX`].
async fn clients(pool: &SqlitePool, wanted: &InterceptQuery) -> Result<Option<Vec<String>>, StoreError> {
    let Some(net) = wanted.client.filter(|net| net.prefix_len() < net.max_prefix_len()) else { return Ok(None) };
    let (low, high) = text::range(net);
    let found: Vec<String> = sqlx::query_scalar(
        "WITH RECURSIVE c (client) AS (
             SELECT min(client) FROM intercepts WHERE client >= $1 AND client < $2
             UNION ALL SELECT (SELECT min(client) FROM intercepts WHERE client > c.client AND client < $2) FROM c WHERE c.client IS NOT NULL)
         SELECT client FROM c WHERE client IS NOT NULL LIMIT $3",
    )
    .bind(low)
    .bind(high)
    .bind(i64::try_from(CLIENTS_MAX + 1).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await
    .map_err(failed)?;
    let within = |client: &String| client.parse::<IpAddr>().is_ok_and(|client| net.contains(&client));
    Ok((found.len() <= CLIENTS_MAX).then(|| found.into_iter().filter(within).collect()))
}

/// The rows after the cursor that an index finds. `clients`: the clients of the queried network, if
/// they are known.
fn indexed(query: &mut QueryBuilder<Db>, wanted: &InterceptQuery, clients: Option<&[String]>) {
    query.push("SELECT * FROM intercepts ");
    if wanted.key.is_none() && wanted.client.is_none() {
        query.push(PRIMARY_KEY);
    }
    query.push(" WHERE true");
    for (condition, at) in [(" AND minute_ms >= ", wanted.since_ms), (" AND minute_ms < ", wanted.until_ms)] {
        if let Some(ms) = at {
            query.push(condition).push_bind(ms);
        }
    }
    if let Some(key) = wanted.key {
        query.push(" AND key_id = ").push_bind(key.0.to_vec());
    }
    match wanted.client {
        Some(net) if net.prefix_len() == net.max_prefix_len() => {
            query.push(" AND client = ").push_bind(net.addr().to_string());
        }
        Some(_) if clients.is_some() => {
            query.push(" AND client IN (SELECT value FROM json_each(").push_bind(json(clients.unwrap_or_default())).push("))");
        }
        Some(net) => {
            let (low, high) = text::range(net);
            query.push(" AND client >= ").push_bind(low).push(" AND client < ").push_bind(high);
        }
        None => {}
    }
    if let Some(after) = &wanted.after {
        query.push(format!(" AND ({MARK}) < ("));
        query.push_bind(after.minute_ms).push(", ").push_bind(after.last_ms).push(", ").push_bind(after.key.0.to_vec());
        for text in [&after.client.to_string(), &after.method, &after.path, &after.route] {
            query.push(", ").push_bind(text.clone());
        }
        query.push(", ").push_bind(after.banned).push(", ").push_bind(after.shadow).push(")");
    }
}

/// The filters without an index. False: the query has none.
fn others(query: &mut QueryBuilder<Db>, wanted: &InterceptQuery) -> bool {
    for (condition, text) in [(" AND route = ", &wanted.route), (" AND method = ", &wanted.method)] {
        if let Some(text) = text {
            query.push(condition).push_bind(text.clone());
        }
    }
    if let Some(path) = &wanted.path {
        query.push(" AND substr(path, 1, ").push_bind(i64::try_from(path.chars().count()).unwrap_or(i64::MAX));
        query.push(") = ").push_bind(path.clone());
    }
    if let Some(banned) = wanted.banned {
        query.push(" AND banned = ").push_bind(banned);
    }
    if let Some(shadow) = wanted.shadow {
        query.push(" AND shadow = ").push_bind(shadow);
    }
    wanted.is_searched()
}

fn cursor(row: &SqliteRow) -> Result<InterceptCursor, StoreError> {
    let client: String = row.try_get(2).map_err(failed)?;
    let read = || -> sqlx::Result<_> {
        Ok((row.try_get(0)?, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?, row.try_get(12)?, row.try_get(13)?))
    };
    let (minute_ms, method, path, route, banned, last_ms, shadow) = read().map_err(failed)?;
    let client: IpAddr =
        client.parse().map_err(|_| StoreError::Useless("an intercept has a malformed client address in the database".into()))?;
    let key = key_id(row.try_get(1).map_err(failed)?)?;
    Ok(InterceptCursor { minute_ms, key, client, method, path, route, replica: String::new(), banned, shadow, last_ms })
}

fn intercepted(row: &SqliteRow) -> Result<Intercepted, StoreError> {
    let mark = cursor(row)?;
    let texts: String = row.try_get(8).map_err(failed)?;
    let networks: Vec<IpNet> = parsed_networks(mark.key, &texts.split(',').map(str::to_owned).collect::<Vec<_>>())?;
    let read = || -> sqlx::Result<Intercepted> {
        Ok(Intercepted {
            mark,
            hint: row.try_get(7)?,
            networks,
            user_agent: row.try_get(9)?,
            count: row.try_get(10)?,
            first_ms: row.try_get(11)?,
        })
    };
    read().map_err(failed)
}

#[async_trait]
impl Intercepts for Sqlite {
    async fn intercepts(&self, wanted: &InterceptQuery) -> Result<Page<Intercepted, InterceptCursor>, StoreError> {
        let clients = clients(&self.pool, wanted).await?;
        let mut query = QueryBuilder::new(format!("SELECT {ROW} FROM ("));
        indexed(&mut query, wanted, clients.as_deref());
        query.push(ORDER).push_bind(EXAMINED_MAX).push(") WHERE true");
        let searched = others(&mut query, wanted);
        query.push(ORDER).push_bind(i64::from(wanted.limit));
        let rows = query.build().fetch_all(&self.pool).await.map_err(failed)?;
        let mut rows = rows.iter().map(intercepted).collect::<Result<Vec<_>, _>>()?;
        let next = match rows.last() {
            Some(last) if rows.len() >= wanted.limit as usize => Some(last.mark.clone()),
            _ if searched => {
                let mut query = QueryBuilder::new(format!("SELECT {ROW} FROM ("));
                indexed(&mut query, wanted, clients.as_deref());
                query.push(ORDER).push_bind(1).push(" OFFSET ").push_bind(EXAMINED_MAX - 1).push(")");
                query.build().fetch_optional(&self.pool).await.map_err(failed)?.as_ref().map(cursor).transpose()?
            }
            _ => None,
        };
        rows.retain(|row| wanted.client.is_none_or(|net| net.contains(&row.mark.client)));
        Ok(Page { rows, next })
    }

    async fn intercept_groups(&self, by: InterceptGrouping, wanted: &InterceptQuery) -> Result<Groups, StoreError> {
        let clients = clients(&self.pool, wanted).await?;
        let (what, hint, others_of) = match by {
            InterceptGrouping::Key => ("lower(hex(key_id))", "max(hint)", "client"),
            InterceptGrouping::Client => ("client", "''", "key_id"),
        };
        let mut query = QueryBuilder::new(format!("SELECT {what}, {hint}, sum(count), count(DISTINCT {others_of}), max(last_ms) FROM ("));
        indexed(&mut query, wanted, clients.as_deref());
        query.push(" ORDER BY minute_ms DESC LIMIT ").push_bind(GROUPED_MAX).push(") WHERE true");
        others(&mut query, wanted);
        query.push(" GROUP BY 1 ORDER BY 3 DESC, 1 LIMIT ").push_bind(i64::from(wanted.limit));
        let rows = query.build().fetch_all(&self.pool).await.map_err(failed)?;
        let group = |row: &SqliteRow| -> sqlx::Result<Group> {
            Ok(Group {
                what: row.try_get(0)?,
                hint: row.try_get(1)?,
                count: row.try_get(2)?,
                others: row.try_get(3)?,
                last_ms: row.try_get(4)?,
            })
        };
        let mut groups = rows.iter().map(|row| group(row).map_err(failed)).collect::<Result<Vec<_>, _>>()?;
        if let (InterceptGrouping::Client, Some(net)) = (by, wanted.client) {
            groups.retain(|group| group.what.parse::<IpAddr>().is_ok_and(|client| net.contains(&client)));
        }
        let mut count = QueryBuilder::new("SELECT count(*) FROM (");
        indexed(&mut count, wanted, clients.as_deref());
        count.push(" LIMIT ").push_bind(GROUPED_MAX).push(")");
        Ok(Groups { groups, examined: count.build_query_scalar().fetch_one(&self.pool).await.map_err(failed)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan of the query for the latest intercepts.
    async fn plan(wanted: &InterceptQuery) -> String {
        let store = Sqlite::in_memory().await.unwrap();
        let mut query = QueryBuilder::new(format!("EXPLAIN QUERY PLAN SELECT {ROW} FROM ("));
        indexed(&mut query, wanted, None);
        query.push(ORDER).push_bind(EXAMINED_MAX).push(") WHERE true");
        others(&mut query, wanted);
        query.push(ORDER).push_bind(20_i64);
        let rows = query.build().fetch_all(&store.pool).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>("detail") + "\n").collect()
    }

    #[tokio::test]
    async fn the_latest_intercepts_are_read_in_their_order() {
        let route = InterceptQuery { route: Some("r".into()), ..InterceptQuery::default() };
        for wanted in [InterceptQuery::default(), route] {
            let plan = plan(&wanted).await;
            assert!(plan.contains("SCAN intercepts\n") && plan.contains("TEMP B-TREE FOR LAST 8 TERMS"), "{plan}");
        }
    }
}
