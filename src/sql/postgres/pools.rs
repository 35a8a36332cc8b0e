//! The connection pool in use, and its failover to another server. Statements and their retries
//! belong to the callers.
//!
//! A peer that vanishes leaves connections that hang until the kernel gives up after 15 minutes. A
//! demoted primary keeps answering reads. In both cases the pool is replaced by one of a server
//! that takes writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::StoreError;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::server::Server;
use super::session::Pool;

/// The shortest period between two replacements of the pool, and between two checks of the servers.
const RENEWED: Duration = Duration::from_secs(2);

struct Current {
    pool: Pool,
    server: usize,
    replaced_at: Instant,
    /// The time of the last check; `None`: a check is running.
    checked_at: Option<Instant>,
}

/// The pool in use, with the servers to fail over to.
pub struct Pools {
    current: Mutex<Current>,
    servers: Vec<Server>,
    timeout: Duration,
}

impl Pools {
    /// `timeout`: the time limit of statements that requests wait for. `server`: the index of the
    /// server that `pool` connects to.
    pub fn new(servers: Vec<Server>, server: usize, pool: Pool, timeout: Duration) -> Arc<Self> {
        let now = Instant::now();
        let current = Current { pool, server, replaced_at: now, checked_at: Some(now) };
        Arc::new(Self { current: Mutex::new(current), servers, timeout })
    }

    /// The pool in use.
    pub fn get(&self) -> Pool {
        self.current.lock().pool.clone()
    }

    /// The time limit of statements that requests wait for.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The server in use.
    pub fn server(&self) -> Option<Server> {
        let index = self.current.lock().server;
        self.servers.get(index).cloned()
    }

    /// Runs work with the pool, within the time limit of a request.
    pub async fn run<T>(self: &Arc<Self>, work: impl AsyncFnOnce(Pool) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.run_for(self.timeout, work).await
    }

    /// Runs work with the pool, within `most`.
    pub async fn run_for<T>(
        self: &Arc<Self>,
        most: Duration,
        work: impl AsyncFnOnce(Pool) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match timeout(most, work(self.get())).await {
            Ok(done) => {
                if let Err(StoreError::Away(_)) = &done {
                    self.check();
                }
                done
            }
            Err(_) => {
                self.abandon();
                self.check();
                Err(StoreError::Away(format!("postgres did not answer within {most:?}")))
            }
        }
    }

    /// Replaces a pool with hanging connections.
    fn abandon(&self) {
        let mut current = self.current.lock();
        if current.replaced_at.elapsed() >= RENEWED
            && let Some(server) = self.servers.get(current.server)
        {
            let pool = server.again(&current.pool);
            let server = current.server;
            replace(&mut current, pool, server);
        }
    }

    /// Checks in the background whether the server takes writes, and fails over to one that does.
    pub fn check(self: &Arc<Self>) {
        {
            let mut current = self.current.lock();
            if current.checked_at.is_none_or(|at| at.elapsed() < RENEWED) {
                return;
            }
            current.checked_at = None;
        }
        let pools = Arc::clone(self);
        tokio::spawn(async move {
            pools.find_writable().await;
            pools.current.lock().checked_at = Some(Instant::now());
        });
    }

    async fn find_writable(&self) {
        let (pool, current) = {
            let current = self.current.lock();
            (current.pool.clone(), current.server)
        };
        if let Ok(Ok((false, false))) = timeout(self.timeout * 2, pool.probe()).await {
            return;
        }
        // The server in use comes last: its name may resolve to another machine by now.
        for step in 1..=self.servers.len() {
            let index = (current + step) % self.servers.len();
            let Some(server) = self.servers.get(index) else { continue };
            if let Ok((pool, probe)) = server.probe().await
                && probe.refusal().is_none()
            {
                tracing::info!(server = index + 1, "postgres: connected to a server that takes writes");
                replace(&mut self.current.lock(), pool, index);
                return;
            }
        }
    }
}

fn replace(current: &mut Current, pool: Pool, server: usize) {
    let old = std::mem::replace(&mut current.pool, pool);
    (current.server, current.replaced_at) = (server, Instant::now());
    // Running statements may finish; new ones use the new pool.
    tokio::spawn(async move { old.close().await });
}
