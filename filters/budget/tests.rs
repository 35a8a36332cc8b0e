//! Tests of `budget` with requests as a chain passes them.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use pingora_http::RequestHeader;
use serde_json::{Value, json};

use super::*;
use crate::contract::{
    Cost, Currency, Dialect, DryRun, Facts, ModelPrice, Now, OtherUnits, PricesConfig, RequestModel, TokenCounts, decode,
};
use crate::testing::{at_once, with_site};
use crate::usage_scan::{OutputLimits, RequestParameters};

const USD: Currency = Currency(*b"USD");

fn compiled(config: Value, reads_usage: bool) -> std::result::Result<Budget, Invalid> {
    with_site(|site| {
        let model = |model: &str| ModelPrice {
            model: model.into(),
            input: decode(json!(1)).ok(),
            output: decode(json!(1000)).ok(),
            ..ModelPrice::default()
        };
        let prices = PricesConfig { models: vec![model("gpt-*")], ..PricesConfig::default() };
        site.prices = Arc::new(PriceTable::compile(&prices, &[]).unwrap());
        site.reads_usage.set(reads_usage);
        Budget::compile(decode(config)?, site)
    })
}

fn budget(config: Value) -> Budget {
    compiled(config, true).unwrap()
}

/// One request, until it is settled.
struct Asked {
    facts: Facts,
    state: BudgetState,
    reply: Option<Box<Reply>>,
}

struct Client<'a> {
    budget: &'a Budget,
    key: &'static str,
    path: &'static str,
    now: Now,
    shadow: bool,
}

impl<'a> Client<'a> {
    fn new(budget: &'a Budget) -> Self {
        let wall = humantime::parse_rfc3339("2026-11-30T12:00:00Z").unwrap();
        Self { budget, key: "sk-test-0001", path: "/v1/chat/completions", now: Now { wall, ..Now::read() }, shadow: false }
    }

    fn ask(&self, model: &str, parameters: RequestParameters) -> Asked {
        let mut facts = Facts::default();
        facts.put(RequestModel::Named(model.into()));
        facts.put(RequestParameters { is_complete: true, choices: 1, ..parameters });
        self.ask_with(facts)
    }

    fn ask_with(&self, mut facts: Facts) -> Asked {
        let mut request = RequestHeader::build("POST", self.path.as_bytes(), None).unwrap();
        request.insert_header("authorization", format!("Bearer {}", self.key)).unwrap();
        let mut cx = RequestCx {
            request: &request,
            facts: &mut facts,
            peer: [127, 0, 0, 1].into(),
            route: "api",
            dialect: Dialect::OpenAi,
            now: self.now,
            shadow: self.shadow,
        };
        let mut state = BudgetState::default();
        let reply = match at_once(self.budget.request(&mut cx, &mut state)).unwrap() {
            Flow::Continue => None,
            Flow::Respond(reply) => Some(reply),
        };
        Asked { facts, state, reply }
    }

    fn settle(&self, mut asked: Asked, record: Option<UsageRecord>) {
        let request = RequestHeader::build("POST", self.path.as_bytes(), None).unwrap();
        record.into_iter().for_each(|record| asked.facts.put(record));
        let (name, status) = (Arc::from("r"), Some(StatusCode::OK));
        let (facts, now, duration) = (&mut asked.facts, self.now, Duration::ZERO);
        let mut cx = LogCx { request: &request, status, facts, route: &name, upstream: &name, now, duration };
        self.budget.log(&mut cx, &mut asked.state);
    }
}

fn used(output: u64, source: CountSource) -> UsageRecord {
    UsageRecord {
        at: SystemTime::UNIX_EPOCH,
        key: None,
        subject: None,
        model: None,
        route: "r".into(),
        upstream: "u".into(),
        status: 200,
        tokens: TokenCounts { output, ..TokenCounts::default() },
        units: OtherUnits::default(),
        source,
        cost: Some(Cost { micros: output * 1000, currency: USD }),
        streamed: false,
        first_token: None,
        duration: Duration::ZERO,
    }
}

fn with_maximum(output: u64) -> RequestParameters {
    RequestParameters { limits: OutputLimits { chat: Some(output), ..OutputLimits::default() }, ..RequestParameters::default() }
}

#[test]
fn a_budget_is_reserved_and_settled() {
    let budget = budget(json!({ "per": "key", "amount": "100 output tokens", "period": "month" }));
    let client = Client::new(&budget);
    let first = client.ask("gpt-x", with_maximum(60));
    assert!(first.reply.is_none());
    let second = client.ask("gpt-x", with_maximum(60)).reply.unwrap();
    assert_eq!((second.code, second.reason), ("insufficient_quota", "reserved"));
    assert!(Client { key: "sk-test-0002", ..Client::new(&budget) }.ask("gpt-x", with_maximum(60)).reply.is_none(), "another key");
    client.settle(first, Some(used(10, CountSource::Reported)));
    let third = client.ask("gpt-x", with_maximum(90));
    assert!(third.reply.is_none());
    client.settle(third, Some(used(95, CountSource::Reported)));
    let refused = client.ask("gpt-x", with_maximum(1)).reply.unwrap();
    assert_eq!(refused.reason, "spent");
    assert_eq!(refused.message, "The budget of this month is spent. It renews at 2026-12-01T00:00:00Z.");
    assert_eq!(refused.headers[0].1, "43200", "seconds to the next month");
    let next = Now { wall: client.now.wall + Duration::from_secs(43_200), ..client.now };
    assert!(Client { now: next, ..Client::new(&budget) }.ask("gpt-x", with_maximum(100)).reply.is_none(), "it renews");
}

#[test]
fn money_is_counted_by_the_prices() {
    let budget = budget(json!({ "per": "key", "amount": "1 USD", "period": "day", "output_tokens_default": 900 }));
    let client = Client::new(&budget);
    let first = client.ask("gpt-x", RequestParameters { text_bytes: 3000, ..RequestParameters::default() });
    assert!(first.reply.is_none(), "900 output tokens at 1000 USD a million, and 1064 input tokens at 1");
    assert_eq!(first.state.0.as_ref().unwrap().amount, 900_000 + 1064);
    client.settle(first, Some(used(500, CountSource::Reported)));
    let refused = client.ask("gpt-x", with_maximum(500)).reply.unwrap();
    assert!(
        refused.detail.as_deref().unwrap().starts_with("budget `key-day`: 0.50 USD spent and 0.00 USD reserved of 1.00 USD, 0.50"),
        "{refused:?}"
    );
    let unknown = client.ask("other", with_maximum(1)).reply.unwrap();
    assert_eq!((unknown.code, unknown.problem), ("model_without_price", Problem::Forbidden));
    let allowing = self::budget(json!({ "per": "key", "amount": "1 USD", "period": "day", "on_missing_price": "allow" }));
    assert!(Client::new(&allowing).ask("other", with_maximum(1)).reply.is_none());
}

#[test]
fn what_counts_when_nothing_is_reported() {
    let budget = budget(json!({ "per": "key", "amount": "1000 tokens", "period": "day" }));
    let client = Client::new(&budget);
    let first = client.ask("gpt-x", with_maximum(1));
    let entry = first.state.0.as_ref().unwrap().entry.clone();
    let spent = || at_once(budget.ledger.state(&entry, client.now)).unwrap().spent;
    client.settle(first, None);
    assert_eq!(spent(), 0, "it was not sent");
    let failed = UsageRecord { status: 500, ..used(0, CountSource::None) };
    let second = client.ask("gpt-x", with_maximum(1));
    client.settle(second, Some(failed));
    assert_eq!(spent(), 0, "an error costs nothing");
    for (unknown, why) in [
        (UsageRecord { status: 0, ..used(0, CountSource::None) }, "the client left before the answer"),
        (used(0, CountSource::None), "nothing is known"),
        (used(3, CountSource::Estimated), "an estimate"),
    ] {
        let before = spent();
        let asked = client.ask("gpt-x", with_maximum(36));
        client.settle(asked, Some(unknown));
        assert_eq!(spent() - before, 100, "{why}: the reservation counts");
    }
    let free = Client { path: "/v1/messages/count_tokens", ..Client::new(&budget) };
    let third = free.ask("gpt-x", with_maximum(500));
    assert!(third.reply.is_none());
}

#[test]
fn labels_shadow_mode_and_dry_runs() {
    let labelled = budget(json!({ "label": "trial", "amount": "10 output tokens", "period": "day" }));
    let client = Client::new(&labelled);
    assert!(client.ask("gpt-x", with_maximum(50)).reply.is_none(), "the key has no such label");
    let by_key = budget(json!({ "per": "key", "amount": "10 output tokens", "period": "day" }));
    let shadow = Client { shadow: true, ..Client::new(&by_key) };
    let asked = shadow.ask("gpt-x", with_maximum(50));
    assert!(asked.reply.is_some() && asked.state.0.is_some(), "shadow mode counts on");
    shadow.settle(asked, Some(used(50, CountSource::Reported)));
    let mut facts = Facts::default();
    facts.put(DryRun);
    facts.put(Trace::default());
    facts.put(RequestModel::Named("gpt-x".into()));
    let dry = Client::new(&by_key).ask_with(facts);
    assert_eq!(dry.reply.unwrap().reason, "spent");
    let trace = &dry.facts.get::<Trace>().unwrap().0[0];
    assert!(
        trace.starts_with("budget `key-day`: 50 output tokens spent and 0 output tokens reserved of 10 output tokens, for key-day:key="),
        "{trace}"
    );
}

#[test]
fn errors_say_what_to_do() {
    for (config, path, says) in [
        (json!({ "amount": "1 USD", "period": "day" }), "", "set `per`"),
        (json!({ "per": "key", "amount": "1 EUR", "period": "day" }), "amount", "is in EUR, but `prices` are in USD"),
        (json!({ "per": "key", "amount": "1", "period": "day" }), "amount", "is not an amount"),
        (json!({ "label": "no label", "amount": "1 USD", "period": "day" }), "label", "labels have"),
        (json!({ "per": "key", "amount": "1 USD", "period": "day", "alert_at": [0] }), "alert_at", "from 1 to 100"),
        (json!({ "per": "key", "amount": "1 USD", "period": "day", "time_zone": "Nowhere" }), "time_zone", "unknown time zone"),
        (json!({ "per": "key", "amount": "1 USD", "period": "day", "scope": "shared" }), "scope", "require Redis"),
        (json!({ "per": "key", "amount": "1 USD", "period": "day", "reservation_ttl": "1s" }), "reservation_ttl", "between 1m and 24h"),
    ] {
        let invalid = compiled(config, true).err().unwrap();
        assert!(invalid.message.contains(says) && invalid.path.join(".") == path, "{invalid:?}");
    }
    let invalid = compiled(json!({ "per": "key", "amount": "1 USD", "period": "day" }), false).err().unwrap();
    assert!(invalid.message.starts_with("the filter `usage` must stand before it"), "{invalid}");
}
