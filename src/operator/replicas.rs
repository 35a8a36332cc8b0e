//! What only the replica knows where it happens (open streams, who is near a limit), asked of all of them at once, through
//! the store that they share. One that does not answer in time is named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keylatch_filters::contract::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Fault;
use super::accounts::now_ms;
use super::replica_questions::Question;
use crate::bindings::Store;
use crate::cluster::replica::Replica;
use crate::sql::mailbox::Question as Written;
use crate::telemetry::sampler::GONE_MS;

/// So long is waited for answers.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Where nobody tells that an answer is there, it is looked for so often.
const LOOKED_EVERY: Duration = Duration::from_millis(100);
/// A question that is older is nobody's any more.
const OLD_MS: i64 = 10_000;

/// Answers questions for one replica.
pub trait Answers: Send + Sync {
    /// The answer, as the asker of this question reads it.
    fn answer<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Result<Value, Fault>>;
}

/// Asks, and answers for this replica.
pub struct Everywhere {
    /// What they share.
    pub store: Arc<Store>,
    /// This replica.
    pub replica: Arc<Replica>,
    /// Whether there may be others.
    pub others: bool,
    /// Whether the store tells when somebody asks. Where it does not, the others are processes that have handed over, and
    /// those look by themselves.
    pub told: bool,
    /// Answers for this replica.
    pub local: Arc<dyn Answers>,
}

/// What was heard.
#[derive(Debug)]
pub struct Heard<T> {
    /// Who said what.
    pub said: Vec<(String, T)>,
    /// Who has said nothing.
    pub silent: Vec<String>,
}

impl Everywhere {
    /// Asks all replicas. While the store is away only this one answers.
    pub async fn ask<T: DeserializeOwned>(&self, question: &Question) -> Result<Heard<T>, Fault> {
        let here = (self.replica.name(), read(self.local.answer(question).await?)?);
        let mut heard = match self.others().await {
            Ok(others) => self.ask_others(question, others).await,
            Err(fault) => Err(fault),
        }
        .unwrap_or_else(|_| Heard { said: Vec::new(), silent: vec!["the other replicas".into()] });
        heard.said.insert(0, here);
        Ok(heard)
    }

    /// Asks one of them.
    pub async fn ask_one<T: DeserializeOwned>(&self, question: &Question, replica: &str) -> Result<T, Fault> {
        if replica == self.replica.name() {
            return read(self.local.answer(question).await?);
        }
        if !self.others().await?.iter().any(|other| other == replica) {
            return Err(Fault::Missing(format!("no replica `{replica}` is there")));
        }
        let heard = self.ask_others(question, vec![replica.to_owned()]).await?;
        let silent = || Fault::Elsewhere(format!("the replica `{replica}` does not answer"));
        heard.said.into_iter().next().map(|(_, said)| said).ok_or_else(silent)
    }

    async fn ask_others<T: DeserializeOwned>(&self, question: &Question, others: Vec<String>) -> Result<Heard<T>, Fault> {
        let mut heard = Heard { said: Vec::new(), silent: Vec::new() };
        if others.is_empty() {
            return Ok(heard);
        }
        let body = serde_json::to_value(question).map_err(|e| Fault::Away(e.to_string()))?;
        let id = uuid::Uuid::now_v7().to_string();
        let (admin_store, mut mail) = (self.store.admin_store(), self.store.mail());
        admin_store.post_question(&Written { id: id.clone(), asker: self.replica.name(), body }).await?;
        let (begun, mut answers) = (Instant::now(), Vec::new());
        while begun.elapsed() < PATIENCE {
            let _ = tokio::time::timeout(LOOKED_EVERY, mail.changed()).await;
            answers = admin_store.answers(&id).await?;
            if others.iter().all(|other| answers.iter().any(|(replica, _)| replica == other)) {
                break;
            }
        }
        admin_store.withdraw_question(&id, OLD_MS).await?;
        for other in others {
            match answers.iter().position(|(replica, _)| *replica == other) {
                Some(at) => heard.said.push((other, read(answers.swap_remove(at).1)?)),
                None => heard.silent.push(other),
            }
        }
        Ok(heard)
    }

    /// The other replicas that have said of late how they are.
    pub async fn others(&self) -> Result<Vec<String>, Fault> {
        if !self.others {
            return Ok(Vec::new());
        }
        let replicas = self.store.admin_store().replicas(now_ms() - GONE_MS).await?;
        let gone = |state: &Value| state.get("stopping") == Some(&Value::Bool(true));
        let own = self.replica.name();
        let others = replicas.into_iter().filter(|replica| replica.name != own && !gone(&replica.state));
        Ok(others.map(|replica| replica.name).collect())
    }

    /// Answers what others ask, for as long as the process lives.
    pub async fn listen(self: Arc<Self>) {
        const NOT_YET: Duration = Duration::from_secs(1);
        let mut mail = self.store.mail();
        if !self.others {
            return;
        }
        loop {
            match (self.told, self.replica.has_handed_over()) {
                (true, _) => {
                    if mail.changed().await.is_err() {
                        return;
                    }
                }
                // SQLite tells nobody that another process has asked: one can only look.
                (false, true) => tokio::time::sleep(LOOKED_EVERY).await,
                (false, false) => {
                    // Until then nobody is there who could ask.
                    tokio::time::sleep(NOT_YET).await;
                    continue;
                }
            }
            // One that cannot be answered now is named as silent.
            if let Err(error) = self.answer_all().await {
                tracing::debug!(%error, "what other replicas ask cannot be read");
            }
        }
    }

    async fn answer_all(&self) -> Result<(), Fault> {
        let admin_store = self.store.admin_store();
        for asked in admin_store.open_questions(&self.replica.name(), OLD_MS).await? {
            // What a newer version asks may be unknown here.
            let Ok(question) = serde_json::from_value::<Question>(asked.body) else { continue };
            let answered = async {
                let said = self.local.answer(&question).await?;
                Ok::<_, Fault>(admin_store.post_answer(&asked.id, &self.replica.name(), &said).await?)
            };
            if let Err(error) = answered.await {
                tracing::warn!(%error, "another replica's question was not answered");
            }
        }
        Ok(())
    }
}

/// What a replica of another version says may be anything.
fn read<T: DeserializeOwned>(said: Value) -> Result<T, Fault> {
    serde_json::from_value(said).map_err(|e| Fault::Elsewhere(format!("a replica's answer makes no sense: {e}")))
}
