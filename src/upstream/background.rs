//! What an upstream does beside requests, for as long as it is in use: names are resolved, servers checked, and left-out ones tried again.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Address, Balancer, Upstream, each, server_name};

/// How often it is looked whether a left-out server is to be tried again.
const PROBE_EVERY_MIN: Duration = Duration::from_millis(50);
const PROBE_EVERY_MAX: Duration = Duration::from_secs(1);

impl Upstream {
    /// Resolves names for the first time, and starts the tasks that go on resolving and checking for as
    /// long as this upstream is in use. Once started, it is not started again.
    pub async fn start(self: &Arc<Self>) {
        if self.started.swap(true, Ordering::SeqCst) {
            return;
        }
        const FIRST_MAX: Duration = Duration::from_secs(5);
        if tokio::time::timeout(FIRST_MAX, self.resolve()).await.is_err() {
            tracing::warn!(upstream = %self.name, "resolving names takes longer than {FIRST_MAX:?}; going on without");
        }
        if self.names.any() {
            self.keep_resolved();
        }
        if let Some(health) = &self.config.health.active {
            if tokio::time::timeout(FIRST_MAX, self.check()).await.is_err() {
                tracing::warn!(upstream = %self.name, "the first health check takes longer than {FIRST_MAX:?}; going on without");
            }
            self.every(health.interval.0, |upstream| async move { upstream.check().await });
        } else {
            // Whether servers are there is known before the first request, without anything being held up.
            let weak = Arc::downgrade(self);
            tokio::spawn(async move {
                if let Some(upstream) = weak.upgrade() {
                    upstream.probe_all().await;
                }
            });
        }
        self.every(self.config.health.passive.eject_for.0.clamp(PROBE_EVERY_MIN, PROBE_EVERY_MAX), |upstream| async move {
            upstream.probe(upstream.passive.due(Instant::now())).await;
        });
    }

    /// Runs `work` again and again until nobody uses this upstream any more.
    fn every<F>(self: &Arc<Self>, period: Duration, work: impl Fn(Arc<Self>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                match weak.upgrade() {
                    Some(upstream) => work(upstream).await,
                    None => return,
                }
            }
        });
    }

    fn keep_resolved(self: &Arc<Self>) {
        let (weak, schedule, changed) = (Arc::downgrade(self), Arc::clone(&self.schedule), Arc::clone(&self.changed));
        tokio::spawn(async move {
            loop {
                let mut due = pin!(schedule.due());
                loop {
                    tokio::select! {
                        () = &mut due => break,
                        () = changed.notified() => if let Some(upstream) = weak.upgrade() { upstream.update().await },
                    }
                }
                match weak.upgrade() {
                    Some(upstream) => upstream.resolve().await,
                    None => return,
                }
            }
        });
    }

    async fn resolve(&self) {
        self.schedule.begin();
        self.names.resolve(&self.name).await;
        self.update().await;
        self.schedule.end(self.names.unresolved(), Instant::now());
    }

    /// Takes the addresses that are known into use.
    async fn update(&self) {
        if let Err(error) = each!(&self.balancer, lb => lb.update().await) {
            tracing::warn!(upstream = %self.name, %error, "the servers cannot be updated");
        }
        let in_use: BTreeSet<Address> = self.backends().iter().map(|backend| backend.addr.clone()).collect();
        self.passive.retain(&in_use);
        self.keep_alive.retain(&in_use);
    }

    async fn check(&self) {
        each!(&self.balancer, lb => lb.backends().run_health_check(true).await);
    }

    /// Tries connections to these servers, and sends nothing on them.
    async fn probe(&self, servers: Vec<Address>) {
        let all = servers.into_iter().map(|server| async move {
            self.tell_retry(&server);
            match self.connector.probe(&server).await {
                Ok(()) => self.succeeded(&server),
                Err(error) => self.note_failure(&server, false, &error),
            }
        });
        futures::future::join_all(all).await;
    }

    /// Tries a connection to each server. One that fails counts as often as it takes to be left out: nothing speaks for the server yet.
    async fn probe_all(&self) {
        let all = self.backends();
        let probes = all.iter().map(|backend| async move {
            if let Err(error) = self.connector.probe(&backend.addr).await {
                (0..self.passive.failures_max()).for_each(|_| self.note_failure(&backend.addr, false, &error));
            }
        });
        futures::future::join_all(probes).await;
    }

    /// Servers that cannot be reached now, each with the reason; none: its name has no address. Nothing is remembered of it.
    pub async fn unreachable(&self) -> Vec<(String, Option<String>)> {
        self.resolve().await;
        let mut failing: Vec<_> = self.names.unresolved_names().into_iter().map(|name| (name, None)).collect();
        let all = self.backends();
        let probes = all.iter().map(|backend| async move {
            let error = self.connector.probe(&backend.addr).await.err()?;
            Some((server_name(&backend.addr), Some(error.to_string())))
        });
        failing.extend(futures::future::join_all(probes).await.into_iter().flatten());
        failing
    }
}
