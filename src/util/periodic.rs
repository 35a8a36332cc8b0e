//! Work that is done again and again for something, for as long as that is in use.

use std::sync::Arc;
use std::time::Duration;

/// Does it with `what` every `period`, until nobody else holds that any more. Needs a runtime.
pub fn every<T, W>(what: &Arc<T>, period: Duration, work: impl Fn(Arc<T>) -> W + Send + 'static)
where
    T: Send + Sync + 'static,
    W: Future<Output = ()> + Send,
{
    let weak = Arc::downgrade(what);
    tokio::spawn(async move {
        loop {
            // From the end of one to the beginning of the next: a slow one is not followed by hurried ones.
            tokio::time::sleep(period).await;
            let Some(what) = weak.upgrade() else { return };
            work(what).await;
        }
    });
}
