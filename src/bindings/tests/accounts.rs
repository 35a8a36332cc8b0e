//! Accounts, sessions, tokens, and sign-ins that failed.

use super::*;
use crate::sql::accounts::{Account, Elsewhere, Guessed, Made, Session, Token};
use crate::sql::providers::{Expects, Provider};
use crate::sql::samples::{MINUTE_S, Of, Replica, Sample};

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
    let (desk, who) = (store.desk(), somebody());
    assert_eq!(desk.make_account(&account("ann", "admin"), true, &who).await.unwrap(), Made::Yes);
    assert_eq!(desk.make_account(&account("bob", "viewer"), true, &who).await.unwrap(), Made::Exists, "no second first one");
    assert_eq!(desk.make_account(&account("bob", "viewer"), false, &who).await.unwrap(), Made::Yes);
    assert_eq!(desk.make_account(&account("bob", "admin"), false, &who).await.unwrap(), Made::Exists);
    let session = |id: &str, account: &str| Session {
        id: id.into(),
        account: account.into(),
        created_ms: 10,
        expires_ms: 1000,
        origin: "127.0.0.1".into(),
        agent: "tests".into(),
    };
    for (name, account) in [("s1", "ann"), ("s2", "bob"), ("s3", "bob")] {
        assert!(desk.begin_session(&session(name, account), 1, &[], &who).await.unwrap());
    }
    assert!(!desk.begin_session(&session("late", "bob"), 7, &[], &who).await.unwrap(), "it was changed meanwhile");
    let (found, bob) = desk.session("s2", 999).await.unwrap().unwrap();
    assert_eq!((found, bob.name.as_str(), bob.signed_in_ms), (session("s2", "bob"), "bob", Some(10)));
    assert_eq!(desk.session("s2", 1000).await.unwrap(), None, "it has expired");
    // A change ends the others' sessions, and comes too late where somebody was faster.
    let operator = Account { role: "operator".into(), ..bob.clone() };
    assert_eq!(desk.change_account(&operator, bob.version, Some("s3"), &who).await.unwrap(), Made::Yes);
    assert_eq!(desk.change_account(&operator, bob.version, None, &who).await.unwrap(), Made::Newer);
    assert!(desk.session("s2", 20).await.unwrap().is_none() && desk.session("s3", 20).await.unwrap().is_some());
    // Somebody must be left who may do everything.
    let ann = desk.account("ann").await.unwrap().unwrap();
    for change in [Account { role: "viewer".into(), ..ann.clone() }, Account { disabled: true, ..ann.clone() }] {
        assert_eq!(desk.change_account(&change, ann.version, None, &who).await.unwrap(), Made::LastAdmin);
    }
    assert_eq!(desk.remove_account("ann", None, &who).await.unwrap(), Made::LastAdmin);
    assert!(desk.session("s1", 20).await.unwrap().is_some(), "nothing of it was done");
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
    assert_eq!(desk.make_token(&token("t1", "ci", 1), &who).await.unwrap(), Made::Yes);
    assert_eq!(desk.make_token(&token("t2", "ci", 2), &who).await.unwrap(), Made::Exists);
    let (found, owner) = desk.token(&[1; 32], 100).await.unwrap().unwrap();
    assert_eq!((found, owner.role.as_str()), (token("t1", "ci", 1), "operator"));
    assert_eq!(desk.tokens(Some("bob")).await.unwrap()[0].used_ms, Some(100));
    assert!(desk.token(&[1; 32], 500).await.unwrap().is_none() && desk.token(&[2; 32], 100).await.unwrap().is_none());
    let reset = Account { password: Some("$argon2id$other".into()), must_change: false, version: 2, ..operator.clone() };
    assert_eq!(desk.change_account(&reset, 2, Some("s3"), &who).await.unwrap(), Made::Yes);
    assert!(desk.token(&[1; 32], 100).await.unwrap().is_some(), "a password of one's own leaves tokens alone");
    let operator = reset;
    let off = Account { disabled: true, version: 3, ..operator };
    assert_eq!(desk.change_account(&off, 3, None, &who).await.unwrap(), Made::Yes);
    assert!(desk.token(&[1; 32], 100).await.unwrap().is_none() && desk.session("s3", 20).await.unwrap().is_none());
    assert!(desk.end_session("ann", "s1", &who).await.unwrap() && !desk.end_session("ann", "s1", &who).await.unwrap());
    assert!(!desk.remove_token("ann", "t1", &who).await.unwrap(), "it is bob's");
    assert_eq!(desk.remove_account("bob", Some(1), &who).await.unwrap(), Made::Newer);
    assert_eq!(desk.remove_account("bob", Some(4), &who).await.unwrap(), Made::Yes);
    assert_eq!(desk.tokens(None).await.unwrap(), [], "they go with him");
    let told = store.audit(Asked { limit: 100, ..Asked::default() }).await.unwrap();
    let told: Vec<_> = told.iter().filter(|entry| entry.target == "bob").map(|entry| entry.action.as_str()).rev().collect();
    assert_eq!(
        told,
        ["account.made", "session.begun", "session.begun", "account.changed", "account.password_set", "account.changed", "account.removed"]
    );
}

pub async fn providers(store: &Store) {
    let (desk, who) = (store.desk(), somebody());
    let provider = |version, secret: Option<&[u8]>| Provider {
        name: "corp".into(),
        settings: serde_json::json!({ "issuer": "https://id.example.com" }),
        secret: secret.map(<[u8]>::to_vec),
        version,
    };
    assert_eq!(desk.put_provider(&provider(0, None), Expects::Version(1), &who).await.unwrap(), Made::Missing);
    assert_eq!(desk.put_provider(&provider(0, None), Expects::Nothing, &who).await.unwrap(), Made::Yes);
    assert_eq!(desk.put_provider(&provider(0, None), Expects::Nothing, &who).await.unwrap(), Made::Exists);
    let first = desk.provider("corp").await.unwrap().unwrap().version;
    assert_eq!(desk.put_provider(&provider(0, Some(b"\0\xff")), Expects::Version(first), &who).await.unwrap(), Made::Yes);
    assert_eq!(desk.put_provider(&provider(0, None), Expects::Version(first), &who).await.unwrap(), Made::Newer);
    let second = desk.provider("corp").await.unwrap().unwrap().version;
    assert!(second > first);
    assert_eq!(desk.providers().await.unwrap(), [provider(second, Some(b"\0\xff"))]);
    // Whoever signs in there is found by his name there, which is nobody else's.
    let elsewhere = Elsewhere { provider: "corp".into(), subject: "1".into() };
    let there = |name: &str| Account { elsewhere: Some(elsewhere.clone()), password: None, ..account(name, "viewer") };
    assert_eq!(desk.account_of(&elsewhere).await.unwrap(), None);
    assert_eq!(desk.make_account(&there("corp:ann"), false, &who).await.unwrap(), Made::Yes);
    assert!(desk.make_account(&there("corp:bob"), false, &who).await.is_err(), "the same person");
    assert_eq!(desk.account_of(&elsewhere).await.unwrap(), Some(there("corp:ann")));
    assert_eq!(desk.account("corp:ann").await.unwrap(), Some(there("corp:ann")));
    assert_eq!(desk.remove_provider("corp", Some(first), &who).await.unwrap(), Made::Newer);
    assert_eq!(desk.remove_provider("corp", Some(second), &who).await.unwrap(), Made::Yes);
    assert_eq!((desk.account("corp:ann").await.unwrap(), desk.provider("corp").await.unwrap()), (None, None));
    assert_eq!(desk.remove_provider("corp", None, &who).await.unwrap(), Made::Missing);
    assert_eq!(desk.put_provider(&provider(0, None), Expects::Anything, &who).await.unwrap(), Made::Yes);
    assert!(desk.provider("corp").await.unwrap().unwrap().version > second, "another one of the same name");
}

pub async fn guesses(store: &Store) {
    let desk = store.desk();
    let tried = |account: &str, address: &str| {
        vec![Guessed { subject: format!("account:{account}"), free: 2 }, Guessed { subject: format!("address:{address}"), free: 4 }]
    };
    let guess = async |account: &str, address: &str, at_s: i64| desk.guess(&tried(account, address), at_s * 1000).await.unwrap();
    assert_eq!((guess("x", "1", 100).await, guess("x", "1", 100).await, guess("x", "2", 100).await), (None, None, None));
    assert_eq!(guess("x", "3", 100).await, Some(101_000), "from wherever");
    assert_eq!((guess("x", "3", 101).await, guess("x", "3", 102).await), (None, Some(103_000)));
    // One address, many names: what was refused for the name has not counted.
    assert_eq!(
        (guess("y", "3", 102).await, guess("z", "3", 102).await, guess("w", "3", 102).await, guess("v", "3", 102).await),
        (None, None, None, None)
    );
    assert_eq!(guess("u", "3", 102).await, Some(103_000));
    assert_eq!(guess("u", "4", 102).await, None, "what was refused for the address has not counted for the name");
    // Right at last.
    desk.forgive(&tried("u", "3")).await.unwrap();
    assert_eq!((guess("t", "3", 102).await, guess("x", "9", 102).await), (None, Some(103_000)));
    // A hundred at once are counted one by one.
    let raced: Vec<_> = futures::future::join_all((0..100).map(|_| guess("raced", "5", 200))).await;
    assert_eq!(raced.iter().filter(|locked| locked.is_none()).count(), 3);
}

pub async fn samples(store: &Store) {
    let desk = store.desk();
    let said = |seen_ms| Replica { name: "a".into(), seen_ms, state: serde_json::json!({ "streams": seen_ms }) };
    desk.say(&said(5)).await.unwrap();
    desk.say(&said(7)).await.unwrap();
    assert_eq!((desk.replicas(7).await.unwrap(), desk.replicas(8).await.unwrap()), (vec![said(7)], vec![]));
    let sample = |at_ms, replica: &str| Sample { at_ms, replica: replica.into(), counted: serde_json::json!({ "requests": at_ms }) };
    for (at_ms, replica) in [(60_000, "b"), (0, "a"), (60_000, "a"), (60_000, "b")] {
        desk.note(Of::Counts, MINUTE_S, &sample(at_ms, replica)).await.unwrap();
    }
    assert_eq!(desk.samples(Of::Counts, MINUTE_S, 60_000).await.unwrap(), [sample(60_000, "a"), sample(60_000, "b")]);
    assert_eq!(desk.samples(Of::Tops, MINUTE_S, 0).await.unwrap(), []);
    desk.note(Of::Tops, MINUTE_S, &sample(60_000, "a")).await.unwrap();
    assert_eq!(desk.samples(Of::Tops, MINUTE_S, 60_000).await.unwrap(), [sample(60_000, "a")]);
}
