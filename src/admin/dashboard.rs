//! How things are and have been, over all replicas.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::extract::{QueryParams, May, READ};
use super::health::{self, UpstreamHealth};
use super::logs::Group;
use super::problem::{Answer, Problems};
use super::time::rfc3339;
use crate::bindings::RedisState;
use crate::sql::intercepts::{By, Wanted};
use crate::sql::samples::{HOUR_S, MINUTE_S, Of};
use crate::telemetry::counted::Counted;
use crate::telemetry::sampler::{GONE_MS, State as ReplicaState};
use crate::telemetry::top_k;
use crate::util::time::millis;

/// Keys and addresses that are shown.
const TOP: u32 = 10;

/// How far back.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub enum Range {
    /// An hour, by minutes.
    #[default]
    #[serde(rename = "1h")]
    Hour,
    /// Six hours, by five minutes.
    #[serde(rename = "6h")]
    SixHours,
    /// A day, by quarters of an hour.
    #[serde(rename = "24h")]
    Day,
    /// A week, by hours.
    #[serde(rename = "7d")]
    Week,
    /// Thirty days, by six hours.
    #[serde(rename = "30d")]
    Month,
}

impl Range {
    /// Its length, the step in which it is stored, and that in which it is shown, in seconds.
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

/// Which time.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// How far back.
    #[param(inline)]
    range: Option<Range>,
}

/// How things are and have been.
#[derive(Serialize, ToSchema)]
pub struct Dashboard {
    /// How they are now.
    now: Now,
    /// How long each of `points` is, in seconds.
    step_s: i64,
    /// What was counted, by time; the last one goes on.
    points: Vec<Point>,
    /// Requests in all of it.
    requests: u64,
    /// Intercepts in all of it.
    intercepts: u64,
    /// Times to the first byte in all of it.
    first_byte: Quantiles,
    /// What filters and the gate have decided, the most frequent first.
    decisions: Vec<Decision>,
    /// Keys that asked most. Where very many are about, these are the fewest requests that each has certainly sent.
    busiest_keys: Vec<Busy>,
    /// Addresses that did.
    busiest_clients: Vec<Busy>,
    /// Keys that got 429 most.
    limited_keys: Vec<Busy>,
    /// Addresses that got 429 most.
    limited_clients: Vec<Busy>,
    /// Addresses that got 401 most.
    unauthorized_clients: Vec<Busy>,
    /// Keys that were refused most because of their bindings.
    top_keys: Vec<Group>,
    /// Addresses that were.
    top_clients: Vec<Group>,
    /// Who serves.
    replicas: Vec<Replica>,
    /// What serves them.
    health: Health,
}

/// Somebody who asks much.
#[derive(Serialize, ToSchema)]
pub struct Busy {
    /// The key id, or the address.
    what: String,
    /// The key's hint; empty for an address.
    hint: String,
    /// How many requests.
    requests: u64,
}

/// Those who have asked most since then: of an hour by its minutes, of longer by hours.
async fn busiest(api: &Api, since_ms: i64, stored_s: i64) -> Answer<top_k::Asked> {
    let mut all = top_k::Asked::default();
    for sample in api.store.desk().samples(Of::Tops, stored_s, since_ms - since_ms.rem_euclid(stored_s * 1000)).await? {
        all.add(serde_json::from_value(sample.counted).unwrap_or_default());
    }
    Ok(all)
}

fn busy(all: HashMap<String, top_k::Who>) -> Vec<Busy> {
    let most = top_k::top(all, TOP as usize).into_iter();
    most.map(|(what, who)| Busy { what, hint: who.hint, requests: who.count }).collect()
}

/// How things are now, over all replicas.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Now {
    /// Requests a second, of the last few.
    requests_per_s: f64,
    /// Open streams.
    streams: i64,
    /// Open connections.
    connections: i64,
    /// Replicas that serve.
    replicas: usize,
    /// Every request is refused.
    maintenance: bool,
}

/// What was counted in one step.
#[derive(Serialize, ToSchema)]
pub struct Point {
    /// When it began.
    #[schema(format = DateTime)]
    at: String,
    /// Requests by the class of their status; `0`: unanswered.
    requests: BTreeMap<String, u64>,
    /// Decisions by filter.
    decisions: BTreeMap<String, u64>,
    /// Decisions by what became of the request: `refused`, `answered`, or `shadow`.
    outcomes: BTreeMap<String, u64>,
    /// Intercepts.
    intercepts: u64,
    /// Times to the first byte.
    first_byte: Quantiles,
}

/// Times in seconds; `null` where there was none.
#[derive(Serialize, ToSchema)]
pub struct Quantiles {
    /// Half took no longer.
    p50: Option<f64>,
    /// All but one in twenty.
    p95: Option<f64>,
    /// All but one in a hundred.
    p99: Option<f64>,
}

impl Quantiles {
    fn of(counted: &Counted) -> Self {
        let at = |share| counted.first_byte_quantile(share);
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

/// What was decided.
#[derive(Serialize, ToSchema)]
pub struct Decision {
    /// By which filter, or the gate.
    filter: String,
    /// Why.
    reason: String,
    /// `refused`, `answered`, or `shadow`: it would have been.
    outcome: String,
    /// How often.
    count: u64,
}

/// Who serves.
#[derive(Serialize, ToSchema)]
pub struct Replica {
    /// Its name.
    name: String,
    /// It is the one that answers.
    current: bool,
    /// Its last word.
    #[schema(format = DateTime)]
    seen_at: String,
    /// It has said nothing for 20 s, or was told to stop.
    gone: bool,
    /// Another process serves in its place, and it only lets end what is open.
    handed_over: bool,
    /// Its program's version.
    version: String,
    /// When it was started.
    #[schema(format = DateTime)]
    started_at: String,
    /// When it took the configuration in force.
    #[schema(format = DateTime)]
    loaded_at: String,
    /// Its last attempt to take one succeeded.
    reload_ok: bool,
    /// Open streams.
    streams: i64,
    /// Requests a second.
    requests_per_s: f64,
}

/// What serves this replica.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// All in one word: `ok`, `degraded` (an upstream has no server that works, or the store is away) or `down` (none has).
    status: &'static str,
    /// Why the store does not answer or takes no writes, if it does not.
    store_error: Option<String>,
    /// Whether changes made by other processes are heard of at once.
    notifications: bool,
    /// Redis; `null`: there is none to be.
    redis: Option<RedisState>,
    /// The upstreams.
    upstreams: Vec<UpstreamHealth>,
}

/// How things are now, of the replicas that have said so.
pub async fn now(api: &Api) -> Answer<(Now, Vec<Replica>)> {
    let now_ms = millis(SystemTime::now());
    let mut now = Now { maintenance: api.shared.live.in_maintenance(), ..Now::default() };
    let mut replicas = Vec::new();
    for said in api.store.desk().replicas(now_ms - 24 * 3600 * 1000).await? {
        let state: ReplicaState = serde_json::from_value(said.state).unwrap_or_default();
        let gone = said.seen_ms < now_ms - GONE_MS || state.stopping;
        if !gone {
            now.requests_per_s += state.requests_per_s;
            now.streams += state.streams;
            now.connections += state.connections;
            now.replicas += usize::from(!state.handed_over);
        } else if state.handed_over {
            // Nobody misses it.
            continue;
        }
        replicas.push(Replica {
            current: said.name == api.replica.name(),
            name: said.name,
            seen_at: rfc3339(said.seen_ms),
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
    let of = |name: &&String| name.starts_with("key_binding ") && name.ends_with(" refused");
    counted.decisions.iter().filter(|(name, _)| of(name)).map(|(_, count)| count).sum()
}

/// See how things are and have been
#[utoipa::path(get, path = "/admin/api/dashboard", tag = "dashboard", security(("bearer" = ["read"])), params(Filter), responses((status = 200, body = Dashboard), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(_caller): May<READ>, QueryParams(filter): QueryParams<Filter>) -> Answer<Json<Dashboard>> {
    let (length_s, stored_s, step_s) = filter.range.unwrap_or_default().terms();
    let now_ms = millis(SystemTime::now());
    let step_ms = step_s * 1000;
    let first_ms = now_ms - now_ms.rem_euclid(step_ms) - (length_s - step_s) * 1000;
    let desk = api.store.desk();
    let counted = async || -> Answer<(BTreeMap<i64, Counted>, Counted)> {
        let mut steps: BTreeMap<i64, Counted> = (0..length_s / step_s).map(|n| (first_ms + n * step_ms, Counted::default())).collect();
        let mut all = Counted::default();
        for sample in desk.samples(Of::Counts, stored_s, first_ms).await? {
            let counted: Counted = serde_json::from_value(sample.counted).unwrap_or_default();
            all.add(&counted);
            if let Some(step) = steps.get_mut(&(sample.at_ms - sample.at_ms.rem_euclid(step_ms))) {
                step.add(&counted);
            }
        }
        Ok((steps, all))
    };
    // What was not refused is no trouble of a client: it is on the page of intercepts alone.
    let wanted = Wanted { since_ms: Some(first_ms), shadow: Some(false), limit: TOP, ..Wanted::default() };
    let groups =
        async |by| -> Answer<Vec<Group>> { Ok(desk.intercept_groups(by, &wanted).await?.groups.into_iter().map(Group::from).collect()) };
    // All at once: each waits for the database most of its time.
    let ((steps, all), top_keys, top_clients, (now, replicas), asked) = tokio::try_join!(
        counted(),
        groups(By::Key),
        groups(By::Client),
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
        first_byte: Quantiles::of(&all),
        decisions: decisions(&all),
        busiest_keys: busy(asked.keys),
        busiest_clients: busy(asked.clients),
        limited_keys: busy(asked.limited_keys),
        limited_clients: busy(asked.limited_clients),
        unauthorized_clients: busy(asked.unauthorized_clients),
        top_keys,
        top_clients,
        replicas,
        health: Health { status, store_error: store.err(), notifications: api.store.hears(), redis: api.store.redis_state(), upstreams },
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
        first_byte: Quantiles::of(counted),
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
