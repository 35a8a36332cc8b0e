//! The access log: one line of JSON a request, on standard output.
//!
//! Requests put lines into a buffer; one thread writes it out. A reader that is too slow costs lines,
//! which are counted, and never costs a request its time.

use std::io::Write;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use serde::Serialize;

/// Lines that wait to be written, in bytes.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Lines that come within this are written together: a wake-up costs more than a line.
const TOGETHER: std::time::Duration = std::time::Duration::from_millis(25);

/// One line. Never a key, a token or a query string.
#[derive(Serialize)]
pub struct Line<'a> {
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Where `request_id` runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
    /// Of a valid `traceparent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<&'a str>,
    /// The client's address.
    pub client: std::net::IpAddr,
    /// By which rule it is that.
    pub client_source: &'a str,
    /// The other end of the connection.
    pub peer: std::net::IpAddr,
    /// The first 12 digits of the key id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The checked bearer's name or `sub`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    /// The route's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// The request's method.
    pub method: &'a str,
    /// Its path, without the query.
    pub path: &'a str,
    /// `1.0`, `1.1` or `2`.
    pub http: &'static str,
    /// What the client got; 0 if it left before.
    pub status: u16,
    /// The filter that answered, or `gate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<&'static str>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// What only the log may say of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    /// What filters in shadow mode would have done: `filter:reason`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadow: Vec<String>,
    /// The server that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<std::net::SocketAddr>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// To the upstream's first byte of data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// To the end.
    pub duration_ms: f64,
    /// What went wrong after the request was admitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    lost: IntCounter,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    writing: bool,
    closed: bool,
}

/// Where lines go.
#[derive(Clone)]
pub struct AccessLog(Arc<Shared>);

impl AccessLog {
    /// Starts the thread that writes to standard output.
    pub fn stdout(lost: IntCounter) -> std::io::Result<Self> {
        Self::to(std::io::stdout(), lost)
    }

    fn to(mut out: impl Write + Send + 'static, lost: IntCounter) -> std::io::Result<Self> {
        let log = Self(Arc::new(Shared { waiting: Mutex::default(), wake: Condvar::new(), lost }));
        let shared = Arc::clone(&log.0);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut batch = Vec::new();
            loop {
                let closed = {
                    let mut waiting = shared.waiting.lock();
                    waiting.writing = false;
                    while waiting.bytes.is_empty() && !waiting.closed {
                        shared.wake.wait(&mut waiting);
                    }
                    std::mem::swap(&mut batch, &mut waiting.bytes);
                    waiting.writing = true;
                    waiting.closed && batch.is_empty()
                };
                if closed {
                    shared.waiting.lock().writing = false;
                    return;
                }
                // A reader that has gone away: there is nobody to tell.
                let _ = out.write_all(&batch).and_then(|()| out.flush());
                batch.clear();
                #[expect(clippy::disallowed_methods, reason = "this thread does nothing but write")]
                std::thread::sleep(TOGETHER);
            }
        })?;
        Ok(log)
    }

    /// Adds a line.
    pub fn write(&self, line: &Line<'_>) {
        let mut waiting = self.0.waiting.lock();
        if waiting.bytes.len() > WAITING_BYTES_MAX {
            drop(waiting);
            self.0.lost.inc();
            return;
        }
        let was_empty = waiting.bytes.is_empty();
        // Writing into memory cannot fail, and the type has only strings for keys.
        let _ = serde_json::to_writer(&mut waiting.bytes, line);
        waiting.bytes.push(b'\n');
        drop(waiting);
        if was_empty {
            self.0.wake.notify_one();
        }
    }

    /// Waits until all lines are written, at most a second.
    pub fn close(&self) {
        self.0.waiting.lock().closed = true;
        self.0.wake.notify_one();
        for _ in 0..200 {
            {
                let waiting = self.0.waiting.lock();
                if waiting.bytes.is_empty() && !waiting.writing {
                    return;
                }
            }
            #[expect(clippy::disallowed_methods, reason = "called once, at the end of the process")]
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
