//! Usage of limits on all replicas: lists the subjects near or over a limit, and resets their usage.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use keylatch_filters::contract::{LimitUsage, Now, TrackedUsage, UsageTracker};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Fault;
use super::replica_query::{LimitSubject, ReplicaQuery};
use super::replica_rpc::ReplicaRpc;
use crate::sql::audit::{Actor, AuditLine};

/// Entries that one replica reports at most.
const REPORTED_MAX: usize = 1000;

/// A subject that has used at least four fifths of a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// The limit's name.
    pub limit: String,
    /// The position of its filter in the configuration.
    #[schema(example = "routes.api.rate_limit[0]")]
    pub place: String,
    /// The subject: `key=…`, `client=…`, or a combination of them.
    pub subject: String,
    /// The id of the subject's key.
    pub key_id: Option<String>,
    /// The subject's address; the /64 of an IPv6 address.
    pub client: Option<String>,
    /// The claim's value, as JSON.
    pub claim: Option<String>,
    /// Used units.
    pub used: u32,
    /// The capacity of the limit.
    pub most: u32,
    /// The last request was refused, and the next one would be, too.
    pub over: bool,
    /// The limit is in shadow mode: it refuses no request.
    pub shadow: bool,
    /// Seconds until the whole capacity is available again.
    pub full_in_s: u64,
    /// Seconds until the next request can be allowed.
    pub retry_in_s: u64,
    /// The replica that counts this limit; `null` if all replicas count it together.
    pub replica: Option<String>,
    /// Whether the usage can be reset. The usage of open requests cannot.
    pub can_give_back: bool,
}

fn ceil_s(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn to_limit(shown: &TrackedUsage, standing: LimitUsage) -> Limit {
    let (about, can_give_back) = (&shown.subject, shown.source.can_forget());
    Limit {
        limit: about.limit.clone(),
        place: about.place.clone(),
        subject: about.subject.clone(),
        key_id: about.key.as_ref().map(|id| id.hex()),
        client: about.client.map(|client| client.to_string()),
        claim: about.claim.clone(),
        used: standing.used,
        most: standing.most,
        over: standing.over,
        shadow: standing.shadow,
        full_in_s: if can_give_back { ceil_s(standing.full_in) } else { 0 },
        retry_in_s: if can_give_back { ceil_s(standing.retry_in) } else { 0 },
        // The sender of the query fills in the replica; shared limits have none.
        replica: (!about.shared).then(String::new),
        can_give_back,
    }
}

/// The report of one replica.
#[derive(Debug, Serialize, Deserialize)]
pub struct LocalLimits {
    limits: Vec<Limit>,
    complete: bool,
}

fn share(used: u32, most: u32) -> u64 {
    u64::from(used) * 1000 / u64::from(most.max(1))
}

/// Subjects near or over a limit on this replica, with their current usage.
pub async fn local_limits(near: &UsageTracker) -> LocalLimits {
    let mut noted = near.list(Now::read().instant);
    noted.sort_by_key(|shown| (!shown.usage.over, Reverse(share(shown.usage.used, shown.usage.most))));
    let complete = noted.len() <= REPORTED_MAX;
    noted.truncate(REPORTED_MAX);
    let looked_at = noted.iter().map(async |shown| {
        // A filter notes the usage at the time of a request; the current usage is read here.
        let stands = shown.source.current_usage(Now::read()).await;
        let over = shown.usage.over;
        stands.map_or(shown.usage, |stands| LimitUsage {
            over,
            shadow: shown.usage.shadow,
            retry_in: if over { shown.usage.retry_in.max(stands.retry_in) } else { stands.retry_in },
            ..stands
        })
    });
    let standings = futures::future::join_all(looked_at).await;
    let far: Vec<_> =
        noted.iter().zip(&standings).filter(|(_, standing)| !standing.is_near()).map(|(shown, _)| shown.subject.clone()).collect();
    near.drop_all(&far);
    let near = noted.iter().zip(standings).filter(|(_, standing)| standing.is_near());
    LocalLimits { limits: near.map(|(shown, standing)| to_limit(shown, standing)).collect(), complete }
}

/// The merged reports of all replicas.
#[derive(Debug)]
pub struct LimitList {
    /// Subjects over a limit first, then by usage.
    pub limits: Vec<Limit>,
    /// False if a replica reported only a part of its entries.
    pub complete: bool,
    /// Replicas that did not answer in time.
    pub silent: Vec<String>,
}

/// Lists the subjects near or over a limit on all replicas.
pub async fn list(rpc: &ReplicaRpc) -> Result<LimitList, Fault> {
    let replies = rpc.query_all::<LocalLimits>(&ReplicaQuery::Limits).await?;
    let complete = replies.replies.iter().all(|(_, report)| report.complete);
    let (mut limits, mut shared): (Vec<Limit>, HashMap<LimitSubject, Limit>) = (Vec::new(), HashMap::new());
    for (replica, report) in replies.replies {
        for limit in report.limits {
            match &limit.replica {
                Some(_) => limits.push(Limit { replica: Some(replica.clone()), ..limit }),
                // Several replicas may report a shared limit; a refusal on one of them counts.
                None => {
                    let known = shared.entry(LimitSubject::from_limit(&limit)).or_insert_with(|| limit.clone());
                    let newer = (limit.over, limit.used) > (known.over, known.used);
                    *known = if newer { limit } else { known.clone() };
                }
            }
        }
    }
    limits.extend(shared.into_values());
    limits.sort_by_cached_key(|limit| {
        let place = (limit.place.clone(), limit.limit.clone(), limit.subject.clone(), limit.replica.clone());
        (!limit.over, Reverse(share(limit.used, limit.most)), place)
    });
    Ok(LimitList { limits, complete, silent: replies.silent })
}

impl LimitSubject {
    fn from_limit(limit: &Limit) -> Self {
        Self { limit: limit.limit.clone(), place: limit.place.clone(), subject: limit.subject.clone() }
    }
}

/// Resets the usage of a subject on all replicas.
pub async fn reset(rpc: &ReplicaRpc, which: &LimitSubject, actor: &Actor) -> Result<(), Fault> {
    let all = list(rpc).await?;
    if !all.limits.iter().any(|limit| limit.can_give_back && LimitSubject::from_limit(limit) == *which) {
        return Err(match all.silent.as_slice() {
            [] => Fault::NotFound(format!(
                "no subject of this name is near or over the limit `{}`, or its usage cannot be reset",
                which.limit
            )),
            silent => Fault::External(format!(
                "no replica that answered counts this subject, and these did not answer: {}; try again",
                silent.join(", ")
            )),
        });
    }
    // The audit entry comes first: no change without an entry.
    let line =
        AuditLine { action: "limit.given_back", target: which.subject.clone(), before: serde_json::to_string(which).ok(), after: None };
    rpc.store.admin_store().write_audit(line, actor).await?;
    let replies = rpc.query_all::<usize>(&ReplicaQuery::ResetLimit(which.clone())).await?;
    match replies.silent.is_empty() {
        true => Ok(()),
        false => Err(Fault::External(format!(
            "the limit was reset, but not on all replicas: no answer from {}; try again",
            replies.silent.join(", ")
        ))),
    }
}
