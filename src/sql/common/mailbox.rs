//! Questions between replicas in either database. The statements are the same; this file is
//! compiled once for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;
use sqlx::{Database, Row};

use super::{Db, NOW_MS, Own, failed};
use crate::sql::mailbox::{Mailbox, Question};

type DbRow = <Db as Database>::Row;

fn json(row: &DbRow, at: usize) -> sqlx::Result<Value> {
    let text: String = row.try_get(at)?;
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

#[async_trait]
impl Mailbox for Own {
    async fn post_question(&self, question: &Question) -> Result<(), StoreError> {
        let statement = format!("INSERT INTO questions (id, asker, asked_ms, body) VALUES ($1, $2, {NOW_MS}, $3)");
        let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(question.id.clone()).bind(question.asker.clone());
        let query = query.bind(question.body.to_string());
        self.with(async |pool| query.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn open_questions(&self, replica: &str, within_ms: i64) -> Result<Vec<Question>, StoreError> {
        let statement = format!(
            "SELECT q.id, q.asker, q.body FROM questions q WHERE q.asker <> $1 AND q.asked_ms >= {NOW_MS} - $2
             AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.question = q.id AND a.replica = $1)"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(replica.to_owned()).bind(within_ms);
        let rows = self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await?;
        let read =
            |row: &DbRow| -> sqlx::Result<Question> { Ok(Question { id: row.try_get(0)?, asker: row.try_get(1)?, body: json(row, 2)? }) };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }

    async fn post_answer(&self, question: &str, replica: &str, body: &Value) -> Result<(), StoreError> {
        let answered = sqlx::query(
            "INSERT INTO answers (question, replica, body) SELECT $1, $2, $3 WHERE EXISTS (SELECT 1 FROM questions WHERE id = $1)
             ON CONFLICT (question, replica) DO NOTHING",
        );
        let answered = answered.bind(question.to_owned()).bind(replica.to_owned()).bind(body.to_string());
        self.with(async |pool| answered.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }

    async fn answers(&self, question: &str) -> Result<Vec<(String, Value)>, StoreError> {
        let query = sqlx::query("SELECT replica, body FROM answers WHERE question = $1 ORDER BY replica").bind(question.to_owned());
        let rows = self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await?;
        let read = |row: &DbRow| -> sqlx::Result<(String, Value)> { Ok((row.try_get(0)?, json(row, 1)?)) };
        rows.iter().map(|row| read(row).map_err(failed)).collect()
    }

    async fn withdraw_question(&self, question: &str, within_ms: i64) -> Result<(), StoreError> {
        let statement = format!("DELETE FROM questions WHERE id = $1 OR asked_ms < {NOW_MS} - $2");
        let gone = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(question.to_owned()).bind(within_ms);
        self.with(async |pool| gone.execute(&pool).await.map(|_| ()).map_err(failed)).await
    }
}
