//! Open streams of all replicas: lists them in pages, and ends one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Fault;
use super::replica_query::{ReplicaQuery, StreamCursor};
use super::replica_rpc::ReplicaRpc;
use crate::sql::audit::{Actor, AuditLine};
use crate::telemetry::streams::{StreamInfo, Streams};
use crate::upstream::server_name;
use crate::util::time::millis;

/// An open stream.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Stream {
    /// The id on its replica.
    pub id: u64,
    /// The replica that serves it.
    #[serde(default)]
    pub replica: String,
    /// When the request's header was complete.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// The start time in milliseconds since 1970.
    #[schema(ignore)]
    #[serde(skip_serializing_if = "Option::is_none")]
    started_ms: Option<i64>,
    /// Age in seconds.
    pub age_s: u64,
    /// The route.
    pub route: String,
    /// The path of the request.
    pub path: String,
    /// The client address.
    pub client: String,
    /// The id of the client's key.
    pub key_id: Option<String>,
    /// The key's hint.
    pub hint: Option<String>,
    /// The authenticated subject, if known.
    pub subject: Option<String>,
    /// The request id in the logs.
    pub request_id: Option<String>,
    /// The upstream server.
    pub upstream: Option<String>,
}

/// A page of streams.
#[derive(Debug)]
pub struct Page {
    /// Oldest first.
    pub streams: Vec<Stream>,
    /// The cursor of the next page.
    pub next: Option<StreamCursor>,
    /// The number of open streams.
    pub total: u64,
    /// Replicas that did not answer in time.
    pub silent: Vec<String>,
}

/// The report of one replica.
#[derive(Debug, Serialize, Deserialize)]
pub struct LocalStreams {
    streams: Vec<Stream>,
    total: u64,
}

/// Describes a stream for the API.
pub fn to_stream(id: u64, about: &StreamInfo) -> Stream {
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

/// Streams of this replica that may follow the cursor. Those that began in the cursor's millisecond are included, since
/// the cursor may name another replica.
pub fn local_streams(streams: &Streams, after: Option<&StreamCursor>, most: usize) -> LocalStreams {
    let from = after.map_or(i64::MIN, |mark| mark.0);
    let mut all: Vec<_> = streams.list(0, usize::MAX).into_iter().filter(|(_, about)| millis(about.started_at) >= from).collect();
    all.sort_by_key(|(id, about)| (millis(about.started_at), *id));
    // Streams of the cursor's millisecond may be repeated, so they do not count towards the page.
    let again = all.iter().take_while(|(_, about)| millis(about.started_at) == from).count();
    all.truncate(most.saturating_add(again));
    LocalStreams {
        streams: all.iter().map(|(id, about)| to_stream(*id, about)).collect(),
        total: u64::try_from(streams.open.get()).unwrap_or(0),
    }
}

/// Open streams of all replicas, oldest first.
pub async fn list(rpc: &ReplicaRpc, after: Option<StreamCursor>, most: usize) -> Result<Page, Fault> {
    let replies = rpc.query_all::<LocalStreams>(&ReplicaQuery::Streams(after.clone(), most)).await?;
    let total = replies.replies.iter().map(|(_, report)| report.total).sum();
    let mut marked: Vec<(StreamCursor, Stream)> = Vec::new();
    for (replica, report) in replies.replies {
        for stream in report.streams {
            let mark = StreamCursor(stream.started_ms.unwrap_or_default(), replica.clone(), stream.id);
            if after.as_ref().is_none_or(|after| mark > *after) {
                marked.push((mark, Stream { replica: replica.clone(), started_ms: None, ..stream }));
            }
        }
    }
    marked.sort_by(|(one, _), (other, _)| one.cmp(other));
    let more = marked.len() > most;
    marked.truncate(most);
    let next = marked.last().filter(|_| more || marked.len() == most).map(|(mark, _)| mark.clone());
    Ok(Page { streams: marked.into_iter().map(|(_, stream)| stream).collect(), next, total, silent: replies.silent })
}

/// Ends a stream, and returns its description.
pub async fn end(rpc: &ReplicaRpc, id: u64, replica: Option<&str>, actor: &Actor) -> Result<Stream, Fault> {
    let replica = match replica {
        Some(replica) => replica.to_owned(),
        // Stream ids are unique on one replica only.
        None if !rpc.others().await?.is_empty() => {
            return Err(Fault::invalid(
                "replica",
                "several replicas are running: name the stream's replica, as shown in the list of streams",
            ));
        }
        None => rpc.replica.name(),
    };
    let missing = || Fault::NotFound(format!("the replica `{replica}` has no open stream {id}"));
    let stream = rpc.query_one::<Option<Stream>>(&ReplicaQuery::Stream(id), &replica).await?.ok_or_else(missing)?;
    let stream = Stream { replica: replica.to_owned(), started_ms: None, ..stream };
    // The audit entry comes first: no action without an entry.
    let line = AuditLine {
        action: "stream.ended",
        target: stream.request_id.clone().unwrap_or_else(|| id.to_string()),
        before: serde_json::to_string(&stream).ok(),
        after: None,
    };
    rpc.store.admin_store().write_audit(line, actor).await?;
    rpc.query_one::<bool>(&ReplicaQuery::EndStream(id), &replica).await?;
    tracing::info!(by = actor.who, client = stream.client, route = stream.route, replica, "stream ended by an operator");
    Ok(stream)
}
