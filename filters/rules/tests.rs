//! Tests of `rules` with requests as a chain passes them.

use pingora_http::RequestHeader;
use serde_json::{Value, json};

use super::*;
use crate::contract::{Dialect, Facts, Identity, Now, decode};
use crate::testing::{at_once, with_site};

fn rules(config: Value) -> std::result::Result<Rules, Invalid> {
    with_site(|site| Rules::compile(decode(config)?, site))
}

/// Runs the rules on a request: its refusal, if any. The tags and chosen limits are in `facts`.
fn run(rules: &Rules, target: &str, facts: &mut Facts, shadow: bool) -> Option<Box<Reply>> {
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
fn allow_and_deny_end_the_list() {
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
    assert!(run(&list, "/ping", &mut facts, false).is_none());
    assert_eq!(tags(&facts), ["seen"], "rules after `allow` are skipped");
    let mut facts = Facts::default();
    assert!(run(&list, "/slow", &mut facts, false).is_none());
    assert_eq!(tags(&facts), ["seen", "twice"]);
    assert_eq!(facts.get::<SelectedLimits>(), Some(&SelectedLimits(vec!["slow".into()])));
    let reply = run(&list, "/tea", &mut Facts::default(), false).unwrap();
    assert_eq!((reply.status, &*reply.message), (Some(StatusCode::IM_A_TEAPOT), "No coffee."));
    assert_eq!(run(&list, "/rest", &mut Facts::default(), false).unwrap().status, Some(StatusCode::FORBIDDEN));
    let count = |index: usize| list.0[index].counted.get();
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(count), [4, 1, 3, 3, 1, 1, 1]);
}

#[test]
fn shadow_mode_hides_tags_and_limits_from_later_filters() {
    let list = rules(json!([{ "name": "a", "tag": "t" }, { "name": "b", "limit": "l" }, { "name": "c", "if": "'t' in tags", "deny": {} }]));
    let mut facts = Facts::default();
    assert!(run(&list.unwrap(), "/", &mut facts, true).is_some(), "the chain gets the refusal and does not apply it");
    assert!(facts.get::<Tags>().is_none() && facts.get::<SelectedLimits>().is_none());
}

#[test]
fn failed_expression_counts_against_the_request() {
    let broken = "identity.claims.level > 'x'";
    let claims = json!({ "level": 3 }).as_object().unwrap().clone();
    let identity = Identity { subject: None, claims: Arc::new(claims) };
    let refused = |rule: Value| {
        let mut facts = Facts::default();
        facts.put(identity.clone());
        let list = rules(json!([rule, { "name": "last", "deny": {} }])).unwrap();
        let refused = run(&list, "/", &mut facts, false).and_then(|reply| reply.detail).unwrap_or_default();
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
fn invalid_configurations() {
    for (config, path, message) in [
        (json!([]), "", "at least one rule"),
        (json!([{ "name": "a" }]), "[0]", "exactly one action"),
        (json!([{ "name": "a", "allow": {}, "deny": {} }]), "[0]", "exactly one action"),
        (json!([{ "name": "a b", "allow": {} }]), "[0].name", "is not a name"),
        (json!([{ "name": "a", "allow": {} }, { "name": "a", "deny": {} }]), "[1].name", "already the name of rule [0]"),
        (json!([{ "name": "a", "deny": { "status": 200 } }]), "[0].deny.status", "between 400 and 499"),
        (json!([{ "name": "a", "tag": "" }]), "[0].tag", "is not a tag"),
        (json!([{ "name": "a", "if": "request.path", "deny": {} }]), "[0].if", "a boolean is required"),
        (json!([{ "name": "a", "if": "x", "deny": {} }]), "[0].if", "column 1: unknown name `x`"),
        (json!([{ "name": "a", "when": "x", "deny": {} }]), "[0].when", "unknown field"),
    ] {
        let wrong = rules(config.clone()).err().unwrap_or_else(|| panic!("{config} is accepted"));
        assert!(wrong.path.join(".") == path && wrong.message.contains(message), "{config}: {wrong:?}");
    }
}

/// The table in the manual is generated from `VARIABLES`.
#[test]
fn manual_lists_every_variable() {
    let table: String = crate::expression::VARIABLES.iter().map(|v| format!("//! | `{}` | {} |\n", v.name, v.means)).collect();
    assert!(include_str!("mod.rs").contains(&table), "the table should be:\n{table}");
}
