//! Tracks the frames and open streams of an HTTP/2 connection. It reads along with the h2 library
//! and never changes a byte.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use keylatch_filters::contract::{CancelReason, CancellationHandle};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// The client's connection preface (RFC 9113, section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types and flags (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const FRAME_HEAD_BYTES: usize = 9;
/// A GOAWAY with ENHANCE_YOUR_CALM and the highest possible stream id.
const CALM: &[u8] = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\x0b";

/// A frame header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// The frame parser of one direction.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    /// Payload bytes of the current frame that have not come yet.
    rest: usize,
}

impl Frames {
    /// Calls `ended` for each frame that these bytes complete.
    fn feed(&mut self, mut bytes: &[u8], mut ended: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.head_bytes < FRAME_HEAD_BYTES {
                let (own, others) = bytes.split_at(bytes.len().min(FRAME_HEAD_BYTES - self.head_bytes));
                self.head.iter_mut().skip(self.head_bytes).zip(own).for_each(|(to, from)| *to = *from);
                self.head_bytes += own.len();
                bytes = others;
                if self.head_bytes < FRAME_HEAD_BYTES {
                    return;
                }
                let [a, b, c, ..] = self.head;
                self.rest = u32::from_be_bytes([0, a, b, c]) as usize;
            }
            let payload = bytes.len().min(self.rest);
            self.rest -= payload;
            bytes = bytes.get(payload..).unwrap_or_default();
            if self.rest == 0 {
                self.head_bytes = 0;
                ended(self.frame());
            }
        }
    }

    fn frame(&self) -> Frame {
        let [_, _, _, kind, flags, a, b, c, d] = self.head;
        Frame { kind, flags, stream: u32::from_be_bytes([a & 0x7f, b, c, d]) }
    }

    /// Whether a frame has begun and not ended.
    fn is_inside_frame(&self) -> bool {
        self.head_bytes > 0
    }

    /// Whether the current frame is DATA.
    fn is_inside_data(&self) -> bool {
        self.head_bytes == FRAME_HEAD_BYTES && self.frame().kind == DATA
    }
}

/// The streams of a connection, shared with the drain.
#[derive(Debug, Default)]
pub struct Http2Streams {
    /// The number of streams with an unfinished response.
    open: AtomicUsize,
    /// The number of streams that have ever begun.
    begun: AtomicUsize,
    /// Notified when the number of open streams changes.
    changed: Notify,
    closing: CancellationHandle,
}

impl Http2Streams {
    /// Waits until no stream has been open, and none has begun, for this time.
    pub async fn idle_for(&self, time: Duration) {
        loop {
            self.wait(|streams| streams.open.load(Ordering::Relaxed) == 0).await;
            let begun = self.begun();
            // The pause is required: a client that is about to send a request must not receive
            // GOAWAY.
            tokio::time::sleep(time).await;
            if self.open.load(Ordering::Relaxed) == 0 && self.begun() == begun {
                return;
            }
        }
    }

    /// The number of streams that have ever begun.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// Waits until more streams than `begun` have begun.
    pub async fn begun_above(&self, begun: usize) {
        self.wait(|streams| streams.begun() > begun).await;
    }

    async fn wait(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            // Registers for notifications before the condition is checked.
            let changed = self.changed.notified();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    /// Ends the connection. The h2 library sees a client that has left.
    pub fn close(&self) {
        self.closing.cancel(CancelReason::Stop);
    }
}

/// The state of one HTTP/2 connection.
pub struct Http2 {
    /// Its streams.
    pub streams: Arc<Http2Streams>,
    preface_left: usize,
    incoming: Frames,
    outgoing: Frames,
    /// A header block has begun and not ended.
    in_block: bool,
    last_stream: u32,
    open: Vec<u32>,
    /// The deadline of an incomplete preface, header block or frame, except DATA frames.
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    header_timeout: Duration,
}

impl Http2 {
    /// A connection that must send its preface now.
    pub fn new(streams: Arc<Http2Streams>, header_timeout: Duration) -> Self {
        Self {
            streams,
            preface_left: PREFACE.len(),
            incoming: Frames::default(),
            outgoing: Frames::default(),
            in_block: false,
            last_stream: 0,
            open: Vec::new(),
            deadline: Some(Instant::now() + header_timeout),
            sleep: None,
            header_timeout,
        }
    }

    /// Tracks bytes from the client.
    pub fn received(&mut self, bytes: &[u8]) {
        let preface = bytes.len().min(self.preface_left);
        self.preface_left -= preface;
        let Self { incoming, in_block, last_stream, open, streams, .. } = self;
        let mut complete = false;
        incoming.feed(bytes.get(preface..).unwrap_or_default(), |frame| {
            match frame.kind {
                HEADERS => {
                    *in_block = frame.flags & END_HEADERS == 0;
                    if frame.stream > *last_stream {
                        *last_stream = frame.stream;
                        open.push(frame.stream);
                        streams.begun.fetch_add(1, Ordering::Relaxed);
                    }
                }
                CONTINUATION => *in_block = frame.flags & END_HEADERS == 0,
                RST_STREAM => open.retain(|stream| *stream != frame.stream),
                _ => {}
            }
            complete |= !*in_block;
        });
        self.count();
        let waits = self.preface_left > 0 || self.in_block || (self.incoming.is_inside_frame() && !self.incoming.is_inside_data());
        self.deadline = match self.deadline {
            _ if !waits => None,
            Some(deadline) if !complete => Some(deadline),
            _ => Some(Instant::now() + self.header_timeout),
        };
    }

    /// Tracks bytes that were written to the client.
    pub fn sent(&mut self, bytes: &[u8]) {
        let Self { outgoing, open, .. } = self;
        outgoing.feed(bytes, |frame| {
            let ends = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            if ends || frame.kind == RST_STREAM {
                open.retain(|stream| *stream != frame.stream);
            }
        });
        self.count();
    }

    fn count(&self) {
        let (before, now) = (self.streams.open.load(Ordering::Relaxed), self.open.len());
        if before != now {
            self.streams.open.store(now, Ordering::Relaxed);
            self.streams.changed.notify_waiters();
        }
    }

    /// Ready once the deadline has passed.
    pub fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }

    /// Ready once the connection is to end.
    pub fn poll_closing(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.streams.closing.poll_cancelled(cx).map(|_| ())
    }

    /// The GOAWAY for a client that is too slow; empty inside a frame, where it cannot be sent.
    pub fn goaway(&self) -> Vec<u8> {
        if self.outgoing.is_inside_frame() || self.preface_left > 0 { Vec::new() } else { CALM.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn state() -> Http2 {
        Http2::new(Arc::default(), Duration::from_secs(10))
    }

    fn open(http2: &Http2) -> usize {
        http2.streams.open.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn streams_open_and_end() {
        for pieces in [1, 2, 7, 1000] {
            let mut http2 = state();
            let requests = [
                PREFACE.to_vec(),
                frame(4, 0, 0, &[0; 6]),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, b"abc"),
                frame(HEADERS, END_HEADERS, 3, b"abc"),
                frame(DATA, 0, 3, &[9; 300]),
                frame(HEADERS, END_HEADERS | END_STREAM, 5, b""),
                frame(HEADERS, END_HEADERS | END_STREAM, 3, b"trailers"),
            ]
            .concat();
            requests.chunks(pieces).for_each(|piece| http2.received(piece));
            assert_eq!((open(&http2), http2.deadline), (3, None), "in pieces of {pieces}");
            let responses = [
                frame(HEADERS, END_HEADERS, 1, b"200"),
                frame(DATA, 0, 1, b"x"),
                frame(DATA, END_STREAM, 1, b""),
                frame(RST_STREAM, 0, 1, &[0; 4]),
                frame(HEADERS, END_HEADERS | END_STREAM, 3, b"204"),
            ]
            .concat();
            responses.chunks(pieces).for_each(|piece| http2.sent(piece));
            assert_eq!(open(&http2), 1);
            http2.received(&frame(RST_STREAM, 0, 5, &[0; 4]));
            assert_eq!(open(&http2), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_of_incomplete_frames() {
        let preface = PREFACE.as_slice();
        let headers = frame(HEADERS, END_HEADERS, 1, b"abcdef");
        let unfinished = frame(HEADERS, 0, 1, b"abc");
        let data = frame(DATA, 0, 1, b"abcdef");
        for (sent, waits) in [
            (vec![], true),
            (vec![&preface[..20]], true),
            (vec![preface], false),
            (vec![preface, &headers[..3]], true),
            (vec![preface, &headers[..12]], true),
            (vec![preface, &headers], false),
            (vec![preface, &unfinished], true),
            (vec![preface, &unfinished, &frame(CONTINUATION, 0, 1, b"abc")], true),
            (vec![preface, &unfinished, &frame(CONTINUATION, END_HEADERS, 1, b"abc")], false),
            (vec![preface, &headers, &data[..10]], false),
        ] {
            let mut http2 = state();
            let began = Instant::now();
            for piece in &sent {
                tokio::time::advance(Duration::from_secs(1)).await;
                http2.received(piece);
            }
            assert_eq!(http2.deadline.is_some(), waits, "{sent:?}");
            if let Some(deadline) = http2.deadline {
                assert!(deadline <= began + Duration::from_secs(12), "a block has one deadline, from its first byte: {sent:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_also_means_that_no_stream_begins() {
        let mut http2 = state();
        http2.received(PREFACE);
        http2.received(&frame(HEADERS, END_HEADERS | END_STREAM, 1, b""));
        let streams = Arc::clone(&http2.streams);
        let idle = tokio::spawn(async move { streams.idle_for(Duration::from_secs(1)).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!idle.is_finished());
        http2.sent(&frame(HEADERS, END_HEADERS | END_STREAM, 1, b""));
        tokio::time::sleep(Duration::from_millis(500)).await;
        http2.received(&frame(HEADERS, END_HEADERS | END_STREAM, 3, b""));
        http2.sent(&frame(HEADERS, END_HEADERS | END_STREAM, 3, b""));
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(!idle.is_finished());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(idle.is_finished());
    }
}
