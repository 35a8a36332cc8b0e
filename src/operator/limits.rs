//! Who is near or over a limit, on all replicas, and giving back what he has used.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use keylatch_filters::contract::{LimitUsage, Now, TrackedUsage, UsageTracker};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Fault;
use super::replica_questions::{LimitSubject, Question};
use super::replicas::Everywhere;
use crate::sql::audit::{Actor, AuditLine};

/// So many are told by each replica.
const TOLD_MAX: usize = 1000;

/// Somebody who has used four fifths of a limit, or more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// The limit's name.
    pub limit: String,
    /// Where its filter stands.
    #[schema(example = "routes.api.rate_limit[0]")]
    pub place: String,
    /// Who it is: `key=…`, `client=…`, or several of them.
    pub subject: String,
    /// His key.
    pub key_id: Option<String>,
    /// His address; of IPv6 the /64.
    pub client: Option<String>,
    /// The claim's value, as JSON.
    pub claim: Option<String>,
    /// So much is used.
    pub used: u32,
    /// Of so much that there is at once.
    pub most: u32,
    /// His last request was refused, and the like of it would be now.
    pub over: bool,
    /// The limit refuses nobody.
    pub shadow: bool,
    /// Seconds until all of it is there again.
    pub full_in_s: u64,
    /// Seconds until the next request can be allowed.
    pub retry_in_s: u64,
    /// The replica that counts it; `null`: they count together.
    pub replica: Option<String>,
    /// Whether what was used can be given back. Requests that are open cannot.
    pub can_give_back: bool,
}

fn ceil_s(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn row(shown: &TrackedUsage, standing: LimitUsage) -> Limit {
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
        // Said by whoever asks; counted together it is nobody's.
        replica: (!about.shared).then(String::new),
        can_give_back,
    }
}

/// As one replica tells of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Here {
    limits: Vec<Limit>,
    complete: bool,
}

fn share(used: u32, most: u32) -> u64 {
    u64::from(used) * 1000 / u64::from(most.max(1))
}

/// Those of this replica, as they stand now.
pub async fn here(near: &UsageTracker) -> Here {
    let mut noted = near.list(Now::read().instant);
    noted.sort_by_key(|shown| (!shown.usage.over, Reverse(share(shown.usage.used, shown.usage.most))));
    let complete = noted.len() <= TOLD_MAX;
    noted.truncate(TOLD_MAX);
    let looked_at = noted.iter().map(async |shown| {
        // What a filter has noted was so when he asked; what he has used since, or has back, is asked for.
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
    Here { limits: near.map(|(shown, standing)| row(shown, standing)).collect(), complete }
}

/// Those of all replicas.
#[derive(Debug)]
pub struct All {
    /// First who is over, then who has used most.
    pub limits: Vec<Limit>,
    /// Nobody was left out because there were too many.
    pub complete: bool,
    /// Replicas that have said nothing.
    pub silent: Vec<String>,
}

/// Asks all replicas.
pub async fn list(everywhere: &Everywhere) -> Result<All, Fault> {
    let heard = everywhere.ask::<Here>(&Question::Limits).await?;
    let complete = heard.said.iter().all(|(_, here)| here.complete);
    let (mut limits, mut together): (Vec<Limit>, HashMap<LimitSubject, Limit>) = (Vec::new(), HashMap::new());
    for (replica, here) in heard.said {
        for limit in here.limits {
            match &limit.replica {
                Some(_) => limits.push(Limit { replica: Some(replica.clone()), ..limit }),
                // What they count together, several may have seen; who was refused by one is over.
                None => {
                    let known = together.entry(LimitSubject::of(&limit)).or_insert_with(|| limit.clone());
                    let newer = (limit.over, limit.used) > (known.over, known.used);
                    *known = if newer { limit } else { known.clone() };
                }
            }
        }
    }
    limits.extend(together.into_values());
    limits.sort_by_cached_key(|limit| {
        let place = (limit.place.clone(), limit.limit.clone(), limit.subject.clone(), limit.replica.clone());
        (!limit.over, Reverse(share(limit.used, limit.most)), place)
    });
    Ok(All { limits, complete, silent: heard.silent })
}

impl LimitSubject {
    fn of(limit: &Limit) -> Self {
        Self { limit: limit.limit.clone(), place: limit.place.clone(), subject: limit.subject.clone() }
    }
}

/// Gives back what somebody has used of a limit, on all replicas.
pub async fn give_back(everywhere: &Everywhere, which: &LimitSubject, actor: &Actor) -> Result<(), Fault> {
    let all = list(everywhere).await?;
    if !all.limits.iter().any(|limit| limit.can_give_back && LimitSubject::of(limit) == *which) {
        return Err(match all.silent.as_slice() {
            [] => Fault::Missing(format!(
                "nobody of that name is near or over the limit `{}`, or what he has used cannot be given back",
                which.limit
            )),
            silent => {
                Fault::Elsewhere(format!("no replica that has answered counts him, and there is no answer from {}", silent.join(", ")))
            }
        });
    }
    // First it is written down: nothing is done that nobody can know of.
    let line =
        AuditLine { action: "limit.given_back", target: which.subject.clone(), before: serde_json::to_string(which).ok(), after: None };
    everywhere.store.admin_store().write_audit(line, actor).await?;
    let heard = everywhere.ask::<usize>(&Question::GiveBack(which.clone())).await?;
    match heard.silent.is_empty() {
        true => Ok(()),
        false => Err(Fault::Elsewhere(format!("it was given back, but not by all replicas: no answer from {}", heard.silent.join(", ")))),
    }
}
