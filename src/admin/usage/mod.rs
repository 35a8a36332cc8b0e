//! Handlers for reports of usage. `requests` has the request log.

mod query;
pub mod requests;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use keylatch_filters::contract::{Cost, KeyId, MicroUnits};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::export;
use super::extract::{May, QueryParams, READ, Revalidation};
use super::paging::cursor;
use super::problem::{Answer, Problems};
use super::time::rfc3339;
use crate::operator::usage;
use crate::sql::record::Record;
use crate::sql::usage::{UsageCursor, UsageDimension, UsageLatency, UsageQuery, UsageRow};
use query::{LatencyParams, ReportParams};

/// An amount of money.
#[derive(Serialize, ToSchema)]
pub struct Money {
    /// The amount, as a decimal number.
    #[schema(example = "12.34")]
    cost: String,
    /// The currency (ISO 4217).
    #[schema(example = "USD")]
    currency: String,
}

impl From<Cost> for Money {
    fn from(cost: Cost) -> Self {
        Self { cost: MicroUnits(cost.micros).to_string(), currency: cost.currency.to_string() }
    }
}

/// The usage of the requests of one group and step. It has the fields by which the report is grouped. An empty value
/// stands for requests without one, such as requests without a key.
#[derive(Default, Serialize, ToSchema)]
pub struct UsageSummary {
    /// Start of the step, in a report with steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    at: Option<String>,
    /// The key id.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    /// The hint of the key's binding; empty if it is not bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// The labels of the key's binding.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<String>>,
    /// The note of the key's binding.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// The verified identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// The label. A key with two labels counts under each; keys without a label are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The route.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// The upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<String>,
    /// The class of the status, such as `2xx`; `0` if the client left before a response.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// Requests.
    requests: i64,
    /// Input tokens, including those read from and written to a prompt cache.
    input_tokens: i64,
    /// Input tokens read from a prompt cache.
    cached_input_tokens: i64,
    /// Input tokens written to a prompt cache.
    cache_write_tokens: i64,
    /// Output tokens, including reasoning.
    output_tokens: i64,
    /// Output tokens of reasoning.
    reasoning_tokens: i64,
    /// Generated images.
    images: i64,
    /// Transcribed audio, in milliseconds.
    audio_ms: i64,
    /// Characters of spoken text.
    characters: i64,
    /// The cost as a decimal number; `null` if no request had a price.
    #[schema(example = "12.34")]
    cost: Option<String>,
    /// The currency of `cost` (ISO 4217).
    #[schema(example = "USD")]
    currency: Option<String>,
    /// Amounts in further currencies, if the currency of the prices was changed.
    other_costs: Vec<Money>,
    /// Requests with counts but without a price. They are not part of the cost.
    unpriced: i64,
    /// Requests with estimated counts.
    estimated: i64,
    /// The average time to first token of streams, in milliseconds; `null` without a stream.
    first_token_ms: Option<f64>,
    /// Output tokens per second of streams, from the first token on; `null` without a stream.
    tokens_per_second: Option<f64>,
}

/// The quotient with one decimal place; `None` without a divisor.
#[expect(clippy::cast_precision_loss, reason = "sums of milliseconds and tokens are far below 2^52")]
fn average(sum: i64, count: i64) -> Option<f64> {
    (count > 0).then(|| (sum as f64 / count as f64 * 10.0).round() / 10.0)
}

/// The keys of these rows.
fn keys<'a>(rows: &'a [UsageRow], group: &[UsageDimension]) -> impl Iterator<Item = KeyId> + use<'a> {
    let index = group.iter().position(|by| *by == UsageDimension::Key);
    rows.iter().filter_map(move |row| row.group.get(index?).and_then(|hex| KeyId::from_hex(hex)))
}

impl UsageSummary {
    fn new(row: UsageRow, query: &UsageQuery, bindings: &HashMap<KeyId, Record>) -> Self {
        let sums = row.sums;
        // The amount of the largest number comes first.
        let mut costs = row.costs;
        costs.sort_by_key(|cost| std::cmp::Reverse(cost.micros));
        let mut costs = costs.into_iter().map(Money::from);
        let (cost, currency) = costs.next().map_or((None, None), |money| (Some(money.cost), Some(money.currency)));
        let mut summary = Self {
            at: query.step.map(|_| rfc3339(row.start_s * 1000)),
            requests: sums.requests,
            input_tokens: sums.input,
            cached_input_tokens: sums.cached_input,
            cache_write_tokens: sums.cache_write,
            output_tokens: sums.output,
            reasoning_tokens: sums.reasoning,
            images: sums.images,
            audio_ms: sums.audio_ms,
            characters: sums.characters,
            cost,
            currency,
            other_costs: costs.collect(),
            unpriced: sums.unpriced,
            estimated: sums.estimated,
            first_token_ms: average(sums.first_token_ms, sums.first_tokens),
            tokens_per_second: average(sums.generation_output.saturating_mul(1000), sums.generation_ms),
            ..Self::default()
        };
        for (by, value) in query.group.iter().zip(row.group) {
            let field = match by {
                UsageDimension::Key => {
                    let record = KeyId::from_hex(&value).and_then(|id| bindings.get(&id));
                    summary.hint = Some(record.map(|record| record.hint.clone()).unwrap_or_default());
                    summary.labels = Some(record.map(|record| record.binding.labels.clone()).unwrap_or_default());
                    summary.note = Some(record.map(|record| record.note.clone()).unwrap_or_default());
                    &mut summary.key_id
                }
                UsageDimension::Subject => &mut summary.subject,
                UsageDimension::Label => &mut summary.label,
                UsageDimension::Model => &mut summary.model,
                UsageDimension::Route => &mut summary.route,
                UsageDimension::Upstream => &mut summary.upstream,
                UsageDimension::Status => {
                    summary.status = Some(if value == "0" { value } else { format!("{value}xx") });
                    continue;
                }
            };
            *field = Some(value);
        }
        summary
    }
}

/// A page of a report of usage.
#[derive(Serialize, ToSchema)]
pub struct UsageReport {
    /// Start of the range. Sums are by minute, hour or day, so the report can begin up to one of them earlier.
    #[schema(format = DateTime)]
    from: String,
    /// End of the range.
    #[schema(format = DateTime)]
    to: String,
    /// The rows.
    items: Vec<UsageSummary>,
    /// The `cursor` of the next page; `null` on the last page.
    next: Option<String>,
}

async fn summaries(api: &Api, query: &UsageQuery) -> Answer<(Vec<UsageSummary>, Option<UsageCursor>)> {
    let page = api.store.admin_store().usage_report(query).await?;
    let bindings = usage::bindings(&api.store, keys(&page.rows, &query.group)).await?;
    Ok((page.rows.into_iter().map(|row| UsageSummary::new(row, query, &bindings)).collect(), page.next))
}

/// Report usage
///
/// Sums of the requests that the filter `usage` read, of all replicas. A request is counted within `usage.flush_every`.
#[utoipa::path(get, path = "/admin/api/usage", tag = "usage", security(("bearer" = ["read"])), params(ReportParams), responses((status = 200, body = UsageReport), Problems))]
pub async fn report(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    QueryParams(params): QueryParams<ReportParams>,
) -> Answer<Json<UsageReport>> {
    let query = params.query(&api).await?;
    let (items, next) = summaries(&api, &query).await?;
    let (from, to) = (rfc3339(query.from_s * 1000), rfc3339(query.to_s * 1000));
    Ok(Json(UsageReport { from, to, items, next: next.as_ref().map(cursor) }))
}

/// Export a report of usage
#[utoipa::path(get, path = "/admin/api/usage/export", tag = "usage", security(("bearer" = ["read"])), params(ReportParams),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    revalidation: Revalidation,
    QueryParams(params): QueryParams<ReportParams>,
) -> Answer<Response> {
    let wanted = UsageQuery { limit: export::PAGE, ..params.query(&api).await? };
    export::stream(Arc::clone(&api), revalidation, params.format.unwrap_or_default(), "usage", move |after: Option<UsageCursor>| {
        let (api, wanted) = (Arc::clone(&api), UsageQuery { after: after.or_else(|| wanted.after.clone()), ..wanted.clone() });
        async move { summaries(&api, &wanted).await }
    })
    .await
}

/// Times to first token of the streams in one step.
#[derive(Serialize, ToSchema)]
pub struct LatencySummary {
    /// Start of the step; without steps, start of the range.
    #[schema(format = DateTime)]
    at: String,
    /// The number of streams.
    count: i64,
    /// The median in milliseconds, interpolated.
    p50_ms: f64,
    /// The 95th percentile in milliseconds, interpolated.
    p95_ms: f64,
}

impl From<UsageLatency> for LatencySummary {
    fn from(row: UsageLatency) -> Self {
        Self { at: rfc3339(row.start_s * 1000), count: row.count, p50_ms: row.p50_ms.round(), p95_ms: row.p95_ms.round() }
    }
}

/// Times to first token.
#[derive(Serialize, ToSchema)]
pub struct Latency {
    /// The steps with a stream, oldest first.
    items: Vec<LatencySummary>,
}

/// Report times to first token
///
/// From a complete request header to the first text of a stream. Sums are by hour and day.
#[utoipa::path(get, path = "/admin/api/usage/latency", tag = "usage", security(("bearer" = ["read"])), params(LatencyParams), responses((status = 200, body = Latency), Problems))]
pub async fn latency(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    QueryParams(params): QueryParams<LatencyParams>,
) -> Answer<Json<Latency>> {
    let rows = api.store.admin_store().usage_latency(&params.query(&api)?).await?;
    Ok(Json(Latency { items: rows.into_iter().map(LatencySummary::from).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_have_one_decimal_place() {
        assert_eq!((average(10, 4), average(1, 3), average(1, 0)), (Some(2.5), Some(0.3), None));
    }
}
