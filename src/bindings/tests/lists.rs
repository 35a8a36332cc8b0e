//! Lists: every order and every filter, page by page.

use super::*;
use crate::sql::intercepts::{Group, InterceptGrouping, InterceptQuery};
use crate::sql::record::Sort;

fn mine(n: u32) -> String {
    format!("listed {n}")
}

/// All rows of this test, read in pages of one row.
async fn all(store: &Store, query: Query) -> Vec<Record> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(Query { after, limit: 1, ..query.clone() }).await.unwrap();
        found.extend(page.rows);
        after = page.next;
        if after.is_none() {
            return found.into_iter().filter(|record| record.note == "listed").collect();
        }
    }
}

pub async fn listed(store: &Store) {
    let networks = ["203.0.113.7/32", "203.0.113.128/25", "203.0.0.0/16", "2001:db8:1::/48", "198.51.100.1/32 203.0.113.9/32"];
    for (n, text) in (0..).zip(networks) {
        let networks: Vec<IpNet> = text.split(' ').map(|net| net.parse().unwrap()).collect();
        let rule = if networks.len() == 1 { Rule::Single } else { Rule::Multiple };
        let make = Creation {
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - u64::from(n)),
            ..Creation::now(format!("sk-…ab{n}Z"), format!("maker{n}"))
        };
        let terms = BindingTerms { rule, networks, roaming: None };
        let change = Change { rule: Some(terms), note: Some("listed".into()), make: Some(make), ..Change::default() };
        store.change(id(&mine(n)), change, operator()).await.unwrap().done().unwrap();
    }
    let numbers = async |query: Query| {
        let found = all(store, query).await;
        found.iter().map(|record| (0..5).find(|n| id(&mine(*n)) == record.binding.id).unwrap()).collect::<Vec<u32>>()
    };
    let created = Query { sort: Sort::Created, ..Query::default() };
    assert_eq!(numbers(created.clone()).await, [4, 3, 2, 1, 0]);
    assert_eq!(numbers(Query { descending: true, ..created.clone() }).await, [0, 1, 2, 3, 4]);
    assert_eq!(numbers(Query { sort: Sort::Used, ..Query::default() }).await.len(), 5);
    let mut by_key: Vec<u32> = (0..5).collect();
    by_key.sort_by_key(|n| id(&mine(*n)));
    assert_eq!(numbers(Query::default()).await, by_key);
    by_key.reverse();
    assert_eq!(numbers(Query { descending: true, ..Query::default() }).await, by_key);
    for (net, found) in [
        ("203.0.113.7/32", vec![2, 0]),
        ("203.0.113.200/32", vec![2, 1]),
        ("203.0.113.9/32", vec![4, 2]),
        ("203.0.113.0/24", vec![4, 2, 1, 0]),
        ("203.0.0.0/12", vec![4, 2, 1, 0]),
        ("2001:db8::/32", vec![3]),
        ("2001:db8:1:2::1/128", vec![3]),
        ("192.0.2.0/24", vec![]),
    ] {
        assert_eq!(numbers(Query { network: Some(net.parse().unwrap()), ..created.clone() }).await, found, "{net}");
    }
    assert_eq!(numbers(Query { hint: Some("ab3Z".into()), ..created.clone() }).await, [3]);
    assert_eq!(numbers(Query { hint: Some("sk-…ab3Z".into()), ..created.clone() }).await, [3]);
    assert_eq!(numbers(Query { hint: Some("b3Z".into()), ..created.clone() }).await, Vec::<u32>::new(), "less than a hint's end is none");
    assert_eq!(numbers(Query { hint: Some("xab3Z".into()), ..created.clone() }).await, Vec::<u32>::new());
    assert_eq!(numbers(Query { rule: Some(Rule::Multiple), ..created.clone() }).await, [4]);
    assert_eq!(numbers(Query { made_by: Some("maker2".into()), banned: Some(false), ..created.clone() }).await, [2]);
    assert_eq!(store.count(Query { hint: Some("ab3Z".into()), ..Query::default() }).await.unwrap(), Some(1));
    assert!(store.count(Query::default()).await.unwrap().is_some_and(|count| count >= 5));
    assert_eq!(store.count(Query { rule: Some(Rule::All), ..Query::default() }).await.unwrap(), None, "too dear");
    for n in 0..5 {
        store.remove(id(&mine(n)), None, operator()).await.unwrap();
    }
}

pub async fn intercepts(store: &Store) {
    let base = SystemTime::UNIX_EPOCH + Duration::from_secs(60 * 1_000_000);
    for n in 0..10_u64 {
        let one = Intercept {
            client: format!("198.51.100.{}", n % 3).parse().unwrap(),
            path: format!("/v1/{}", n % 2),
            banned: n % 5 == 0,
            route: "listed".into(),
            at: base + Duration::from_secs(60 * n),
            ..intercept(if n < 6 { "listed a" } else { "listed b" })
        };
        store.intercepted(one.clone());
        store.intercepted(one);
    }
    store.flush().await;
    let minute = |n: i64| 60_000 * (1_000_000 + n);
    let admin_store = store.admin_store();
    let minutes = async |wanted: InterceptQuery| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page =
                admin_store.intercepts(&InterceptQuery { after, route: Some("listed".into()), limit: 1, ..wanted.clone() }).await.unwrap();
            found.extend(page.rows);
            after = page.next;
            if after.is_none() {
                assert!(found.iter().all(|row| row.count == 2 && row.networks.len() == 1 && row.mark.last_ms == row.first_ms));
                return found.iter().map(|row| row.mark.minute_ms / 60_000 - 1_000_000).collect::<Vec<_>>();
            }
        }
    };
    assert_eq!(minutes(InterceptQuery::default()).await, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(minutes(InterceptQuery { key: Some(id("listed b")), ..InterceptQuery::default() }).await, [9, 8, 7, 6]);
    assert_eq!(minutes(InterceptQuery { client: Some("198.51.100.1/32".parse().unwrap()), ..InterceptQuery::default() }).await, [7, 4, 1]);
    assert_eq!(
        minutes(InterceptQuery { client: Some("198.51.100.0/31".parse().unwrap()), ..InterceptQuery::default() }).await,
        [9, 7, 6, 4, 3, 1, 0]
    );
    assert_eq!(minutes(InterceptQuery { path: Some("/v1/1".into()), banned: Some(true), ..InterceptQuery::default() }).await, [5]);
    assert_eq!(minutes(InterceptQuery { since_ms: Some(minute(3)), until_ms: Some(minute(5)), ..InterceptQuery::default() }).await, [4, 3]);
    assert_eq!(minutes(InterceptQuery { method: Some("PUT".into()), ..InterceptQuery::default() }).await, Vec::<i64>::new());
    assert_eq!(minutes(InterceptQuery { shadow: Some(true), ..InterceptQuery::default() }).await, Vec::<i64>::new());
    let odd = InterceptQuery { client: Some("198.51.100.2/31".parse().unwrap()), limit: 1, ..InterceptQuery::default() };
    let by_key = admin_store.intercept_groups(InterceptGrouping::Key, &odd).await.unwrap();
    assert_eq!((by_key.groups[0].count, by_key.groups[0].others), (4, 1), "of this network alone");
    let by_client = admin_store.intercept_groups(InterceptGrouping::Client, &odd).await.unwrap();
    assert_eq!((by_client.groups.len(), by_client.groups[0].what.as_str()), (1, "198.51.100.2"));
    let wanted = InterceptQuery { until_ms: Some(minute(100)), route: Some("listed".into()), limit: 2, ..InterceptQuery::default() };
    let by_key = admin_store.intercept_groups(InterceptGrouping::Key, &wanted).await.unwrap();
    let group =
        |what: String, hint: &str, count, others, last: i64| Group { what, hint: hint.into(), count, others, last_ms: minute(last) };
    assert_eq!(by_key.groups, [group(id("listed a").hex(), "sk-…", 12, 3, 5), group(id("listed b").hex(), "sk-…", 8, 3, 9)]);
    let by_client = admin_store.intercept_groups(InterceptGrouping::Client, &wanted).await.unwrap();
    assert_eq!(by_client.groups, [group("198.51.100.0".into(), "", 8, 2, 9), group("198.51.100.1".into(), "", 6, 2, 7)]);
}

pub async fn latest_first(store: &Store) {
    let minute = SystemTime::UNIX_EPOCH + Duration::from_secs(60 * 2_000_000);
    // The second of each pair is in shadow mode. Rows are ordered by their last time, also across minutes.
    let seconds = [(30, 30), (10, 70), (50, 50), (5, 59), (61, 61)];
    for (n, (first_s, last_s)) in (0..).zip(seconds) {
        for shadow in [false, true] {
            let at = |seconds| minute + Duration::from_secs(seconds) + Duration::from_millis(if shadow { 500 } else { 0 });
            for at in [at(first_s), at(last_s)] {
                store.intercepted(Intercept { path: format!("/{n}"), route: "latest".into(), shadow, at, ..intercept("latest") });
            }
        }
    }
    store.flush().await;
    let found = async |shadow: Option<bool>, limit: u32| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let wanted = InterceptQuery { after, key: Some(id("latest")), shadow, limit, ..InterceptQuery::default() };
            let page = store.admin_store().intercepts(&wanted).await.unwrap();
            found.extend(page.rows.iter().map(|row| (row.mark.path.clone(), row.mark.shadow, row.count)));
            assert!(page.rows.iter().all(|row| !row.mark.replica_name().contains("shadow")));
            after = page.next;
            if after.is_none() {
                return found;
            }
        }
    };
    let row = |path: &str, shadow| (path.to_owned(), shadow, 2);
    let order = ["/1", "/4", "/3", "/2", "/0"];
    let both: Vec<_> = order.iter().flat_map(|path| [row(path, true), row(path, false)]).collect();
    for limit in [1, 3, 50] {
        assert_eq!(found(None, limit).await, both);
        assert_eq!(found(Some(true), limit).await, order.map(|path| row(path, true)));
        assert_eq!(found(Some(false), limit).await, order.map(|path| row(path, false)));
    }
}
