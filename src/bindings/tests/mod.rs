//! The contract of an authority, tested against each implementation.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{
    Binding, Bindings, BoxFuture, FirstUse, Intercept, KeyHasher, KeyId, Roaming, Rule, SecretRef, StoreError,
};
use prometheus::Registry;

use super::*;
use crate::config::Files;
use crate::config::model::{Secrets, Settings, Storage};
use crate::sql::audit::{Actor, AuditEntry, AuditQuery};
use crate::sql::batch::Batch;
use crate::sql::intercepts::Page;
use crate::sql::outbox::{Attempted, Delivery, KeyOverThreshold, Threshold};
use crate::sql::record::{BindingCursor, BindingTerms, Change, Changed, Creation, Query, Record, RetentionPolicy, RetentionResult};
use crate::sql::{AdminStore, Authority, Events, OnStoreEvent, ServerInfo, StoreEvent, postgres, sqlite};

mod accounts;
mod delayed;
mod lists;
mod outage;

fn id(key: &str) -> KeyId {
    KeyHasher::new(b"test").id(key)
}

/// The first digits of an id, as [`Query::prefix`] has them.
fn digits(id: &KeyId, count: usize) -> Vec<u8> {
    id.hex().chars().take(count).filter_map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect()
}

fn first(key: &str, address: &str) -> FirstUse {
    let network = address.parse::<IpAddr>().unwrap().into();
    FirstUse { id: id(key), hint: "sk-…".into(), network, roaming: None, confirmed: false, at: SystemTime::now() }
}

fn operator() -> Actor {
    Actor { who: "command:operator".into(), origin: "here".into() }
}

fn intercept(key: &str) -> Intercept {
    Intercept {
        id: id(key),
        hint: "sk-…".into(),
        client: "192.0.2.9".parse().unwrap(),
        networks: vec!["10.0.0.0/8".parse().unwrap()],
        method: "GET".into(),
        path: "/".into(),
        user_agent: String::new(),
        route: "r".into(),
        banned: false,
        shadow: false,
        at: SystemTime::now(),
    }
}

async fn contract(authority: Arc<dyn Authority>) {
    let store = Store::new(authority, None, 1000, Duration::ZERO, &Registry::new());
    // A hundred first uses from a hundred addresses at once: one binds, all see the same.
    let mut tasks = Vec::new();
    for n in 0..100 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move { store.bind_first_use(first("raced", &format!("10.0.0.{n}"))).await.unwrap() }));
    }
    let mut networks = Vec::new();
    for task in tasks {
        networks.push(task.await.unwrap().networks.clone());
    }
    networks.dedup();
    assert_eq!(networks.len(), 1, "{networks:?}");

    let bound = store.bind_first_use(first("a", "10.0.0.1")).await.unwrap();
    assert_eq!((bound.rule, bound.banned, bound.confirmed), (Rule::Single, false, false));
    assert!(bound.covers("10.0.0.1".parse().unwrap()) && !bound.covers("10.0.0.2".parse().unwrap()));
    assert_eq!(store.cached(&id("a")).as_deref(), Some(&*bound));
    assert_eq!(store.cached(&id("b")), None);
    assert_eq!(store.authoritative(id("a"), None).await.unwrap().as_deref(), Some(&*bound));
    assert_eq!(store.authoritative(id("b"), None).await.unwrap(), None);
    store.used(id("a"), SystemTime::now());
    store.intercepted(intercept("a"));
    store.flush().await;
    store.state().await.unwrap();
    store.try_write().await.unwrap();

    released_unless_confirmed(&store).await;
    managed(&store).await;
    adopts(&store).await;
    roams(&store).await;
    lists::listed(&store).await;
    lists::intercepts(&store).await;
    lists::latest_first(&store).await;
    accounts::accounts(&store).await;
    accounts::providers(&store).await;
    accounts::guesses(&store).await;
    accounts::samples(&store).await;
    retention_applies(&store).await;
}

async fn released_unless_confirmed(store: &Store) {
    let refused = store.bind_first_use(first("refused", "10.0.0.1")).await.unwrap();
    store.release(&refused);
    store.settled().await;
    assert!(store.authoritative(id("refused"), None).await.unwrap().is_none());
    let again = store.bind_first_use(first("refused", "10.0.0.2")).await.unwrap();
    assert!(again.version > refused.version, "a row that replaces another is newer");
    // Of two concurrent verdicts the confirmation wins.
    store.confirm(&again);
    store.release(&again);
    store.settled().await;
    assert!(store.authoritative(id("refused"), None).await.unwrap().unwrap().confirmed, "a confirmed binding stays");
}

async fn managed(store: &Store) {
    let networks = || vec!["10.9.0.0/16".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let change = Change {
        rule: Some(BindingTerms { rule: Rule::Multiple, networks: networks(), roaming: None }),
        note: Some("it's Ann's; \"really\"".into()),
        labels: Some(vec!["team-a".into(), "paid".into()]),
        ..Change::default()
    };
    assert_eq!(store.change(id("new"), change.clone(), operator()).await.unwrap(), Changed::Missing);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let made = Change { make: Some(Creation { created_at: long_ago, ..Creation::now("…ew".into(), "admin".into()) }), ..change };
    let made = store.change(id("new"), made, operator()).await.unwrap().done().unwrap();
    assert_eq!((made.binding.rule, made.binding.networks.clone(), made.hint.as_str()), (Rule::Multiple, networks(), "…ew"));
    assert!(made.created_at == long_ago && made.last_used_at.elapsed().unwrap() < Duration::from_secs(60));
    assert_eq!((made.made_by.as_str(), made.note.as_str()), ("admin", "it's Ann's; \"really\""));
    let ban = Change { banned: Some(true), ..Change::default() };
    let banned = store.change(id("new"), ban, operator()).await.unwrap().done().unwrap();
    assert!(banned.binding.banned && banned.binding.version > made.binding.version);
    assert_eq!(banned.binding.labels, ["team-a", "paid"]);
    assert!(store.authoritative(id("new"), None).await.unwrap().unwrap().banned);

    let list = async |query: Query| store.list(Query { limit: 10, ..query }).await.unwrap().rows;
    let ids = |records: &[Record]| records.iter().map(|record| record.binding.id).collect::<Vec<_>>();
    assert_eq!(ids(&list(Query { banned: Some(true), ..Query::default() }).await), [id("new")]);
    assert_eq!(ids(&list(Query { label: Some("paid".into()), ..Query::default() }).await), [id("new")]);
    assert_eq!(list(Query { label: Some("pai".into()), ..Query::default() }).await, []);
    assert_eq!(ids(&list(Query { network: Some("10.9.3.4/32".parse().unwrap()), ..Query::default() }).await), [id("new")]);
    assert_eq!(ids(&list(Query { prefix: digits(&id("new"), 11), ..Query::default() }).await), [id("new")]);
    assert_eq!(ids(&list(Query { prefix: digits(&id("new"), 12), ..Query::default() }).await), [id("new")]);
    let all = list(Query::default()).await;
    assert!(all.len() >= 4 && all.is_sorted_by_key(|record| record.binding.id));
    assert_eq!(
        list(Query { after: all.first().map(|record| BindingCursor { at: 0, id: record.binding.id }), ..Query::default() }).await,
        all[1..]
    );

    let stale = Change { expects: Some(made.binding.version), note: Some("late".into()), ..Change::default() };
    assert_eq!(store.change(id("new"), stale, operator()).await.unwrap(), Changed::Newer(banned.binding.version));
    assert_eq!(store.remove(id("new"), Some(1), operator()).await.unwrap(), Changed::Newer(banned.binding.version));
    assert_eq!(store.remove(id("new"), Some(banned.binding.version), operator()).await.unwrap(), Changed::Done(()));
    assert_eq!(store.remove(id("new"), None, operator()).await.unwrap(), Changed::Missing);
    assert_eq!(store.authoritative(id("new"), None).await.unwrap(), None);
}

/// Makes the next read ask the authority. The cache answers for a row that was just read, by the
/// monotonic clock, which a test cannot move while a real database answers.
fn past_just_read(store: &Store) {
    store.handle_event(StoreEvent::EventsLost);
}

async fn adopts(store: &Store) {
    store.bind_first_use(first("old", "10.0.0.1")).await.unwrap();
    let ban = Change { banned: Some(true), ..Change::default() };
    let old = store.change(id("old"), ban, operator()).await.unwrap().done().unwrap();
    let previous = || vec![id("unbound"), id("old")];
    let adopted = store.adopt(id("old, rehashed"), previous()).await.unwrap().unwrap();
    assert!(adopted.banned && adopted.networks == old.binding.networks && adopted.id == id("old, rehashed"));
    assert!(adopted.version > old.binding.version);
    assert_eq!(store.adopt(id("b"), vec![id("unbound")]).await.unwrap(), None);
    past_just_read(store);
    assert_eq!(store.authoritative(id("old"), None).await.unwrap(), None, "the binding has moved");
    assert_eq!(store.remove(id("old, rehashed"), None, operator()).await.unwrap(), Changed::Done(()));
    assert_eq!(store.adopt(id("old, rehashed"), previous()).await.unwrap(), None, "and stays removed");
}

async fn roams(store: &Store) {
    let terms = Roaming { networks_max: 2, window: Duration::from_secs(3600) };
    let made = store.bind_first_use(FirstUse { roaming: Some(terms), ..first("moves", "10.0.0.1") }).await.unwrap();
    assert_eq!((made.rule, made.roaming), (Rule::Roaming, Some(terms)));
    let net = |n: u8| IpNet::from(IpAddr::from([10, 0, 0, n]));
    let uses = async |n: u8, after_s: u64| {
        let at = made.seen[0] + Duration::from_secs(after_s);
        let holds = store.roam(id("moves"), net(n), at).await.unwrap().unwrap();
        holds.admits(net(n).addr(), at)
    };
    assert!(uses(1, 1).await && uses(2, 1800).await);
    assert!(!uses(3, 1801).await, "a third network at a time");
    past_just_read(store);
    assert!(uses(3, 3602).await, "the first was not used for an hour");
    past_just_read(store);
    assert!(!uses(1, 3603).await && uses(2, 3604).await);
    let stay = BindingTerms { rule: Rule::Single, networks: vec![net(9)], roaming: None };
    let settled = store.change(id("moves"), Change { rule: Some(stay), ..Change::default() }, operator()).await.unwrap().done().unwrap();
    assert_eq!((settled.binding.roaming, settled.binding.networks.as_slice()), (None, [net(9)].as_slice()));
    let again = BindingTerms { rule: Rule::Roaming, networks: vec![net(9)], roaming: Some(terms) };
    let again = store.change(id("moves"), Change { rule: Some(again), ..Change::default() }, operator()).await.unwrap().done().unwrap();
    assert!(again.binding.admits(net(9).addr(), SystemTime::now()));
    // A wider network of an operator stays unchanged when it is used.
    let wide = BindingTerms { rule: Rule::Roaming, networks: vec!["10.0.0.0/24".parse().unwrap()], roaming: Some(terms) };
    let wide = store.change(id("moves"), Change { rule: Some(wide), ..Change::default() }, operator()).await.unwrap().done().unwrap();
    let later = SystemTime::now() + Duration::from_secs(1800);
    let used = store.roam(id("moves"), net(77), later).await.unwrap().unwrap();
    assert_eq!(used.networks, wide.binding.networks);
    assert!(used.admits(net(5).addr(), later + Duration::from_secs(3000)));
    assert_eq!(store.roam(id("unbound"), net(1), SystemTime::now()).await.unwrap(), None);
}

async fn retention_applies(store: &Store) {
    let policy = RetentionPolicy {
        audit: Duration::from_secs(3600),
        every: Duration::from_secs(3600),
        archive_after: Duration::from_secs(60),
        unconfirmed: Duration::from_secs(3600),
        intercepts: Duration::ZERO,
        archive: Duration::from_secs(3600),
        usage: (&crate::config::model::Usage::default()).into(),
    };
    let old = FirstUse { at: SystemTime::now() - Duration::from_secs(120), ..first("old", "10.0.0.1") };
    store.bind_first_use(old).await.unwrap();
    let banned = FirstUse { at: SystemTime::now() - Duration::from_secs(120), ..first("banned", "10.0.0.1") };
    store.bind_first_use(banned).await.unwrap();
    store.change(id("banned"), Change { banned: Some(true), ..Change::default() }, operator()).await.unwrap();
    let fixed = FirstUse { at: SystemTime::now() - Duration::from_secs(120), ..first("fixed", "10.0.0.1") };
    store.bind_first_use(fixed).await.unwrap();
    let office = BindingTerms { rule: Rule::Single, networks: vec!["10.0.0.0/24".parse().unwrap()], roaming: None };
    let change = Change { rule: Some(office), make: Some(Creation::now(String::new(), "admin".into())), ..Change::default() };
    assert_eq!(store.change(id("fixed"), change, operator()).await.unwrap().done().unwrap().made_by, "admin");
    let never = FirstUse { at: SystemTime::now() - Duration::from_secs(50), ..first("never confirmed", "10.0.0.1") };
    store.bind_first_use(never).await.unwrap();
    store.apply_retention(RetentionPolicy { unconfirmed: Duration::from_secs(40), ..policy }).await;
    assert_eq!(store.authoritative(id("old"), None).await.unwrap(), None);
    assert!(store.authoritative(id("banned"), None).await.unwrap().unwrap().banned, "a ban is never archived");
    assert!(store.authoritative(id("fixed"), None).await.unwrap().is_some(), "a binding of an operator stays");
    assert_eq!(store.authoritative(id("never confirmed"), None).await.unwrap(), None);
    assert!(store.authoritative(id("a"), None).await.unwrap().is_some(), "used just now");
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(Arc::new(sqlite::Sqlite::in_memory().await.unwrap())).await;
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract(Arc::new(sqlite::Sqlite::open(&folder.path().join("deep/er/t.db"), true).await.unwrap())).await;
}

#[tokio::test]
async fn sqlite_survives_a_restart_and_counts_repeated_intercepts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.db");
    {
        let store = Store::new(Arc::new(sqlite::Sqlite::open(&path, true).await.unwrap()), None, 16, Duration::ZERO, &Registry::new());
        store.bind_first_use(first("a", "10.0.0.1")).await.unwrap();
        (0..1000).for_each(|_| store.intercepted(intercept("a")));
        store.flush().await;
    }
    let reopened = sqlite::Sqlite::open(&path, true).await.unwrap();
    let row = reopened.bind_first_use(first("a", "10.0.0.2")).await.unwrap();
    assert_eq!(row.networks, ["10.0.0.1/32".parse().unwrap()], "an earlier process made the first use");
    let url = format!("sqlite://{}", path.display());
    let mut direct = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let rows: Vec<(i64,)> = sqlx::query_as("SELECT count FROM intercepts").fetch_all(&mut direct).await.unwrap();
    assert_eq!(rows, [(1000,)]);
    // A change by another process is seen by the next read; a malformed row admits no client.
    sqlx::query("UPDATE bindings SET banned = 1, version = 2").execute(&mut direct).await.unwrap();
    assert!(reopened.get(id("a")).await.unwrap().unwrap().banned);
    sqlx::query("UPDATE bindings SET networks = 'everywhere'").execute(&mut direct).await.unwrap();
    assert!(reopened.get(id("a")).await.unwrap_err().to_string().contains("malformed network"));
}

#[tokio::test]
async fn a_database_belongs_to_its_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.db");
    let storage = Storage::Sqlite(crate::config::model::Sqlite { path: path.display().to_string(), ..Default::default() });
    let files = Files::beside(&path);
    let open = |secrets: Secrets| {
        let (settings, files) = (Settings { storage: storage.clone(), secrets, ..Settings::default() }, &files);
        async move { open(&settings, files, &Registry::new(), Purpose::Serve, None).await.map(|opened| opened.hasher.id("k")) }
    };
    let made = open(Secrets::default()).await.unwrap();
    assert_eq!(open(Secrets::default()).await.unwrap(), made, "the same secret the second time");
    let other = Secrets { key_hmac: Some(SecretRef::new("x".repeat(32))), ..Secrets::default() };
    assert!(open(other).await.unwrap_err().contains("another secrets.key_hmac"));
    let short = Secrets { key_hmac: Some(SecretRef::new("short")), ..Secrets::default() };
    assert!(open(short).await.unwrap_err().contains("at least 32"));
    let secret = folder.path().join("t.db.secret");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(open(Secrets::default()).await.unwrap_err().contains("chmod 600"));
    std::fs::remove_file(&secret).unwrap();
    assert!(open(Secrets::default()).await.unwrap_err().contains("is missing"));
}
