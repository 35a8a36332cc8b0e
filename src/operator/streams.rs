//! Event streams that are open, on all replicas.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Fault;
use super::replica_questions::{Question, StreamMark};
use super::replicas::Everywhere;
use crate::sql::audit::{Actor, AuditLine};
use crate::telemetry::streams::{StreamInfo, Streams};
use crate::upstream::server_name;
use crate::util::time::millis;

/// An open stream.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Stream {
    /// Its number on its replica.
    pub id: u64,
    /// The replica it is open on.
    #[serde(default)]
    pub replica: String,
    /// When its request's header was complete.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// The same, in milliseconds since 1970.
    #[schema(ignore)]
    #[serde(skip_serializing_if = "Option::is_none")]
    started_ms: Option<i64>,
    /// For how many seconds it has been open.
    pub age_s: u64,
    /// Its route.
    pub route: String,
    /// The path.
    pub path: String,
    /// Whose it is.
    pub client: String,
    /// By which key.
    pub key_id: Option<String>,
    /// The key's hint.
    pub hint: Option<String>,
    /// Who he is, if that is known.
    pub subject: Option<String>,
    /// Its id in the logs.
    pub request_id: Option<String>,
    /// The server it comes from.
    pub upstream: Option<String>,
}

/// A page of them.
#[derive(Debug)]
pub struct Page {
    /// The oldest first.
    pub streams: Vec<Stream>,
    /// Where the next page begins.
    pub next: Option<StreamMark>,
    /// How many there are.
    pub total: u64,
    /// Replicas that have said nothing.
    pub silent: Vec<String>,
}

/// As one replica tells of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Here {
    streams: Vec<Stream>,
    total: u64,
}

/// As it is shown.
pub fn row(id: u64, about: &StreamInfo) -> Stream {
    Stream {
        id,
        replica: String::new(),
        started_at: humantime::format_rfc3339_millis(about.started_at).to_string(),
        started_ms: Some(millis(about.started_at)),
        age_s: about.started_at.elapsed().unwrap_or_default().as_secs(),
        route: about.route.clone(),
        path: about.path.clone(),
        client: about.client.to_string(),
        key_id: about.key.as_ref().map(|key| key.id.hex()),
        hint: about.key.as_ref().map(|key| key.hint.clone()),
        subject: about.subject.clone(),
        request_id: about.request_id.clone(),
        upstream: about.upstream.as_ref().map(server_name),
    }
}

/// Those of this replica that may come behind this one: the mark's replica may be another one, so those that began in the
/// same millisecond are told again.
pub fn here(streams: &Streams, after: Option<&StreamMark>, most: usize) -> Here {
    let from = after.map_or(i64::MIN, |mark| mark.0);
    let mut all: Vec<_> = streams.list(0, usize::MAX).into_iter().filter(|(_, about)| millis(about.started_at) >= from).collect();
    all.sort_by_key(|(id, about)| (millis(about.started_at), *id));
    // Of those that began with the mark's some were told before.
    let again = all.iter().take_while(|(_, about)| millis(about.started_at) == from).count();
    all.truncate(most.saturating_add(again));
    Here { streams: all.iter().map(|(id, about)| row(*id, about)).collect(), total: u64::try_from(streams.open.get()).unwrap_or(0) }
}

/// Those of all replicas, the oldest first.
pub async fn list(everywhere: &Everywhere, after: Option<StreamMark>, most: usize) -> Result<Page, Fault> {
    let heard = everywhere.ask::<Here>(&Question::Streams(after.clone(), most)).await?;
    let total = heard.said.iter().map(|(_, here)| here.total).sum();
    let mut marked: Vec<(StreamMark, Stream)> = Vec::new();
    for (replica, here) in heard.said {
        for stream in here.streams {
            let mark = StreamMark(stream.started_ms.unwrap_or_default(), replica.clone(), stream.id);
            if after.as_ref().is_none_or(|after| mark > *after) {
                marked.push((mark, Stream { replica: replica.clone(), started_ms: None, ..stream }));
            }
        }
    }
    marked.sort_by(|(one, _), (other, _)| one.cmp(other));
    let more = marked.len() > most;
    marked.truncate(most);
    let next = marked.last().filter(|_| more || marked.len() == most).map(|(mark, _)| mark.clone());
    Ok(Page { streams: marked.into_iter().map(|(_, stream)| stream).collect(), next, total, silent: heard.silent })
}

/// Ends one. What it was.
pub async fn end(everywhere: &Everywhere, id: u64, replica: Option<&str>, actor: &Actor) -> Result<Stream, Fault> {
    let replica = match replica {
        Some(replica) => replica.to_owned(),
        // Its number says nothing of where it is.
        None if !everywhere.others().await?.is_empty() => {
            return Err(Fault::invalid("replica", "there are several replicas: say on which it is open, as the list does"));
        }
        None => everywhere.replica.name(),
    };
    let missing = || Fault::Missing(format!("no stream {id} is open on `{replica}`"));
    let stream = everywhere.ask_one::<Option<Stream>>(&Question::Stream(id), &replica).await?.ok_or_else(missing)?;
    let stream = Stream { replica: replica.to_owned(), started_ms: None, ..stream };
    // First it is written down: nothing is done that nobody can know of.
    let line = AuditLine {
        action: "stream.ended",
        target: stream.request_id.clone().unwrap_or_else(|| id.to_string()),
        before: serde_json::to_string(&stream).ok(),
        after: None,
    };
    everywhere.store.admin_store().write_audit(line, actor).await?;
    everywhere.ask_one::<bool>(&Question::EndStream(id), &replica).await?;
    tracing::info!(by = actor.who, client = stream.client, route = stream.route, replica, "a stream was ended");
    Ok(stream)
}
