//! The handle that ends an open stream from another task. It does not know why or which streams are to end.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// The cancellation handle of one stream, stated as a fact of its request. At most one task may wait for it.
#[derive(Debug, Default)]
pub struct CancellationHandle(Mutex<State>);

/// Why a stream was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The binding of the key no longer admits the client.
    Binding,
    /// An operator has ended the stream.
    Operator,
    /// The process stops and its grace period is over.
    Stop,
}

#[derive(Debug, Default)]
struct State {
    reason: Option<CancelReason>,
    waiting: Option<Waker>,
}

impl CancellationHandle {
    /// Ends the stream. The reason of the first call is kept.
    pub fn cancel(&self, reason: CancelReason) {
        let mut state = self.0.lock();
        state.reason.get_or_insert(reason);
        state.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Ready once the stream was cancelled.
    pub fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<CancelReason> {
        let mut state = self.0.lock();
        if let Some(reason) = state.reason {
            return Poll::Ready(reason);
        }
        if !state.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            state.waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
