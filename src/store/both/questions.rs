//! What replicas ask of each other, in either database: the statements are the same, and this file is compiled for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;
use sqlx::{Database, Row};

use super::{Db, Own, failed};
use crate::store::questions::{Question, Questions};

type DbRow = <Db as Database>::Row;

fn json(row: &DbRow, at: usize) -> sqlx::Result<Value> {
    let text: String = row.try_get(at)?;
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

#[async_trait]
impl Questions for Own {
    async fn ask(&self, question: &Question) -> Result<(), StoreError> {
        let asked = sqlx::query("INSERT INTO questions (id, asker, asked_ms, body) VALUES ($1, $2, $3, $4)");
        let asked = asked.bind(question.id.clone()).bind(question.asker.clone()).bind(question.asked_ms).bind(question.body.to_string());
        self.with(async |pool| asked.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn asked(&self, replica: &str, since_ms: i64) -> Result<Vec<Question>, StoreError> {
        let asked = sqlx::query(
            "SELECT q.id, q.asker, q.asked_ms, q.body FROM questions q WHERE q.asker <> $1 AND q.asked_ms >= $2
             AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.question = q.id AND a.replica = $1)",
        );
        let asked = asked.bind(replica.to_owned()).bind(since_ms);
        let rows = self.with(async |pool| asked.fetch_all(&pool).await.map_err(failed)).await?;
        let read = |row: &DbRow| -> sqlx::Result<Question> {
            Ok(Question { id: row.try_get(0)?, asker: row.try_get(1)?, asked_ms: row.try_get(2)?, body: json(row, 3)? })
        };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }

    async fn answer(&self, question: &str, replica: &str, body: &Value) -> Result<(), StoreError> {
        let answered = sqlx::query(
            "INSERT INTO answers (question, replica, body) SELECT $1, $2, $3 WHERE EXISTS (SELECT 1 FROM questions WHERE id = $1)
             ON CONFLICT (question, replica) DO NOTHING",
        );
        let answered = answered.bind(question.to_owned()).bind(replica.to_owned()).bind(body.to_string());
        self.with(async |pool| answered.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn answers(&self, question: &str) -> Result<Vec<(String, Value)>, StoreError> {
        let asked = sqlx::query("SELECT replica, body FROM answers WHERE question = $1 ORDER BY replica").bind(question.to_owned());
        let rows = self.with(async |pool| asked.fetch_all(&pool).await.map_err(failed)).await?;
        let read = |row: &DbRow| -> sqlx::Result<(String, Value)> { Ok((row.try_get(0)?, json(row, 1)?)) };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }

    async fn take_back(&self, question: &str, before_ms: i64) -> Result<(), StoreError> {
        let gone = sqlx::query("DELETE FROM questions WHERE id = $1 OR asked_ms < $2").bind(question.to_owned()).bind(before_ms);
        self.with(async |pool| gone.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }
}
