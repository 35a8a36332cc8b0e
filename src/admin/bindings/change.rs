//! Handlers that change one binding.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use keylatch_filters::contract::Roaming;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::Api;
use super::super::accounts::precise;
use super::super::extract::{BINDINGS, Body, IfMatch, May, PathParam};
use super::super::problem::{Answer, Problem, Problems};
use super::{Binding, One, RuleName, one};
use crate::operator::Fault;
use crate::operator::bindings::{Which, allowed, network, terms};
use crate::sql::record::{Change, labels as labels_of};

/// Maximum length of a note in characters.
const NOTE_CHARS_MAX: usize = 1000;

/// A change of a binding; fields that are absent keep their values.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindingChange {
    /// The rule. Default: it follows from the networks.
    rule: Option<RuleName>,
    /// The networks allowed to use the key.
    #[schema(max_items = 256)]
    networks: Option<Vec<String>>,
    /// With the rule `roaming`: maximum concurrent networks.
    #[schema(minimum = 1, maximum = 64)]
    networks_max: Option<u8>,
    /// With the rule `roaming`: how long a network stays valid after its last use.
    #[schema(example = "24h")]
    window: Option<String>,
    /// A free-text note.
    #[schema(max_length = 1000)]
    note: Option<String>,
    /// The labels; they replace the present ones.
    #[schema(max_items = 32)]
    labels: Option<Vec<String>>,
}

impl BindingChange {
    fn read(self, expects: Option<i64>) -> Answer<Change> {
        let networks = self.networks.unwrap_or_default().iter().map(|text| network(text)).collect::<Result<Vec<_>, _>>();
        let networks = networks.map_err(|why| Problem::invalid("networks", why))?;
        let window = self.window.as_deref().map(humantime::parse_duration).transpose();
        let window = window.map_err(|_| Problem::invalid("window", "must be a duration such as 24h"))?;
        if self.networks_max.is_some() != window.is_some() {
            return Err(Problem::invalid("window", "networks_max and window must be given together"));
        }
        let roaming = self.networks_max.zip(window).map(|(networks_max, window)| Roaming { networks_max, window });
        let labels = self.labels.as_deref().map(labels_of).transpose();
        if self.note.as_ref().is_some_and(|note| note.chars().count() > NOTE_CHARS_MAX) {
            return Err(Problem::invalid("note", format!("must have at most {NOTE_CHARS_MAX} characters")));
        }
        Ok(Change {
            rule: terms(self.rule.map(Into::into), networks, roaming)?,
            note: self.note.map(|note| note.replace('\0', "")),
            labels: labels.map_err(|why| Problem::invalid("labels", why))?,
            expects,
            ..Change::default()
        })
    }
}

/// Change or create a binding
///
/// A binding is created if it does not exist and the complete key id and a rule or networks are given.
#[utoipa::path(patch, path = "/admin/api/bindings/{key_id}", tag = "bindings", security(("bearer" = ["bindings"])), request_body = BindingChange,
    params(("key_id" = String, Path, description = "The key id, or its first digits."), ("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")),
    responses((status = 200, body = Binding), Problems))]
pub async fn change(
    State(api): State<Arc<Api>>,
    May(caller): May<BINDINGS>,
    PathParam(key_id): PathParam,
    IfMatch(expects): IfMatch,
    Body(input): Body<BindingChange>,
) -> Answer<One> {
    let changed = api.bindings(&caller).set(Which::Id(&key_id), input.read(expects)?).await;
    answer(changed, expects)
}

/// A key, by exactly one of two fields.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The key id, or its first digits.
    key_id: Option<String>,
    /// The key itself. It is hashed, and neither logged nor stored.
    #[schema(format = Password)]
    key: Option<String>,
}

fn which<'a>(key_id: &'a Option<String>, key: &'a Option<String>) -> Answer<Which<'a>> {
    match (key_id, key) {
        (Some(id), None) => Ok(Which::Id(id)),
        (None, Some(key)) => Ok(Which::Key(key)),
        _ => Err(Problem::invalid("key_id", "give exactly one of `key_id` and `key`")),
    }
}

fn answer(changed: Result<crate::sql::record::Record, Fault>, expects: Option<i64>) -> Answer<One> {
    changed.map(|record| one(&record)).map_err(|fault| precise(fault.into(), expects))
}

/// Unbind a key
///
/// The next use of the key binds it again. The response is the removed binding.
#[utoipa::path(post, path = "/admin/api/bindings/unbind", tag = "bindings", security(("bearer" = ["bindings"])), request_body = Key,
    params(("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")), responses((status = 200, body = Binding), Problems))]
pub async fn unbind(
    State(api): State<Arc<Api>>,
    May(caller): May<BINDINGS>,
    IfMatch(expects): IfMatch,
    Body(input): Body<Key>,
) -> Answer<One> {
    answer(api.bindings(&caller).unbind(which(&input.key_id, &input.key)?, expects).await, expects)
}

/// Refuse a key from everywhere
///
/// Also one that was never used, by its whole id or by the key.
#[utoipa::path(post, path = "/admin/api/bindings/ban", tag = "bindings", security(("bearer" = ["bindings"])), request_body = Key,
    params(("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")), responses((status = 200, body = Banned), Problems))]
pub async fn ban(
    State(api): State<Arc<Api>>,
    May(caller): May<BINDINGS>,
    IfMatch(expects): IfMatch,
    Body(input): Body<Key>,
) -> Answer<Json<Banned>> {
    let banned = api.bindings(&caller).ban(which(&input.key_id, &input.key)?, expects).await;
    let (record, was_bound) = banned.map_err(|fault| precise(fault.into(), expects))?;
    Ok(Json(Banned { binding: Binding::from(&record), was_bound }))
}

/// A banned key.
#[derive(Serialize, ToSchema)]
pub struct Banned {
    /// The binding.
    #[serde(flatten)]
    binding: Binding,
    /// Whether the key was bound before. If not, lift the ban with `unbind`: its first use then binds it, while `unban` would
    /// allow it from everywhere.
    was_bound: bool,
}

/// Lift the ban of a key
#[utoipa::path(post, path = "/admin/api/bindings/unban", tag = "bindings", security(("bearer" = ["bindings"])), request_body = Key,
    params(("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")), responses((status = 200, body = Binding), Problems))]
pub async fn unban(
    State(api): State<Arc<Api>>,
    May(caller): May<BINDINGS>,
    IfMatch(expects): IfMatch,
    Body(input): Body<Key>,
) -> Answer<One> {
    answer(api.bindings(&caller).unban(which(&input.key_id, &input.key)?, expects).await, expects)
}

/// A key and an address.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyAndIp {
    /// The key id, or its first digits.
    key_id: Option<String>,
    /// The key itself. It is hashed, and neither logged nor stored.
    #[schema(format = Password)]
    key: Option<String>,
    /// The address or network.
    #[schema(example = "203.0.113.7")]
    ip: String,
}

fn ip(text: &str) -> Answer<ipnet::IpNet> {
    network(text).map_err(|why| Problem::invalid("ip", why))
}

/// Bind a key to one address
#[utoipa::path(put, path = "/admin/api/bindings/ip", tag = "bindings", security(("bearer" = ["bindings"])), request_body = KeyAndIp,
    params(("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")), responses((status = 200, body = Binding), Problems))]
pub async fn bind(
    State(api): State<Arc<Api>>,
    May(caller): May<BINDINGS>,
    IfMatch(expects): IfMatch,
    Body(input): Body<KeyAndIp>,
) -> Answer<One> {
    let rule = terms(None, vec![ip(&input.ip)?], None)?;
    let change = Change { rule, expects, ..Change::default() };
    answer(api.bindings(&caller).set(which(&input.key_id, &input.key)?, change).await, expects)
}

/// Allow a key from one more address
///
/// An address stands for the network that a first use from it would bind: by default a /64 for IPv6. A binding with the rule
/// `single` becomes `multiple`.
#[utoipa::path(post, path = "/admin/api/bindings/allow", tag = "bindings", security(("bearer" = ["bindings"])), request_body = KeyAndIp,
    params(("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")), responses((status = 200, body = Binding), Problems))]
pub async fn allow(
    State(api): State<Arc<Api>>,
    May(caller): May<BINDINGS>,
    IfMatch(expects): IfMatch,
    Body(input): Body<KeyAndIp>,
) -> Answer<One> {
    let net = allowed(&input.ip, &api.shared.snapshot.load().settings).map_err(|why| Problem::invalid("ip", why))?;
    answer(api.bindings(&caller).allow(which(&input.key_id, &input.key)?, net, expects).await, expects)
}
