//! By which an open stream is ended from elsewhere.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// A fact of an exchange whose stream ends when it is pulled. One task waits for that.
#[derive(Debug, Default)]
pub struct Leash(Mutex<State>);

/// Why a stream ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// Its key may not be used from there any more.
    Binding,
    /// An operator has ended it.
    Operator,
    /// The process ends, and so long it has waited.
    Stop,
}

#[derive(Debug, Default)]
struct State {
    pulled: Option<Pulled>,
    waiting: Option<Waker>,
}

impl Leash {
    /// The stream is to end.
    pub fn pull(&self, why: Pulled) {
        let mut state = self.0.lock();
        state.pulled.get_or_insert(why);
        state.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Ready once it was pulled.
    pub fn poll_pulled(&self, cx: &mut Context<'_>) -> Poll<Pulled> {
        let mut state = self.0.lock();
        if let Some(why) = state.pulled {
            return Poll::Ready(why);
        }
        if !state.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            state.waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}
