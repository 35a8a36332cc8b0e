//! Live events for the console as server-sent events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::Stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::dashboard::{Now, now};
use super::extract::{May, READ, Revalidation};
use super::paging::cursor;
use super::problem::{Answer, Problems};
use super::{Api, logs};
use crate::operator::accounts::now_ms;
use crate::sql::intercepts::{InterceptCursor, InterceptQuery, Intercepted};

/// Polling interval.
const EVERY: Duration = Duration::from_secs(2);
/// Maximum rows of one poll; more than that no browser can usefully show.
const AT_ONCE: u32 = 200;
/// Age up to which the count of a row can still grow: pending writes reach the store within this time.
const BACK_MS: i64 = 120_000;

/// The content of an event.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes events for the document")]
pub enum Happened {
    /// The current state, every two seconds.
    Now(Now),
    /// Intercepts since the previous event, each with the increase of its count.
    Intercepts(Vec<logs::Intercept>),
    /// The store is unavailable.
    Away(String),
}

/// Follow events
///
/// The response is an event stream (`text/event-stream`). It ends when the token expires or is revoked: reconnect with a fresh
/// token.
#[utoipa::path(get, path = "/admin/api/events", tag = "dashboard", security(("bearer" = ["read"])),
    responses((status = 200, body = Happened, content_type = "text/event-stream"), Problems))]
pub async fn follow(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    revalidation: Revalidation,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let seen = seen(&latest(&api).await?);
    let stream = futures::stream::unfold(
        (api, revalidation, seen, Vec::new(), true),
        |(api, revalidation, mut seen, mut waiting, mut first)| async move {
            loop {
                if let Some(event) = waiting.pop() {
                    return Some((Ok(event), (api, revalidation, seen, waiting, first)));
                }
                if !first {
                    // Rows come from any replica, without notifications, so the store is polled.
                    tokio::time::sleep(EVERY).await;
                    revalidation.check(&api).await.ok()?;
                }
                first = false;
                waiting = poll(&api, &mut seen).await;
            }
        },
    );
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// The count of each recent row at the last poll.
type Seen = HashMap<String, i64>;

/// The rows of the last minutes; the counts of older ones no longer grow.
async fn latest(api: &Api) -> Answer<Vec<Intercepted>> {
    let since_ms = Some((now_ms() - BACK_MS).max(0)).map(|ms| ms - ms.rem_euclid(60_000));
    Ok(api.store.admin_store().intercepts(&InterceptQuery { since_ms, limit: AT_ONCE, ..InterceptQuery::default() }).await?.rows)
}

/// The identity of a row, independent of its count.
fn identity(row: &Intercepted) -> String {
    cursor(&InterceptCursor { last_ms: 0, ..row.mark.clone() })
}

fn seen(rows: &[Intercepted]) -> Seen {
    rows.iter().map(|row| (identity(row), row.count)).collect()
}

/// The events since the last poll, in reverse order.
async fn poll(api: &Api, before: &mut Seen) -> Vec<Event> {
    let (rows, now) = match (latest(api).await, now(api).await) {
        (Ok(rows), Ok((now, _))) => (rows, now),
        _ => return vec![event("away", &"the store does not answer")],
    };
    let after = seen(&rows);
    let more = |row: Intercepted| {
        let count = row.count - before.get(&identity(&row)).copied().unwrap_or(0);
        (count > 0).then(|| logs::Intercept::from(Intercepted { count, ..row }))
    };
    let fresh: Vec<logs::Intercept> = rows.into_iter().filter_map(more).collect();
    *before = after;
    let mut events = Vec::new();
    if !fresh.is_empty() {
        events.push(event("intercepts", &fresh));
    }
    events.push(event("now", &now));
    events
}

fn event<T: Serialize>(name: &str, what: &T) -> Event {
    Event::default().event(name).data(serde_json::to_string(what).unwrap_or_default())
}
