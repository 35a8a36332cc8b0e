//! Batches concurrent requests to the store: one statement, and one flush of the disk, for all that
//! are queued. Knows no SQL; the work function runs the statement.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::StoreError;
use tokio::sync::{Mutex, mpsc, oneshot};

/// The maximum length of the queue. Further callers wait for a free place.
const WAITING_MAX: usize = 4096;

type Waiting<Q, A> = (Q, oneshot::Sender<Result<A, StoreError>>);

/// Passes requests to a few workers, each of which takes all queued requests at once. The workers
/// run on the runtime on which this was created. They finish a batch even if the caller is
/// cancelled.
pub struct Batcher<Q, A> {
    queue: mpsc::Sender<Waiting<Q, A>>,
    answer_time_max: Duration,
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// `work` gets up to `at_once` requests and returns one result for each, in their order.
    pub fn new<F, W>(workers: usize, at_once: usize, answer_time_max: Duration, work: F) -> Self
    where
        F: Fn(Vec<Q>) -> W + Clone + Send + 'static,
        W: Future<Output = Vec<Result<A, StoreError>>> + Send,
    {
        let (queue, waiting) = mpsc::channel::<Waiting<Q, A>>(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..workers {
            let (waiting, work) = (Arc::clone(&waiting), work.clone());
            tokio::spawn(async move {
                loop {
                    let mut taken = Vec::new();
                    if waiting.lock().await.recv_many(&mut taken, at_once).await == 0 {
                        return;
                    }
                    // Requests of cancelled callers are dropped.
                    taken.retain(|(_, reply)| !reply.is_closed());
                    let (requests, replies): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
                    if requests.is_empty() {
                        continue;
                    }
                    let count = requests.len();
                    let answers = tokio::time::timeout(answer_time_max, work(requests)).await;
                    let answers = answers.unwrap_or_else(|_| (0..count).map(|_| Err(late(answer_time_max))).collect());
                    for (reply, answer) in replies.into_iter().zip(answers) {
                        let _ = reply.send(answer);
                    }
                }
            });
        }
        Self { queue, answer_time_max }
    }

    /// Queues a request and waits for its result, at most `answer_time_max`.
    pub async fn submit(&self, request: Q) -> Result<A, StoreError> {
        let answered = async {
            let (reply, answer) = oneshot::channel();
            let ended = || StoreError::Away("the store is closed".into());
            self.queue.send((request, reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        tokio::time::timeout(self.answer_time_max, answered).await.unwrap_or_else(|_| Err(late(self.answer_time_max)))
    }
}

fn late(after: Duration) -> StoreError {
    StoreError::Away(format!("the store did not answer within {after:?}"))
}
