//! Rules as a chain meets them.

use pingora_http::RequestHeader;
use serde_json::{Value, json};

use super::*;
use crate::contract::{Dialect, Facts, Identity, Now, decode};
use crate::testing::{at_once, with_site};

fn rules(config: Value) -> std::result::Result<Rules, Invalid> {
    with_site(|site| Rules::compile(decode(config)?, site))
}

/// What becomes of a request: its refusal, and what is found out.
fn meet(rules: &Rules, target: &str, facts: &mut Facts, shadow: bool) -> Option<Box<Reply>> {
    let request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
    let peer = "127.0.0.1".parse().unwrap();
    let mut cx = RequestCx { request: &request, facts, peer, route: "r", dialect: Dialect::OpenAi, now: Now::read(), shadow };
    match at_once(rules.request(&mut cx, &mut ())).unwrap() {
        Flow::Continue => None,
        Flow::Respond(reply) => Some(reply),
    }
}

fn tags(facts: &Facts) -> Vec<&str> {
    facts.get::<Tags>().map(|tags| tags.0.iter().map(AsRef::as_ref).collect()).unwrap_or_default()
}

#[test]
fn the_list_ends_where_it_is_decided() {
    let list = rules(json!([
        { "name": "all", "tag": "seen" },
        { "name": "ping", "if": "request.path == '/ping'", "allow": {} },
        { "name": "quiet", "if": "true", "deny": {}, "shadow": true },
        { "name": "tagged", "if": "'seen' in tags", "tag": "twice" },
        { "name": "slow", "if": "request.path == '/slow'", "limit": "slow" },
        { "name": "teapot", "if": "request.path == '/tea'", "deny": { "status": 418, "message": "No coffee." } },
        { "name": "rest", "if": "request.path == '/rest'", "deny": {} },
    ]))
    .unwrap();
    let mut facts = Facts::default();
    assert!(meet(&list, "/ping", &mut facts, false).is_none());
    assert_eq!(tags(&facts), ["seen"], "what is behind `allow` did not happen");
    let mut facts = Facts::default();
    assert!(meet(&list, "/slow", &mut facts, false).is_none());
    assert_eq!(tags(&facts), ["seen", "twice"]);
    assert_eq!(facts.get::<SelectedLimits>(), Some(&SelectedLimits(vec!["slow".into()])));
    let reply = meet(&list, "/tea", &mut Facts::default(), false).unwrap();
    assert_eq!((reply.status, &*reply.message), (Some(StatusCode::IM_A_TEAPOT), "No coffee."));
    assert_eq!(meet(&list, "/rest", &mut Facts::default(), false).unwrap().status, Some(StatusCode::FORBIDDEN));
    let count = |index: usize| list.0[index].counted.get();
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(count), [4, 1, 3, 3, 1, 1, 1]);
}

#[test]
fn in_shadow_mode_nothing_is_told_to_the_filters_behind() {
    let list = rules(json!([{ "name": "a", "tag": "t" }, { "name": "b", "limit": "l" }, { "name": "c", "if": "'t' in tags", "deny": {} }]));
    let mut facts = Facts::default();
    assert!(meet(&list.unwrap(), "/", &mut facts, true).is_some(), "the chain is told, and carries nothing out");
    assert!(facts.get::<Tags>().is_none() && facts.get::<SelectedLimits>().is_none());
}

#[test]
fn what_comes_to_nothing_counts_against_the_request() {
    let broken = "identity.claims.level > 'x'";
    let claims = json!({ "level": 3 }).as_object().unwrap().clone();
    let identity = Identity { subject: None, claims: Arc::new(claims) };
    let refused = |rule: Value| {
        let mut facts = Facts::default();
        facts.put(identity.clone());
        let list = rules(json!([rule, { "name": "last", "deny": {} }])).unwrap();
        let refused = meet(&list, "/", &mut facts, false).and_then(|reply| reply.detail).unwrap_or_default();
        (refused, facts, list.0[0].errors.get())
    };
    let (by, _, errors) = refused(json!({ "name": "a", "if": broken, "deny": {} }));
    assert_eq!((by.as_str(), errors), ("rule `a`", 1));
    let (by, ..) = refused(json!({ "name": "a", "if": broken, "allow": {} }));
    assert_eq!(by, "rule `last`");
    let (_, facts, _) = refused(json!({ "name": "a", "if": broken, "tag": "t" }));
    assert_eq!(tags(&facts), [""; 0]);
    let (_, facts, _) = refused(json!({ "name": "a", "if": broken, "limit": "l" }));
    assert!(facts.get::<SelectedLimits>().is_some());
}

#[test]
fn what_makes_no_sense() {
    for (config, path, says) in [
        (json!([]), "", "at least one rule"),
        (json!([{ "name": "a" }]), "[0]", "say one thing"),
        (json!([{ "name": "a", "allow": {}, "deny": {} }]), "[0]", "say one thing"),
        (json!([{ "name": "a b", "allow": {} }]), "[0].name", "is not a name"),
        (json!([{ "name": "a", "allow": {} }, { "name": "a", "deny": {} }]), "[1].name", "of [0] already"),
        (json!([{ "name": "a", "deny": { "status": 200 } }]), "[0].deny.status", "between 400 and 499"),
        (json!([{ "name": "a", "tag": "" }]), "[0].tag", "is not a label"),
        (json!([{ "name": "a", "if": "request.path", "deny": {} }]), "[0].if", "true or false is needed"),
        (json!([{ "name": "a", "if": "x", "deny": {} }]), "[0].if", "column 1: `x` is not known"),
        (json!([{ "name": "a", "when": "x", "deny": {} }]), "[0].when", "unknown field"),
    ] {
        let wrong = rules(config.clone()).err().unwrap_or_else(|| panic!("{config} is taken"));
        assert!(wrong.path.join(".") == path && wrong.message.contains(says), "{config}: {wrong:?}");
    }
}

/// The manual's table of names is the one that expressions know.
#[test]
fn the_manual_names_every_variable() {
    let table: String = crate::expression::VARIABLES.iter().map(|v| format!("//! | `{}` | {} |\n", v.name, v.means)).collect();
    assert!(include_str!("mod.rs").contains(&table), "the table should be:\n{table}");
}
