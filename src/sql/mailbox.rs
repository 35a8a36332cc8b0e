//! The store contract for requests between replicas: questions and their answers, as rows of the
//! shared database. Knows no question's meaning; `crate::operator::replica_query` defines them.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

/// A question of one replica to all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The question's id, a UUID.
    pub id: String,
    /// The name of the replica that asks.
    pub asker: String,
    /// The question, as JSON.
    pub body: Value,
}

/// Questions and answers in the shared database.
#[async_trait]
pub trait Mailbox: Send + Sync {
    /// Writes a question. The other replicas are notified.
    async fn post_question(&self, question: &Question) -> Result<(), StoreError>;
    /// Lists the questions of other replicas that are younger than this, by the database's clock,
    /// and that this replica has not answered.
    async fn open_questions(&self, replica: &str, within_ms: i64) -> Result<Vec<Question>, StoreError>;
    /// Writes an answer, unless the question was withdrawn.
    async fn post_answer(&self, question: &str, replica: &str, body: &Value) -> Result<(), StoreError>;
    /// Lists the answers to a question, each with the replica's name.
    async fn answers(&self, question: &str) -> Result<Vec<(String, Value)>, StoreError>;
    /// Deletes a question with its answers, and questions older than `within_ms` that were left
    /// behind.
    async fn withdraw_question(&self, question: &str, within_ms: i64) -> Result<(), StoreError>;
}
