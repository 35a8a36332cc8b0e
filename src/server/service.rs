//! Pingora's listening service on a socket that is there already, made by this process or handed to it by another.

use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as PingoraService;
use pingora::services::listening::Service;
use tokio::sync::mpsc::UnboundedSender;

use super::acceptor::Door;

/// How often the threads that carry requests say that they are alive.
const BEAT: Duration = Duration::from_secs(1);

/// Whether the threads that carry requests move.
pub struct Pulse {
    began: Instant,
    /// Of the last beat, in milliseconds since the beginning.
    beat_ms: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { began: Instant::now(), beat_ms: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// How long ago they have moved.
    pub fn age(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.beat_ms.load(Ordering::Relaxed)))
    }

    async fn beat(self: Arc<Self>) {
        let mut beats = tokio::time::interval(BEAT);
        loop {
            beats.tick().await;
            self.beat_ms.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

/// One listener's service.
pub struct Listening {
    inner: Service<Door>,
    socket: ListenFds,
    pulse: Arc<Pulse>,
    tell: UnboundedSender<Listens>,
}

/// What a listener says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listens {
    /// It has begun.
    Begun,
    /// It takes no more connections; one that it has taken at last may not be counted yet.
    Ended,
}

impl Listening {
    /// `inner` listens at `address` and nowhere else; `tell` hears when it does, and when no more.
    pub fn new(inner: Service<Door>, address: &str, socket: TcpListener, pulse: Arc<Pulse>, tell: UnboundedSender<Listens>) -> Self {
        let mut sockets = Fds::new();
        // From here on it is Pingora's to close.
        sockets.add(address.to_owned(), socket.into_raw_fd());
        Self { inner, socket: Arc::new(Mutex::new(sockets)), pulse, tell }
    }
}

#[async_trait]
impl PingoraService for Listening {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        tokio::spawn(Arc::clone(&self.pulse).beat());
        // Nobody waits for it any more, if this fails.
        let _ = self.tell.send(Listens::Begun);
        self.inner.start_service(Some(Arc::clone(&self.socket)), shutdown, listeners_per_fd).await;
        let _ = self.tell.send(Listens::Ended);
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads()
    }
}
