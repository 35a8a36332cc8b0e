//! Tests of limits as a chain meets them.

use std::net::IpAddr;
use std::time::SystemTime;

use pingora_http::RequestHeader;
use serde_json::{Value, json};

use super::*;
use crate::contract::{Dialect, Facts, Now, decode};
use crate::testing::{at_once, with_site};

fn limit(config: Value) -> std::result::Result<RateLimit, Invalid> {
    with_site(|site| RateLimit::compile(decode(config)?, site))
}

struct Asks<'a> {
    limit: &'a RateLimit,
    start: Now,
}

impl Asks<'_> {
    /// Whether a request passes, so many seconds after the start.
    fn at(&self, after_s: u64, client: [u8; 4], key: &str) -> bool {
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

fn asks(limit: &RateLimit) -> Asks<'_> {
    Asks { limit, start: Now { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), ..Now::read() } }
}

const HERE: [u8; 4] = [10, 0, 0, 1];
const THERE: [u8; 4] = [10, 0, 0, 2];

#[test]
fn combinations_are_counted_by_themselves() {
    let both = limit(json!({ "per": ["client", "key"], "limit": "2/h" })).unwrap();
    let asks = asks(&both);
    let passed: Vec<bool> = [(HERE, "a"), (HERE, "a"), (HERE, "a"), (HERE, "b"), (THERE, "a")].map(|(c, k)| asks.at(0, c, k)).into();
    assert_eq!(passed, [true, true, false, true, true]);
}

#[test]
fn what_one_limit_refuses_uses_up_nothing_of_the_others() {
    let two = limit(json!({ "per": "key", "limit": "5/h", "and": [{ "name": "burst", "per": "client", "limit": "2/min" }] })).unwrap();
    let asks = asks(&two);
    assert_eq!([0; 9].map(|_| asks.at(0, HERE, "a")).iter().filter(|passed| **passed).count(), 2);
    assert_eq!([0; 9].map(|_| asks.at(0, THERE, "a")).iter().filter(|passed| **passed).count(), 2);
    assert!(asks.at(60, HERE, "a"), "four were used, not eighteen");
    assert!(!asks.at(60, HERE, "a"));
}

#[test]
fn a_limit_in_shadow_refuses_nobody_and_a_cost_counts() {
    let shadow =
        limit(json!({ "per": "key", "limit": "10/h", "cost": 5, "and": [{ "name": "s", "per": "key", "limit": "1/h", "shadow": true }] }));
    let shadow = shadow.unwrap();
    let asks = asks(&shadow);
    assert_eq!([0; 3].map(|_| asks.at(0, HERE, "a")), [true, true, false]);
}

#[test]
fn a_day_of_the_calendar_and_a_block() {
    let quota = limit(json!({ "per": "key", "limit": "3/day", "window": "calendar" })).unwrap();
    let asks_quota = asks(&quota);
    // It is 22:13:20.
    assert_eq!([0; 4].map(|_| asks_quota.at(0, HERE, "a")), [true, true, true, false]);
    assert!(!asks_quota.at(6399, HERE, "a") && asks_quota.at(6400, HERE, "a"), "a new day");
    let block = limit(json!({ "per": "client", "limit": "2/min", "block_for": "5m" })).unwrap();
    let asks = asks(&block);
    assert_eq!([0, 0, 0, 61, 299, 300].map(|after_s| asks.at(after_s, HERE, "a")), [true, true, false, false, false, true]);
}

#[test]
fn a_day_of_another_zone_ends_by_its_own_clock() {
    let quota = limit(json!({ "per": "key", "limit": "1/day", "window": "calendar", "time_zone": "Europe/Berlin" })).unwrap();
    let asks = asks(&quota);
    // It is 22:13:20 in UTC, 23:13:20 in Berlin.
    assert!(asks.at(0, HERE, "a") && !asks.at(2799, HERE, "a") && asks.at(2800, HERE, "a"), "a new day at 23:00 UTC");
}

/// `RateLimit` and `Retry-After` say the same of the time after which there is more.
#[test]
fn the_time_until_more_is_that_of_retry_after() {
    let quota = crate::contract::Quota::new(Duration::from_secs(1800), 2);
    let (table, start) = (gcra::Table::new(1000), Now::read().instant);
    let hit = |after_s| table.hit(1, quota, 1, Duration::ZERO, start + Duration::from_secs(after_s));
    let seconds = |outcome: Outcome| (outcome.remaining, outcome.more_in.as_secs(), outcome.retry_in.as_secs(), outcome.full_in.as_secs());
    assert_eq!(seconds(hit(0)), (1, 1800, 0, 1800));
    assert_eq!(seconds(hit(600)), (0, 1200, 0, 3000));
    assert_eq!(seconds(hit(600)), (0, 1200, 1200, 3000), "refused");
    assert_eq!(seconds(hit(2000)), (0, 1600, 0, 3400));
    let costly = table.hit(1, quota, 2, Duration::ZERO, start + Duration::from_secs(2000));
    assert_eq!(costly.more_in, costly.retry_in, "a refused request is told when it fits");
}

#[test]
fn what_makes_no_sense() {
    for (config, path, says) in [
        (json!({ "per": [], "limit": "1/s" }), "per", "one to four"),
        (json!({ "per": ["key", "key"], "limit": "1/s" }), "per", "named twice"),
        (json!({ "per": "key", "limit": "2/s", "cost": 3 }), "cost", "between 1 and 2"),
        (json!({ "per": "key", "limit": "2/s", "cost": 0 }), "cost", "between 1 and 2"),
        (json!({ "per": "key", "limit": "2/10s", "window": "calendar" }), "limit", "a calendar has"),
        (json!({ "per": "key", "limit": "2/h", "window": "calendar", "burst": 1 }), "burst", "rolling"),
        (json!({ "per": "key", "limit": "2/h", "window": "calendar", "block_for": "1s" }), "block_for", "rolling"),
        (json!({ "per": "key", "limit": "2/h", "scope": "shared" }), "scope", "section `redis`"),
        (json!({ "per": "key", "limit": "2/h", "time_zone": "Europe/Berlin" }), "time_zone", "`window: calendar` only"),
        (json!({ "per": "key", "limit": "2/h", "window": "calendar", "time_zone": "Berlin" }), "time_zone", "no time zone `Berlin`"),
        (json!({ "per": "kee", "limit": "2/h" }), "per", "unknown variant"),
    ] {
        let wrong = limit(config.clone()).err().unwrap_or_else(|| panic!("{config} is taken"));
        assert!(wrong.path.first().is_some_and(|first| first == path) && wrong.message.contains(says), "{config}: {wrong:?}");
    }
}
