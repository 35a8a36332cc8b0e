//! Pingora's listening service on an existing socket, opened by this process or handed over by
//! another. Connections are handled in `acceptor`.

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

use super::acceptor::Acceptor;

/// The interval of the heartbeats of the request threads.
const BEAT: Duration = Duration::from_secs(1);

/// The heartbeats of the request threads.
pub struct Pulse {
    began: Instant,
    /// The last heartbeat of each runtime, in milliseconds since `began`.
    beats_ms: Mutex<Vec<Arc<AtomicU64>>>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { began: Instant::now(), beats_ms: Mutex::default() }
    }
}

impl Pulse {
    /// The time since the last heartbeat of the runtime that has been silent for longest.
    pub fn age(&self) -> Duration {
        let oldest_ms = self.beats_ms.lock().iter().map(|beat| beat.load(Ordering::Relaxed)).min();
        self.began.elapsed().saturating_sub(Duration::from_millis(oldest_ms.unwrap_or(0)))
    }

    async fn beat(self: Arc<Self>) {
        let beat_ms = Arc::<AtomicU64>::default();
        self.beats_ms.lock().push(Arc::clone(&beat_ms));
        let mut beats = tokio::time::interval(BEAT);
        loop {
            beats.tick().await;
            beat_ms.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

/// The service of one listener.
pub struct ListenerService {
    inner: Service<Acceptor>,
    socket: ListenFds,
    pulse: Arc<Pulse>,
    events: UnboundedSender<ListenerEvent>,
}

/// An event of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerEvent {
    /// It accepts connections.
    Begun,
    /// It accepts no more connections; the last accepted one may not be counted yet.
    Ended,
}

impl ListenerService {
    /// `inner` listens at `address` only; `events` receives the start and the end of the listener.
    pub fn new(
        inner: Service<Acceptor>,
        address: &str,
        socket: TcpListener,
        pulse: Arc<Pulse>,
        events: UnboundedSender<ListenerEvent>,
    ) -> Self {
        let mut sockets = Fds::new();
        // From here on Pingora owns the socket.
        sockets.add(address.to_owned(), socket.into_raw_fd());
        Self { inner, socket: Arc::new(Mutex::new(sockets)), pulse, events }
    }
}

#[async_trait]
impl PingoraService for ListenerService {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, listeners_per_fd: usize) {
        tokio::spawn(Arc::clone(&self.pulse).beat());
        // An error means that the receiver is gone.
        let _ = self.events.send(ListenerEvent::Begun);
        self.inner.start_service(Some(Arc::clone(&self.socket)), shutdown, listeners_per_fd).await;
        let _ = self.events.send(ListenerEvent::Ended);
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads()
    }
}
