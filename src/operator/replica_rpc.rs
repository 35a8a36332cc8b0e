//! Requests to all replicas for state that only the replica itself has (open streams, limit usage).
//! They travel through the store that the replicas share; replicas that do not answer in time are reported as silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Fault;
use super::accounts::now_ms;
use super::replica_query::ReplicaQuery;
use crate::bindings::Store;
use crate::cluster::replica::Replica;
use crate::sql::mailbox::Question as MailboxQuestion;
use crate::telemetry::sampler::GONE_MS;

/// Timeout for replies.
const REPLY_TIMEOUT: Duration = Duration::from_millis(1500);
/// Polling interval where the store sends no notifications.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Age at which a request is obsolete.
const REQUEST_AGE_MAX_MS: i64 = 10_000;

/// Answers queries for one replica.
pub trait QueryHandler: Send + Sync {
    /// The answer, serialised as the sender of this query expects it.
    fn answer<'a>(&'a self, query: &'a ReplicaQuery) -> BoxFuture<'a, Result<Value, Fault>>;
}

/// Sends queries to replicas, and answers those of others.
pub struct ReplicaRpc {
    /// The store that the replicas share.
    pub store: Arc<Store>,
    /// This replica.
    pub replica: Arc<Replica>,
    /// Whether other replicas may exist.
    pub has_others: bool,
    /// Whether the store notifies of new queries. Without notifications the other replicas are processes that have handed
    /// over, and they poll.
    pub notified: bool,
    /// Answers queries for this replica.
    pub local: Arc<dyn QueryHandler>,
}

/// The replies of several replicas.
#[derive(Debug)]
pub struct Replies<T> {
    /// Replica names and their replies.
    pub replies: Vec<(String, T)>,
    /// Names of the replicas that did not answer in time.
    pub silent: Vec<String>,
}

impl ReplicaRpc {
    /// Queries all replicas. While the store is unavailable only this replica answers.
    pub async fn query_all<T: DeserializeOwned>(&self, query: &ReplicaQuery) -> Result<Replies<T>, Fault> {
        let here = (self.replica.name(), read(self.local.answer(query).await?)?);
        let mut replies = match self.others().await {
            Ok(others) => self.query_others(query, others).await,
            Err(fault) => Err(fault),
        }
        .unwrap_or_else(|_| Replies { replies: Vec::new(), silent: vec!["other replicas".into()] });
        replies.replies.insert(0, here);
        Ok(replies)
    }

    /// Queries one replica.
    pub async fn query_one<T: DeserializeOwned>(&self, query: &ReplicaQuery, replica: &str) -> Result<T, Fault> {
        if replica == self.replica.name() {
            return read(self.local.answer(query).await?);
        }
        if !self.others().await?.iter().any(|other| other == replica) {
            return Err(Fault::NotFound(format!("the replica `{replica}` does not exist or has stopped")));
        }
        let replies = self.query_others(query, vec![replica.to_owned()]).await?;
        let silent = || Fault::External(format!("the replica `{replica}` did not answer in time; try again"));
        replies.replies.into_iter().next().map(|(_, answer)| answer).ok_or_else(silent)
    }

    async fn query_others<T: DeserializeOwned>(&self, query: &ReplicaQuery, others: Vec<String>) -> Result<Replies<T>, Fault> {
        let mut replies = Replies { replies: Vec::new(), silent: Vec::new() };
        if others.is_empty() {
            return Ok(replies);
        }
        let body = serde_json::to_value(query).map_err(|e| Fault::Unavailable(e.to_string()))?;
        let id = uuid::Uuid::now_v7().to_string();
        let (admin_store, mut mail) = (self.store.admin_store(), self.store.mail());
        admin_store.post_question(&MailboxQuestion { id: id.clone(), asker: self.replica.name(), body }).await?;
        let (begun, mut answers) = (Instant::now(), Vec::new());
        while begun.elapsed() < REPLY_TIMEOUT {
            let _ = tokio::time::timeout(POLL_INTERVAL, mail.changed()).await;
            answers = admin_store.answers(&id).await?;
            if others.iter().all(|other| answers.iter().any(|(replica, _)| replica == other)) {
                break;
            }
        }
        admin_store.withdraw_question(&id, REQUEST_AGE_MAX_MS).await?;
        for other in others {
            match answers.iter().position(|(replica, _)| *replica == other) {
                Some(at) => replies.replies.push((other, read(answers.swap_remove(at).1)?)),
                None => replies.silent.push(other),
            }
        }
        Ok(replies)
    }

    /// Names of the other replicas that have reported their state recently.
    pub async fn others(&self) -> Result<Vec<String>, Fault> {
        if !self.has_others {
            return Ok(Vec::new());
        }
        let replicas = self.store.admin_store().replicas(now_ms() - GONE_MS).await?;
        let gone = |state: &Value| state.get("stopping") == Some(&Value::Bool(true));
        let own = self.replica.name();
        let others = replicas.into_iter().filter(|replica| replica.name != own && !gone(&replica.state));
        Ok(others.map(|replica| replica.name).collect())
    }

    /// Answers the queries of other replicas for the lifetime of the process.
    pub async fn listen(self: Arc<Self>) {
        const NOT_YET: Duration = Duration::from_secs(1);
        let mut mail = self.store.mail();
        if !self.has_others {
            return;
        }
        loop {
            match (self.notified, self.replica.has_handed_over()) {
                (true, _) => {
                    if mail.changed().await.is_err() {
                        return;
                    }
                }
                // SQLite sends no notifications between processes.
                (false, true) => tokio::time::sleep(POLL_INTERVAL).await,
                (false, false) => {
                    // Before the handover no other process exists that could query this one.
                    tokio::time::sleep(NOT_YET).await;
                    continue;
                }
            }
            // The sender reports a replica that does not answer as silent.
            if let Err(error) = self.answer_all().await {
                tracing::debug!(%error, "cannot read the queries of other replicas");
            }
        }
    }

    async fn answer_all(&self) -> Result<(), Fault> {
        let admin_store = self.store.admin_store();
        for asked in admin_store.open_questions(&self.replica.name(), REQUEST_AGE_MAX_MS).await? {
            // A newer version may send queries that this one does not know.
            let Ok(query) = serde_json::from_value::<ReplicaQuery>(asked.body) else { continue };
            let answered = async {
                let answer = self.local.answer(&query).await?;
                Ok::<_, Fault>(admin_store.post_answer(&asked.id, &self.replica.name(), &answer).await?)
            };
            if let Err(error) = answered.await {
                tracing::warn!(%error, "cannot answer the query of another replica");
            }
        }
        Ok(())
    }
}

/// A replica of another version may send any JSON.
fn read<T: DeserializeOwned>(answer: Value) -> Result<T, Fault> {
    serde_json::from_value(answer).map_err(|e| Fault::External(format!("cannot parse the answer of another replica: {e}")))
}
