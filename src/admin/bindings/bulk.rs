//! Changes many bindings in one call, with a dry run that fixes the set of bindings.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use keylatch_filters::contract::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::super::Api;
use super::super::extract::{BINDINGS, Body, May};
use super::super::problem::{Answer, Problem, Problems};
use super::{Binding, Filter, RuleName, query};
use crate::sql::audit::Actor;
use crate::sql::record::{Change, Changed, Query, Record, labels as labels_of};

/// Maximum bindings of one call.
const AT_ONCE: usize = 10_000;
/// Size of the sample in the response.
const SHOWN: usize = 20;
const PAGE: u32 = 1000;

/// The action on each binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Ban the key.
    Ban,
    /// Lift the ban.
    Unban,
    /// Remove the binding; the next use of the key binds it again.
    Unbind,
    /// Replace the labels.
    Label,
}

/// Selects bindings, with the filters of the list.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Prefix of the key id.
    key_id: Option<String>,
    /// End of the hint.
    hint: Option<String>,
    /// An address or network that contains, or is within, a network of the binding.
    network: Option<String>,
    /// A label of the binding.
    label: Option<String>,
    /// Whether it is banned.
    banned: Option<bool>,
    /// The rule.
    rule: Option<RuleName>,
    /// The account that made it, or `first_use`.
    made_by: Option<String>,
}

/// A change of many bindings.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bulk {
    /// The action.
    action: Action,
    /// The bindings; at least one filter is required.
    filter: Chosen,
    /// The new labels, with the action `label`.
    labels: Option<Vec<String>>,
    /// Report the matching bindings without a change.
    #[serde(default)]
    dry_run: bool,
    /// Fail unless this number of bindings match; from a dry run.
    expected: Option<u64>,
    /// Fail unless the same bindings match unchanged; from a dry run.
    #[schema(max_length = 64)]
    digest: Option<String>,
}

/// The result of a change of many bindings.
#[derive(Serialize, ToSchema)]
pub struct Outcome {
    /// Whether this was a dry run.
    dry_run: bool,
    /// Number of matching bindings.
    matched: u64,
    /// Digest of the matching bindings and their versions.
    digest: String,
    /// Number of changed bindings. The others had the state already, or were changed concurrently.
    changed: u64,
    /// The first matching bindings, before the change.
    sample: Vec<Binding>,
}

/// Change many bindings
///
/// At most 10,000 bindings per call. With `dry_run` nothing changes. Send `matched` and `digest` of the dry run as `expected`
/// and `digest` of the real call: it fails if the set of bindings has changed since.
#[utoipa::path(post, path = "/admin/api/bindings/bulk", tag = "bindings", security(("bearer" = ["bindings"])), request_body = Bulk, responses((status = 200, body = Outcome), Problems))]
pub async fn bulk(State(api): State<Arc<Api>>, May(caller): May<BINDINGS>, Body(input): Body<Bulk>) -> Answer<Json<Outcome>> {
    let Chosen { key_id, hint, network, label: labelled, banned, rule, made_by } = input.filter;
    let nothing = [&key_id, &hint, &network, &labelled, &made_by].into_iter().all(Option::is_none) && banned.is_none() && rule.is_none();
    if nothing {
        return Err(Problem::invalid("filter", "at least one filter is required"));
    }
    let labels = match (input.action, input.labels) {
        (Action::Label, Some(labels)) => labels_of(&labels),
        (Action::Label, None) => Err("the action `label` requires labels".into()),
        (_, Some(_)) => Err("labels are valid with the action `label` only".into()),
        (_, None) => Ok(Vec::new()),
    };
    let labels = labels.map_err(|why| Problem::invalid("labels", why))?;
    let filter = Filter { key_id, hint, network, label: labelled, banned, rule, made_by, ..Filter::default() };
    let chosen = choose(&api, query(&filter)?).await?;
    let matched = chosen.len() as u64;
    if input.expected.is_some_and(|expected| expected != matched) {
        return Err(Problem::from(crate::operator::Fault::Conflict(format!(
            "the filter now matches {matched} bindings; run the dry run again"
        ))));
    }
    let digest = digest(&chosen);
    if input.digest.is_some_and(|expected| expected != digest) {
        let why =
            format!("the filter still matches {matched} bindings, but some were replaced or changed meanwhile; run the dry run again");
        return Err(Problem::from(crate::operator::Fault::Conflict(why)));
    }
    let sample = chosen.iter().take(SHOWN).map(Binding::from).collect();
    let mut changed = 0;
    if !input.dry_run {
        for record in &chosen {
            changed += u64::from(one(&api, record, input.action, &labels, &caller.actor).await?);
        }
    }
    Ok(Json(Outcome { dry_run: input.dry_run, matched, digest, changed, sample }))
}

fn digest(chosen: &[Record]) -> String {
    let mut digest = Sha256::new();
    for record in chosen {
        digest.update(record.binding.id.0);
        digest.update(record.binding.version.to_be_bytes());
    }
    hex(&digest.finalize()[..16])
}

/// All matching bindings, read before the first change.
async fn choose(api: &Api, query: Query) -> Answer<Vec<Record>> {
    let (mut chosen, mut after) = (Vec::new(), None);
    loop {
        let page =
            api.store.list(Query { after, limit: PAGE, sort: crate::sql::record::Sort::Key, descending: false, ..query.clone() }).await?;
        chosen.extend(page.rows);
        after = page.next;
        if chosen.len() > AT_ONCE {
            return Err(Problem::invalid("filter", format!("matches more than {AT_ONCE} bindings; narrow it")));
        }
        if after.is_none() {
            return Ok(chosen);
        }
    }
}

/// Changes one binding. False: it had the state already, or was changed since it was read.
async fn one(api: &Api, record: &Record, action: Action, labels: &[String], actor: &Actor) -> Answer<bool> {
    let (id, expects) = (record.binding.id, Some(record.binding.version));
    let change = match action {
        Action::Unbind => return Ok(api.store.remove(id, expects, actor.clone()).await? == Changed::Done(())),
        Action::Ban if record.binding.banned => return Ok(false),
        Action::Unban if !record.binding.banned => return Ok(false),
        Action::Ban => Change { banned: Some(true), expects, ..Change::default() },
        Action::Unban => Change { banned: Some(false), expects, ..Change::default() },
        Action::Label => Change { labels: Some(labels.to_vec()), expects, ..Change::default() },
    };
    Ok(api.store.change(id, change, actor.clone()).await?.done().is_some())
}
