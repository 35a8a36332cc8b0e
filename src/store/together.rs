//! Questions that come at once, answered together: by one statement, and by one flush of the disk.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::StoreError;
use tokio::sync::{Mutex, mpsc, oneshot};

/// Questions that wait; past it, whoever asks waits for a place.
const WAITING_MAX: usize = 4096;

/// Without a sender nobody waits for the answer.
type Waiting<Q, A> = (Q, Option<oneshot::Sender<Result<A, StoreError>>>);

/// Hands questions to a few workers, each of which takes all that wait. The workers run where this was made,
/// whoever asks, and finish what they began when he leaves.
pub struct Together<Q, A> {
    questions: mpsc::Sender<Waiting<Q, A>>,
    answer_time_max: Duration,
}

impl<Q: Send + 'static, A: Send + 'static> Together<Q, A> {
    /// `work` is handed up to `at_once` questions and answers each, in their order.
    pub fn new<F, W>(workers: usize, at_once: usize, answer_time_max: Duration, work: F) -> Self
    where
        F: Fn(Vec<Q>) -> W + Clone + Send + 'static,
        W: Future<Output = Vec<Result<A, StoreError>>> + Send,
    {
        let (questions, waiting) = mpsc::channel::<Waiting<Q, A>>(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..workers {
            let (waiting, work) = (Arc::clone(&waiting), work.clone());
            tokio::spawn(async move {
                loop {
                    let mut taken = Vec::new();
                    if waiting.lock().await.recv_many(&mut taken, at_once).await == 0 {
                        return;
                    }
                    // Whoever has stopped waiting meanwhile is not worked for.
                    taken.retain(|(_, tell)| tell.as_ref().is_none_or(|tell| !tell.is_closed()));
                    let (asked, tells): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
                    if asked.is_empty() {
                        continue;
                    }
                    for (tell, answer) in tells.into_iter().zip(work(asked).await) {
                        let _ = tell.map(|tell| tell.send(answer));
                    }
                }
            });
        }
        Self { questions, answer_time_max }
    }

    /// Asks, and waits for the answer, at most the time that was set.
    pub async fn ask(&self, question: Q) -> Result<A, StoreError> {
        let asked = async {
            let (tell, told) = oneshot::channel();
            let ended = || StoreError("the store has ended".into());
            self.questions.send((question, Some(tell))).await.map_err(|_| ended())?;
            told.await.map_err(|_| ended())?
        };
        let late = || StoreError(format!("the store did not answer within {:?}", self.answer_time_max));
        tokio::time::timeout(self.answer_time_max, asked).await.unwrap_or_else(|_| Err(late()))
    }

    /// Asks without waiting for an answer. False: too many wait.
    pub fn tell(&self, question: Q) -> bool {
        self.questions.try_send((question, None)).is_ok()
    }
}
