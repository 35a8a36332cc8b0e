//! Reads the body of the current request: its end, its minimum rate, and the bytes behind it. The
//! framing comes from the gate.

use std::io;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::{CHUNKED, ConnStream};

/// The most bytes behind a request that are buffered. Beyond it the connection is not read any
/// more.
const BUFFERED_BYTES_MAX: usize = 16 * 1024;

impl ConnStream {
    /// Whether all of the current body was handed on.
    pub(super) fn body_complete(&self) -> bool {
        match self.conn.body.load(Ordering::Relaxed) {
            CHUNKED => self.chunks.is_complete(),
            length => self.body_bytes >= length,
        }
    }

    /// How much of `fresh` belongs to the current body. `None`: it is malformed.
    fn body_part(&mut self, fresh: &[u8]) -> Option<usize> {
        let own = match self.conn.body.load(Ordering::Relaxed) {
            CHUNKED => self.chunks.feed(fresh)?,
            length => fresh.len().min(usize::try_from(length - self.body_bytes).unwrap_or(usize::MAX)),
        };
        self.body_bytes += own as u64;
        Some(own)
    }

    /// Reads the body. After its end, waits for the client to leave and buffers other bytes.
    pub(super) fn read_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.body_complete() {
            return self.wait_for_close(cx);
        }
        let malformed = |this: &mut Self| {
            this.conn.body_bad.store(true, Ordering::Relaxed);
            this.buffered.clear();
            Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "malformed chunks")))
        };
        if !self.buffered.is_empty() {
            let buffered = std::mem::take(&mut self.buffered);
            let offered = buffered.get(..buffered.len().min(buf.remaining())).unwrap_or_default();
            let Some(own) = self.body_part(offered) else { return malformed(self) };
            buf.put_slice(buffered.get(..own).unwrap_or_default());
            self.buffered = buffered.get(own..).unwrap_or_default().to_vec();
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = self.poll_inner(cx, buf) else { return self.poll_pace(cx) };
        read?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        self.pace.arrived(fresh.len());
        let Some(own) = self.body_part(fresh) else {
            buf.set_filled(before);
            return malformed(self);
        };
        self.buffered = fresh.get(own..).unwrap_or_default().to_vec();
        buf.set_filled(before + own);
        Poll::Ready(Ok(()))
    }

    /// Waits for more of the body, up to its deadline.
    fn poll_pace(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.responding.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.pace.start_waiting();
        let Some(deadline) = self.pace.deadline() else { return Poll::Pending };
        let sleep = self.pace_sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // The timer is still set for the previous body.
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        // The deadline of a body only moves forward; an early timer is reset.
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                self.conn.body_slow.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            sleep.as_mut().reset(deadline);
        }
    }

    /// After the request: waits for the client to leave, and buffers bytes of the next request.
    fn wait_for_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.buffered.len() < BUFFERED_BYTES_MAX {
            let mut piece = [0; 1024];
            let mut fresh = ReadBuf::new(&mut piece);
            ready!(self.poll_inner(cx, &mut fresh))?;
            if fresh.filled().is_empty() {
                // The client has left, or at least sends no more.
                return Poll::Ready(Ok(()));
            }
            self.buffered.extend_from_slice(fresh.filled());
        }
        // No real client pipelines that much, and without reading, the client's leaving is not
        // noticed.
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many bytes behind the request")))
    }
}
