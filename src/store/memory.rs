//! Bindings in memory, for trials and tests: gone with the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, Intercept, KeyId, Rule, StoreError};
use parking_lot::Mutex;
use serde_json::Value;

use super::audit::{Actor, Asked, Entry};
use super::batch::Repeated;
use super::outbox::{AGE_MAX, AT_ONCE, Attempted, Delivery, Hot, Threshold};
use super::record::{Change, Query, Record, Tended, Tending, Terms, version_now};
use super::settings::Stored;
use super::{Authority, Batch, Events};

const ROWS_MAX: usize = 1_000_000;

/// Intercepts that are remembered for alerts.
const INTERCEPTS_MAX: usize = 10_000;

/// A map, and what alerts need.
#[derive(Default)]
pub struct Memory(Mutex<BTreeMap<KeyId, Record>>, Mutex<Alerts>);

#[derive(Default)]
struct Alerts {
    intercepts: VecDeque<Repeated>,
    raised: BTreeMap<KeyId, SystemTime>,
    /// With when each is due.
    outbox: Vec<(Delivery, SystemTime)>,
}

fn is_within(at: SystemTime, window: Duration) -> bool {
    SystemTime::now().duration_since(at).unwrap_or_default() < window
}

/// Nothing here ever waits.
fn at_once<'a, T: Send + 'a>(answer: Result<T, StoreError>) -> BoxFuture<'a, Result<T, StoreError>> {
    Box::pin(std::future::ready(answer))
}

fn fresh(id: KeyId, hint: String, made_by: &str, at: SystemTime) -> Record {
    Record {
        binding: Binding {
            id,
            rule: Rule::Single,
            networks: Vec::new(),
            roaming: None,
            seen: Vec::new(),
            banned: false,
            confirmed: true,
            version: version_now(0),
        },
        hint,
        made_by: made_by.into(),
        note: String::new(),
        labels: Vec::new(),
        created_at: at,
        last_used_at: at,
    }
}

impl Authority for Memory {
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        at_once(Ok(self.0.lock().get(&id).map(|record| record.binding.clone())))
    }

    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        let mut rows = self.0.lock();
        if rows.len() >= ROWS_MAX && !rows.contains_key(&first.id) {
            return at_once(Err(StoreError::Useless(format!("memory holds {ROWS_MAX} bindings and takes no more; use sqlite"))));
        }
        let row = rows.entry(first.id).or_insert_with(|| {
            let mut record = fresh(first.id, first.hint, "first_use", first.at);
            (record.binding.networks, record.binding.confirmed) = (vec![first.network], first.confirmed);
            if first.roaming.is_some() {
                (record.binding.rule, record.binding.roaming, record.binding.seen) = (Rule::Roaming, first.roaming, vec![first.at]);
            }
            record
        });
        at_once(Ok(row.binding.clone()))
    }

    fn adopt(&self, id: KeyId, from: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        let mut rows = self.0.lock();
        if let Some(old) = rows.remove(&from) {
            let moved = Record { binding: Binding { id, version: version_now(old.binding.version), ..old.binding }, ..old };
            rows.entry(id).or_insert(moved);
        }
        at_once(Ok(rows.get(&id).map(|row| row.binding.clone())))
    }

    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        let mut rows = self.0.lock();
        let row = rows.get_mut(&id).map(|row| {
            if row.binding.roam(network, at) {
                row.binding.version = version_now(row.binding.version);
            }
            row.binding.clone()
        });
        at_once(Ok(row))
    }

    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        let mut rows = self.0.lock();
        if let Some(row) = rows.get_mut(&id).filter(|row| row.binding.version == version && !row.binding.confirmed) {
            if accepted {
                row.binding.confirmed = true;
            } else {
                rows.remove(&id);
            }
        }
        at_once(Ok(rows.contains_key(&id)))
    }

    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut rows = self.0.lock();
        for (id, at) in &batch.used {
            rows.get_mut(id).into_iter().for_each(|row| row.last_used_at = row.last_used_at.max(*at));
        }
        for (id, version) in &batch.confirmed {
            let row = rows.get_mut(id).filter(|row| row.binding.version == *version);
            row.into_iter().for_each(|row| row.binding.confirmed = true);
        }
        let intercepts = &mut self.1.lock().intercepts;
        intercepts.extend(batch.intercepts.values().cloned());
        intercepts.drain(..intercepts.len().saturating_sub(INTERCEPTS_MAX));
        at_once(Ok(()))
    }

    fn owner(&self) -> BoxFuture<'_, Result<Option<String>, String>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn own(&self, _: String, _: Option<String>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        at_once(Ok(()))
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        let rows = self.0.lock();
        let wanted = |row: &&Record| {
            query.after.is_none_or(|after| row.binding.id > after)
                && row.binding.id.0.starts_with(&query.prefix)
                && query.address.is_none_or(|address| row.binding.covers(address))
                && query.label.as_ref().is_none_or(|label| row.labels.contains(label))
                && query.banned.is_none_or(|banned| row.binding.banned == banned)
        };
        at_once(Ok(rows.values().filter(wanted).take(query.limit as usize).cloned().collect()))
    }

    fn change(&self, id: KeyId, change: Change, _actor: Actor) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let mut rows = self.0.lock();
        let made_by = change.made_by().map(str::to_owned);
        if let (Some(make), Some(_)) = (change.make, &change.rule) {
            let made = fresh(id, make.hint, &make.made_by, make.created_at);
            rows.entry(id).or_insert(Record { last_used_at: SystemTime::now(), ..made });
        }
        let Some(row) = rows.get_mut(&id) else { return at_once(Ok(None)) };
        if let Some(Terms { rule, networks, roaming }) = change.rule {
            row.binding.seen = roaming.map(|_| vec![SystemTime::now(); networks.len()]).unwrap_or_default();
            (row.binding.rule, row.binding.networks, row.binding.roaming) = (rule, networks, roaming);
        }
        row.made_by = made_by.unwrap_or_else(|| row.made_by.clone());
        row.binding.banned = change.banned.unwrap_or(row.binding.banned);
        row.note = change.note.unwrap_or_else(|| row.note.clone());
        row.labels = change.labels.unwrap_or_else(|| row.labels.clone());
        row.binding.confirmed = true;
        row.binding.version = version_now(row.binding.version);
        at_once(Ok(Some(row.clone())))
    }

    fn remove(&self, id: KeyId, _actor: Actor) -> BoxFuture<'_, Result<bool, StoreError>> {
        at_once(Ok(self.0.lock().remove(&id).is_some()))
    }

    /// Nobody but this process could set one, and no part of it does.
    fn settings(&self) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        at_once(Ok(Vec::new()))
    }

    fn set_setting(&self, _name: String, _value: Option<Value>, _actor: Actor) -> BoxFuture<'_, Result<(), StoreError>> {
        at_once(Err(StoreError::Useless("memory keeps no settings".into())))
    }

    /// Operators' commands do not reach the memory of another process: there is nothing to tell.
    fn audit(&self, _asked: Asked) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        at_once(Ok(Vec::new()))
    }

    /// Nobody else has written any, and this process has looked at its own.
    fn intercepted_since(&self, _at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>> {
        at_once(Ok(Vec::new()))
    }

    fn hot(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<Hot>, StoreError>> {
        let alerts = self.1.lock();
        let fresh = |id: &&KeyId| !alerts.raised.get(id).is_some_and(|at| is_within(*at, threshold.window));
        let hot = ids.iter().filter(fresh).filter_map(|id| {
            let of = |one: &&Repeated| one.first.id == *id && is_within(one.last_at, threshold.window);
            let last = alerts.intercepts.iter().filter(of).max_by_key(|one| one.last_at)?;
            let intercepts = alerts.intercepts.iter().filter(of).map(|one| one.count).sum();
            let clients: BTreeSet<_> = alerts.intercepts.iter().filter(of).map(|one| one.first.client).collect();
            let last = Intercept { at: last.last_at, ..last.first.clone() };
            (intercepts >= threshold.count).then(|| Hot { intercepts, clients: clients.len() as u64, last, replica: String::new() })
        });
        at_once(Ok(hot.collect()))
    }

    fn raise(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>> {
        let (mut alerts, now) = (self.1.lock(), SystemTime::now());
        if alerts.raised.get(&id).is_some_and(|at| is_within(*at, window)) {
            return at_once(Ok(false));
        }
        alerts.raised.retain(|_, at| is_within(*at, window));
        alerts.raised.insert(id, now);
        let made = events.into_iter().map(|(id, webhook, event)| Delivery { id, webhook, event, attempts: 0, raised_at: now });
        alerts.outbox.extend(made.map(|delivery| (delivery, now)));
        at_once(Ok(true))
    }

    fn due(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>> {
        let (mut alerts, now) = (self.1.lock(), SystemTime::now());
        alerts.outbox.retain(|(delivery, _)| is_within(delivery.raised_at, AGE_MAX));
        let wanted = alerts.outbox.iter_mut().filter(|(delivery, due)| *due <= now && webhooks.contains(&delivery.webhook));
        let taken = wanted.take(usize::try_from(AT_ONCE).unwrap_or_default()).map(|(delivery, due)| {
            (delivery.attempts, *due) = (delivery.attempts + 1, now + lease);
            delivery.clone()
        });
        at_once(Ok(taken.collect()))
    }

    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut alerts = self.1.lock();
        match what {
            Attempted::Done => alerts.outbox.retain(|(delivery, _)| delivery.id != id),
            Attempted::Again(after) => {
                alerts.outbox.iter_mut().filter(|(delivery, _)| delivery.id == id).for_each(|(_, due)| *due = SystemTime::now() + after);
            }
        }
        at_once(Ok(()))
    }

    fn tend(&self, tending: Tending) -> BoxFuture<'_, Result<Option<Tended>, StoreError>> {
        let (mut rows, now) = (self.0.lock(), SystemTime::now());
        let older = |at: SystemTime, age| now.duration_since(at).is_ok_and(|since| since > age);
        let mut tended = Tended::default();
        rows.retain(|_, row| {
            let unused = row.made_by == "first_use" && !row.binding.banned && older(row.last_used_at, tending.archive_after);
            let unconfirmed = !unused && !row.binding.confirmed && older(row.created_at, tending.unconfirmed);
            (tended.archived, tended.unconfirmed) = (tended.archived + u64::from(unused), tended.unconfirmed + u64::from(unconfirmed));
            !unused && !unconfirmed
        });
        at_once(Ok(Some(tended)))
    }
}
