//! Questions that come at once, answered together: by one statement, and by one flush of the disk.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::StoreError;
use tokio::sync::{Mutex, mpsc, oneshot};

/// Questions that wait; past it, whoever asks waits for a place.
const WAITING_MAX: usize = 4096;

type Waiting<Q, A> = (Q, oneshot::Sender<Result<A, StoreError>>);

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
                    taken.retain(|(_, tell)| !tell.is_closed());
                    let (asked, tells): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
                    if asked.is_empty() {
                        continue;
                    }
                    let count = asked.len();
                    let answers = tokio::time::timeout(answer_time_max, work(asked)).await;
                    let answers = answers.unwrap_or_else(|_| (0..count).map(|_| Err(late(answer_time_max))).collect());
                    for (tell, answer) in tells.into_iter().zip(answers) {
                        let _ = tell.send(answer);
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
            let ended = || StoreError::Away("the store has ended".into());
            self.questions.send((question, tell)).await.map_err(|_| ended())?;
            told.await.map_err(|_| ended())?
        };
        tokio::time::timeout(self.answer_time_max, asked).await.unwrap_or_else(|_| Err(late(self.answer_time_max)))
    }
}

fn late(after: Duration) -> StoreError {
    StoreError::Away(format!("the store did not answer within {after:?}"))
}
