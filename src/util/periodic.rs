//! Periodic background work that ends with its owner. Runs nothing in parallel with itself.

use std::sync::Arc;
use std::time::Duration;

/// Calls `work` once in each `period`, until `owner` has no other owner. Needs a runtime.
pub fn every<T, W>(owner: &Arc<T>, period: Duration, work: impl Fn(Arc<T>) -> W + Send + 'static)
where
    T: Send + Sync + 'static,
    W: Future<Output = ()> + Send,
{
    every_current(owner, move || period, work);
}

/// Like [`every`], with a period that is asked for before each run: a reload may change it.
pub fn every_current<T, W>(owner: &Arc<T>, period: impl Fn() -> Duration + Send + 'static, work: impl Fn(Arc<T>) -> W + Send + 'static)
where
    T: Send + Sync + 'static,
    W: Future<Output = ()> + Send,
{
    let weak = Arc::downgrade(owner);
    tokio::spawn(async move {
        loop {
            // The period is counted from the end of one run to the start of the next, so a slow run
            // is not followed by a burst.
            tokio::time::sleep(period()).await;
            let Some(owner) = weak.upgrade() else { return };
            work(owner).await;
        }
    });
}
