//! Answers [`ReplicaQuery`] for this replica, from its own streams and limits.

use std::sync::Arc;

use keylatch_filters::contract::{BoxFuture, UsageTracker};
use serde_json::Value;

use super::replica_query::ReplicaQuery;
use super::replica_rpc::QueryHandler;
use super::{Fault, limits, streams};
use crate::telemetry::streams::Streams;

/// The parts of this process that the queries read.
pub struct LocalQueries {
    /// Open streams of this replica.
    pub streams: Arc<Streams>,
    /// Subjects near or over a limit on this replica.
    pub near: Arc<UsageTracker>,
}

impl QueryHandler for LocalQueries {
    fn answer<'a>(&'a self, query: &'a ReplicaQuery) -> BoxFuture<'a, Result<Value, Fault>> {
        Box::pin(async move {
            let reply = match query {
                ReplicaQuery::Streams(after, most) => serde_json::to_value(streams::local_streams(&self.streams, after.as_ref(), *most)),
                ReplicaQuery::Stream(id) => serde_json::to_value(self.streams.get(*id).map(|about| streams::to_stream(*id, &about))),
                ReplicaQuery::EndStream(id) => serde_json::to_value(self.streams.end(*id).is_some()),
                ReplicaQuery::Limits => serde_json::to_value(limits::local_limits(&self.near).await),
                ReplicaQuery::ResetLimit(which) => {
                    serde_json::to_value(self.near.forget(&which.place, &which.limit, &which.subject).await?)
                }
            };
            reply.map_err(|e| Fault::Unavailable(e.to_string()))
        })
    }
}
