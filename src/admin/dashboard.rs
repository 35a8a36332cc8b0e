//! The dashboard: current state and history of all replicas, read from the samples in the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::extract::{May, QueryParams, READ};
use super::health::{self, UpstreamHealth};
use super::logs::Group;
use super::problem::{Answer, Problems};
use super::time::rfc3339;
use crate::bindings::RedisState;
use crate::sql::intercepts::{InterceptGrouping, InterceptQuery};
use crate::sql::samples::{HOUR_S, MINUTE_S, SampleKind};
use crate::telemetry::counted::Counted;
use crate::telemetry::sampler::{GONE_MS, State as ReplicaState};
use crate::telemetry::top_k;
use crate::util::time::millis;

/// Entries of each ranking.
const TOP: u32 = 10;

/// The time range.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub enum Range {
    /// One hour in steps of one minute.
    #[default]
    #[serde(rename = "1h")]
    Hour,
    /// Six hours in steps of five minutes.
    #[serde(rename = "6h")]
    SixHours,
    /// One day in steps of 15 minutes.
    #[serde(rename = "24h")]
    Day,
    /// One week in steps of one hour.
    #[serde(rename = "7d")]
    Week,
    /// Thirty days in steps of six hours.
    #[serde(rename = "30d")]
    Month,
}

impl Range {
    /// Length, step of the stored samples, and step of the points, in seconds.
    fn terms(self) -> (i64, i64, i64) {
        match self {
            Range::Hour => (3600, MINUTE_S, 60),
            Range::SixHours => (6 * 3600, MINUTE_S, 300),
            Range::Day => (24 * 3600, MINUTE_S, 900),
            Range::Week => (7 * 86_400, HOUR_S, 3600),
            Range::Month => (30 * 86_400, HOUR_S, 6 * 3600),
        }
    }
}

/// Query parameters.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// The time range.
    #[param(inline)]
    range: Option<Range>,
}

/// Current state and history.
#[derive(Serialize, ToSchema)]
pub struct Dashboard {
    /// The current state.
    now: Now,
    /// The length of each point in seconds.
    step_s: i64,
    /// Counts over time, oldest first; the last point is incomplete.
    points: Vec<Point>,
    /// Requests in the whole range.
    requests: u64,
    /// Intercepts in the whole range.
    intercepts: u64,
    /// Times to first byte in the whole range.
    first_byte: Quantiles,
    /// Decisions of filters and the gate, most frequent first.
    decisions: Vec<Decision>,
    /// Keys with the most requests. With very many keys the counts are lower bounds.
    busiest_keys: Vec<Busy>,
    /// Addresses with the most requests.
    busiest_clients: Vec<Busy>,
    /// Keys with the most 429 responses.
    limited_keys: Vec<Busy>,
    /// Addresses with the most 429 responses.
    limited_clients: Vec<Busy>,
    /// Addresses with the most 401 responses.
    unauthorized_clients: Vec<Busy>,
    /// Keys with the most intercepts.
    top_keys: Vec<Group>,
    /// Addresses with the most intercepts.
    top_clients: Vec<Group>,
    /// The replicas.
    replicas: Vec<Replica>,
    /// Health of the store, Redis and the upstreams.
    health: Health,
}

/// A key or address and its number of requests.
#[derive(Serialize, ToSchema)]
pub struct Busy {
    /// The key id, or the address.
    what: String,
    /// The key's hint; empty for an address.
    hint: String,
    /// Number of requests.
    requests: u64,
}

/// Rankings since this time: from samples of minutes for one hour, else of hours.
async fn busiest(api: &Api, since_ms: i64, stored_s: i64) -> Answer<top_k::TopCounts> {
    let mut all = top_k::TopCounts::default();
    for sample in
        api.store.admin_store().samples(SampleKind::TopRequesters, stored_s, since_ms - since_ms.rem_euclid(stored_s * 1000)).await?
    {
        all.add(serde_json::from_value(sample.counted).unwrap_or_default());
    }
    Ok(all)
}

fn busy(all: HashMap<String, top_k::TopEntry>) -> Vec<Busy> {
    let most = top_k::top(all, TOP as usize).into_iter();
    most.map(|(what, who)| Busy { what, hint: who.hint, requests: who.count }).collect()
}

/// The current state of all replicas together.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Now {
    /// Requests per second, averaged over the last seconds.
    requests_per_s: f64,
    /// Open streams.
    streams: i64,
    /// Open connections.
    connections: i64,
    /// Number of serving replicas.
    replicas: usize,
    /// Maintenance mode: every request is refused.
    maintenance: bool,
}

/// Counts of one step.
#[derive(Serialize, ToSchema)]
pub struct Point {
    /// Start of the step.
    #[schema(format = DateTime)]
    at: String,
    /// Requests by status class; `0`: no response.
    requests: BTreeMap<String, u64>,
    /// Decisions by filter.
    decisions: BTreeMap<String, u64>,
    /// Decisions by outcome: `refused`, `answered`, or `shadow`.
    outcomes: BTreeMap<String, u64>,
    /// Intercepts.
    intercepts: u64,
    /// Times to first byte.
    first_byte: Quantiles,
}

/// Quantiles in seconds; `null` without data.
#[derive(Serialize, ToSchema)]
pub struct Quantiles {
    /// The median.
    p50: Option<f64>,
    /// The 95th percentile.
    p95: Option<f64>,
    /// The 99th percentile.
    p99: Option<f64>,
}

impl Quantiles {
    fn from_counted(counted: &Counted) -> Self {
        let at = |share| counted.first_byte_quantile(share);
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

/// A decision and its count.
#[derive(Serialize, ToSchema)]
pub struct Decision {
    /// The filter, or `gate`.
    filter: String,
    /// The reason.
    reason: String,
    /// `refused`, `answered`, or `shadow` (not applied).
    outcome: String,
    /// Number of decisions.
    count: u64,
}

/// The replicas.
#[derive(Serialize, ToSchema)]
pub struct Replica {
    /// Its name.
    name: String,
    /// Whether this replica has sent the response.
    current: bool,
    /// The time of its last report.
    #[schema(format = DateTime)]
    seen_at: String,
    /// The replica has not reported for 20 s, or was stopped.
    gone: bool,
    /// It has handed over to another process and only finishes its open requests.
    handed_over: bool,
    /// Its version.
    version: String,
    /// Start time of the process.
    #[schema(format = DateTime)]
    started_at: String,
    /// When its current configuration took effect.
    #[schema(format = DateTime)]
    loaded_at: String,
    /// Whether its last reload succeeded.
    reload_ok: bool,
    /// Open streams.
    streams: i64,
    /// Requests per second.
    requests_per_s: f64,
}

/// Health as this replica sees it.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `ok`, `degraded` (an upstream has no working server, or the store is unavailable) or `down` (no upstream has one).
    status: &'static str,
    /// Why the store does not answer or rejects writes; `null` if it works.
    store_error: Option<String>,
    /// Whether notifications of changes by other processes arrive.
    notifications: bool,
    /// Redis; `null` if it is not configured.
    redis: Option<RedisState>,
    /// The upstreams.
    upstreams: Vec<UpstreamHealth>,
}

/// The current state, from the replicas' reports.
pub async fn now(api: &Api) -> Answer<(Now, Vec<Replica>)> {
    let now_ms = millis(SystemTime::now());
    let mut now = Now { maintenance: api.shared.live.in_maintenance(), ..Now::default() };
    let mut replicas = Vec::new();
    for report in api.store.admin_store().replicas(now_ms - 24 * 3600 * 1000).await? {
        let state: ReplicaState = serde_json::from_value(report.state).unwrap_or_default();
        let gone = report.seen_ms < now_ms - GONE_MS || state.stopping;
        if !gone {
            now.requests_per_s += state.requests_per_s;
            now.streams += state.streams;
            now.connections += state.connections;
            now.replicas += usize::from(!state.handed_over);
        } else if state.handed_over {
            // A process that has handed over and ended is not shown.
            continue;
        }
        replicas.push(Replica {
            current: report.name == api.replica.name(),
            name: report.name,
            seen_at: rfc3339(report.seen_ms),
            gone,
            handed_over: state.handed_over,
            version: state.version,
            started_at: rfc3339(state.started_ms),
            loaded_at: rfc3339(state.loaded_ms),
            reload_ok: state.reload_ok,
            streams: state.streams,
            requests_per_s: state.requests_per_s,
        });
    }
    Ok((now, replicas))
}

fn intercepts(counted: &Counted) -> u64 {
    let is_intercept = |name: &&String| name.starts_with("key_binding ") && name.ends_with(" refused");
    counted.decisions.iter().filter(|(name, _)| is_intercept(name)).map(|(_, count)| count).sum()
}

/// Get the current state and history of all replicas
#[utoipa::path(get, path = "/admin/api/dashboard", tag = "dashboard", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = Dashboard), Problems))]
pub async fn get(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    QueryParams(filter): QueryParams<Filter>,
) -> Answer<Json<Dashboard>> {
    let (length_s, stored_s, step_s) = filter.range.unwrap_or_default().terms();
    let now_ms = millis(SystemTime::now());
    let step_ms = step_s * 1000;
    let first_ms = now_ms - now_ms.rem_euclid(step_ms) - (length_s - step_s) * 1000;
    let admin_store = api.store.admin_store();
    let counted = async || -> Answer<(BTreeMap<i64, Counted>, Counted)> {
        let mut steps: BTreeMap<i64, Counted> = (0..length_s / step_s).map(|n| (first_ms + n * step_ms, Counted::default())).collect();
        let mut all = Counted::default();
        for sample in admin_store.samples(SampleKind::Counts, stored_s, first_ms).await? {
            let counted: Counted = serde_json::from_value(sample.counted).unwrap_or_default();
            all.add(&counted);
            if let Some(step) = steps.get_mut(&(sample.at_ms - sample.at_ms.rem_euclid(step_ms))) {
                step.add(&counted);
            }
        }
        Ok((steps, all))
    };
    // Shadow intercepts refuse no request and are shown on the page of intercepts only.
    let wanted = InterceptQuery { since_ms: Some(first_ms), shadow: Some(false), limit: TOP, ..InterceptQuery::default() };
    let groups = async |by| -> Answer<Vec<Group>> {
        Ok(admin_store.intercept_groups(by, &wanted).await?.groups.into_iter().map(Group::from).collect())
    };
    // Concurrently: each query waits for the database most of the time.
    let ((steps, all), top_keys, top_clients, (now, replicas), busiest) = tokio::try_join!(
        counted(),
        groups(InterceptGrouping::Key),
        groups(InterceptGrouping::Client),
        now(&api),
        busiest(&api, first_ms, if length_s == HOUR_S { MINUTE_S } else { HOUR_S }),
    )?;
    let store = health::store_state(&api).await;
    let snapshot = api.shared.snapshot.load_full();
    let upstreams = health::upstreams(&snapshot);
    let status = health::overall(store.is_ok(), &upstreams).as_str();
    Ok(Json(Dashboard {
        now,
        step_s,
        points: steps.iter().map(|(at_ms, counted)| point(*at_ms, counted)).collect(),
        requests: all.total(),
        intercepts: intercepts(&all),
        first_byte: Quantiles::from_counted(&all),
        decisions: decisions(&all),
        busiest_keys: busy(busiest.keys),
        busiest_clients: busy(busiest.clients),
        limited_keys: busy(busiest.limited_keys),
        limited_clients: busy(busiest.limited_clients),
        unauthorized_clients: busy(busiest.unauthorized_clients),
        top_keys,
        top_clients,
        replicas,
        health: Health {
            status,
            store_error: store.err(),
            notifications: api.store.notifications_work(),
            redis: api.store.redis_state(),
            upstreams,
        },
    }))
}

fn point(at_ms: i64, counted: &Counted) -> Point {
    let (mut by_filter, mut by_outcome) = (BTreeMap::new(), BTreeMap::new());
    for decision in decisions(counted) {
        *by_filter.entry(decision.filter).or_default() += decision.count;
        *by_outcome.entry(decision.outcome).or_default() += decision.count;
    }
    Point {
        at: rfc3339(at_ms),
        requests: counted.requests.clone(),
        decisions: by_filter,
        outcomes: by_outcome,
        intercepts: intercepts(counted),
        first_byte: Quantiles::from_counted(counted),
    }
}

fn decisions(counted: &Counted) -> Vec<Decision> {
    let of_filters = counted.decisions.iter().map(|(name, count)| {
        let mut words = name.splitn(3, ' ').map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        Decision { filter: word(), reason: word(), outcome: word(), count: *count }
    });
    let of_gate = counted.refused.iter().map(|(reason, count)| Decision {
        filter: "gate".into(),
        reason: reason.clone(),
        outcome: "refused".into(),
        count: *count,
    });
    let mut all: Vec<Decision> = of_filters.chain(of_gate).collect();
    all.sort_by_key(|decision| std::cmp::Reverse(decision.count));
    all
}
