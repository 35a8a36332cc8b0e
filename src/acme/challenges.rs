//! What a CA may come for: kept in the store for all replicas, since it may come to any of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bindings::Store;

/// A challenge that nobody has come for is nobody's.
const TIME: Duration = Duration::from_secs(900);
/// Strangers may ask for what they have made up: the store is asked for all there is, once in so long at most, and whoever comes
/// meanwhile waits for that.
const ASKED_EVERY: Duration = Duration::from_millis(500);

/// Those of this replica, and those of all of them as they were last seen.
pub struct Challenges {
    store: Arc<Store>,
    own: Mutex<HashMap<String, Own>>,
    seen: tokio::sync::Mutex<Seen>,
}

struct Own {
    /// For which certificate.
    order: String,
    answer: Vec<u8>,
}

#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    all: HashMap<String, Vec<u8>>,
}

/// Kept in clear: it is said to whoever asks.
const PREFIX: &str = "acme challenge ";

impl Challenges {
    /// None yet.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, own: Mutex::default(), seen: tokio::sync::Mutex::default() }
    }

    /// A CA may come for this, for the sake of that order.
    pub async fn keep(&self, order: &str, kind: &str, name: &str, answer: &[u8]) -> Result<(), String> {
        let name = format!("{PREFIX}{kind} {name}");
        self.store.admin_store().put_secret(&name, answer, TIME).await.map_err(|e| format!("the store is away: {e}"))?;
        self.own.lock().insert(name, Own { order: order.to_owned(), answer: answer.to_vec() });
        Ok(())
    }

    /// The order is over: what the next one has may be another replica's.
    pub fn over(&self, order: &str) {
        self.own.lock().retain(|_, own| own.order != order);
    }

    /// What is to be answered.
    pub async fn answer(&self, kind: &str, name: &str) -> Option<Vec<u8>> {
        let came = Instant::now();
        let name = format!("{PREFIX}{kind} {name}");
        if let Some(own) = self.own.lock().get(&name) {
            return Some(own.answer.clone());
        }
        let mut seen = self.seen.lock().await;
        if seen.at.is_none_or(|at| at < came) {
            if let Some(at) = seen.at {
                tokio::time::sleep_until(at + ASKED_EVERY).await;
            }
            let asked = Instant::now();
            seen.all = self.store.admin_store().secrets(PREFIX).await.ok()?.into_iter().collect();
            // Whoever has come since it was asked is answered by the next.
            seen.at = Some(asked);
        }
        seen.all.get(&name).cloned()
    }
}
