//! The body of the current request as it is read: where it ends, how fast it arrives, and what comes behind it.

use std::io;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::{CHUNKED, ConnStream};

/// Bytes behind a request that wait for the next one, at most; past it the connection is not read on.
const HELD_BYTES_MAX: usize = 16 * 1024;

impl ConnStream {
    /// Whether all of the current body was handed on.
    pub(super) fn body_complete(&self) -> bool {
        match self.conn.body.load(Ordering::Relaxed) {
            CHUNKED => self.chunks.over(),
            length => self.body_bytes >= length,
        }
    }

    /// How much of `fresh` is the current body's. `None`: it is malformed.
    fn body_part(&mut self, fresh: &[u8]) -> Option<usize> {
        let own = match self.conn.body.load(Ordering::Relaxed) {
            CHUNKED => self.chunks.feed(fresh)?,
            length => fresh.len().min(usize::try_from(length - self.body_bytes).unwrap_or(usize::MAX)),
        };
        self.body_bytes += own as u64;
        Some(own)
    }

    /// Reads the body, and once it is complete waits for the client to leave: what else comes is held.
    pub(super) fn read_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.body_complete() {
            return self.hold(cx);
        }
        let malformed = |this: &mut Self| {
            this.conn.body_bad.store(true, Ordering::Relaxed);
            this.held.clear();
            Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "malformed chunks")))
        };
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let offered = held.get(..held.len().min(buf.remaining())).unwrap_or_default();
            let Some(own) = self.body_part(offered) else { return malformed(self) };
            buf.put_slice(held.get(..own).unwrap_or_default());
            self.held = held.get(own..).unwrap_or_default().to_vec();
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
        self.held = fresh.get(own..).unwrap_or_default().to_vec();
        buf.set_filled(before + own);
        Poll::Ready(Ok(()))
    }

    /// Waits for more of the body, until it arrives too slowly.
    fn poll_pace(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.responding.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.pace.waits();
        let Some(deadline) = self.pace.deadline() else { return Poll::Pending };
        let sleep = self.pace_sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // Set for the body before.
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        // The deadline of one body only moves on; a timer that is early looks again.
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                self.conn.body_slow.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            sleep.as_mut().reset(deadline);
        }
    }

    /// The request is complete. Only the client's leaving is of interest; bytes wait for the next exchange.
    fn hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held.len() < HELD_BYTES_MAX {
            let mut piece = [0; 1024];
            let mut fresh = ReadBuf::new(&mut piece);
            ready!(self.poll_inner(cx, &mut fresh))?;
            if fresh.filled().is_empty() {
                // The client has left, or at least will send no more.
                return Poll::Ready(Ok(()));
            }
            self.held.extend_from_slice(fresh.filled());
        }
        // Nobody pipelines that much; and whoever is not read any more cannot be seen leaving.
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too much behind a request")))
    }
}
