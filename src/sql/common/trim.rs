//! Retention of sessions, tokens, sign-in counters, replica states and counts in either database.
//! Compiled once for each. Each database has a retention of its own for bindings, intercepts and the audit log.

use super::DbPool;
use crate::sql::accounts::FORGOTTEN_MS;
use crate::sql::samples::{HOUR_S, MINUTE_S, MINUTES_KEPT_MS};

/// Expired tokens and silent replicas are listed for this long.
const SHOWN_MS: i64 = 7 * 24 * 3600 * 1000;

/// Deletes old rows and returns their number. Hourly counts older than `audit_ms` are deleted, as
/// the audit log is.
pub async fn trim(pool: &DbPool, now_ms: i64, audit_ms: i64) -> sqlx::Result<u64> {
    let mut gone = 0;
    for (statement, oldest) in [
        ("DELETE FROM sessions WHERE expires_ms < $1", now_ms),
        ("DELETE FROM tokens WHERE expires_ms < $1", now_ms - SHOWN_MS),
        ("DELETE FROM login_failures WHERE last_ms < $1", now_ms - FORGOTTEN_MS),
        ("DELETE FROM replicas WHERE seen_ms < $1", now_ms - SHOWN_MS),
    ] {
        gone += sqlx::query(statement).bind(oldest).execute(pool).await?.rows_affected();
    }
    for (step_s, oldest) in [(MINUTE_S, now_ms - MINUTES_KEPT_MS), (HOUR_S, audit_ms)] {
        for statement in ["DELETE FROM samples WHERE step_s = $1 AND at_ms < $2", "DELETE FROM tops WHERE step_s = $1 AND at_ms < $2"] {
            gone += sqlx::query(statement).bind(step_s).bind(oldest).execute(pool).await?.rows_affected();
        }
    }
    Ok(gone)
}
