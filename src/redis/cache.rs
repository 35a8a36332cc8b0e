//! The shared cache of bindings in Redis: the level between a process's own cache and the
//! authority. Never decides a refusal; the caller checks it against the authority.
//!
//! An entry is `VERSION TIME ROW`: the row's version, the time of the write by Redis's clock, and
//! the row as JSON, or `-` for one that was changed or removed. An older version never replaces a
//! newer one. Every replica is notified of changes by the authority and invalidates the entry.
//! After events may have been lost, a replica uses only entries written at least a second later. No
//! entry is used longer than `redis.cache_ttl`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use keylatch_filters::contract::{Binding, KeyId};
use parking_lot::Mutex;
use redis::Script;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::Redis;
use crate::sql::record::{BindingRow, roaming_columns, seen_ms};

/// The maximum number of queued writes.
const WAITING_MAX: usize = 10_000;
/// Entries written this soon after events were lost may contain older reads; the clocks of Redis's
/// nodes may also differ.
const MARGIN_MS: i64 = 1000;

/// Returns the entry and the time.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
         return {redis.call('GET', KEYS[1]), t[1] * 1000 + math.floor(t[2] / 1000)}",
    )
});

/// Writes version `ARGV[1]` with row `ARGV[2]` for `ARGV[4]` ms, unless a newer version was written
/// at `ARGV[3]` or later.
static WRITE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
         local known = redis.call('GET', KEYS[1])
         if known then
             local version, at = string.match(known, '^(%d+) (%d+) ')
             if version and tonumber(at) >= tonumber(ARGV[3]) then
                 local newer = tonumber(version) - tonumber(ARGV[1])
                 if newer > 0 or (newer == 0 and ARGV[2] == '-') then return 0 end
             end
         end
         local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
         redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. now .. ' ' .. ARGV[2], 'PX', ARGV[4])
         return 1",
    )
});

/// The row of an entry, without the key id, which is in the key. Only confirmed bindings are
/// stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    rule: String,
    networks: Vec<String>,
    #[serde(default)]
    banned: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    by_first_use: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    networks_max: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window_s: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    seen_ms: Vec<i64>,
    /// Required: an entry of an earlier version without labels counts as a miss.
    labels: Vec<String>,
}

/// The time from which entries are valid, by Redis's clock.
#[derive(Clone, Copy, Default)]
struct Floor {
    /// The number of times that events may have been lost.
    lost: u64,
    /// `None` until Redis has returned its time.
    at_ms: Option<i64>,
}

struct Entry {
    id: KeyId,
    version: i64,
    row: Option<String>,
    floor_ms: i64,
}

/// The shared cache, as one replica uses it.
pub struct SharedCache {
    redis: Arc<Redis>,
    floor: Mutex<Floor>,
    writes: mpsc::Sender<Entry>,
    ttl: Duration,
    stale_grace: Duration,
}

impl SharedCache {
    /// `stale_grace`: how long an entry is used while the authority is away.
    pub fn new(redis: Arc<Redis>, ttl: Duration, stale_grace: Duration) -> Arc<Self> {
        let (writes, waiting) = mpsc::channel(WAITING_MAX);
        let shared = Arc::new(Self { redis, floor: Mutex::default(), writes, ttl, stale_grace });
        tokio::spawn(write_all(Arc::downgrade(&shared), waiting));
        shared
    }

    /// Whether Redis is connected.
    pub fn is_there(&self) -> bool {
        self.redis.is_there()
    }

    /// The cached binding, if it is valid.
    pub async fn get(&self, id: &KeyId) -> Option<Binding> {
        let before = *self.floor.lock();
        let (entry, now_ms) = self.read(id).await?;
        match before.at_ms {
            Some(floor_ms) => {
                entry.filter(|entry| entry.at_ms >= floor_ms).filter(|entry| within(entry.at_ms, now_ms, self.ttl))?.binding(id)
            }
            None => {
                let mut floor = self.floor.lock();
                if floor.lost == before.lost {
                    floor.at_ms = Some(now_ms + MARGIN_MS);
                }
                None
            }
        }
    }

    /// The last known binding while the authority is away: then it cannot have been changed.
    pub async fn stale(&self, id: &KeyId) -> Option<Binding> {
        let (entry, now_ms) = self.read(id).await?;
        entry.filter(|entry| within(entry.at_ms, now_ms, self.stale_grace))?.binding(id)
    }

    async fn read(&self, id: &KeyId) -> Option<(Option<Read>, i64)> {
        let key = self.key(id);
        let invocation = READ.key(key);
        let (entry, now_ms): (Option<String>, i64) = self.redis.run(&invocation).await.ok()?;
        Some((entry.as_deref().and_then(Read::parse), now_ms))
    }

    /// Queues a write of a binding that was just read from the authority. Unconfirmed bindings are
    /// not cached: they may be removed at any moment.
    pub fn put(&self, binding: &Binding) {
        if !binding.confirmed {
            return;
        }
        let Some(floor_ms) = self.floor.lock().at_ms else { return };
        let (networks_max, window_s) = roaming_columns(binding.roaming);
        let row = Stored {
            rule: binding.rule.as_str().into(),
            networks: binding.networks.iter().map(ToString::to_string).collect(),
            banned: binding.banned,
            by_first_use: binding.by_first_use,
            networks_max,
            window_s,
            seen_ms: seen_ms(binding),
            labels: binding.labels.clone(),
        };
        let row = serde_json::to_string(&row).ok();
        // A full queue drops the entry, which costs a later cache miss only.
        let _ = self.writes.try_send(Entry { id: binding.id, version: binding.version, row, floor_ms });
    }

    /// Invalidates the entry as of this version.
    pub fn changed(&self, id: KeyId, version: i64) {
        let floor_ms = self.floor.lock().at_ms.unwrap_or(0);
        if self.writes.try_send(Entry { id, version, row: None, floor_ms }).is_err() {
            self.invalidate_all();
        }
    }

    /// Makes this replica ignore all present entries, after events may have been lost.
    pub fn invalidate_all(&self) {
        let mut floor = self.floor.lock();
        *floor = Floor { lost: floor.lost + 1, at_ms: None };
    }

    fn key(&self, id: &KeyId) -> String {
        self.redis.key("binding", &id.hex())
    }

    async fn write(&self, entry: Entry) {
        let is_invalidation = entry.row.is_none();
        // An expired entry may still be used while the authority is away.
        let ttl_ms = u64::try_from(self.ttl.max(self.stale_grace).as_millis()).unwrap_or(u64::MAX);
        let row = entry.row.as_deref().unwrap_or("-");
        let mut invocation = WRITE.key(self.key(&entry.id));
        invocation.arg(entry.version).arg(row).arg(entry.floor_ms).arg(ttl_ms);
        if self.redis.run::<i64>(&invocation).await.is_err() && is_invalidation {
            self.invalidate_all();
        }
    }
}

async fn write_all(shared: std::sync::Weak<SharedCache>, mut waiting: mpsc::Receiver<Entry>) {
    while let Some(entry) = waiting.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        shared.write(entry).await;
    }
}

fn within(at_ms: i64, now_ms: i64, age: Duration) -> bool {
    now_ms.saturating_sub(at_ms) < i64::try_from(age.as_millis()).unwrap_or(i64::MAX)
}

struct Read {
    version: i64,
    at_ms: i64,
    row: Option<Stored>,
}

impl Read {
    /// A malformed entry counts as a miss.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        let (version, at_ms) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let row = match parts.next()? {
            "-" => None,
            row => Some(serde_json::from_str(row).ok()?),
        };
        Some(Self { version, at_ms, row })
    }

    fn binding(self, id: &KeyId) -> Option<Binding> {
        let Stored { rule, networks, banned, by_first_use, networks_max, window_s, seen_ms, labels } = self.row?;
        let (id, version) = (id.0.to_vec(), self.version);
        let row =
            BindingRow { id, rule, networks, banned, by_first_use, confirmed: true, version, networks_max, window_s, seen_ms, labels };
        row.checked().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use keylatch_filters::contract::Rule;
    use prometheus::Registry;

    use super::*;
    use crate::config::Files;

    const ID: KeyId = KeyId([7; 32]);

    /// A Redis server for one test.
    struct Server(Child, u16);

    impl Server {
        fn start() -> Self {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let arguments = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
            let child = Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn();
            Self(child.expect("redis-server is installed"), port)
        }

        async fn shared(&self, ttl: Duration) -> Arc<SharedCache> {
            let config = serde_json::from_value(serde_json::json!({ "url": format!("redis://127.0.0.1:{}", self.1), "timeout": "2s" }));
            let files = Files::beside(std::path::Path::new("x"));
            let redis = Redis::open(&config.unwrap(), &files, &Registry::new()).await.unwrap();
            while !redis.is_there() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            SharedCache::new(redis, ttl, Duration::from_secs(600))
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn row(version: i64, banned: bool) -> Binding {
        let networks = vec!["10.0.0.0/8".parse().unwrap()];
        Binding {
            id: ID,
            rule: Rule::Multiple,
            networks,
            roaming: None,
            seen: Vec::new(),
            banned,
            labels: vec!["team-a".into()],
            by_first_use: true,
            confirmed: true,
            version,
        }
    }

    /// Writes, and waits for the write.
    async fn put(shared: &SharedCache, row: &Binding) {
        shared.put(row);
        written(shared).await;
    }

    async fn written(shared: &SharedCache) {
        while shared.writes.capacity() < WAITING_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The last write may be on its way; a read on the same connection comes after it.
        let _ = shared.read(&ID).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    async fn wait_until_valid(shared: &SharedCache) {
        let _ = shared.get(&ID).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }

    #[tokio::test]
    async fn an_older_version_never_replaces_a_newer_one() {
        let server = Server::start();
        let (one, other) = (server.shared(Duration::from_secs(60)).await, server.shared(Duration::from_secs(60)).await);
        one.put(&row(1, false));
        assert_eq!(other.get(&ID).await, None, "the time from which entries are valid is not known yet");
        wait_until_valid(&one).await;
        wait_until_valid(&other).await;

        put(&one, &row(5, false)).await;
        assert_eq!(other.get(&ID).await, Some(row(5, false)));
        put(&other, &row(4, true)).await;
        assert_eq!(one.get(&ID).await, Some(row(5, false)));
        put(&other, &Binding { confirmed: false, ..row(6, true) }).await;
        assert_eq!(one.get(&ID).await, Some(row(5, false)), "an unconfirmed binding is not cached");

        // After a change, a row that was read before it is not written.
        one.changed(ID, 7);
        written(&one).await;
        put(&other, &row(6, false)).await;
        assert_eq!((one.get(&ID).await, other.get(&ID).await, other.stale(&ID).await), (None, None, None));
        put(&other, &row(7, true)).await;
        assert_eq!(one.get(&ID).await, Some(row(7, true)));
        other.changed(ID, 7);
        written(&other).await;
        assert_eq!(one.get(&ID).await, Some(row(7, true)), "an old event");

        // After lost events a lower version is right: it may be a restored backup.
        one.invalidate_all();
        wait_until_valid(&one).await;
        assert_eq!(one.get(&ID).await, None);
        assert_eq!((other.get(&ID).await, one.stale(&ID).await), (Some(row(7, true)), Some(row(7, true))));
        put(&one, &row(2, false)).await;
        assert_eq!(one.get(&ID).await, Some(row(2, false)));
    }

    #[tokio::test]
    async fn expired_and_malformed_entries_are_misses() {
        let server = Server::start();
        let shared = server.shared(Duration::from_secs(1)).await;
        wait_until_valid(&shared).await;
        put(&shared, &row(5, false)).await;
        assert_eq!(shared.get(&ID).await, Some(row(5, false)));
        tokio::time::sleep(Duration::from_millis(1050)).await;
        assert_eq!(shared.get(&ID).await, None);
        assert_eq!(shared.stale(&ID).await, Some(row(5, false)));
        for malformed in ["", "x", "9 9", "9 9999999999999 {", "9 9999999999999 {\"rule\":\"none\",\"networks\":[]}", "9 x -"] {
            assert!(Read::parse(malformed).and_then(|read| read.binding(&ID)).is_none(), "{malformed}");
        }
        let set = Script::new("return redis.call('SET', KEYS[1], 'malformed')");
        let _: () = shared.redis.run(&set.key(shared.key(&ID))).await.unwrap();
        assert_eq!(shared.get(&ID).await, None);
        put(&shared, &row(1, false)).await;
        assert_eq!(shared.get(&ID).await, Some(row(1, false)), "it heals");
    }
}
