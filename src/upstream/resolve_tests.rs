//! Tests of [`super`]: kept addresses, the address family in use, and the schedule of look-ups.

use std::collections::VecDeque;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Answers with the items of the list in turn; the last one repeats.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<VecDeque<Vec<&'static str>>>>);

impl Answers {
    fn in_turn(answers: &[&[&'static str]]) -> Self {
        Self(Arc::new(Mutex::new(answers.iter().map(|one| one.to_vec()).collect())))
    }
}

#[async_trait]
impl Lookup for Answers {
    async fn lookup(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
        let mut answers = self.0.lock();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }.unwrap_or_default();
        if answer.is_empty() { Err(io::Error::other("no such name")) } else { Ok(answer.iter().map(|one| one.parse().unwrap()).collect()) }
    }
}

fn names(answers: &[&[&'static str]], family: AddressFamily) -> Names {
    Names::new(vec![Target::parse("model:80", 1).unwrap()], family, Box::new(Answers::in_turn(answers)))
}

fn resolve(names: &Names) {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(names.resolve("u"));
}

fn in_use(names: &Names) -> Vec<String> {
    names.backends().iter().map(|backend| backend.addr.to_string()).collect()
}

#[test]
fn a_name_that_cannot_be_resolved_keeps_its_addresses() {
    let names = names(&[&[], &["10.0.0.1:80"], &[], &["10.0.0.2:80"]], AddressFamily::Any);
    resolve(&names);
    assert_eq!((names.unresolved(), in_use(&names).len()), (1, 0));
    resolve(&names);
    assert_eq!((names.unresolved(), in_use(&names)), (0, vec!["10.0.0.1:80".to_owned()]));
    resolve(&names);
    assert_eq!(in_use(&names), ["10.0.0.1:80"]);
    resolve(&names);
    assert_eq!(in_use(&names), ["10.0.0.2:80"], "a changed address takes the place of the one before");
}

#[test]
fn one_family_at_a_time() {
    let both: &[&[&str]] = &[&["[fd00::1]:80", "10.0.0.1:80", "10.0.0.2:80"]];
    let names = names(both, AddressFamily::Any);
    resolve(&names);
    assert_eq!(in_use(&names), ["[fd00::1]:80"], "the resolver's first");
    assert_eq!(names.alternatives("[fd00::1]:80".parse().unwrap()).len(), 2);
    names.prefer("10.0.0.2:80".parse().unwrap());
    assert_eq!(in_use(&names), ["10.0.0.1:80", "10.0.0.2:80"]);
    resolve(&names);
    assert_eq!(in_use(&names), ["10.0.0.1:80", "10.0.0.2:80"], "remembered");
}

#[test]
fn only_the_allowed_family_is_used() {
    let both: &[&[&str]] = &[&["[fd00::1]:80", "10.0.0.1:80"]];
    for (family, used) in [(AddressFamily::Ipv4, "10.0.0.1:80"), (AddressFamily::Ipv6, "[fd00::1]:80")] {
        let names = names(both, family);
        resolve(&names);
        assert_eq!(in_use(&names), [used]);
        assert!(names.alternatives(used.parse().unwrap()).is_empty());
    }
    let names = names(&[&["10.0.0.1:80"]], AddressFamily::Ipv6);
    resolve(&names);
    assert_eq!((names.unresolved(), in_use(&names).len()), (1, 0));
}

#[test]
fn retries_within_a_second_while_a_name_has_no_address() {
    let (schedule, now) = (Schedule::new(Duration::from_secs(30)), Instant::now());
    let mut pauses = Vec::new();
    for _ in 0..40 {
        schedule.begin();
        schedule.end(1, now);
        pauses.push(schedule.pause());
    }
    assert_eq!(pauses[..4], [250 * MS, 500 * MS, 1000 * MS, 1000 * MS]);
    assert_eq!(pauses.last(), Some(&RETRY_MAX));
    schedule.begin();
    schedule.end(0, now);
    assert_eq!(schedule.pause(), Duration::from_secs(30));
}

#[test]
fn failed_connections_request_one_look_up_per_second() {
    let (schedule, now) = (Schedule::new(Duration::from_secs(30)), Instant::now());
    schedule.begin();
    assert!(schedule.request(now).at_once, "it is running");
    schedule.end(0, now);
    let requested = schedule.request(now);
    assert!(requested.at_once, "a scheduled look-up does not delay a requested one");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(schedule.due());
    assert!(!runtime.block_on(schedule.ended(&requested, MS)), "not yet");
    schedule.begin();
    schedule.end(0, now);
    assert!(runtime.block_on(schedule.ended(&requested, MS)));
    let asked = schedule.passes.borrow().requested_at.unwrap();
    assert!(!schedule.request(asked + 999 * MS).at_once && schedule.request(asked + 1000 * MS).at_once);
}
