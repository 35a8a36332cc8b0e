//! Accounts, sessions, tokens and counters of failed sign-ins.

use super::*;
use crate::sql::accounts::{Account, ProviderIdentity, Session, SignInCounter, Token, WriteOutcome};
use crate::sql::providers::{Expects, Provider};
use crate::sql::samples::{MINUTE_S, Replica, Sample, SampleKind};

fn account(name: &str, role: &str) -> Account {
    Account {
        name: name.into(),
        role: role.into(),
        password: Some("$argon2id$…".into()),
        disabled: false,
        must_change: true,
        version: 1,
        created_ms: 1,
        signed_in_ms: None,
        elsewhere: None,
    }
}

pub async fn accounts(store: &Store) {
    let (admin_store, who) = (store.admin_store(), operator());
    assert_eq!(admin_store.make_account(&account("ann", "admin"), true, &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!(
        admin_store.make_account(&account("bob", "viewer"), true, &who).await.unwrap(),
        WriteOutcome::Exists,
        "a first account exists"
    );
    assert_eq!(admin_store.make_account(&account("bob", "viewer"), false, &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!(admin_store.make_account(&account("bob", "admin"), false, &who).await.unwrap(), WriteOutcome::Exists);
    let session = |id: &str, account: &str| Session {
        id: id.into(),
        account: account.into(),
        created_ms: 10,
        expires_ms: 1000,
        origin: "127.0.0.1".into(),
        agent: "tests".into(),
    };
    for (name, account) in [("s1", "ann"), ("s2", "bob"), ("s3", "bob")] {
        assert!(admin_store.begin_session(&session(name, account), 1, &[], &who).await.unwrap());
    }
    assert!(!admin_store.begin_session(&session("late", "bob"), 7, &[], &who).await.unwrap(), "the account was changed meanwhile");
    let (found, bob) = admin_store.session("s2", 999).await.unwrap().unwrap();
    assert_eq!((found, bob.name.as_str(), bob.signed_in_ms), (session("s2", "bob"), "bob", Some(10)));
    assert_eq!(admin_store.session("s2", 1000).await.unwrap(), None, "it has expired");
    // A change ends the other sessions, and fails after a concurrent change.
    let operator = Account { role: "operator".into(), ..bob.clone() };
    assert_eq!(admin_store.change_account(&operator, bob.version, Some("s3"), &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!(admin_store.change_account(&operator, bob.version, None, &who).await.unwrap(), WriteOutcome::Newer);
    assert!(admin_store.session("s2", 20).await.unwrap().is_none() && admin_store.session("s3", 20).await.unwrap().is_some());
    // An enabled admin must be left.
    let ann = admin_store.account("ann").await.unwrap().unwrap();
    for change in [Account { role: "viewer".into(), ..ann.clone() }, Account { disabled: true, ..ann.clone() }] {
        assert_eq!(admin_store.change_account(&change, ann.version, None, &who).await.unwrap(), WriteOutcome::LastAdmin);
    }
    assert_eq!(admin_store.remove_account("ann", None, &who).await.unwrap(), WriteOutcome::LastAdmin);
    assert!(admin_store.session("s1", 20).await.unwrap().is_some(), "the removal was rolled back");
    tokens(store, operator).await;
}

/// The tokens of the account `bob`, an operator with the session `s3`, until it is removed.
async fn tokens(store: &Store, operator: Account) {
    let (admin_store, who) = (store.admin_store(), super::operator());
    let token = |id: &str, name: &str, byte| Token {
        id: id.into(),
        account: "bob".into(),
        name: name.into(),
        scopes: "read bindings".into(),
        sha256: vec![byte; 32],
        created_ms: 5,
        expires_ms: 500,
        used_ms: None,
    };
    assert_eq!(admin_store.make_token(&token("t1", "ci", 1), &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!(admin_store.make_token(&token("t2", "ci", 2), &who).await.unwrap(), WriteOutcome::Exists);
    let (found, owner) = admin_store.token(&[1; 32], 100).await.unwrap().unwrap();
    assert_eq!((found, owner.role.as_str()), (token("t1", "ci", 1), "operator"));
    assert_eq!(admin_store.tokens(Some("bob")).await.unwrap()[0].used_ms, Some(100));
    assert!(admin_store.token(&[1; 32], 500).await.unwrap().is_none() && admin_store.token(&[2; 32], 100).await.unwrap().is_none());
    let reset = Account { password: Some("$argon2id$other".into()), must_change: false, version: 2, ..operator.clone() };
    assert_eq!(admin_store.change_account(&reset, 2, Some("s3"), &who).await.unwrap(), WriteOutcome::Done);
    assert!(admin_store.token(&[1; 32], 100).await.unwrap().is_some(), "a password change by the account itself keeps its tokens");
    let operator = reset;
    let off = Account { disabled: true, version: 3, ..operator };
    assert_eq!(admin_store.change_account(&off, 3, None, &who).await.unwrap(), WriteOutcome::Done);
    assert!(admin_store.token(&[1; 32], 100).await.unwrap().is_none() && admin_store.session("s3", 20).await.unwrap().is_none());
    assert!(admin_store.end_session("ann", "s1", &who).await.unwrap() && !admin_store.end_session("ann", "s1", &who).await.unwrap());
    assert!(!admin_store.remove_token("ann", "t1", &who).await.unwrap(), "it belongs to bob");
    assert_eq!(admin_store.remove_account("bob", Some(1), &who).await.unwrap(), WriteOutcome::Newer);
    assert_eq!(admin_store.remove_account("bob", Some(4), &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!(admin_store.tokens(None).await.unwrap(), [], "tokens are deleted with their account");
    let entries = store.audit(AuditQuery { limit: 100, ..AuditQuery::default() }).await.unwrap();
    let actions: Vec<_> = entries.iter().filter(|entry| entry.target == "bob").map(|entry| entry.action.as_str()).rev().collect();
    assert_eq!(
        actions,
        ["account.made", "session.begun", "session.begun", "account.changed", "account.password_set", "account.changed", "account.removed"]
    );
}

pub async fn providers(store: &Store) {
    let (admin_store, who) = (store.admin_store(), operator());
    let provider = |version, secret: Option<&[u8]>| Provider {
        name: "corp".into(),
        settings: serde_json::json!({ "issuer": "https://id.example.com" }),
        secret: secret.map(<[u8]>::to_vec),
        version,
    };
    assert_eq!(admin_store.put_provider(&provider(0, None), Expects::Version(1), &who).await.unwrap(), WriteOutcome::Missing);
    assert_eq!(admin_store.put_provider(&provider(0, None), Expects::Nothing, &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!(admin_store.put_provider(&provider(0, None), Expects::Nothing, &who).await.unwrap(), WriteOutcome::Exists);
    let first = admin_store.provider("corp").await.unwrap().unwrap().version;
    assert_eq!(admin_store.put_provider(&provider(0, Some(b"\0\xff")), Expects::Version(first), &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!(admin_store.put_provider(&provider(0, None), Expects::Version(first), &who).await.unwrap(), WriteOutcome::Newer);
    let second = admin_store.provider("corp").await.unwrap().unwrap().version;
    assert!(second > first);
    assert_eq!(admin_store.providers().await.unwrap(), [provider(second, Some(b"\0\xff"))]);
    // An account is found by its provider identity, which is unique.
    let elsewhere = ProviderIdentity { provider: "corp".into(), subject: "1".into() };
    let there = |name: &str| Account { elsewhere: Some(elsewhere.clone()), password: None, ..account(name, "viewer") };
    assert_eq!(admin_store.account_by_identity(&elsewhere).await.unwrap(), None);
    assert_eq!(admin_store.make_account(&there("corp:ann"), false, &who).await.unwrap(), WriteOutcome::Done);
    assert!(admin_store.make_account(&there("corp:bob"), false, &who).await.is_err(), "the same identity");
    assert_eq!(admin_store.account_by_identity(&elsewhere).await.unwrap(), Some(there("corp:ann")));
    assert_eq!(admin_store.account("corp:ann").await.unwrap(), Some(there("corp:ann")));
    assert_eq!(admin_store.remove_provider("corp", Some(first), &who).await.unwrap(), WriteOutcome::Newer);
    assert_eq!(admin_store.remove_provider("corp", Some(second), &who).await.unwrap(), WriteOutcome::Done);
    assert_eq!((admin_store.account("corp:ann").await.unwrap(), admin_store.provider("corp").await.unwrap()), (None, None));
    assert_eq!(admin_store.remove_provider("corp", None, &who).await.unwrap(), WriteOutcome::Missing);
    assert_eq!(admin_store.put_provider(&provider(0, None), Expects::Anything, &who).await.unwrap(), WriteOutcome::Done);
    assert!(admin_store.provider("corp").await.unwrap().unwrap().version > second, "a new provider of the same name");
}

pub async fn guesses(store: &Store) {
    let admin_store = store.admin_store();
    let tried = |account: &str, address: &str| {
        vec![
            SignInCounter { subject: format!("account:{account}"), free: 2 },
            SignInCounter { subject: format!("address:{address}"), free: 4 },
        ]
    };
    let guess =
        async |account: &str, address: &str, at_s: i64| admin_store.count_attempt(&tried(account, address), at_s * 1000).await.unwrap();
    assert_eq!((guess("x", "1", 100).await, guess("x", "1", 100).await, guess("x", "2", 100).await), (None, None, None));
    assert_eq!(guess("x", "3", 100).await, Some(101_000), "from any address");
    assert_eq!((guess("x", "3", 101).await, guess("x", "3", 102).await), (None, Some(103_000)));
    // One address, many accounts: an attempt refused for the account is not counted for the address.
    assert_eq!(
        (guess("y", "3", 102).await, guess("z", "3", 102).await, guess("w", "3", 102).await, guess("v", "3", 102).await),
        (None, None, None, None)
    );
    assert_eq!(guess("u", "3", 102).await, Some(103_000));
    assert_eq!(guess("u", "4", 102).await, None, "an attempt refused for the address is not counted for the account");
    // A successful sign-in.
    admin_store.forgive_attempt(&tried("u", "3")).await.unwrap();
    assert_eq!((guess("t", "3", 102).await, guess("x", "9", 102).await), (None, Some(103_000)));
    // Concurrent attempts are counted one by one.
    let raced: Vec<_> = futures::future::join_all((0..100).map(|_| guess("raced", "5", 200))).await;
    assert_eq!(raced.iter().filter(|locked| locked.is_none()).count(), 3);
}

pub async fn samples(store: &Store) {
    let admin_store = store.admin_store();
    let said = |seen_ms| Replica { name: "a".into(), seen_ms, state: serde_json::json!({ "streams": seen_ms }) };
    admin_store.put_replica(&said(5)).await.unwrap();
    admin_store.put_replica(&said(7)).await.unwrap();
    assert_eq!((admin_store.replicas(7).await.unwrap(), admin_store.replicas(8).await.unwrap()), (vec![said(7)], vec![]));
    let sample = |at_ms, replica: &str| Sample { at_ms, replica: replica.into(), counted: serde_json::json!({ "requests": at_ms }) };
    for (at_ms, replica) in [(60_000, "b"), (0, "a"), (60_000, "a"), (60_000, "b")] {
        admin_store.put_sample(SampleKind::Counts, MINUTE_S, &sample(at_ms, replica)).await.unwrap();
    }
    assert_eq!(admin_store.samples(SampleKind::Counts, MINUTE_S, 60_000).await.unwrap(), [sample(60_000, "a"), sample(60_000, "b")]);
    assert_eq!(admin_store.samples(SampleKind::TopRequesters, MINUTE_S, 0).await.unwrap(), []);
    admin_store.put_sample(SampleKind::TopRequesters, MINUTE_S, &sample(60_000, "a")).await.unwrap();
    assert_eq!(admin_store.samples(SampleKind::TopRequesters, MINUTE_S, 60_000).await.unwrap(), [sample(60_000, "a")]);
}
