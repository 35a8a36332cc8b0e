//! By which an open stream is ended from elsewhere.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// A fact of an exchange whose stream ends when it is pulled. One task waits for that.
#[derive(Debug, Default)]
pub struct Leash(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pulled: bool,
    waiting: Option<Waker>,
}

impl Leash {
    /// The stream is to end.
    pub fn pull(&self) {
        let mut state = self.0.lock();
        state.pulled = true;
        state.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Ready once it was pulled.
    pub fn poll_pulled(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.pulled {
            return Poll::Ready(());
        }
        if !state.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            state.waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
