//! Budgets that replicas share, in Redis: what each has spent and reserved. Knows no price and no
//! policy; `crate::usage` loads an entry that Redis does not know, and writes what was spent to the
//! database.
//!
//! An entry is a hash: `s` spent, `r` reserved, `r:ID` the amount of a reservation; and a sorted set
//! of the reservations by the time when they expire. All times are by Redis's clock.

use std::sync::LazyLock;
use std::time::Duration;

use keylatch_filters::contract::{LedgerEntry, LedgerState, Reserved, StoreError};
use redis::Script;

use super::Redis;

/// How long an entry is kept after the end of its period: requests may still be open.
const KEPT_AFTER: Duration = Duration::from_secs(86_400);
/// How long a settlement is remembered, so that a repetition counts once.
const SETTLED_KEPT: Duration = Duration::from_secs(3600);

/// Removes expired reservations; the head of the scripts that judge.
const EXPIRE: &str = "local t = redis.call('TIME')
     local now = t[1] * 1000 + math.floor(t[2] / 1000)
     for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)) do
         local amount = redis.call('HGET', KEYS[1], 'r:' .. id)
         if amount then redis.call('HINCRBY', KEYS[1], 'r', -amount); redis.call('HDEL', KEYS[1], 'r:' .. id) end
         redis.call('ZREM', KEYS[2], id)
     end
     local spent = tonumber(redis.call('HGET', KEYS[1], 's'))
     local reserved = tonumber(redis.call('HGET', KEYS[1], 'r')) or 0 ";

/// Reserves: id, amount, maximum, time to live of the reservation and of the entry in ms, spent
/// amount of an unknown entry or -1. Returns whether it is allowed (-1: the entry is unknown), and
/// the state.
static RESERVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{EXPIRE}
         if not spent then
             spent = tonumber(ARGV[6])
             if spent < 0 then return {{ -1, 0, 0 }} end
             redis.call('HSET', KEYS[1], 's', ARGV[6])
         end
         local amount, most = tonumber(ARGV[2]), tonumber(ARGV[3])
         local allowed = spent < most and spent + reserved + amount <= most
         if allowed then
             redis.call('HINCRBY', KEYS[1], 'r', ARGV[2])
             redis.call('HSET', KEYS[1], 'r:' .. ARGV[1], ARGV[2])
             redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[1])
             reserved = reserved + amount
         end
         redis.call('PEXPIRE', KEYS[1], ARGV[5])
         redis.call('PEXPIRE', KEYS[2], ARGV[5])
         return {{ allowed and 1 or 0, spent, reserved }}"
    ))
});

/// Settles: id, amount, time to live of the settlement in ms. An entry that Redis has lost stays
/// unknown: the database has the amount.
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if not redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[3]) then return 0 end
         local amount = redis.call('HGET', KEYS[1], 'r:' .. ARGV[1])
         if amount then redis.call('HINCRBY', KEYS[1], 'r', -amount); redis.call('HDEL', KEYS[1], 'r:' .. ARGV[1]) end
         redis.call('ZREM', KEYS[2], ARGV[1])
         if redis.call('HEXISTS', KEYS[1], 's') == 1 then redis.call('HINCRBY', KEYS[1], 's', ARGV[2]) end
         return 1",
    )
});

/// The state; the first value is -1 if the entry is unknown.
static STATE: LazyLock<Script> = LazyLock::new(|| Script::new(&format!("{EXPIRE} return {{ spent and 1 or -1, spent or 0, reserved }}")));

/// The entries of budgets in one Redis.
pub struct RedisLedger(std::sync::Arc<Redis>);

impl RedisLedger {
    /// Over a connection.
    pub fn new(redis: std::sync::Arc<Redis>) -> Self {
        Self(redis)
    }

    /// The keys of an entry. The braces put them on one node of a cluster.
    fn keys(&self, entry: &LedgerEntry) -> [String; 2] {
        let name = format!("{{{}:{}}}", entry.name, entry.period);
        [self.0.key("budget", &name), self.0.key("budget-open", &name)]
    }

    /// Reserves an amount, if that much is left. `spent`: what an entry that Redis does not know has
    /// spent; with `None`, such an entry is not made and the result is `None`.
    pub async fn reserve(
        &self,
        id: &str,
        entry: &LedgerEntry,
        amount: u64,
        spent: Option<u64>,
        now_s: i64,
    ) -> Result<Option<Reserved>, StoreError> {
        let [hash, open] = self.keys(entry);
        let left_s = u64::try_from(entry.period_end_s.saturating_sub(now_s)).unwrap_or(0);
        let mut invocation = RESERVE.key(hash);
        invocation.key(open).arg(id).arg(number(amount)).arg(number(entry.amount_max)).arg(millis(entry.reservation_ttl));
        invocation.arg(millis(Duration::from_secs(left_s) + KEPT_AFTER)).arg(spent.map_or(-1, number));
        let said: Vec<i64> = self.0.run(&invocation).await?;
        Ok(read(&said)?.map(|(flag, state)| Reserved { allowed: flag == 1, state }))
    }

    /// Replaces a reservation by the amount that was used. A repetition changes nothing.
    pub async fn settle(&self, id: &str, entry: &LedgerEntry, amount: u64) -> Result<(), StoreError> {
        let [hash, open] = self.keys(entry);
        let done = self.0.key("budget-settled", &format!("{{{}:{}}}:{id}", entry.name, entry.period));
        let mut invocation = SETTLE.key(hash);
        invocation.key(open).key(done).arg(id).arg(number(amount)).arg(millis(SETTLED_KEPT));
        self.0.run::<i64>(&invocation).await.map(|_| ())
    }

    /// The state of an entry; `None`: Redis does not know it.
    pub async fn state(&self, entry: &LedgerEntry) -> Result<Option<LedgerState>, StoreError> {
        let [hash, open] = self.keys(entry);
        let mut invocation = STATE.key(hash);
        invocation.key(open);
        let said: Vec<i64> = self.0.run(&invocation).await?;
        Ok(read(&said)?.map(|(_, state)| state))
    }
}

/// The flag and the state that a script returned; `None`: the entry is unknown.
fn read(said: &[i64]) -> Result<Option<(i64, LedgerState)>, StoreError> {
    let &[flag, spent, reserved] = said else {
        return Err(StoreError::Useless("redis returned a malformed result of a budget script".into()));
    };
    let amount = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok((flag >= 0).then(|| (flag, LedgerState { spent: amount(spent), reserved: amount(reserved) })))
}

/// An amount as Redis counts: a Lua number holds integers up to 2^53 exactly.
fn number(amount: u64) -> i64 {
    i64::try_from(amount.min(1 << 53)).unwrap_or(i64::MAX)
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
