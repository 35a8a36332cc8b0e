//! The connections: a pool, and another in its place when it has gone bad.
//!
//! A peer that vanishes without a word (a failover, a firewall that forgets) leaves connections on which everything
//! hangs until the kernel gives up, a quarter of an hour later; the pool would keep counting them. So when
//! something takes too long, the whole pool is left behind and a fresh one is begun.

use std::time::{Duration, Instant};

use keylatch_filters::contract::StoreError;
use parking_lot::Mutex;
use sqlx::postgres::PgPool;

/// Not more often than this.
const RENEWED: Duration = Duration::from_secs(2);

/// See the module.
pub struct Pools {
    current: Mutex<(PgPool, Instant)>,
    make: Box<dyn Fn() -> PgPool + Send + Sync>,
    timeout: Duration,
}

impl Pools {
    /// `timeout`: of what requests wait for.
    pub fn new(timeout: Duration, make: impl Fn() -> PgPool + Send + Sync + 'static) -> Self {
        Self { current: Mutex::new((make(), Instant::now())), make: Box::new(make), timeout }
    }

    /// The pool that is good as far as is known.
    pub fn get(&self) -> PgPool {
        self.current.lock().0.clone()
    }

    /// How long requests wait.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Leaves the pool behind.
    pub fn renew(&self) {
        let mut current = self.current.lock();
        if current.1.elapsed() >= RENEWED {
            let old = std::mem::replace(&mut *current, ((self.make)(), Instant::now())).0;
            // What is still under way on it may end; nothing new begins.
            tokio::spawn(async move { old.close().await });
        }
    }

    /// Works with the pool, at most as long as a request waits.
    pub async fn run<T>(&self, work: impl AsyncFnOnce(PgPool) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.run_for(self.timeout, work).await
    }

    /// Works with the pool, at most so long.
    pub async fn run_for<T>(&self, most: Duration, work: impl AsyncFnOnce(PgPool) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match tokio::time::timeout(most, work(self.get())).await {
            Ok(done) => done,
            Err(_) => {
                self.renew();
                Err(StoreError::Away(format!("postgres did not answer within {most:?}")))
            }
        }
    }
}
