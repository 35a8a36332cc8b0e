//! What replicas ask of each other, through what they share. What the questions are is `crate::operator::replicas`'s to say.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// A UUID.
    pub id: String,
    /// The replica that asks.
    pub asker: String,
    /// What.
    pub body: Value,
}

/// Questions and answers.
#[async_trait]
pub trait Questions: Send + Sync {
    /// Asks; other replicas hear of it.
    async fn ask(&self, question: &Question) -> Result<(), StoreError>;
    /// What others have asked within this time, by the database's clock, that this replica has not answered.
    async fn asked(&self, replica: &str, within_ms: i64) -> Result<Vec<Question>, StoreError>;
    /// Answers one, if it still stands.
    async fn answer(&self, question: &str, replica: &str, body: &Value) -> Result<(), StoreError>;
    /// Who has answered what.
    async fn answers(&self, question: &str) -> Result<Vec<(String, Value)>, StoreError>;
    /// Takes back a question with its answers, and those of askers that have gone since.
    async fn take_back(&self, question: &str, within_ms: i64) -> Result<(), StoreError>;
}
