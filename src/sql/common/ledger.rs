//! Budgets in either database. The statements are the same; this file is compiled once for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use sqlx::Row;

use super::{Own, begin, enqueue, failed};
use crate::sql::Events;
use crate::sql::ledger::{LedgerBatch, LedgerRow, LedgerStore};

#[async_trait]
impl LedgerStore for Own {
    async fn add_to_ledger(&self, batch: &LedgerBatch) -> Result<(), StoreError> {
        let mut tx = begin(self).await?;
        let first = sqlx::query("INSERT INTO usage_batches (id, made_s) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        let first = first.bind(batch.id.as_bytes().to_vec()).bind(batch.made_s).execute(&mut *tx).await.map_err(failed)?;
        if first.rows_affected() == 0 {
            return Ok(());
        }
        for addition in &batch.additions {
            sqlx::query(
                "INSERT INTO budget_ledger AS b (name, period, period_end_s, spent, amount_max) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (name, period) DO UPDATE SET spent = b.spent + excluded.spent, amount_max = excluded.amount_max,
                     period_end_s = excluded.period_end_s",
            )
            .bind(addition.name.to_string())
            .bind(addition.period)
            .bind(addition.period_end_s)
            .bind(addition.amount)
            .bind(addition.amount_max)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn ledger_row(&self, name: &str, period: i64) -> Result<Option<LedgerRow>, StoreError> {
        let query = sqlx::query("SELECT spent, amount_max, alerted FROM budget_ledger WHERE name = $1 AND period = $2");
        let query = query.bind(name.to_owned()).bind(period);
        let row = self.with(async |pool| query.fetch_optional(&pool).await.map_err(failed)).await?;
        row.map(|row| {
            let read = || -> sqlx::Result<LedgerRow> {
                Ok(LedgerRow { spent: row.try_get(0)?, amount_max: row.try_get(1)?, alerted: row.try_get(2)? })
            };
            read().map_err(failed)
        })
        .transpose()
    }

    async fn alert_of_share(&self, name: &str, period: i64, percent: u8, events: Events) -> Result<bool, StoreError> {
        let mut tx = begin(self).await?;
        let mark = sqlx::query("UPDATE budget_ledger SET alerted = $3 WHERE name = $1 AND period = $2 AND alerted < $3");
        let mark = mark.bind(name.to_owned()).bind(period).bind(i64::from(percent));
        if mark.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(false);
        }
        enqueue(&mut tx, &events).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }
}
