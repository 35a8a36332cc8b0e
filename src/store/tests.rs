//! The contract of a store, run against every authority.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use keylatch_filters::contract::{Bindings, FirstUse, Intercept, KeyHasher, KeyId, Rule};
use prometheus::Registry;

use super::*;

fn id(key: &str) -> KeyId {
    KeyHasher::new(b"test").id(key)
}

fn first(key: &str, address: &str) -> FirstUse {
    let network = address.parse::<IpAddr>().unwrap().into();
    FirstUse { id: id(key), hint: "sk-…".into(), network, at: SystemTime::now() }
}

fn intercept(key: &str) -> Intercept {
    Intercept {
        id: id(key),
        hint: "sk-…".into(),
        client: "192.0.2.9".parse().unwrap(),
        method: "GET".into(),
        path: "/".into(),
        user_agent: String::new(),
        route: "r".into(),
        banned: false,
        at: SystemTime::now(),
    }
}

async fn contract(authority: Arc<dyn Authority>) {
    let store = Embedded::new(authority, 1000, &Registry::new());
    // A hundred first uses from a hundred addresses at once: one binds, all see the same.
    let mut tasks = Vec::new();
    for n in 0..100 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move { store.latch(first("raced", &format!("10.0.0.{n}"))).await.unwrap() }));
    }
    let mut networks = Vec::new();
    for task in tasks {
        networks.push(task.await.unwrap().networks.clone());
    }
    networks.dedup();
    assert_eq!(networks.len(), 1, "{networks:?}");

    let bound = store.latch(first("a", "10.0.0.1")).await.unwrap();
    assert_eq!((bound.rule, bound.banned, bound.version), (Rule::Single, false, 1));
    assert!(bound.admits("10.0.0.1".parse().unwrap()) && !bound.admits("10.0.0.2".parse().unwrap()));
    assert_eq!(store.peek(&id("a")).as_deref(), Some(&*bound));
    assert_eq!(store.peek(&id("b")), None);
    assert_eq!(store.recheck(id("a")).await.unwrap().as_deref(), Some(&*bound));
    assert_eq!(store.recheck(id("b")).await.unwrap(), None);
    store.used(id("a"), SystemTime::now());
    store.intercepted(intercept("a"));
    store.flush().await;
    store.ping().await.unwrap();
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(Arc::new(memory::Memory::default())).await;
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract(Arc::new(sqlite::Sqlite::open(&folder.path().join("deep/er/t.db")).await.unwrap())).await;
}

#[tokio::test]
async fn sqlite_outlives_the_process_and_counts_repeated_intercepts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.db");
    {
        let store = Embedded::new(Arc::new(sqlite::Sqlite::open(&path).await.unwrap()), 16, &Registry::new());
        store.latch(first("a", "10.0.0.1")).await.unwrap();
        (0..1000).for_each(|_| store.intercepted(intercept("a")));
        store.flush().await;
    }
    let reopened = sqlite::Sqlite::open(&path).await.unwrap();
    let row = reopened.latch(first("a", "10.0.0.2")).await.unwrap();
    assert_eq!(row.networks, ["10.0.0.1/32".parse().unwrap()], "the first use was another process's");
    let url = format!("sqlite://{}", path.display());
    let mut direct = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let rows: Vec<(i64,)> = sqlx::query_as("SELECT count FROM intercepts").fetch_all(&mut direct).await.unwrap();
    assert_eq!(rows, [(1000,)]);
    // What others change is seen by the next check; a row that makes no sense admits nobody.
    sqlx::query("UPDATE bindings SET banned = 1, version = 2").execute(&mut direct).await.unwrap();
    assert!(reopened.get(id("a")).await.unwrap().unwrap().banned);
    sqlx::query("UPDATE bindings SET networks = 'everywhere'").execute(&mut direct).await.unwrap();
    assert!(reopened.get(id("a")).await.unwrap_err().0.contains("malformed network"));
}

#[tokio::test]
async fn a_database_belongs_to_its_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.db");
    let storage = Storage::Sqlite(crate::config::model::Sqlite { path: path.display().to_string(), ..Default::default() });
    let files = Files::beside(&path);
    let open = |secrets: Secrets| {
        let (storage, files) = (&storage, &files);
        async move { open(storage, &secrets, files, &Registry::new()).await.map(|opened| opened.hasher.id("k")) }
    };
    let made = open(Secrets::default()).await.unwrap();
    assert_eq!(open(Secrets::default()).await.unwrap(), made, "the same secret the second time");
    let other = Secrets { key_hmac: Some(keylatch_filters::contract::SecretRef::new("x".repeat(32))) };
    assert!(open(other).await.unwrap_err().contains("another secrets.key_hmac"));
    let short = Secrets { key_hmac: Some(keylatch_filters::contract::SecretRef::new("short")) };
    assert!(open(short).await.unwrap_err().contains("at least 32"));
    let secret = folder.path().join("t.db.secret");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(open(Secrets::default()).await.unwrap_err().contains("chmod 600"));
    std::fs::remove_file(&secret).unwrap();
    assert!(open(Secrets::default()).await.unwrap_err().contains("is missing"));
}

#[test]
fn an_older_version_never_replaces_a_newer_one() {
    let cache = cache::Cache::new(16);
    let now = std::time::Instant::now();
    let row = |version| Binding { id: id("a"), rule: Rule::All, networks: Vec::new(), banned: version == 2, version };
    cache.put(row(2), now);
    assert!(cache.put(row(1), now).banned, "a ban that raced a fill wins");
    assert!(cache.fresh(&id("a"), now).unwrap().banned);
    let later = now + std::time::Duration::from_millis(1);
    assert!(!cache.put(row(1), later).banned, "a row that was deleted and made anew is another row");
}
