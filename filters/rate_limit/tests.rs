//! Tests of `rate_limit` with requests as a chain passes them.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use pingora_http::RequestHeader;
use serde_json::{Value, json};

use super::*;
use crate::contract::{Dialect, Facts, Now, decode};
use crate::testing::{at_once, with_site};

fn limit(config: Value) -> std::result::Result<RateLimit, Invalid> {
    with_site(|site| RateLimit::compile(decode(config)?, site))
}

struct TestClock<'a> {
    limit: &'a RateLimit,
    start: Now,
}

impl TestClock<'_> {
    /// Whether a request passes `after_s` seconds after the start.
    fn passes_at(&self, after_s: u64, client: [u8; 4], key: &str) -> bool {
        let mut request = RequestHeader::build("GET", b"/v1/models", None).unwrap();
        request.insert_header("authorization", format!("Bearer {key}")).unwrap();
        let after = Duration::from_secs(after_s);
        let now = Now { instant: self.start.instant + after, wall: self.start.wall + after };
        let mut facts = Facts::default();
        let mut cx = RequestCx {
            request: &request,
            facts: &mut facts,
            peer: IpAddr::from(client),
            route: "api",
            dialect: Dialect::OpenAi,
            now,
            shadow: false,
        };
        matches!(at_once(self.limit.request(&mut cx, &mut Vec::new())).unwrap(), Flow::Continue)
    }
}

fn clock(limit: &RateLimit) -> TestClock<'_> {
    TestClock { limit, start: Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), ..Now::read() } }
}

const CLIENT_A: [u8; 4] = [10, 0, 0, 1];
const CLIENT_B: [u8; 4] = [10, 0, 0, 2];

#[test]
fn each_combination_has_its_own_count() {
    let both = limit(json!({ "per": ["client", "key"], "limit": "2/h" })).unwrap();
    let clock = clock(&both);
    let passed: Vec<bool> =
        [(CLIENT_A, "a"), (CLIENT_A, "a"), (CLIENT_A, "a"), (CLIENT_A, "b"), (CLIENT_B, "a")].map(|(c, k)| clock.passes_at(0, c, k)).into();
    assert_eq!(passed, [true, true, false, true, true]);
}

#[test]
fn refused_request_uses_nothing_of_other_limits() {
    let two = limit(json!({ "per": "key", "limit": "5/h", "and": [{ "name": "burst", "per": "client", "limit": "2/min" }] })).unwrap();
    let clock = clock(&two);
    assert_eq!([0; 9].map(|_| clock.passes_at(0, CLIENT_A, "a")).iter().filter(|passed| **passed).count(), 2);
    assert_eq!([0; 9].map(|_| clock.passes_at(0, CLIENT_B, "a")).iter().filter(|passed| **passed).count(), 2);
    assert!(clock.passes_at(60, CLIENT_A, "a"), "4 of 5 are used, refused requests did not count");
    assert!(!clock.passes_at(60, CLIENT_A, "a"));
}

#[test]
fn shadow_limit_refuses_nothing_and_cost_applies() {
    let shadow =
        limit(json!({ "per": "key", "limit": "10/h", "cost": 5, "and": [{ "name": "s", "per": "key", "limit": "1/h", "shadow": true }] }));
    let shadow = shadow.unwrap();
    let clock = clock(&shadow);
    assert_eq!([0; 3].map(|_| clock.passes_at(0, CLIENT_A, "a")), [true, true, false]);
}

#[test]
fn calendar_day_and_block() {
    let quota = limit(json!({ "per": "key", "limit": "3/day", "window": "calendar" })).unwrap();
    let quota_clock = clock(&quota);
    // The start is 22:13:20 UTC.
    assert_eq!([0; 4].map(|_| quota_clock.passes_at(0, CLIENT_A, "a")), [true, true, true, false]);
    assert!(!quota_clock.passes_at(6399, CLIENT_A, "a") && quota_clock.passes_at(6400, CLIENT_A, "a"), "a new day");
    let block = limit(json!({ "per": "client", "limit": "2/min", "block_for": "5m" })).unwrap();
    let clock = clock(&block);
    assert_eq!([0, 0, 0, 61, 299, 300].map(|after_s| clock.passes_at(after_s, CLIENT_A, "a")), [true, true, false, false, false, true]);
}

#[test]
fn calendar_day_ends_at_local_midnight() {
    let quota = limit(json!({ "per": "key", "limit": "1/day", "window": "calendar", "time_zone": "Europe/Berlin" })).unwrap();
    let clock = clock(&quota);
    // The start is 22:13:20 in UTC and 23:13:20 in Berlin.
    assert!(
        clock.passes_at(0, CLIENT_A, "a") && !clock.passes_at(2799, CLIENT_A, "a") && clock.passes_at(2800, CLIENT_A, "a"),
        "a new day at 23:00 UTC"
    );
}

/// After a refusal, `t` of `RateLimit` equals `Retry-After`.
#[test]
fn time_until_more_equals_retry_after() {
    let quota = crate::contract::Quota::new(Duration::from_secs(1800), 2);
    let (table, start) = (crate::limiting::gcra::GcraTable::new(1000), Now::read().instant);
    let hit = |after_s| table.hit(1, quota, 1, Duration::ZERO, start + Duration::from_secs(after_s));
    let seconds = |outcome: Outcome| (outcome.remaining, outcome.more_in.as_secs(), outcome.retry_in.as_secs(), outcome.full_in.as_secs());
    assert_eq!(seconds(hit(0)), (1, 1800, 0, 1800));
    assert_eq!(seconds(hit(600)), (0, 1200, 0, 3000));
    assert_eq!(seconds(hit(600)), (0, 1200, 1200, 3000), "refused");
    assert_eq!(seconds(hit(2000)), (0, 1600, 0, 3400));
    let costly = table.hit(1, quota, 2, Duration::ZERO, start + Duration::from_secs(2000));
    assert_eq!(costly.more_in, costly.retry_in, "the time after which the same cost fits");
}

#[test]
fn invalid_configurations() {
    for (config, path, message) in [
        (json!({ "per": [], "limit": "1/s" }), "per", "one to four"),
        (json!({ "per": ["key", "key"], "limit": "1/s" }), "per", "listed twice"),
        (json!({ "per": "key", "limit": "2/s", "cost": 3 }), "cost", "between 1 and the burst, 2"),
        (json!({ "per": "key", "limit": "2/s", "cost": 0 }), "cost", "between 1 and the burst, 2"),
        (json!({ "per": "key", "limit": "2/10s", "window": "calendar" }), "limit", "a calendar window is"),
        (json!({ "per": "key", "limit": "2/h", "window": "calendar", "burst": 1 }), "burst", "rolling"),
        (json!({ "per": "key", "limit": "2/h", "window": "calendar", "block_for": "1s" }), "block_for", "rolling"),
        (json!({ "per": "key", "limit": "2/h", "scope": "shared" }), "scope", "section `redis`"),
        (json!({ "per": "key", "limit": "2/h", "time_zone": "Europe/Berlin" }), "time_zone", "requires `window: calendar`"),
        (json!({ "per": "key", "limit": "2/h", "window": "calendar", "time_zone": "Berlin" }), "time_zone", "unknown time zone `Berlin`"),
        (json!({ "per": "kee", "limit": "2/h" }), "per", "unknown variant"),
    ] {
        let wrong = limit(config.clone()).err().unwrap_or_else(|| panic!("{config} is accepted"));
        assert!(wrong.path.first().is_some_and(|first| first == path) && wrong.message.contains(message), "{config}: {wrong:?}");
    }
}
