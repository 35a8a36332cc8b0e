//! The pool that is in use, and which server it leads to.
//!
//! A peer that vanishes without a word leaves connections on which everything hangs until the kernel gives up, a quarter of an
//! hour later. A primary that was demoted keeps answering reads. Either way the pool is replaced by one that takes writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::StoreError;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::server::Server;
use super::session::Pool;

/// A pool is replaced, and the servers are asked, not more often than this.
const RENEWED: Duration = Duration::from_secs(2);

struct Current {
    pool: Pool,
    server: usize,
    replaced_at: Instant,
    /// When the servers were last asked, unless they are being asked.
    checked_at: Option<Instant>,
}

/// See the module.
pub struct Pools {
    current: Mutex<Current>,
    servers: Vec<Server>,
    timeout: Duration,
}

impl Pools {
    /// `timeout`: of what requests wait for. `pool` leads to the server of this number.
    pub fn new(servers: Vec<Server>, server: usize, pool: Pool, timeout: Duration) -> Arc<Self> {
        let now = Instant::now();
        let current = Current { pool, server, replaced_at: now, checked_at: Some(now) };
        Arc::new(Self { current: Mutex::new(current), servers, timeout })
    }

    /// The pool that is good as far as is known.
    pub fn get(&self) -> Pool {
        self.current.lock().pool.clone()
    }

    /// How long requests wait.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The server that is in use.
    pub fn server(&self) -> Option<Server> {
        let index = self.current.lock().server;
        self.servers.get(index).cloned()
    }

    /// Works with the pool, at most as long as a request waits.
    pub async fn run<T>(self: &Arc<Self>, work: impl AsyncFnOnce(Pool) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.run_for(self.timeout, work).await
    }

    /// Works with the pool, at most so long.
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

    /// Leaves a pool behind on which something hangs.
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

    /// Finds out, beside what is under way, whether the server still takes writes, and goes to one that does.
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
        // The one in use comes last: by another address it may be another machine by now.
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
    // What is still under way on it may end; nothing new begins.
    tokio::spawn(async move { old.close().await });
}
