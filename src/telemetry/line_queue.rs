//! A bounded queue of log lines with one thread that writes them.
//!
//! It never blocks the caller: lines that do not fit are dropped and counted.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

/// The limits of one queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The capacity, in bytes. Lines beyond it are dropped.
    pub waiting_bytes_max: usize,
    /// The pause of the thread after a write, so that the next lines form a batch.
    pub pause: Duration,
}

/// The sender's side. A clone is the same queue.
#[derive(Clone)]
pub struct LineQueue(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Wakes the thread.
    filled: Condvar,
    /// Wakes callers of [`LineQueue::flush`].
    written: Condvar,
    limits: Limits,
    dropped: IntCounter,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    writing: bool,
    /// The number of writes since the start, by which a flush knows when its lines are written.
    writes: u64,
}

impl LineQueue {
    /// Starts the thread. `write` gets whole lines; lines it fails to write count as dropped.
    pub fn start(
        name: &str,
        limits: Limits,
        dropped: IntCounter,
        write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let state = Mutex::default();
        let queue = Self(Arc::new(Inner { state, filled: Condvar::new(), written: Condvar::new(), limits, dropped }));
        let inner = Arc::clone(&queue.0);
        std::thread::Builder::new().name(name.into()).spawn(move || inner.run(write))?;
        Ok(queue)
    }

    /// Adds what `line` writes, which must end with a line feed.
    pub fn push(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.state.lock();
        if state.waiting.len() > self.0.limits.waiting_bytes_max {
            drop(state);
            self.0.dropped.inc();
            return;
        }
        let was_empty = state.waiting.is_empty();
        line(&mut state.waiting);
        drop(state);
        if was_empty {
            self.0.filled.notify_one();
        }
    }

    /// Waits until all lines pushed so far are written, for at most `wait_max`. Returns whether they are.
    pub fn flush(&self, wait_max: Duration) -> bool {
        let until = Instant::now() + wait_max;
        let mut state = self.0.state.lock();
        // The batch that is being written is one write, the waiting lines are the next one.
        let needed = state.writes + u64::from(state.writing) + u64::from(!state.waiting.is_empty());
        while state.writes < needed {
            if self.0.written.wait_until(&mut state, until).timed_out() {
                return state.writes >= needed;
            }
        }
        true
    }
}

impl Inner {
    fn run(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        let mut batch = Vec::new();
        loop {
            {
                let mut state = self.state.lock();
                while state.waiting.is_empty() {
                    self.filled.wait(&mut state);
                }
                std::mem::swap(&mut batch, &mut state.waiting);
                state.writing = true;
            }
            if write(&batch).is_err() {
                let lines = batch.iter().filter(|byte| **byte == b'\n').count();
                self.dropped.inc_by(u64::try_from(lines).unwrap_or(u64::MAX));
            }
            batch.clear();
            {
                let mut state = self.state.lock();
                state.writing = false;
                state.writes += 1;
            }
            self.written.notify_all();
            if !self.limits.pause.is_zero() {
                #[expect(clippy::disallowed_methods, reason = "this thread only writes; the pause collects lines into a batch")]
                std::thread::sleep(self.limits.pause);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMITS: Limits = Limits { waiting_bytes_max: 8, pause: Duration::ZERO };

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "dropped").unwrap()
    }

    #[test]
    fn a_blocked_writer_drops_lines_and_blocks_no_caller() {
        let (release, wait) = mpsc::channel::<()>();
        let (wrote, written) = mpsc::channel();
        let dropped = counter();
        let queue = LineQueue::start("test", LIMITS, dropped.clone(), move |batch| {
            wrote.send(batch.to_vec()).unwrap();
            // Ends when the sender is dropped, too.
            let _ = wait.recv();
            Ok(())
        })
        .unwrap();
        queue.push(|out| out.extend_from_slice(b"first\n"));
        assert_eq!(written.recv().unwrap(), b"first\n");
        // The writer is blocked now: nine bytes fit, the line after them does not.
        queue.push(|out| out.extend_from_slice(b"12345678\n"));
        queue.push(|out| out.extend_from_slice(b"too much\n"));
        assert_eq!(dropped.get(), 1);
        assert!(!queue.flush(Duration::from_millis(1)), "a flush ends although the writer is blocked");
        drop(release);
        assert!(queue.flush(Duration::from_secs(10)));
        assert_eq!(written.recv().unwrap(), b"12345678\n");
        assert!(queue.flush(Duration::ZERO), "a flush of an empty queue does not wait");
    }

    #[test]
    fn lines_that_cannot_be_written_count_as_dropped() {
        let dropped = counter();
        let queue = LineQueue::start("test", LIMITS, dropped.clone(), |_| Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        queue.push(|out| out.extend_from_slice(b"a\nb\n"));
        assert!(queue.flush(Duration::from_secs(10)));
        assert_eq!(dropped.get(), 2);
    }
}
