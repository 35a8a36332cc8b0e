//! Reports of usage in either database. The statements are the same; this file is compiled once for
//! each.
//!
//! A report has two queries: the first finds the groups of the page by the value that they are
//! sorted by, the second sums all columns for these groups only.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use keylatch_filters::contract::{Cost, Currency, KeyId, StoreError};
use sqlx::{Database, QueryBuilder, Row};

use super::usage_filter::filtered;
use super::{Db, Own, failed, fetch_report, join_labels, key_index, write_usage};
use crate::sql::intercepts::Page;
use crate::sql::usage::query::GROUPS_MAX;
use crate::sql::usage::tables::{DAY_S, MINUTE_S, RECENT, recent_column};
use crate::sql::usage::time::{Segment, Steps, recent_days, segments, steps};
use crate::sql::usage::{
    RequestCursor, RequestQuery, RequestRow, Usage, UsageBatch, UsageCursor, UsageDimension, UsageLatency, UsageQuery, UsageRow, UsageSort,
    UsageSums,
};

type DbRow = <Db as Database>::Row;

#[async_trait]
impl Usage for Own {
    async fn write_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        write_usage(self, batch).await
    }

    async fn usage_report(&self, query: &UsageQuery) -> Result<Page<UsageRow, UsageCursor>, StoreError> {
        let report = Report::new(query)?;
        if report.segments.is_empty() {
            return Ok(Page { rows: Vec::new(), next: None });
        }
        let found = match report.has_columns() {
            true => self.ranked(&report).await?,
            false => vec![UsageCursor { value: 0, bucket: 0, group: Vec::new() }],
        };
        let full = report.has_columns() && found.len() >= query.rows_max() as usize;
        let next = found.last().filter(|_| full).cloned();
        let rows = self.summed(&report, found).await?;
        Ok(Page { rows, next })
    }

    async fn usage_latency(&self, query: &UsageQuery) -> Result<Vec<UsageLatency>, StoreError> {
        super::usage_log::latency(self, query).await
    }

    async fn usage_keys(&self, first: KeyId, last: KeyId) -> Result<Vec<KeyId>, StoreError> {
        let mut statement = QueryBuilder::new("SELECT DISTINCT key_id FROM usage_keys WHERE key_id >= ");
        statement.push_bind(first.0.to_vec()).push(" AND key_id <= ").push_bind(last.0.to_vec()).push(" LIMIT 2");
        let ids: Vec<Vec<u8>> = self.with(async |pool| statement.build_query_scalar().fetch_all(&pool).await.map_err(failed)).await?;
        Ok(ids.into_iter().filter_map(|id| id.try_into().ok().map(KeyId)).collect())
    }

    async fn usage_requests(&self, query: &RequestQuery) -> Result<Page<RequestRow, RequestCursor>, StoreError> {
        super::usage_log::requests(self, query).await
    }
}

/// A query with its segments and columns.
struct Report<'q> {
    query: &'q UsageQuery,
    steps: Option<Steps<'q>>,
    segments: Vec<Segment>,
}

impl<'q> Report<'q> {
    fn new(query: &'q UsageQuery) -> Result<Self, StoreError> {
        let repeated = query.group.iter().collect::<std::collections::HashSet<_>>().len() < query.group.len();
        if query.group.len() > GROUPS_MAX || repeated {
            return Err(StoreError::Useless("a usage report has at most two fields to group by, each once".into()));
        }
        Ok(Self { query, steps: steps(query), segments: segments(query) })
    }

    fn has_columns(&self) -> bool {
        self.steps.is_some() || !self.query.group.is_empty()
    }

    /// The number of columns before the values.
    fn columns(&self) -> usize {
        usize::from(self.steps.is_some()) + self.query.group.len()
    }

    fn needs_label(&self) -> bool {
        self.query.group.contains(&UsageDimension::Label)
    }

    /// The columns of the groups over the segments `u`, each with its alias `c0`, `c1`, …
    fn group_columns(&self) -> String {
        let step = self.steps.as_ref().map(|steps| format!("CAST({} AS bigint)", steps.expression("u.at_s")));
        let group = self.query.group.iter().map(|by| match by {
            UsageDimension::Label => "l.label".to_owned(),
            _ => format!("u.{}", column(*by)),
        });
        step.into_iter().chain(group).enumerate().map(|(index, of)| format!("{of} AS c{index}, ")).collect()
    }

    /// The aliases of the groups.
    fn aliases(&self) -> Vec<String> {
        (0..self.columns()).map(|index| format!("c{index}")).collect()
    }

    /// The smallest table with the needed columns.
    fn table(&self, step_s: i64) -> &'static str {
        let (filter, group) = (&self.query.filter, &self.query.group);
        let by = |of: UsageDimension| group.contains(&of);
        let subject = by(UsageDimension::Subject) || filter.subject.is_some();
        let key = by(UsageDimension::Key) || by(UsageDimension::Label) || filter.key.is_some() || filter.label.is_some();
        let target = [UsageDimension::Model, UsageDimension::Route, UsageDimension::Upstream, UsageDimension::Status].into_iter().any(by)
            || filter.model.is_some()
            || filter.route.is_some()
            || filter.upstream.is_some();
        match (step_s, subject, key, target) {
            (MINUTE_S, ..) | (_, true, ..) | (_, _, true, true) => "usage_sums",
            (_, _, true, false) => "usage_keys",
            (_, _, false, _) => "usage_models",
        }
    }

    /// The rows of all segments as `u`, with the labels as `l` if the report needs them. `found`:
    /// only rows of these groups.
    fn from(&self, statement: &mut QueryBuilder<Db>, values: &str, found: &[UsageCursor]) -> Result<(), StoreError> {
        let shift_s = self.steps.as_ref().map_or(0, Steps::day_shift_s);
        let columns: String =
            self.query.group.iter().filter(|by| **by != UsageDimension::Label).map(|by| format!("{}, ", column(*by))).collect();
        let key = if self.needs_label() && !self.query.group.contains(&UsageDimension::Key) { "key_id, " } else { "" };
        let by_key = self.query.filter.key.is_some() || (!found.is_empty() && self.query.group.contains(&UsageDimension::Key));
        statement.push(" FROM (");
        for (number, segment) in self.segments.iter().enumerate() {
            statement.push(if number == 0 { "SELECT " } else { " UNION ALL SELECT " });
            let shift_s = if segment.step_s == DAY_S { shift_s } else { 0 };
            let table = self.table(segment.step_s);
            let index = if by_key { key_index(table) } else { String::new() };
            statement.push(format!(
                "at_s + {shift_s} AS at_s, {key}{columns}{values} FROM {table} AS s{index} WHERE step_s = {}",
                segment.step_s
            ));
            statement.push(" AND at_s >= ").push_bind(segment.from_s).push(" AND at_s < ").push_bind(segment.to_s);
            filtered(statement, &self.query.filter);
            self.only_found(statement, found)?;
        }
        statement.push(") AS u");
        if self.needs_label() {
            join_labels(statement);
        }
        Ok(())
    }

    /// Restricts the rows to the values of the page's groups, for the indexes.
    fn only_found(&self, statement: &mut QueryBuilder<Db>, found: &[UsageCursor]) -> Result<(), StoreError> {
        if found.is_empty() {
            return Ok(());
        }
        for (index, by) in self.query.group.iter().enumerate().filter(|(_, by)| **by != UsageDimension::Label) {
            let values: BTreeSet<&str> = found.iter().filter_map(|cursor| cursor.group.get(index)).map(String::as_str).collect();
            statement.push(format!(" AND {} IN (", column(*by)));
            for (index, value) in values.into_iter().enumerate() {
                if index > 0 {
                    statement.push(", ");
                }
                push_value(statement, *by, value)?;
            }
            statement.push(")");
        }
        Ok(())
    }

    /// The rows after the cursor, in their order. `columns`: the names of the value and the groups.
    fn ordered(&self, statement: &mut QueryBuilder<Db>, columns: &[String]) -> Result<(), StoreError> {
        let query = self.query;
        let names = if query.sort == UsageSort::Time { columns.get(1..).unwrap_or_default() } else { columns };
        if let Some(after) = &query.after {
            statement.push(format!(" WHERE ({}) {} (", names.join(", "), if query.descending { "<" } else { ">" }));
            let mut first = true;
            let mut next = |statement: &mut QueryBuilder<Db>| {
                if !std::mem::take(&mut first) {
                    statement.push(", ");
                }
            };
            if query.sort != UsageSort::Time {
                next(statement);
                statement.push_bind(after.value);
            }
            if self.steps.is_some() {
                next(statement);
                statement.push_bind(after.bucket);
            }
            for (by, value) in query.group.iter().zip(after.group.iter().map(String::as_str).chain(std::iter::repeat(""))) {
                next(statement);
                push_value(statement, *by, value)?;
            }
            statement.push(")");
        }
        let way = if query.descending { " DESC" } else { "" };
        let order: Vec<String> = names.iter().map(|name| format!("{name}{way}")).collect();
        statement.push(format!(" ORDER BY {} LIMIT ", order.join(", "))).push_bind(i64::from(query.rows_max()));
        Ok(())
    }

    /// The position of a row: the step and the group from the column `at` on.
    fn cursor(&self, row: &DbRow, at: usize, value: i64) -> Result<UsageCursor, StoreError> {
        let read = || -> sqlx::Result<UsageCursor> {
            let bucket = if self.steps.is_some() { row.try_get(at)? } else { 0 };
            let first = at + usize::from(self.steps.is_some());
            let group = self.query.group.iter().enumerate().map(|(index, by)| match by {
                UsageDimension::Key => row.try_get::<Vec<u8>, _>(first + index).map(|id| hex(&id)),
                UsageDimension::Status => row.try_get::<i64, _>(first + index).map(|status| status.to_string()),
                _ => row.try_get::<String, _>(first + index),
            });
            Ok(UsageCursor { value, bucket, group: group.collect::<sqlx::Result<_>>()? })
        };
        read().map_err(failed)
    }
}

impl Own {
    /// The groups of the page, in their order.
    async fn ranked(&self, report: &Report<'_>) -> Result<Vec<UsageCursor>, StoreError> {
        let statement = match recent(report)? {
            Some(statement) => statement,
            None => grouped(report)?,
        };
        let rows = fetch_report(self, statement).await?;
        rows.iter().map(|row| report.cursor(row, 1, row.try_get(0).map_err(failed)?)).collect()
    }

    /// The sums of these groups.
    async fn summed(&self, report: &Report<'_>, found: Vec<UsageCursor>) -> Result<Vec<UsageRow>, StoreError> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let sums: Vec<String> = UsageSums::COLUMNS.iter().map(|name| format!("CAST(sum({name}) AS bigint)")).collect();
        let mut statement = QueryBuilder::new("SELECT ");
        statement.push(report.group_columns()).push("u.currency, ").push(sums.join(", "));
        report.from(
            &mut statement,
            &format!("currency, {}", UsageSums::COLUMNS.join(", ")),
            if report.has_columns() { &found } else { &[] },
        )?;
        statement.push(" GROUP BY ");
        statement.push(report.aliases().into_iter().chain(["u.currency".into()]).collect::<Vec<_>>().join(", "));
        let rows = fetch_report(self, statement).await?;
        let mut of_group: HashMap<(i64, Vec<String>), (UsageSums, Vec<Cost>)> = HashMap::new();
        for row in &rows {
            let cursor = report.cursor(row, 0, 0)?;
            let (total, costs) = of_group.entry((cursor.bucket, cursor.group)).or_default();
            let (sums, cost) = read_sums(row, report.columns()).map_err(failed)?;
            total.add(&sums);
            costs.extend(cost);
        }
        let from_s = report.query.from_s;
        let row = |cursor: UsageCursor| {
            let start_s = report.steps.as_ref().map_or(from_s, |steps| steps.start_s(cursor.bucket));
            let (sums, mut costs) = of_group.remove(&(cursor.bucket, cursor.group.clone()))?;
            costs.sort_by_key(|cost| cost.currency);
            Some(UsageRow { start_s, group: cursor.group, sums, costs })
        };
        Ok(found.into_iter().filter_map(row).collect())
    }
}

/// Reads the currency and the sums from the column `at` on.
fn read_sums(row: &DbRow, at: usize) -> sqlx::Result<(UsageSums, Option<Cost>)> {
    let currency: String = row.try_get(at)?;
    let mut index = at;
    let sums = UsageSums::read(|| {
        index += 1;
        row.try_get::<i64, _>(index)
    })?;
    let micros = u64::try_from(sums.cost_micros).unwrap_or_default();
    Ok((sums, Currency::parse(&currency).map(|currency| Cost { micros, currency })))
}

/// The first query of a report.
fn grouped<'q>(report: &Report<'q>) -> Result<QueryBuilder<Db>, StoreError> {
    let (value, columns) = match report.query.sort {
        UsageSort::Cost => ("CAST(sum(cost_micros) AS bigint)", "cost_micros"),
        UsageSort::Tokens => ("CAST(sum(input + output) AS bigint)", "input, output"),
        UsageSort::Requests => ("CAST(sum(requests) AS bigint)", "requests"),
        UsageSort::Time => ("CAST(0 AS bigint)", "requests"),
    };
    let aliases = report.aliases();
    let mut statement = QueryBuilder::new("SELECT v, ");
    statement.push(aliases.join(", ")).push(" FROM (SELECT ").push(report.group_columns()).push(value).push(" AS v");
    report.from(&mut statement, columns, &[])?;
    statement.push(" GROUP BY ").push(aliases.join(", ")).push(") AS g");
    let columns: Vec<String> = std::iter::once("v".to_owned()).chain(aliases).collect();
    report.ordered(&mut statement, &columns)?;
    Ok(statement)
}

/// The same for the keys of the last days, from the table that has one row for each key. `None`: it
/// cannot answer the query.
fn recent(report: &Report<'_>) -> Result<Option<QueryBuilder<Db>>, StoreError> {
    let (query, filter) = (report.query, &report.query.filter);
    let filters = filter.key.is_some() || filter.subject.is_some() || filter.model.is_some() || filter.route.is_some();
    let is_plain =
        query.group == [UsageDimension::Key] && query.step.is_none() && !filters && filter.upstream.is_none() && filter.label.is_none();
    let [cost, tokens, requests] = RECENT.map(|(table, _)| table);
    let table = match query.sort {
        UsageSort::Cost => cost,
        UsageSort::Tokens => tokens,
        UsageSort::Requests => requests,
        UsageSort::Time => return Ok(None),
    };
    let Some((from, to)) = recent_days(query).filter(|_| is_plain) else { return Ok(None) };
    // The running totals at the end and before the start. After the last use of a key there is no
    // column yet, and the total is still the one of the end.
    let end = to.map_or("total".to_owned(), |to| format!("CASE WHEN day >= {to} THEN {} ELSE total END", recent_column(to - 1)));
    let sum = format!("{end} - {}", recent_column(from - 1));
    // Keys that were used after the end only are found, too; the second query drops them.
    let mut statement = QueryBuilder::new("SELECT v, c0 FROM (SELECT key_id AS c0, ");
    statement.push(format!("{sum} AS v FROM {table} WHERE day >= {from}) AS g"));
    report.ordered(&mut statement, &["v".to_owned(), "c0".to_owned()])?;
    Ok(Some(statement))
}

fn column(by: UsageDimension) -> &'static str {
    match by {
        UsageDimension::Key => "key_id",
        UsageDimension::Subject => "subject",
        UsageDimension::Label => "label",
        UsageDimension::Model => "model",
        UsageDimension::Route => "route",
        UsageDimension::Upstream => "upstream",
        UsageDimension::Status => "status",
    }
}

fn push_value(statement: &mut QueryBuilder<Db>, by: UsageDimension, value: &str) -> Result<(), StoreError> {
    let wrong = || StoreError::Useless("the cursor does not belong to this query".into());
    match by {
        UsageDimension::Key if value.is_empty() => statement.push_bind(Vec::<u8>::new()),
        UsageDimension::Key => statement.push_bind(KeyId::from_hex(value).ok_or_else(wrong)?.0.to_vec()),
        UsageDimension::Status => statement.push_bind(value.parse::<i64>().map_err(|_| wrong())?),
        _ => statement.push_bind(value.to_owned()),
    };
    Ok(())
}

fn hex(id: &[u8]) -> String {
    id.try_into().map(|id| KeyId(id).hex()).unwrap_or_default()
}
