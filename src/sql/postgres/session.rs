//! Transactions on one server, directly or through a pooler. Keeps no session state that a pooler
//! could lose or pass on: limits are set in each transaction where the session does not keep them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgPool, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{AssertSqlSafe, Either, Error, Execute, Executor, Postgres as Pg, Row, SqlStr, Transaction};

/// The SQLSTATE of an error from the server.
pub fn code(error: &Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error()?.code()
}

/// A pool of one server. Behind a pooler each statement is a transaction with its own limits.
#[derive(Clone)]
pub struct Pool {
    pool: PgPool,
    /// The `BEGIN` of transactions where sessions keep no limits.
    limits: Option<Arc<str>>,
    patience: Duration,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// `limits`: the `BEGIN` of transactions where sessions keep no limits. `patience`: the time
    /// limit of `BEGIN`.
    pub fn new(pool: PgPool, limits: Option<Arc<str>>, patience: Duration) -> Self {
        Self { pool, limits, patience }
    }

    /// The `BEGIN` of transactions where sessions keep no limits.
    pub fn limits(&self) -> Option<Arc<str>> {
        self.limits.clone()
    }

    /// Begins a transaction. A pooler may have no free server, so the wait is limited.
    pub async fn begin(&self) -> Result<Box<Session>, Error> {
        let (tx, is_pooled) = match &self.limits {
            None => (self.pool.begin().await?, false),
            Some(limits) => {
                let begun = self.pool.begin_with(AssertSqlSafe(limits.to_string()));
                (tokio::time::timeout(self.patience, begun).await.unwrap_or(Err(Error::PoolTimedOut))?, true)
            }
        };
        Ok(Box::new(Session { tx, is_pooled }))
    }

    /// Returns whether the server is a standby, and whether it refuses writes.
    pub async fn probe(&self) -> Result<(bool, bool), Error> {
        let mut tx = self.begin().await?;
        let query = sqlx::raw_sql("SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'");
        let row = query.fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    /// Closes the pool after its running statements.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A transaction on one connection.
pub struct Session {
    tx: Transaction<'static, Pg>,
    is_pooled: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Commits.
    pub async fn commit(self: Box<Self>) -> Result<(), Error> {
        self.tx.commit().await
    }

    /// Rolls back.
    pub async fn rollback(self: Box<Self>) -> Result<(), Error> {
        self.tx.rollback().await
    }
}

/// A query as an unnamed statement. Behind a pooler, another client may use the same name for
/// another statement.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Pg>> Execute<'q, Pg> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}

type Step = Either<PgQueryResult, PgRow>;
type Steps<'e> = BoxStream<'e, Result<Step, Error>>;

/// The first row; the statement runs to its end.
async fn first_row(mut steps: Steps<'_>) -> Result<Option<PgRow>, Error> {
    let mut first = None;
    while let Some(step) = steps.try_next().await? {
        if let Either::Right(row) = step {
            first.get_or_insert(row);
        }
    }
    Ok(first)
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Pg;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Steps<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, Pg>,
    {
        if self.is_pooled { self.tx.fetch_many(Unnamed(query)) } else { self.tx.fetch_many(query) }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Pg>,
    {
        if self.is_pooled { self.tx.fetch_optional(Unnamed(query)) } else { self.tx.fetch_optional(query) }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        self.tx.prepare_with(sql, parameters)
    }
}

impl<'p> Executor<'p> for &Pool {
    type Database = Pg;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Steps<'e>
    where
        'p: 'e,
        E: 'q + Execute<'q, Pg>,
    {
        if self.limits.is_none() {
            return self.pool.fetch_many(query);
        }
        let pool = self.clone();
        let steps = async move {
            let mut tx = pool.begin().await?;
            let steps: Vec<Step> = tx.fetch_many(query).try_collect().await?;
            // Rows are returned only after the commit.
            tx.commit().await?;
            Ok::<_, Error>(stream::iter(steps).map(Ok))
        };
        stream::once(steps).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Pg>,
    {
        Box::pin(first_row(self.fetch_many(query)))
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        self.pool.prepare_with(sql, parameters)
    }
}
