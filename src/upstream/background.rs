//! The background tasks of an upstream while it is in use: DNS resolution, health checks, and
//! retries of ejected servers. It chooses no server.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Address, Balancer, Upstream, each, server_name};

/// The interval at which ejected servers are checked for a retry.
const PROBE_EVERY_MIN: Duration = Duration::from_millis(50);
const PROBE_EVERY_MAX: Duration = Duration::from_secs(1);

impl Upstream {
    /// Resolves names once, and starts the background tasks. A second call does nothing.
    pub async fn start(self: &Arc<Self>) {
        if self.started.swap(true, Ordering::SeqCst) {
            return;
        }
        const FIRST_MAX: Duration = Duration::from_secs(5);
        if tokio::time::timeout(FIRST_MAX, self.resolve()).await.is_err() {
            tracing::warn!(upstream = %self.name, "DNS resolution takes longer than {FIRST_MAX:?}; starting without addresses");
        }
        if self.names.any() {
            self.keep_resolved();
        }
        if let Some(health) = &self.config.health.active {
            if tokio::time::timeout(FIRST_MAX, self.check()).await.is_err() {
                tracing::warn!(upstream = %self.name, "the first health check takes longer than {FIRST_MAX:?}; starting without it");
            }
            self.run_every(health.interval.0, |upstream| async move { upstream.check().await });
        } else {
            // Probes run in the background, so that the state is known before the first request
            // without delaying the start.
            let weak = Arc::downgrade(self);
            tokio::spawn(async move {
                if let Some(upstream) = weak.upgrade() {
                    upstream.probe_all().await;
                }
            });
        }
        self.run_every(self.config.health.passive.eject_for.0.clamp(PROBE_EVERY_MIN, PROBE_EVERY_MAX), |upstream| async move {
            upstream.probe(upstream.passive.due(Instant::now())).await;
        });
    }

    /// Runs `work` periodically until this upstream is dropped.
    fn run_every<F>(self: &Arc<Self>, period: Duration, work: impl Fn(Arc<Self>) -> F + Send + 'static)
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

    /// Passes the known addresses to the balancer.
    async fn update(&self) {
        if let Err(error) = each!(&self.balancer, lb => lb.update().await) {
            tracing::warn!(upstream = %self.name, %error, "the server list cannot be updated");
        }
        let in_use: BTreeSet<Address> = self.backends().iter().map(|backend| backend.addr.clone()).collect();
        self.passive.retain(&in_use);
        self.keep_alive.retain(&in_use);
    }

    async fn check(&self) {
        each!(&self.balancer, lb => lb.backends().run_health_check(true).await);
    }

    /// Opens a connection to each of these servers, and sends nothing.
    async fn probe(&self, servers: Vec<Address>) {
        let all = servers.into_iter().map(|server| async move {
            self.log_retry(&server);
            match self.connector.probe(&server).await {
                Ok(()) => self.succeeded(&server),
                Err(error) => self.note_failure(&server, false, &error),
            }
        });
        futures::future::join_all(all).await;
    }

    /// Opens a connection to each server. One failure ejects the server: no success is known yet.
    async fn probe_all(&self) {
        let all = self.backends();
        let probes = all.iter().map(|backend| async move {
            if let Err(error) = self.connector.probe(&backend.addr).await {
                (0..self.passive.failures_max()).for_each(|_| self.note_failure(&backend.addr, false, &error));
            }
        });
        futures::future::join_all(probes).await;
    }

    /// The servers that are unreachable now, each with the reason; `None`: its name has no address.
    /// Changes no state.
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
