//! How an HTTP/2 connection ends when the process stops: GOAWAY is sent when its last stream has ended. Some clients fail all
//! open streams when they receive one, although RFC 9113, section 6.8, lets those go on.

use std::time::Duration;

use pingora::server::ShutdownWatch;
use tokio::sync::watch::{Receiver, Sender};

use super::stop::Stop;
use crate::config::model::Shutdown;
use crate::listener::conn::Conn;

/// A connection is idle once no stream was open for so long: a client that has read a response may send the next request at once,
/// and would see GOAWAY instead of its response.
const IDLE: Duration = Duration::from_millis(200);
/// A connection that is never idle gets GOAWAY after so long all the same, or late in the drain if that is sooner.
const BUSY_MAX: Duration = Duration::from_secs(600);

/// Ends the HTTP/2 connections of a listener.
pub struct Drain {
    /// Whether, and how, the process stops.
    pub stop: Receiver<Stop>,
    /// How long it takes for that.
    pub shutdown: Shutdown,
    /// How long a client may take to close its connection after GOAWAY.
    pub close_timeout: Duration,
}

impl Drain {
    /// Waits until the process stops, then ends the connection by `tell`, to which Pingora answers with GOAWAY. Never returns.
    pub async fn end(&self, conn: &Conn, mut stopping: ShutdownWatch, tell: Sender<bool>) {
        // An error: the server is gone, so it is time as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        if let Some(http2) = conn.http2() {
            let begun = http2.begun();
            let busy = async {
                self.late().await;
                // Streams that have begun before end by themselves, and without new ones nobody need be told.
                http2.more_than(begun).await;
            };
            tokio::select! {
                () = http2.idle_for(IDLE) => {}
                () = busy => {}
            }
        }
        let _ = tell.send(true);
        if let Some(http2) = conn.http2() {
            // A client that does not read while it is idle does not close either.
            http2.idle_for(self.close_timeout).await;
            http2.close();
        }
        std::future::pending().await
    }

    /// Waits until most of the drain is over.
    async fn late(&self) {
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
