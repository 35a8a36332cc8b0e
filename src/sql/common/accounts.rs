//! Accounts in either database. The statements are the same; this file is compiled once for each.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::json;
use sqlx::{Database, Row};

use super::{Connection, Db, Own, Tx, audit, begin, failed};
use crate::sql::accounts::{Account, Accounts, AuditLog, ProviderIdentity, Session, SignInCounter, Token, WriteOutcome, locked_ms};
use crate::sql::audit::{Actor, AuditLine};

type DbRow = <Db as Database>::Row;
const ACCOUNT: &str =
    "a.name, a.role, a.password, a.disabled, a.must_change, a.version, a.created_ms, a.signed_in_ms, a.provider, a.subject";
const SESSION: &str = "s.id, s.account, s.created_ms, s.expires_ms, s.origin, s.agent";
const TOKEN: &str = "t.id, t.account, t.name, t.scopes, t.sha256, t.created_ms, t.expires_ms, t.used_ms";
/// A token's last use is written at most once in this time.
const USED_MS: i64 = 60_000;

fn account(row: &DbRow, at: usize) -> sqlx::Result<Account> {
    Ok(Account {
        name: row.try_get(at)?,
        role: row.try_get(at + 1)?,
        password: row.try_get(at + 2)?,
        disabled: row.try_get(at + 3)?,
        must_change: row.try_get(at + 4)?,
        version: row.try_get(at + 5)?,
        created_ms: row.try_get(at + 6)?,
        signed_in_ms: row.try_get(at + 7)?,
        elsewhere: row
            .try_get::<Option<String>, _>(at + 8)?
            .zip(row.try_get(at + 9)?)
            .map(|(provider, subject)| ProviderIdentity { provider, subject }),
    })
}

fn session(row: &DbRow) -> sqlx::Result<Session> {
    Ok(Session {
        id: row.try_get(0)?,
        account: row.try_get(1)?,
        created_ms: row.try_get(2)?,
        expires_ms: row.try_get(3)?,
        origin: row.try_get(4)?,
        agent: row.try_get(5)?,
    })
}

fn token(row: &DbRow) -> sqlx::Result<Token> {
    Ok(Token {
        id: row.try_get(0)?,
        account: row.try_get(1)?,
        name: row.try_get(2)?,
        scopes: row.try_get(3)?,
        sha256: row.try_get(4)?,
        created_ms: row.try_get(5)?,
        expires_ms: row.try_get(6)?,
        used_ms: row.try_get(7)?,
    })
}

/// The account as the audit log shows it. The password hash is left out.
fn audited(account: &Account) -> serde_json::Value {
    let mut fields = json!({ "role": account.role, "disabled": account.disabled, "must_change": account.must_change, "password": account.password.is_some() });
    if let (Some(elsewhere), Some(map)) = (&account.elsewhere, fields.as_object_mut()) {
        map.insert("provider".into(), elsewhere.provider.clone().into());
        map.insert("subject".into(), elsewhere.subject.clone().into());
    }
    fields
}

/// An audit entry.
pub fn line(action: &'static str, target: &str, before: Option<serde_json::Value>, after: Option<serde_json::Value>) -> AuditLine {
    let text = |value: Option<serde_json::Value>| value.map(|value| value.to_string());
    AuditLine { action, target: target.to_owned(), before: text(before), after: text(after) }
}

/// Begins a transaction that serializes changes of accounts over all replicas.
pub async fn begin_serialized(own: &Own) -> Result<Tx, StoreError> {
    let mut tx = begin(own).await?;
    sqlx::query("INSERT INTO meta (name, value) VALUES ('accounts', '') ON CONFLICT (name) DO UPDATE SET value = excluded.value")
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    Ok(tx)
}

async fn locked(connection: &mut Connection, name: &str) -> Result<Option<Account>, StoreError> {
    let statement = sqlx::AssertSqlSafe(format!("SELECT {ACCOUNT} FROM accounts a WHERE a.name = $1"));
    let row = sqlx::query(statement).bind(name.to_owned()).fetch_optional(connection).await.map_err(failed)?;
    row.as_ref().map(|row| account(row, 0)).transpose().map_err(failed)
}

async fn insert(tx: &mut Tx, account: &Account) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO accounts (name, role, password, disabled, must_change, version, created_ms, provider, subject)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (name) DO UPDATE SET role = excluded.role, password = excluded.password, disabled = excluded.disabled,
             must_change = excluded.must_change, version = excluded.version",
    )
    .bind(account.name.clone())
    .bind(account.role.clone())
    .bind(account.password.clone())
    .bind(account.disabled)
    .bind(account.must_change)
    .bind(account.version)
    .bind(account.created_ms)
    .bind(account.elsewhere.as_ref().map(|elsewhere| elsewhere.provider.clone()))
    .bind(account.elsewhere.as_ref().map(|elsewhere| elsewhere.subject.clone()))
    .execute(&mut **tx)
    .await
    .map(|_| ())
    .map_err(failed)
}

/// Whether an enabled admin with a password is left; a provider can change its roles at any time.
async fn admin_is_left(tx: &mut Tx) -> Result<bool, StoreError> {
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM accounts WHERE role = 'admin' AND NOT disabled AND provider IS NULL")
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(left > 0)
}

#[async_trait]
impl AuditLog for Own {
    async fn write_audit(&self, line: AuditLine, actor: &Actor) -> Result<(), StoreError> {
        let mut tx = begin(self).await?;
        audit::write(&mut tx, actor, line).await?;
        tx.commit().await.map_err(failed)
    }
}

#[async_trait]
impl Accounts for Own {
    async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        let statement = format!("SELECT {ACCOUNT} FROM accounts a ORDER BY a.name");
        let rows = self.with(async |pool| sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(&pool).await.map_err(failed)).await?;
        rows.iter().map(|row| account(row, 0).map_err(failed)).collect()
    }

    async fn account(&self, name: &str) -> Result<Option<Account>, StoreError> {
        self.with(async |pool| locked(&mut *pool.begin().await.map_err(failed)?, name).await).await
    }

    async fn account_by_identity(&self, elsewhere: &ProviderIdentity) -> Result<Option<Account>, StoreError> {
        let statement = format!("SELECT {ACCOUNT} FROM accounts a WHERE a.provider = $1 AND a.subject = $2");
        let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(elsewhere.provider.clone()).bind(elsewhere.subject.clone());
        let row = self.with(async |pool| query.fetch_optional(&pool).await.map_err(failed)).await?;
        row.as_ref().map(|row| account(row, 0)).transpose().map_err(failed)
    }

    async fn make_account(&self, account: &Account, first: bool, actor: &Actor) -> Result<WriteOutcome, StoreError> {
        let mut tx = begin_serialized(self).await?;
        if locked(&mut tx, &account.name).await?.is_some() {
            return Ok(WriteOutcome::Exists);
        }
        if first {
            let there: i64 = sqlx::query_scalar("SELECT count(*) FROM accounts").fetch_one(&mut *tx).await.map_err(failed)?;
            if there > 0 {
                return Ok(WriteOutcome::Exists);
            }
        }
        insert(&mut tx, account).await?;
        audit::write(&mut tx, actor, line("account.made", &account.name, None, Some(audited(account)))).await?;
        tx.commit().await.map_err(failed)?;
        Ok(WriteOutcome::Done)
    }

    async fn change_account(
        &self,
        account: &Account,
        expects: i64,
        keeps: Option<&str>,
        actor: &Actor,
    ) -> Result<WriteOutcome, StoreError> {
        let mut tx = begin_serialized(self).await?;
        let Some(before) = locked(&mut tx, &account.name).await? else { return Ok(WriteOutcome::Missing) };
        if before.version != expects {
            return Ok(WriteOutcome::Newer);
        }
        let after = Account { version: expects + 1, ..account.clone() };
        insert(&mut tx, &after).await?;
        if account.elsewhere.is_none() && !admin_is_left(&mut tx).await? {
            return Ok(WriteOutcome::LastAdmin);
        }
        sqlx::query("DELETE FROM sessions WHERE account = $1 AND id <> $2")
            .bind(account.name.clone())
            .bind(keeps.unwrap_or_default().to_owned())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if before.password != after.password && after.must_change {
            // Another operator set the password, possibly because it was stolen: delete the tokens.
            sqlx::query("DELETE FROM tokens WHERE account = $1").bind(account.name.clone()).execute(&mut *tx).await.map_err(failed)?;
        }
        let action = if before.password == after.password { "account.changed" } else { "account.password_set" };
        audit::write(&mut tx, actor, line(action, &account.name, Some(audited(&before)), Some(audited(&after)))).await?;
        tx.commit().await.map_err(failed)?;
        Ok(WriteOutcome::Done)
    }

    async fn remove_account(&self, name: &str, expects: Option<i64>, actor: &Actor) -> Result<WriteOutcome, StoreError> {
        let mut tx = begin_serialized(self).await?;
        let Some(before) = locked(&mut tx, name).await? else { return Ok(WriteOutcome::Missing) };
        if expects.is_some_and(|expects| before.version != expects) {
            return Ok(WriteOutcome::Newer);
        }
        sqlx::query("DELETE FROM accounts WHERE name = $1").bind(name.to_owned()).execute(&mut *tx).await.map_err(failed)?;
        if before.elsewhere.is_none() && !admin_is_left(&mut tx).await? {
            return Ok(WriteOutcome::LastAdmin);
        }
        audit::write(&mut tx, actor, line("account.removed", name, Some(audited(&before)), None)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(WriteOutcome::Done)
    }

    async fn revoke_access(&self, name: &str, actor: &Actor) -> Result<(), StoreError> {
        let mut tx = begin_serialized(self).await?;
        let Some(before) = locked(&mut tx, name).await? else { return Ok(()) };
        let after = Account { role: "viewer".into(), version: before.version + 1, ..before.clone() };
        insert(&mut tx, &after).await?;
        let mut gone = 0;
        for statement in ["DELETE FROM sessions WHERE account = $1", "DELETE FROM tokens WHERE account = $1"] {
            gone += sqlx::query(statement).bind(name.to_owned()).execute(&mut *tx).await.map_err(failed)?.rows_affected();
        }
        if gone > 0 || before.role != after.role {
            audit::write(&mut tx, actor, line("account.turned_away", name, Some(audited(&before)), Some(audited(&after)))).await?;
            tx.commit().await.map_err(failed)?;
        }
        Ok(())
    }

    async fn begin_session(&self, session: &Session, version: i64, counters: &[SignInCounter], actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = begin(self).await?;
        // The row is locked first: a concurrent change waits, and then ends this session.
        let signed_in = sqlx::query("UPDATE accounts SET signed_in_ms = $2 WHERE name = $1 AND version = $3 AND NOT disabled")
            .bind(session.account.clone())
            .bind(session.created_ms)
            .bind(version);
        if signed_in.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("INSERT INTO sessions (id, account, created_ms, expires_ms, origin, agent) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(session.id.clone())
            .bind(session.account.clone())
            .bind(session.created_ms)
            .bind(session.expires_ms)
            .bind(session.origin.clone())
            .bind(session.agent.clone())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        forgiven(&mut tx, counters).await?;
        audit::write(&mut tx, actor, line("session.begun", &session.account, None, Some(json!({ "session": session.id })))).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn session(&self, id: &str, now_ms: i64) -> Result<Option<(Session, Account)>, StoreError> {
        let statement = format!(
            "SELECT {SESSION}, {ACCOUNT} FROM sessions s JOIN accounts a ON a.name = s.account
             WHERE s.id = $1 AND s.expires_ms > $2 AND NOT a.disabled"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id.to_owned()).bind(now_ms);
        let row = self.with(async |pool| query.fetch_optional(&pool).await.map_err(failed)).await?;
        row.map(|row| Ok((session(&row)?, account(&row, 6)?))).transpose().map_err(failed)
    }

    async fn sessions(&self, account: &str, now_ms: i64) -> Result<Vec<Session>, StoreError> {
        let statement = format!("SELECT {SESSION} FROM sessions s WHERE s.account = $1 AND s.expires_ms > $2 ORDER BY s.created_ms DESC");
        let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(account.to_owned()).bind(now_ms);
        let rows = self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await?;
        rows.iter().map(|row| session(row).map_err(failed)).collect()
    }

    async fn end_session(&self, account: &str, id: &str, actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = begin(self).await?;
        let ended = sqlx::query("DELETE FROM sessions WHERE account = $1 AND id = $2").bind(account.to_owned()).bind(id.to_owned());
        if ended.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(false);
        }
        audit::write(&mut tx, actor, line("session.ended", account, Some(json!({ "session": id })), None)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn tokens(&self, account: Option<&str>) -> Result<Vec<Token>, StoreError> {
        let wanted = account.map_or("$1 IS NULL", |_| "t.account = $1");
        let statement = format!("SELECT {TOKEN} FROM tokens t WHERE {wanted} ORDER BY t.account, t.name");
        let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(account.map(str::to_owned));
        let rows = self.with(async |pool| query.fetch_all(&pool).await.map_err(failed)).await?;
        rows.iter().map(|row| token(row).map_err(failed)).collect()
    }

    async fn make_token(&self, token: &Token, actor: &Actor) -> Result<WriteOutcome, StoreError> {
        let mut tx = begin(self).await?;
        let made = sqlx::query(
            "INSERT INTO tokens (id, account, name, scopes, sha256, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (account, name) DO NOTHING",
        )
        .bind(token.id.clone())
        .bind(token.account.clone())
        .bind(token.name.clone())
        .bind(token.scopes.clone())
        .bind(token.sha256.clone())
        .bind(token.created_ms)
        .bind(token.expires_ms);
        if made.execute(&mut *tx).await.map_err(failed)?.rows_affected() == 0 {
            return Ok(WriteOutcome::Exists);
        }
        let after = json!({ "account": token.account, "name": token.name, "scopes": token.scopes, "expires_ms": token.expires_ms });
        audit::write(&mut tx, actor, line("token.made", &token.id, None, Some(after))).await?;
        tx.commit().await.map_err(failed)?;
        Ok(WriteOutcome::Done)
    }

    async fn token(&self, sha256: &[u8], now_ms: i64) -> Result<Option<(Token, Account)>, StoreError> {
        let statement = format!(
            "SELECT {TOKEN}, {ACCOUNT} FROM tokens t JOIN accounts a ON a.name = t.account
             WHERE t.sha256 = $1 AND t.expires_ms > $2 AND NOT a.disabled"
        );
        self.with(async |pool| {
            let query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(sha256.to_vec()).bind(now_ms);
            let Some(row) = query.fetch_optional(&pool).await.map_err(failed)? else { return Ok(None) };
            let (token, account) = (token(&row).map_err(failed)?, account(&row, 8).map_err(failed)?);
            if token.used_ms.is_none_or(|used| used + USED_MS < now_ms) {
                let used = sqlx::query("UPDATE tokens SET used_ms = $2 WHERE id = $1").bind(token.id.clone()).bind(now_ms);
                used.execute(&pool).await.map_err(failed)?;
            }
            Ok(Some((token, account)))
        })
        .await
    }

    async fn remove_token(&self, account: &str, id: &str, actor: &Actor) -> Result<bool, StoreError> {
        let mut tx = begin(self).await?;
        let removed = sqlx::query("DELETE FROM tokens WHERE account = $1 AND id = $2 RETURNING name");
        let removed = removed.bind(account.to_owned()).bind(id.to_owned()).fetch_optional(&mut *tx).await.map_err(failed)?;
        let Some(row) = removed else { return Ok(false) };
        let name: String = row.try_get(0).map_err(failed)?;
        audit::write(&mut tx, actor, line("token.removed", id, Some(json!({ "account": account, "name": name })), None)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn count_attempt(&self, counters: &[SignInCounter], now_ms: i64) -> Result<Option<i64>, StoreError> {
        let mut tx = begin(self).await?;
        // All processes lock the rows in the same order.
        for SignInCounter { subject, free } in counters {
            let counted: Option<i64> = sqlx::query_scalar(
                "INSERT INTO login_failures AS f (subject, failures, last_ms, locked_ms) VALUES ($1, 1, $2, 0)
                 ON CONFLICT (subject) DO UPDATE SET failures = f.failures + 1, last_ms = excluded.last_ms WHERE f.locked_ms <= excluded.last_ms
                 RETURNING failures",
            )
            .bind(subject.clone())
            .bind(now_ms)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
            let Some(failures) = counted else {
                let until = sqlx::query_scalar("SELECT locked_ms FROM login_failures WHERE subject = $1").bind(subject.clone());
                // The rollback takes back the counts of the subjects before.
                return until.fetch_optional(&mut *tx).await.map_err(failed);
            };
            // Without a lock the row stays free: several attempts may run at once.
            let locked_ms = locked_ms(failures, *free);
            if locked_ms > 0 {
                let locked = sqlx::query("UPDATE login_failures SET locked_ms = $2 WHERE subject = $1").bind(subject.clone());
                locked.bind(now_ms + locked_ms).execute(&mut *tx).await.map_err(failed)?;
            }
        }
        tx.commit().await.map_err(failed)?;
        Ok(None)
    }

    async fn forgive_attempt(&self, counters: &[SignInCounter]) -> Result<(), StoreError> {
        let mut tx = begin(self).await?;
        forgiven(&mut tx, counters).await?;
        tx.commit().await.map_err(failed)
    }

    async fn unlock(&self, account: &str, actor: &Actor) -> Result<(), StoreError> {
        let mut tx = begin(self).await?;
        forgiven(&mut tx, &[SignInCounter { subject: format!("account:{account}"), free: 0 }]).await?;
        audit::write(&mut tx, actor, line("account.unlocked", account, None, None)).await?;
        tx.commit().await.map_err(failed)
    }
}

async fn forgiven(tx: &mut Tx, counters: &[SignInCounter]) -> Result<(), StoreError> {
    for SignInCounter { subject, .. } in counters {
        let statement = match subject.starts_with("address:") {
            false => "DELETE FROM login_failures WHERE subject = $1",
            true => "UPDATE login_failures SET failures = failures - 1, locked_ms = 0 WHERE subject = $1",
        };
        sqlx::query(statement).bind(subject.clone()).execute(&mut **tx).await.map_err(failed)?;
    }
    Ok(())
}
