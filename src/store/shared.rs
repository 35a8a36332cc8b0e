//! What replicas remember of the bindings together, in Redis: the level between a process's own cache and the
//! authority.
//!
//! An entry is `VERSION TIME ROW`: the row's version, when it was written by Redis's clock, and the row as JSON, or
//! `-` for one that has changed or is gone. An older version never takes the place of a newer one. Changes are heard
//! of from the authority, by every replica, and each of them says so here. Where such news may have been lost, a
//! replica believes only what was written a second later or more; and nothing is believed longer than `redis.cache_ttl`.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use keylatch_filters::contract::{Binding, KeyId};
use parking_lot::Mutex;
use redis::Script;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::record::{Raw, roaming_columns, seen_ms};
use super::redis::Redis;

/// Writes that wait for Redis.
const WAITING_MAX: usize = 10_000;
/// What was written so soon after news were lost may have been read before: clocks of Redis's nodes may differ, too.
const MARGIN_MS: i64 = 1000;

/// The entry, and what time it is.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
         return {redis.call('GET', KEYS[1]), t[1] * 1000 + math.floor(t[2] / 1000)}",
    )
});

/// Writes version `ARGV[1]` with row `ARGV[2]` for `ARGV[4]` ms, unless a newer version was written at `ARGV[3]` or later.
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

/// The row of an entry. Whose it is, the key says; that it is confirmed goes without saying.
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
}

/// Since when entries are believed, by Redis's clock.
#[derive(Clone, Copy, Default)]
struct Floor {
    /// Counts the times that news may have been lost.
    lost: u64,
    /// `None` until Redis has said what time it is.
    at_ms: Option<i64>,
}

struct Entry {
    id: KeyId,
    version: i64,
    row: Option<String>,
    floor_ms: i64,
}

/// The shared cache of one replica.
pub struct Shared {
    redis: Arc<Redis>,
    floor: Mutex<Floor>,
    writes: mpsc::Sender<Entry>,
    ttl: Duration,
    stale_grace: Duration,
}

impl Shared {
    /// `stale_grace`: for how long an entry is good enough while the authority is away.
    pub fn new(redis: Arc<Redis>, ttl: Duration, stale_grace: Duration) -> Arc<Self> {
        let (writes, waiting) = mpsc::channel(WAITING_MAX);
        let shared = Arc::new(Self { redis, floor: Mutex::default(), writes, ttl, stale_grace });
        tokio::spawn(write_all(Arc::downgrade(&shared), waiting));
        shared
    }

    /// Whether Redis is there.
    pub fn is_there(&self) -> bool {
        self.redis.is_there()
    }

    /// The binding, if it is remembered and can be believed.
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

    /// The binding as it was, for when the authority is away: then nobody can have changed it.
    pub async fn stale(&self, id: &KeyId) -> Option<Binding> {
        let (entry, now_ms) = self.read(id).await?;
        entry.filter(|entry| within(entry.at_ms, now_ms, self.stale_grace))?.binding(id)
    }

    async fn read(&self, id: &KeyId) -> Option<(Option<Read>, i64)> {
        let key = self.key(id);
        let asked = READ.key(key);
        let (entry, now_ms): (Option<String>, i64) = self.redis.run(&asked).await.ok()?;
        Some((entry.as_deref().and_then(Read::parse), now_ms))
    }

    /// Notes what the authority has said just now. Nobody waits for it. Of keys that the upstream has not accepted
    /// nothing is remembered: they may go any moment.
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
        };
        let row = serde_json::to_string(&row).ok();
        // With no room it is not remembered; that harms nobody.
        let _ = self.writes.try_send(Entry { id: binding.id, version: binding.version, row, floor_ms });
    }

    /// The row has changed, or is gone, as of this version.
    pub fn changed(&self, id: KeyId, version: i64) {
        let floor_ms = self.floor.lock().at_ms.unwrap_or(0);
        if self.writes.try_send(Entry { id, version, row: None, floor_ms }).is_err() {
            self.doubt_everything();
        }
    }

    /// News may have been lost: what is there is not believed any more.
    pub fn doubt_everything(&self) {
        let mut floor = self.floor.lock();
        *floor = Floor { lost: floor.lost + 1, at_ms: None };
    }

    fn key(&self, id: &KeyId) -> String {
        self.redis.key("binding", &id.hex())
    }

    async fn write(&self, entry: Entry) {
        let is_news = entry.row.is_none();
        // What is too old to be believed may still be good enough when nobody can be asked.
        let ttl_ms = u64::try_from(self.ttl.max(self.stale_grace).as_millis()).unwrap_or(u64::MAX);
        let row = entry.row.as_deref().unwrap_or("-");
        let mut asked = WRITE.key(self.key(&entry.id));
        asked.arg(entry.version).arg(row).arg(entry.floor_ms).arg(ttl_ms);
        if self.redis.run::<i64>(&asked).await.is_err() && is_news {
            self.doubt_everything();
        }
    }
}

async fn write_all(shared: std::sync::Weak<Shared>, mut waiting: mpsc::Receiver<Entry>) {
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
    /// What makes no sense is as good as nothing.
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
        let Stored { rule, networks, banned, by_first_use, networks_max, window_s, seen_ms } = self.row?;
        let (id, version) = (id.0.to_vec(), self.version);
        let raw = Raw { id, rule, networks, banned, by_first_use, confirmed: true, version, networks_max, window_s, seen_ms };
        raw.checked().ok()
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

    /// A server of the test's own.
    struct Server(Child, u16);

    impl Server {
        fn start() -> Self {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let arguments = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
            let child = Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn();
            Self(child.expect("redis-server is installed"), port)
        }

        async fn shared(&self, ttl: Duration) -> Arc<Shared> {
            let config = serde_json::from_value(serde_json::json!({ "url": format!("redis://127.0.0.1:{}", self.1), "timeout": "2s" }));
            let files = Files::beside(std::path::Path::new("x"));
            let redis = Redis::open(&config.unwrap(), &files, &Registry::new()).await.unwrap();
            while !redis.is_there() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Shared::new(redis, ttl, Duration::from_secs(600))
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
            by_first_use: true,
            confirmed: true,
            version,
        }
    }

    /// Writes and waits until it is written.
    async fn put(shared: &Shared, row: &Binding) {
        shared.put(row);
        written(shared).await;
    }

    async fn written(shared: &Shared) {
        while shared.writes.capacity() < WAITING_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The last one is on its way; what is asked on the same connection comes after it.
        let _ = shared.read(&ID).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    async fn believing(shared: &Shared) {
        let _ = shared.get(&ID).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }

    #[tokio::test]
    async fn an_older_version_never_takes_the_place_of_a_newer_one() {
        let server = Server::start();
        let (one, other) = (server.shared(Duration::from_secs(60)).await, server.shared(Duration::from_secs(60)).await);
        one.put(&row(1, false));
        assert_eq!(other.get(&ID).await, None, "nobody knows yet since when to believe");
        believing(&one).await;
        believing(&other).await;

        put(&one, &row(5, false)).await;
        assert_eq!(other.get(&ID).await, Some(row(5, false)));
        put(&other, &row(4, true)).await;
        assert_eq!(one.get(&ID).await, Some(row(5, false)));
        put(&other, &Binding { confirmed: false, ..row(6, true) }).await;
        assert_eq!(one.get(&ID).await, Some(row(5, false)), "what the upstream has not accepted is nobody's concern");

        // A change is heard of; what was read before it comes too late.
        one.changed(ID, 7);
        written(&one).await;
        put(&other, &row(6, false)).await;
        assert_eq!((one.get(&ID).await, other.get(&ID).await, other.stale(&ID).await), (None, None, None));
        put(&other, &row(7, true)).await;
        assert_eq!(one.get(&ID).await, Some(row(7, true)));
        other.changed(ID, 7);
        written(&other).await;
        assert_eq!(one.get(&ID).await, Some(row(7, true)), "old news");

        // News may have been lost: a version that goes back may be a restored backup, and is right.
        one.doubt_everything();
        believing(&one).await;
        assert_eq!(one.get(&ID).await, None);
        assert_eq!((other.get(&ID).await, one.stale(&ID).await), (Some(row(7, true)), Some(row(7, true))));
        put(&one, &row(2, false)).await;
        assert_eq!(one.get(&ID).await, Some(row(2, false)));
    }

    #[tokio::test]
    async fn nothing_is_believed_for_longer_than_was_said_and_nonsense_never() {
        let server = Server::start();
        let shared = server.shared(Duration::from_secs(1)).await;
        believing(&shared).await;
        put(&shared, &row(5, false)).await;
        assert_eq!(shared.get(&ID).await, Some(row(5, false)));
        tokio::time::sleep(Duration::from_millis(1050)).await;
        assert_eq!(shared.get(&ID).await, None);
        assert_eq!(shared.stale(&ID).await, Some(row(5, false)));
        for nonsense in ["", "x", "9 9", "9 9999999999999 {", "9 9999999999999 {\"rule\":\"none\",\"networks\":[]}", "9 x -"] {
            assert!(Read::parse(nonsense).and_then(|read| read.binding(&ID)).is_none(), "{nonsense}");
        }
        let set = Script::new("return redis.call('SET', KEYS[1], 'nonsense')");
        let _: () = shared.redis.run(&set.key(shared.key(&ID))).await.unwrap();
        assert_eq!(shared.get(&ID).await, None);
        put(&shared, &row(1, false)).await;
        assert_eq!(shared.get(&ID).await, Some(row(1, false)), "it heals");
    }
}
