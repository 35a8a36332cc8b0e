//! How the store is: whether it answers, and whether a first use could be written. A standby, a server with a full disk and one
//! with a read-only setting answer reads and take no writes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::StoreError;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use utoipa::ToSchema;

use super::Store;
use crate::sql::About;

/// How often it is tested, unless a first use was written meanwhile.
const TESTED_EVERY: Duration = Duration::from_secs(5);
/// How long a start waits for the first result.
const FIRST_RESULT_WITHIN: Duration = Duration::from_millis(500);
/// One slow write is no failure: it is tested once more after this.
const REPEATED_AFTER: Duration = Duration::from_millis(500);
/// A first use that found no room counts for this long, or until another one is written. The row of a test is taken back, so
/// the next test finds its room again on a disk that is full.
const FULL_FOR: Duration = Duration::from_secs(10);

/// How Redis is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct RedisState {
    /// It is there, and nothing has failed on it lately.
    ok: bool,
    /// The kinds of errors of the last 30 s, as in `keylatch_redis_errors_total`.
    errors: Vec<&'static str>,
}

/// What is known of it.
#[derive(Default)]
pub struct Writability {
    state: Mutex<State>,
    /// A first use has failed.
    doubted: Notify,
}

#[derive(Default)]
struct State {
    written_at: Option<Instant>,
    /// The last first use that found no room, and what the store said.
    full: Option<(Instant, String)>,
    error: Option<String>,
}

impl Writability {
    /// What came of a first use.
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

    /// What a first use was told for want of room, not long ago.
    fn full(&self) -> Option<String> {
        let mut state = self.state.lock();
        state.full = state.full.take().filter(|(at, _)| at.elapsed() < FULL_FOR);
        state.full.as_ref().map(|(_, text)| text.clone())
    }

    /// Why nothing can be written, as of the last test.
    pub fn error(&self) -> Option<String> {
        self.state.lock().error.clone()
    }

    fn is_known(&self) -> bool {
        let state = self.state.lock();
        state.error.is_none() && state.written_at.is_some_and(|at| at.elapsed() < TESTED_EVERY)
    }
}

impl Store {
    /// What the authority says of itself.
    pub async fn about(&self) -> Result<About, StoreError> {
        self.authority.about().await
    }

    /// Copies all that is stored into a new file, while it is in use.
    pub async fn copy(&self, to: PathBuf) -> Result<(), String> {
        self.authority.copy(to).await
    }

    /// Whether changes made by other processes are heard of at once, by a test. An error says what to do.
    pub async fn test_notifications(&self) -> Result<(), String> {
        self.authority.hears().await
    }

    /// Whether they were heard of at once when that was last tested.
    pub fn hears(&self) -> bool {
        self.metrics.hears.get() == 1
    }

    /// Whether the authority answers, and could write a first use when that was last tested.
    pub async fn state(&self) -> Result<(), String> {
        self.authority.ping().await.map_err(|error| error.to_string())?;
        self.writability.error().map_or(Ok(()), |error| Err(format!("takes no writes: {error}")))
    }

    /// Whether a first use could be written, by a test.
    pub async fn try_write(&self) -> Result<(), StoreError> {
        self.authority.try_write().await
    }

    /// Closes the store. Nothing can be asked of it any more.
    pub async fn close(&self) {
        self.authority.close().await;
    }

    /// How Redis is; `None`: there is none to be.
    pub fn redis_state(&self) -> Option<RedisState> {
        let redis = self.redis.get()?;
        let errors = redis.faults();
        Some(RedisState { ok: redis.is_there() && errors.is_empty(), errors })
    }
}

/// Tests it for as long as the store is in use. Waits a moment for the first result; a store that is busy holds up no start.
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
                // First uses that fail one after the other are one doubt.
                tokio::time::sleep(REPEATED_AFTER).await;
            }
        }
    });
    let _ = tokio::time::timeout(FIRST_RESULT_WITHIN, first).await;
}

async fn test(store: &Store) {
    let mut result = store.authority.try_write().await;
    if result.is_err() && store.writability.error().is_none() {
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
