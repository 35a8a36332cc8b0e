//! ACME challenge responses. They are kept in the store, because the CA may connect to any replica.
//! This module does not talk to the CA.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bindings::Store;

/// A challenge response expires after this time.
const LIFETIME: Duration = Duration::from_secs(900);
/// The minimum interval between two reads of the store. Requests for unknown tokens share one read,
/// so that they cannot flood the store.
const READ_INTERVAL: Duration = Duration::from_millis(500);

/// The challenge responses of this replica, and a copy of those of all replicas.
pub struct Challenges {
    store: Arc<Store>,
    own: Mutex<HashMap<String, OwnResponse>>,
    seen: tokio::sync::Mutex<StoredResponses>,
}

struct OwnResponse {
    /// The name of the order, which is that of its certificate.
    order: String,
    answer: Vec<u8>,
}

#[derive(Default)]
struct StoredResponses {
    at: Option<Instant>,
    all: HashMap<String, Vec<u8>>,
}

/// The prefix of the names in the store. The values are not encrypted, since they are public.
const PREFIX: &str = "acme challenge ";

impl Challenges {
    /// An empty set.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, own: Mutex::default(), seen: tokio::sync::Mutex::default() }
    }

    /// Stores the response to a challenge of this order.
    pub async fn keep(&self, order: &str, kind: &str, name: &str, answer: &[u8]) -> Result<(), String> {
        let name = format!("{PREFIX}{kind} {name}");
        self.store.admin_store().put_secret(&name, answer, LIFETIME).await.map_err(|e| format!("the store is unavailable: {e}"))?;
        self.own.lock().insert(name, OwnResponse { order: order.to_owned(), answer: answer.to_vec() });
        Ok(())
    }

    /// Forgets the responses of a finished order. The next order of this certificate may run on
    /// another replica.
    pub fn finish_order(&self, order: &str) {
        self.own.lock().retain(|_, own| own.order != order);
    }

    /// The response to a challenge, or `None` if there is none.
    pub async fn answer(&self, kind: &str, name: &str) -> Option<Vec<u8>> {
        let arrived = Instant::now();
        let name = format!("{PREFIX}{kind} {name}");
        if let Some(own) = self.own.lock().get(&name) {
            return Some(own.answer.clone());
        }
        let mut seen = self.seen.lock().await;
        if seen.at.is_none_or(|at| at < arrived) {
            if let Some(at) = seen.at {
                tokio::time::sleep_until(at + READ_INTERVAL).await;
            }
            let read_at = Instant::now();
            seen.all = self.store.admin_store().secrets(PREFIX).await.ok()?.into_iter().collect();
            // A request that arrives after the read has begun waits for the next read.
            seen.at = Some(read_at);
        }
        seen.all.get(&name).cloned()
    }
}
