//! Changing many bindings at once, after a look at which.

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

/// Bindings that one call changes.
const AT_ONCE: usize = 10_000;
/// Those of them that are shown.
const SHOWN: usize = 20;
const PAGE: u32 = 1000;

/// What is done with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Refuse the key from everywhere.
    Ban,
    /// Let it be used revalidation, within its binding.
    Unban,
    /// Let its next use bind it anew.
    Unbind,
    /// Set the labels.
    Label,
}

/// Which bindings, as in the list.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Whose key id begins so.
    key_id: Option<String>,
    /// Whose hint ends so.
    hint: Option<String>,
    /// Whose networks hold this address or network, or stand within it.
    network: Option<String>,
    /// With this label.
    label: Option<String>,
    /// Banned or not.
    banned: Option<bool>,
    /// With this rule.
    rule: Option<RuleName>,
    /// Made by him, or by `first_use`.
    made_by: Option<String>,
}

/// What is to be done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bulk {
    /// What.
    action: Action,
    /// With which; at least one thing must be said.
    filter: Chosen,
    /// With `label`: the labels from now on.
    labels: Option<Vec<String>>,
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
    /// Do it only if it is so many: what a dry run has said.
    expected: Option<u64>,
    /// Do it only if these are they, as they were: what a dry run has said.
    #[schema(max_length = 64)]
    digest: Option<String>,
}

/// What was done, or would be.
#[derive(Serialize, ToSchema)]
pub struct Outcome {
    /// Nothing was done.
    dry_run: bool,
    /// How many the filter chooses.
    matched: u64,
    /// Stands for just these bindings, as they are.
    digest: String,
    /// How many were changed; the others were changed by somebody else meanwhile, or are as they should be.
    changed: u64,
    /// The first of them, as they were.
    sample: Vec<Binding>,
}

/// Change many bindings
///
/// At most 10,000 at once. With `dry_run` nothing is changed; what it says of `matched` and `digest` goes into `expected`
/// and `digest` of the call that does it, which is refused if there are others by then.
#[utoipa::path(post, path = "/admin/api/bindings/bulk", tag = "bindings", security(("bearer" = ["bindings"])), request_body = Bulk, responses((status = 200, body = Outcome), Problems))]
pub async fn bulk(State(api): State<Arc<Api>>, May(caller): May<BINDINGS>, Body(asked): Body<Bulk>) -> Answer<Json<Outcome>> {
    let Chosen { key_id, hint, network, label: labelled, banned, rule, made_by } = asked.filter;
    let nothing = [&key_id, &hint, &network, &labelled, &made_by].into_iter().all(Option::is_none) && banned.is_none() && rule.is_none();
    if nothing {
        return Err(Problem::invalid("filter", "say at least one thing of those that are meant"));
    }
    let labels = match (asked.action, asked.labels) {
        (Action::Label, Some(labels)) => labels_of(&labels),
        (Action::Label, None) => Err("give the labels from now on".into()),
        (_, Some(_)) => Err("labels go with the action `label` only".into()),
        (_, None) => Ok(Vec::new()),
    };
    let labels = labels.map_err(|why| Problem::invalid("labels", why))?;
    let filter = Filter { key_id, hint, network, label: labelled, banned, rule, made_by, ..Filter::default() };
    let chosen = choose(&api, query(&filter)?).await?;
    let matched = chosen.len() as u64;
    if asked.expected.is_some_and(|expected| expected != matched) {
        return Err(Problem::from(crate::operator::Fault::Conflict(format!("it is {matched} bindings by now; look at them again"))));
    }
    let digest = digest(&chosen);
    if asked.digest.is_some_and(|expected| expected != digest) {
        let why = format!("it is {matched} bindings still, but others, or some were changed meanwhile; look at them again");
        return Err(Problem::from(crate::operator::Fault::Conflict(why)));
    }
    let sample = chosen.iter().take(SHOWN).map(Binding::from).collect();
    let mut changed = 0;
    if !asked.dry_run {
        for record in &chosen {
            changed += u64::from(one(&api, record, asked.action, &labels, &caller.actor).await?);
        }
    }
    Ok(Json(Outcome { dry_run: asked.dry_run, matched, digest, changed, sample }))
}

fn digest(chosen: &[Record]) -> String {
    let mut digest = Sha256::new();
    for record in chosen {
        digest.update(record.binding.id.0);
        digest.update(record.binding.version.to_be_bytes());
    }
    hex(&digest.finalize()[..16])
}

/// All that are meant, before any is changed.
async fn choose(api: &Api, query: Query) -> Answer<Vec<Record>> {
    let (mut chosen, mut after) = (Vec::new(), None);
    loop {
        let page =
            api.store.list(Query { after, limit: PAGE, sort: crate::sql::record::Sort::Key, descending: false, ..query.clone() }).await?;
        chosen.extend(page.rows);
        after = page.next;
        if chosen.len() > AT_ONCE {
            return Err(Problem::invalid("filter", format!("more than {AT_ONCE} bindings are meant; choose fewer at a time")));
        }
        if after.is_none() {
            return Ok(chosen);
        }
    }
}

/// False: it is so already, or somebody has changed it since it was chosen.
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
