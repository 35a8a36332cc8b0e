//! Who is near or over a limit, on all replicas, and giving back what he has used.

use std::time::{Duration, Instant};

use keylatch_filters::contract::{Near, Shown};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Fault;
use super::everywhere::{Everywhere, Question};
use crate::store::audit::{Actor, Line};

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
    /// His last request was refused, and so would be the next one.
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

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The limit's name.
    #[schema(max_length = 256)]
    pub limit: String,
    /// Where its filter stands.
    #[schema(max_length = 1024)]
    pub place: String,
    /// Who it is.
    #[schema(max_length = 1024)]
    pub subject: String,
}

fn ceil_s(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn row(shown: Shown) -> Limit {
    let (about, standing) = (&shown.about, shown.standing);
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
        shadow: about.shadow,
        full_in_s: ceil_s(standing.full_in),
        retry_in_s: ceil_s(standing.retry_in),
        // Said by whoever asks; counted together it is nobody's.
        replica: (!about.shared).then(String::new),
        can_give_back: shown.counted.can_forget(),
    }
}

/// Those of this replica.
pub fn here(near: &Near) -> Vec<Limit> {
    near.list(Instant::now()).into_iter().take(TOLD_MAX).map(row).collect()
}

/// Those of all replicas: first who is over, then who has used most. And the replicas that have said nothing.
pub async fn list(everywhere: &Everywhere) -> Result<(Vec<Limit>, Vec<String>), Fault> {
    let heard = everywhere.ask::<Vec<Limit>>(&Question::Limits, None).await?;
    let mut all: Vec<Limit> = Vec::new();
    for (replica, limits) in heard.said {
        for limit in limits {
            match &limit.replica {
                Some(_) => all.push(Limit { replica: Some(replica.clone()), ..limit }),
                // What they count together, several may have seen: what was seen last is what uses most.
                None => {
                    let same = |known: &&mut Limit| known.replica.is_none() && key(known) == key(&limit);
                    match all.iter_mut().find(same) {
                        Some(known) if (known.over, known.used) < (limit.over, limit.used) => *known = limit,
                        Some(_) => {}
                        None => all.push(limit),
                    }
                }
            }
        }
    }
    all.sort_by_cached_key(|limit| {
        let share = u64::from(limit.used) * 1000 / u64::from(limit.most.max(1));
        (!limit.over, std::cmp::Reverse(share), limit.place.clone(), limit.subject.clone(), limit.replica.clone())
    });
    Ok((all, heard.silent))
}

fn key(limit: &Limit) -> (&str, &str, &str) {
    (&limit.place, &limit.limit, &limit.subject)
}

/// Gives back what somebody has used of a limit, on all replicas.
pub async fn give_back(everywhere: &Everywhere, which: &Which, actor: &Actor) -> Result<(), Fault> {
    let heard = everywhere.ask::<usize>(&Question::GiveBack(which.clone()), None).await?;
    if heard.said.iter().all(|(_, forgotten)| *forgotten == 0) {
        let why = format!("nobody of that name is near or over the limit `{}`, or what he has used cannot be given back", which.limit);
        return Err(Fault::Missing(why));
    }
    let before = serde_json::to_string(which).ok();
    let line = Line { action: "limit.given_back", target: which.subject.clone(), before, after: None };
    everywhere.store.desk().note_down(line, actor).await?;
    match heard.silent.is_empty() {
        true => Ok(()),
        false => Err(Fault::Elsewhere(format!("it was given back, but not by all replicas: no answer from {}", heard.silent.join(", ")))),
    }
}
