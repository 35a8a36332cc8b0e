//! Shared limits in Redis: counters of requests, and leases for open requests. Knows the counting,
//! not the policy; the filters decide what a refusal means.
//!
//! One script counts a request on all of its limits, or on none if one of them refuses it. All
//! times are by Redis's clock. In a cluster the counters of one request may be on several nodes:
//! each is then counted separately, and taken back when a later one refuses.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use keylatch_filters::contract::{BoxFuture, Counters, Hit, Lease, Measure, Outcome, StoreError};
use parking_lot::Mutex;
use redis::Script;

use super::Redis;
use crate::util::periodic::every;

/// For each key: kind, interval or maximum, tolerance, cost, block, time to live (µs; ms), shadow.
/// Returns for each whether it is allowed, and how far it is ahead (µs) or how much is used. An
/// entry of a rolling limit is `TAT INTERVAL BLOCKED`.
static HIT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
         local now = t[1] * 1000000 + t[2]
         local out, entries, refused = {}, {}, false
         for i, key in ipairs(KEYS) do
             local a = (i - 1) * 7
             local kind, interval, tolerance = ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
             local cost, block, shadow = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5]), ARGV[a + 7] == '1'
             local known = redis.call('GET', key)
             local ok, entry, value
             if kind == 'w' then
                 value = (tonumber(known) or 0)
                 ok = value + cost <= interval
                 if ok then value = value + cost; entry = string.format('%.0f', value) end
             else
                 local tat, before, blocked = 0, interval, '0'
                 if known then
                     local x, y, z = string.match(known, '^(%S+) (%S+) (%d)$')
                     tat, before, blocked = tonumber(x) or 0, tonumber(y) or interval, z or '0'
                 end
                 if before ~= interval and tat > now then tat = now + (tat - now) * interval / before end
                 if tat < now then tat = now end
                 ok = tat + (cost - 1) * interval <= now + tolerance
                 if ok then
                     tat = tat + cost * interval
                     entry = string.format('%.17g %.17g 0', tat, interval)
                 elseif block > 0 and blocked == '0' and not refused then
                     tat = math.max(tat, now + tolerance + block)
                     redis.call('SET', key, string.format('%.17g %.17g 1', tat, interval), 'PX', math.ceil((tat - now) / 1000) + 1000)
                 end
                 value = tat - now
             end
             if not ok and not shadow then refused = true end
             if entry then entries[#entries + 1] = { key, entry, kind == 'w' and tonumber(ARGV[a + 6]) or math.ceil(value / 1000) + 1000 } end
             out[#out + 1] = ok and 1 or 0
             out[#out + 1] = math.floor(value)
         end
         if not refused then
             for _, each in ipairs(entries) do redis.call('SET', each[1], each[2], 'PX', math.max(each[3], 1)) end
         end
         return out",
    )
});

/// Takes a hit back: kind, interval, cost.
static REFUND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local known = redis.call('GET', KEYS[1])
         if not known then return 0 end
         local entry
         if ARGV[1] == 'w' then
             entry = string.format('%.0f', math.max((tonumber(known) or 0) - tonumber(ARGV[3]), 0))
         else
             local x, y, z = string.match(known, '^(%S+) (%S+) (%d)$')
             if not x then return 0 end
             entry = string.format('%.17g %s %s', tonumber(x) - tonumber(ARGV[2]) * tonumber(ARGV[3]), y, z)
         end
         redis.call('SET', KEYS[1], entry, 'KEEPTTL')
         return 1",
    )
});

/// Reads the state: kind, interval. Returns as HIT does: how far it is ahead (µs), or how much is
/// used.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local known = redis.call('GET', KEYS[1])
         if not known then return 0 end
         if ARGV[1] == 'w' then return tonumber(known) or 0 end
         local t = redis.call('TIME')
         local now = t[1] * 1000000 + t[2]
         local x, y = string.match(known, '^(%S+) (%S+) (%d)$')
         local tat, before, interval = tonumber(x) or 0, tonumber(y) or 1, tonumber(ARGV[2])
         if tat <= now then return 0 end
         return math.floor((tat - now) * interval / before)",
    )
});

/// Deletes the counter.
static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new("return redis.call('DEL', KEYS[1])"));

/// Takes a lease: its name `ARGV[1]`, maximum, time to live in ms. 1: taken.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
         local now = t[1] * 1000 + math.floor(t[2] / 1000)
         redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
         if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
         redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
         redis.call('PEXPIRE', KEYS[1], ARGV[3])
         return 1",
    )
});

/// Renews leases (names after the time to live in ms), also those that Redis has lost.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
         local till = t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[1])
         for i = 2, #ARGV do redis.call('ZADD', KEYS[1], till, ARGV[i]) end
         redis.call('PEXPIRE', KEYS[1], ARGV[1])
         return 1",
    )
});

static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new("return redis.call('ZREM', KEYS[1], ARGV[1])"));

/// A lease that is not renewed expires after this: its replica may have died.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// Shared counters and leases, as one replica uses them.
pub struct SharedLimits {
    me: Weak<Self>,
    redis: Arc<Redis>,
    /// The leases of this replica, by the name of their limit.
    held: Mutex<HashMap<String, Vec<String>>>,
    runtime: tokio::runtime::Handle,
}

impl SharedLimits {
    /// Renews leases as long as it lives.
    pub fn new(redis: Arc<Redis>) -> Arc<Self> {
        let shared =
            Arc::new_cyclic(|me| Self { me: me.clone(), redis, held: Mutex::default(), runtime: tokio::runtime::Handle::current() });
        every(&shared, LEASE_TTL / 3, |shared| async move { shared.renew().await });
        shared
    }

    async fn renew(&self) {
        let held: Vec<(String, Vec<String>)> = self.held.lock().iter().map(|(name, places)| (name.clone(), places.clone())).collect();
        for (name, places) in held {
            let mut invocation = RENEW.key(self.redis.key("places", &name));
            invocation.arg(millis(LEASE_TTL));
            places.iter().for_each(|place| {
                invocation.arg(place);
            });
            // If Redis is away, the leases are renewed once it is back.
            let _: Result<i64, StoreError> = self.redis.run(&invocation).await;
            // The renewal may have taken a lease that was released meanwhile.
            for place in places {
                let held = self.held.lock().get(&name).is_some_and(|known| known.contains(&place));
                if !held {
                    self.give_back(&name, &place);
                }
            }
        }
    }

    fn release(&self, name: &str, place: &str) {
        {
            let mut held = self.held.lock();
            if let Some(places) = held.get_mut(name) {
                places.retain(|known| known != place);
                if places.is_empty() {
                    held.remove(name);
                }
            }
        }
        self.give_back(name, place);
    }

    fn give_back(&self, name: &str, place: &str) {
        let Some(shared) = self.me.upgrade() else { return };
        let (name, place) = (name.to_owned(), place.to_owned());
        self.runtime.spawn(async move {
            let mut invocation = RELEASE.key(shared.redis.key("places", &name));
            invocation.arg(place);
            // If Redis is away, the lease expires.
            let _: Result<i64, StoreError> = shared.redis.run(&invocation).await;
        });
    }

    async fn hit_at_once(&self, hits: &[Hit]) -> Result<Vec<Outcome>, StoreError> {
        let mut invocation = HIT.prepare_invoke();
        for hit in hits {
            invocation.key(self.key(hit));
            let (kind, interval, tolerance, block, ttl_ms) = numbers(&hit.measure);
            invocation.arg(kind).arg(interval).arg(tolerance).arg(hit.cost).arg(block).arg(ttl_ms).arg(i64::from(hit.shadow));
        }
        let said: Vec<i64> = self.redis.run(&invocation).await?;
        if said.len() != 2 * hits.len() {
            return Err(StoreError::Useless("redis returned a malformed result of a limit script".into()));
        }
        let answers = said.chunks_exact(2).map(|pair| (pair[0] == 1, u64::try_from(pair[1]).unwrap_or(0)));
        Ok(hits.iter().zip(answers).map(|(hit, (allowed, value))| outcome(hit, allowed, value)).collect())
    }

    /// Counts the limits of one request on several nodes.
    async fn hit_each(&self, hits: &[Hit]) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(hits.len());
        for (index, hit) in hits.iter().enumerate() {
            let answer = self.hit_at_once(std::slice::from_ref(hit)).await;
            let refused = answer.as_ref().map_or(true, |all| all.iter().any(|one| !one.allowed && !hit.shadow));
            if refused {
                for (counted, _) in hits.iter().take(index).zip(&outcomes).filter(|(_, outcome)| outcome.allowed) {
                    let (kind, interval, ..) = numbers(&counted.measure);
                    let mut invocation = REFUND.key(self.key(counted));
                    invocation.arg(kind).arg(interval).arg(counted.cost);
                    let _: Result<i64, StoreError> = self.redis.run(&invocation).await;
                }
            }
            outcomes.extend(answer?);
            if refused {
                break;
            }
        }
        Ok(outcomes)
    }

    fn key(&self, hit: &Hit) -> String {
        match &hit.measure {
            Measure::Rolling { .. } => self.redis.key("limit", &hit.name),
            Measure::Window { number, .. } => self.redis.key("limit", &format!("{}:{number}", hit.name)),
        }
    }
}

impl Counters for SharedLimits {
    fn hit(&self, hits: Vec<Hit>) -> BoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async move { if self.redis.is_cluster() { self.hit_each(&hits).await } else { self.hit_at_once(&hits).await } })
    }

    fn peek<'a>(&'a self, hit: &'a Hit) -> BoxFuture<'a, Result<Outcome, StoreError>> {
        Box::pin(async move {
            let (kind, interval, ..) = numbers(&hit.measure);
            let mut invocation = READ.key(self.key(hit));
            invocation.arg(kind).arg(interval);
            let value = u64::try_from(self.redis.run::<i64>(&invocation).await?).unwrap_or(0);
            let allowed = match &hit.measure {
                Measure::Rolling { quota, .. } => value.saturating_mul(1000) <= quota.tolerance_ns,
                Measure::Window { most, .. } => value < u64::from(*most),
            };
            Ok(outcome(hit, allowed, value))
        })
    }

    fn forget<'a>(&'a self, hit: &'a Hit) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let forgotten: i64 = self.redis.run(&FORGET.key(self.key(hit))).await?;
            tracing::debug!(forgotten, "deleted a shared counter");
            Ok(())
        })
    }

    fn lease(&self, name: String, most: u32) -> BoxFuture<'_, Result<Option<Lease>, StoreError>> {
        Box::pin(async move {
            let place = uuid::Uuid::now_v7().simple().to_string();
            let mut invocation = TAKE.key(self.redis.key("places", &name));
            invocation.arg(&place).arg(most).arg(millis(LEASE_TTL));
            match self.redis.run::<i64>(&invocation).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) => {
                    // The script may have run; without this the lease would stay until it expires.
                    self.give_back(&name, &place);
                    return Err(error);
                }
            }
            self.held.lock().entry(name.clone()).or_default().push(place.clone());
            let me = self.me.clone();
            Ok(Some(Lease::new(move || {
                if let Some(shared) = me.upgrade() {
                    shared.release(&name, &place);
                }
            })))
        })
    }
}

/// A measure in the script's numbers: microseconds, so that a time fits a double.
#[expect(clippy::cast_precision_loss, reason = "a double holds microseconds since 1970 exactly until 2255")]
fn numbers(measure: &Measure) -> (&'static str, f64, f64, f64, i64) {
    match measure {
        Measure::Rolling { quota, block } => {
            ("r", quota.interval_ns as f64 / 1e3, quota.tolerance_ns as f64 / 1e3, block.as_micros() as f64, 0)
        }
        Measure::Window { most, left, .. } => ("w", f64::from(*most), 0.0, 0.0, millis(*left).saturating_add(1000)),
    }
}

fn outcome(hit: &Hit, allowed: bool, value: u64) -> Outcome {
    match &hit.measure {
        Measure::Rolling { quota, .. } => quota.outcome(allowed, value.saturating_mul(1000), hit.cost),
        Measure::Window { most, left, .. } => {
            let used = u32::try_from(value).unwrap_or(u32::MAX);
            keylatch_filters::limiting::calendar::window_outcome(allowed, used, *most, *left)
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
