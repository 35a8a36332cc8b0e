//! Health of the store: whether it answers, and whether a first use can be written. A standby, a
//! full disk and a read-only setting allow reads and refuse writes, so a write is tested.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::StoreError;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use utoipa::ToSchema;

use super::Store;
use crate::sql::ServerInfo;

/// The period of write tests, unless a first use was written meanwhile.
const TESTED_EVERY: Duration = Duration::from_secs(5);
/// The time that a start waits for the first result.
const FIRST_RESULT_WITHIN: Duration = Duration::from_millis(500);
/// A failed write is repeated once after this: a single slow write is no failure.
const REPEATED_AFTER: Duration = Duration::from_millis(500);
/// A first use that failed on a full disk counts for this long, or until another one is written.
/// The row of a test is rolled back, so the next test succeeds on a full disk.
const FULL_FOR: Duration = Duration::from_secs(10);

/// The state of Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct RedisState {
    /// Whether Redis is connected and had no errors in the last 30 s.
    ok: bool,
    /// The kinds of errors of the last 30 s, as in `keylatch_redis_errors_total`.
    errors: Vec<&'static str>,
}

/// Whether the store takes writes.
#[derive(Default)]
pub struct Writability {
    state: Mutex<State>,
    /// Notified when a first use fails.
    doubted: Notify,
}

#[derive(Default)]
struct State {
    written_at: Option<Instant>,
    /// The last first use that failed on a full disk, with the store's error.
    full: Option<(Instant, String)>,
    error: Option<String>,
}

impl Writability {
    /// Records the result of a first use.
    pub fn note<T>(&self, written: &Result<T, StoreError>) {
        match written {
            Ok(_) => {
                let mut state = self.state.lock();
                state.written_at = Some(Instant::now());
                state.full = None;
            }
            Err(error) => {
                if let StoreError::Full(text) = error {
                    self.state.lock().full = Some((Instant::now(), text.clone()));
                }
                self.doubted.notify_one();
            }
        }
    }

    /// The error of a recent first use that failed on a full disk.
    fn full(&self) -> Option<String> {
        let mut state = self.state.lock();
        state.full = state.full.take().filter(|(at, _)| at.elapsed() < FULL_FOR);
        state.full.as_ref().map(|(_, text)| text.clone())
    }

    /// Why the store takes no writes, as of the last test.
    pub fn error(&self) -> Option<String> {
        self.state.lock().error.clone()
    }

    fn is_known(&self) -> bool {
        let state = self.state.lock();
        state.error.is_none() && state.written_at.is_some_and(|at| at.elapsed() < TESTED_EVERY)
    }
}

impl Store {
    /// The version and the clock of the authority.
    pub async fn server_info(&self) -> Result<ServerInfo, StoreError> {
        self.authority.server_info().await
    }

    /// Copies the database into a new file while it is in use.
    pub async fn copy(&self, to: PathBuf) -> Result<(), String> {
        self.authority.copy(to).await
    }

    /// Tests whether events of other processes arrive at once. An error says what to do.
    pub async fn test_notifications(&self) -> Result<(), String> {
        self.authority.notifications_work().await
    }

    /// Whether events arrived at once at the last test.
    pub fn notifications_work(&self) -> bool {
        self.metrics.notifications.get() == 1
    }

    /// Tests whether the authority answers, and returns the error of the last write test.
    pub async fn state(&self) -> Result<(), String> {
        self.authority.ping().await.map_err(|error| error.to_string())?;
        self.writability.error().map_or(Ok(()), |error| Err(format!("takes no writes: {error}")))
    }

    /// Tests whether a first use can be written.
    pub async fn try_write(&self) -> Result<(), StoreError> {
        self.authority.try_write().await
    }

    /// Closes the store. Later calls fail.
    pub async fn close(&self) {
        self.authority.close().await;
    }

    /// The state of Redis; `None`: it is not configured.
    pub fn redis_state(&self) -> Option<RedisState> {
        let redis = self.redis.get()?;
        let errors = redis.faults();
        Some(RedisState { ok: redis.is_there() && errors.is_empty(), errors })
    }
}

/// Tests the store as long as it is in use. Waits briefly for the first result; a slow store does
/// not delay the start.
pub async fn watch(store: &Arc<Store>) {
    let weak = Arc::downgrade(store);
    let (tested, first) = oneshot::channel();
    tokio::spawn(async move {
        if let Some(store) = weak.upgrade() {
            test(&store).await;
        }
        let _ = tested.send(());
        loop {
            let Some(store) = weak.upgrade() else { return };
            let doubted = tokio::time::timeout(TESTED_EVERY, store.writability.doubted.notified()).await.is_ok();
            if doubted || !store.writability.is_known() {
                test(&store).await;
            }
            drop(store);
            if doubted {
                // Several failed first uses trigger one test.
                tokio::time::sleep(REPEATED_AFTER).await;
            }
        }
    });
    let _ = tokio::time::timeout(FIRST_RESULT_WITHIN, first).await;
}

async fn test(store: &Store) {
    let mut result = store.authority.try_write().await;
    if result.is_err() && store.writability.error().is_none() {
        // No event says that a slow write would succeed now.
        tokio::time::sleep(REPEATED_AFTER).await;
        result = store.authority.try_write().await;
    }
    let error = result.err().map(|error| error.to_string()).or_else(|| store.writability.full());
    let before = std::mem::replace(&mut store.writability.state.lock().error, error.clone());
    store.metrics.writable.set(error.is_none().into());
    match (before, error) {
        (None, Some(error)) => tracing::warn!(error, "the store takes no writes: first uses of keys are refused with 503"),
        (Some(_), None) => tracing::info!("the store takes writes again"),
        _ => {}
    }
}
