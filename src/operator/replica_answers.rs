//! What this replica answers to the questions of others, and to its own.

use std::sync::Arc;

use keylatch_filters::contract::{BoxFuture, UsageTracker};
use serde_json::Value;

use super::replica_questions::Question;
use super::replicas::Answers;
use super::{Fault, limits, streams};
use crate::telemetry::streams::Streams;

/// The parts of this process that know.
pub struct LocalAnswers {
    /// The streams open here.
    pub streams: Arc<Streams>,
    /// Clients and keys near a limit here.
    pub near: Arc<UsageTracker>,
}

impl Answers for LocalAnswers {
    fn answer<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Result<Value, Fault>> {
        Box::pin(async move {
            let said = match question {
                Question::Streams(after, most) => serde_json::to_value(streams::here(&self.streams, after.as_ref(), *most)),
                Question::Stream(id) => serde_json::to_value(self.streams.get(*id).map(|about| streams::row(*id, &about))),
                Question::EndStream(id) => serde_json::to_value(self.streams.end(*id).is_some()),
                Question::Limits => serde_json::to_value(limits::here(&self.near).await),
                Question::GiveBack(which) => serde_json::to_value(self.near.forget(&which.place, &which.limit, &which.subject).await?),
            };
            said.map_err(|e| Fault::Away(e.to_string()))
        })
    }
}
