//! What happens, as it happens: server-sent events.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::Stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::dashboard::{Now, now};
use super::extract::{Anybody, From, May, READ, bearer};
use super::problem::{Answer, Problem, Problems};
use super::{Api, Known, logs};
use crate::store::intercepts::{Intercepted, Mark, Wanted};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(2);
/// Rows of one look; a browser that is flooded shows nobody anything.
const AT_ONCE: u32 = 50;

/// What an event carries.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes events for the document")]
pub enum Happened {
    /// Every two seconds: how things are.
    Now(Now),
    /// Intercepts that were written since the last look, the latest first.
    Intercepts(Vec<logs::Intercept>),
    /// The store does not answer.
    Away(String),
}

/// Follow what happens
///
/// An event stream (`text/event-stream`). It ends when the token expires or is revoked: begin it anew with a fresh one.
#[utoipa::path(get, path = "/admin/api/events", tag = "dashboard", security(("bearer" = ["read"])),
    responses((status = 200, body = Happened, content_type = "text/event-stream"), Problems))]
pub async fn follow(
    State(api): State<Arc<Api>>,
    May(_caller): May<READ>,
    again: Again,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let seen = latest(&api).await?;
    let stream =
        futures::stream::unfold((api, again, seen, Vec::new(), true), |(api, again, mut seen, mut waiting, mut first)| async move {
            loop {
                if let Some(event) = waiting.pop() {
                    return Some((Ok(event), (api, again, seen, waiting, first)));
                }
                if !first {
                    tokio::time::sleep(EVERY).await;
                    // Whoever was signed out meanwhile sees nothing more.
                    again.still(&api).await?;
                }
                first = false;
                waiting = look(&api, &mut seen).await;
            }
        });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// Who follows, and may go on to.
pub struct Again {
    token: String,
    from: IpAddr,
}

impl FromRequestParts<Known> for Again {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, known: &Known) -> Result<Self, Problem> {
        let From(from) = From::from_request_parts(parts, known).await?;
        let Anybody(_) = Anybody::from_request_parts(parts, known).await?;
        let token = bearer(&parts.headers).unwrap_or_default().to_owned();
        Ok(Self { token, from })
    }
}

impl Again {
    async fn still(&self, api: &Api) -> Option<()> {
        api.door.caller(&api.store, &self.token, self.from).await.ok().map(|_| ())
    }
}

/// Where the latest intercept stands, and how often it was.
type Seen = Option<(Mark, i64)>;

async fn latest(api: &Api) -> Answer<Seen> {
    let page = api.store.desk().intercepts(&Wanted { limit: 1, ..Wanted::default() }).await?;
    Ok(page.rows.into_iter().next().map(|row| (row.mark, row.count)))
}

/// What is new, the last of it first.
async fn look(api: &Api, seen: &mut Seen) -> Vec<Event> {
    let wanted = Wanted { limit: AT_ONCE, ..Wanted::default() };
    let (rows, now) = match (api.store.desk().intercepts(&wanted).await, now(api).await) {
        (Ok(page), Ok((now, _))) => (page.rows, now),
        (Err(error), _) => return vec![event("away", &error.to_string())],
        (_, Err(_)) => return vec![event("away", &"the store does not answer".to_owned())],
    };
    let known = |row: &Intercepted| seen.as_ref().is_some_and(|(mark, count)| *mark == row.mark && *count == row.count);
    let fresh: Vec<_> = rows.into_iter().take_while(|row| !known(row)).collect();
    let mut events = Vec::new();
    if let Some(first) = fresh.first() {
        *seen = Some((first.mark.clone(), first.count));
        let shown: Vec<logs::Intercept> = fresh.into_iter().map(logs::Intercept::from).collect();
        events.push(event("intercepts", &shown));
    }
    events.push(event("now", &now));
    events
}

fn event<T: Serialize>(name: &str, what: &T) -> Event {
    Event::default().event(name).data(serde_json::to_string(what).unwrap_or_default())
}
