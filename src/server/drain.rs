//! Ends HTTP/2 connections when the process stops: GOAWAY is sent after the last stream has ended.
//! Some clients fail all open streams when they receive GOAWAY, although RFC 9113, section 6.8,
//! lets those streams continue.

use std::time::Duration;

use pingora::server::ShutdownWatch;
use tokio::sync::watch::{Receiver, Sender};

use super::stop::Stop;
use crate::config::model::Shutdown;
use crate::listener::conn::Conn;

/// A connection is idle after this time without an open stream: a client that has read a response
/// may send the next request at once, and would otherwise get GOAWAY instead of its response.
const IDLE: Duration = Duration::from_millis(200);
/// A connection that is never idle gets GOAWAY after this time, or after 90 % of the drain if that
/// is sooner.
const BUSY_MAX: Duration = Duration::from_secs(600);

/// Drains the HTTP/2 connections of a listener.
pub struct Drain {
    /// Whether and how the process stops.
    pub stop: Receiver<Stop>,
    /// The durations of the drain.
    pub shutdown: Shutdown,
    /// How long a client may take to close its connection after GOAWAY.
    pub close_timeout: Duration,
}

impl Drain {
    /// Waits until the process stops, then ends the connection through `shutdown`, to which Pingora
    /// reacts with GOAWAY. Never returns.
    pub async fn end(&self, conn: &Conn, mut stopping: ShutdownWatch, shutdown: Sender<bool>) {
        // An error means that the server is gone, so the connection ends as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        if let Some(http2) = conn.http2() {
            let begun = http2.begun();
            let busy = async {
                self.nearly_over().await;
                // Earlier streams end by themselves, and without new ones GOAWAY is not needed.
                http2.begun_above(begun).await;
            };
            tokio::select! {
                () = http2.idle_for(IDLE) => {}
                () = busy => {}
            }
        }
        let _ = shutdown.send(true);
        if let Some(http2) = conn.http2() {
            // A client that does not read while idle does not close either.
            http2.idle_for(self.close_timeout).await;
            http2.close();
        }
        std::future::pending().await
    }

    /// Waits until 90 % of the drain has passed.
    async fn nearly_over(&self) {
        let mut stop = self.stop.clone();
        loop {
            let drain = match *stop.borrow_and_update() {
                Stop::HandedOver => self.shutdown.upgrade_drain.0,
                Stop::No | Stop::Drain => self.shutdown.drain.0,
                Stop::Cut | Stop::Now => Duration::ZERO,
            };
            tokio::select! {
                () = tokio::time::sleep((drain * 9 / 10).min(BUSY_MAX)) => return,
                changed = stop.changed() => if changed.is_err() { return },
            }
        }
    }
}
