//! Handlers for the request log: one row for each request, without its content.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use keylatch_filters::contract::KeyId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::super::Api;
use super::super::export::{self, Format};
use super::super::extract::{May, QueryParams, READ, Revalidation};
use super::super::paging::{ListPage, cursor, limit, parse_cursor};
use super::super::problem::{Answer, Problem, Problems};
use super::super::time::rfc3339;
use super::query::{Filters, range, zone};
use super::{Money, usage};
use crate::operator::Fault;
use crate::sql::record::Record;
use crate::sql::usage::{RequestCursor, RequestQuery, RequestRow};
use crate::util::time::millis;

/// Query parameters of the request log.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RequestParams {
    /// Start of the range: a time (RFC 3339), a date, or a duration before now such as `7d`. Default: `24h`.
    from: Option<String>,
    /// End of the range, exclusive, in the same forms. Default: now.
    to: Option<String>,
    /// The time zone of dates, by its IANA name. Default: UTC.
    time_zone: Option<String>,
    /// Only this key: its id, or the first digits of it.
    key_id: Option<String>,
    /// Only this verified identity.
    subject: Option<String>,
    /// Only keys with this label.
    label: Option<String>,
    /// Only this model; empty: requests without a known model.
    model: Option<String>,
    /// Only this route.
    route: Option<String>,
    /// Only this upstream.
    upstream: Option<String>,
    /// The file format of an export.
    #[param(inline)]
    format: Option<Format>,
    /// The cursor: `next` of the previous page.
    cursor: Option<String>,
    /// Maximum rows.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: Option<u32>,
}

impl RequestParams {
    async fn query(&self, api: &Api) -> Answer<RequestQuery> {
        if api.shared.snapshot.load().settings.usage.requests.is_none() {
            let why = "the request log is off; set `usage.requests: {}` in the configuration and reload it";
            return Err(Fault::Conflict(why.into()).into());
        }
        let (from_ms, to_ms) = range(self.from.as_deref(), self.to.as_deref(), &zone(self.time_zone.as_deref())?)?;
        let filters = Filters {
            key_id: self.key_id.as_deref(),
            subject: self.subject.as_ref(),
            label: self.label.as_ref(),
            model: self.model.as_ref(),
            route: self.route.as_ref(),
            upstream: self.upstream.as_ref(),
        };
        let after: Option<RequestCursor> = parse_cursor(self.cursor.as_deref())?;
        if after.as_ref().is_some_and(|after| uuid::Uuid::parse_str(&after.id).is_err()) {
            return Err(Problem::invalid("cursor", "invalid cursor; use `next` of the previous page"));
        }
        Ok(RequestQuery { from_ms, to_ms, filter: filters.resolve(api).await?, after, limit: limit(self.limit)? })
    }
}

/// A request in the request log.
#[derive(Serialize, ToSchema)]
pub struct LoggedRequest {
    /// The id.
    id: String,
    /// The time at which the request header was complete.
    #[schema(format = DateTime)]
    at: String,
    /// The key id; `null` without a key.
    key_id: Option<String>,
    /// The hint of the key's binding; empty if it is not bound.
    hint: String,
    /// The verified identity.
    subject: Option<String>,
    /// The model; `null` if it is unknown.
    model: Option<String>,
    /// The route.
    route: String,
    /// The upstream.
    upstream: String,
    /// The status; 0 if the client left before a response.
    status: u16,
    /// Whether the answer was a stream.
    streamed: bool,
    /// Input tokens, including those read from and written to a prompt cache.
    input_tokens: u64,
    /// Input tokens read from a prompt cache.
    cached_input_tokens: u64,
    /// Input tokens written to a prompt cache.
    cache_write_tokens: u64,
    /// Output tokens, including reasoning.
    output_tokens: u64,
    /// Output tokens of reasoning.
    reasoning_tokens: u64,
    /// Generated images.
    images: u64,
    /// Transcribed audio, in milliseconds.
    audio_ms: u64,
    /// Characters of spoken text.
    characters: u64,
    /// The cost as a decimal number; `null` without a price.
    #[schema(example = "0.0123")]
    cost: Option<String>,
    /// The currency (ISO 4217).
    currency: Option<String>,
    /// The source of the counts: `reported`, `estimated` or `none`.
    source: &'static str,
    /// The time to first token of a stream, in milliseconds.
    first_token_ms: Option<i64>,
    /// The duration, in milliseconds.
    duration_ms: i64,
}

impl LoggedRequest {
    fn new(RequestRow { id, usage }: RequestRow, bindings: &HashMap<KeyId, Record>) -> Self {
        let money = usage.cost.map(Money::from);
        let (cost, currency) = money.map_or((None, None), |money| (Some(money.cost), Some(money.currency)));
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self {
            id: id.to_string(),
            at: rfc3339(millis(usage.at)),
            key_id: usage.key.map(|key| key.hex()),
            hint: usage.key.and_then(|key| bindings.get(&key)).map(|record| record.hint.clone()).unwrap_or_default(),
            subject: usage.subject.map(|text| text.to_string()),
            model: usage.model.map(|text| text.to_string()),
            route: usage.route.to_string(),
            upstream: usage.upstream.to_string(),
            status: usage.status,
            streamed: usage.streamed,
            input_tokens: usage.tokens.input,
            cached_input_tokens: usage.tokens.cached_input,
            cache_write_tokens: usage.tokens.cache_write,
            output_tokens: usage.tokens.output,
            reasoning_tokens: usage.tokens.reasoning,
            images: usage.units.images,
            audio_ms: usage.units.audio_ms,
            characters: usage.units.characters,
            cost,
            currency,
            source: usage.source.as_str(),
            first_token_ms: usage.first_token.map(ms),
            duration_ms: ms(usage.duration),
        }
    }
}

async fn requests(api: &Api, query: &RequestQuery) -> Answer<(Vec<LoggedRequest>, Option<RequestCursor>)> {
    let page = api.store.admin_store().usage_requests(query).await?;
    let bindings = usage::bindings(&api.store, page.rows.iter().filter_map(|row| row.usage.key)).await?;
    Ok((page.rows.into_iter().map(|row| LoggedRequest::new(row, &bindings)).collect(), page.next))
}

/// List requests with their usage, latest first
///
/// The log has no content of requests. It is off unless `usage.requests` is set; then the operation is a conflict (409).
#[utoipa::path(get, path = "/admin/api/usage/requests", tag = "usage", security(("bearer" = ["read"])), params(RequestParams), responses((status = 200, body = ListPage<LoggedRequest>), Problems))]
pub async fn list(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    QueryParams(params): QueryParams<RequestParams>,
) -> Answer<Json<ListPage<LoggedRequest>>> {
    let (items, next) = requests(&api, &params.query(&api).await?).await?;
    Ok(Json(ListPage { items, next: next.as_ref().map(cursor), total: None }))
}

/// Export requests with their usage
#[utoipa::path(get, path = "/admin/api/usage/requests/export", tag = "usage", security(("bearer" = ["read"])), params(RequestParams),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))), Problems))]
pub async fn export(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    revalidation: Revalidation,
    QueryParams(params): QueryParams<RequestParams>,
) -> Answer<Response> {
    let wanted = RequestQuery { limit: export::PAGE, ..params.query(&api).await? };
    export::stream(Arc::clone(&api), revalidation, params.format.unwrap_or_default(), "requests", move |after: Option<RequestCursor>| {
        let (api, wanted) = (Arc::clone(&api), RequestQuery { after: after.or_else(|| wanted.after.clone()), ..wanted.clone() });
        async move { requests(&api, &wanted).await }
    })
    .await
}
