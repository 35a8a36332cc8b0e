//! The part of a request body that was read before its upstream was chosen. It is sent first, and
//! again for each further attempt. This module reads nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

/// A smaller piece is joined with its neighbours: each piece has a cost of its own.
const PIECE_BYTES_MIN: usize = 16 * 1024;

/// The memory that all bodies of a listener may use together.
#[derive(Debug)]
pub struct AheadBudget {
    used: AtomicU64,
    bytes_max: u64,
}

impl AheadBudget {
    /// A budget of this size, in bytes.
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), bytes_max })
    }
}

/// The bytes of one body.
#[derive(Debug)]
pub struct BodyAhead {
    budget: Arc<AheadBudget>,
    pieces: Vec<Bytes>,
    /// Small pieces that are not yet joined into one.
    tail: BytesMut,
    bytes: u64,
    /// How many pieces were handed out so far. Another attempt does not reset it: `sent_with`
    /// repeats these pieces.
    sent: usize,
}

impl BodyAhead {
    /// An empty part, which takes its memory from this budget.
    pub fn new(budget: &Arc<AheadBudget>) -> Self {
        Self { budget: Arc::clone(budget), pieces: Vec::new(), tail: BytesMut::new(), bytes: 0, sent: 0 }
    }

    /// Adds a piece. `false`: the budget is spent; the piece is kept all the same, since it was
    /// read.
    pub fn push(&mut self, piece: Bytes) -> bool {
        let bytes = piece.len() as u64;
        let used = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bytes += bytes;
        if piece.len() < PIECE_BYTES_MIN {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= PIECE_BYTES_MIN {
                self.flush_tail();
            }
        } else {
            self.flush_tail();
            self.pieces.push(piece);
        }
        used <= self.budget.bytes_max
    }

    /// Makes a piece of the small pieces that were collected.
    pub fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// The next piece to send.
    pub fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.get(self.sent)?.clone();
        self.sent += 1;
        Some(piece)
    }

    /// Whether all pieces were handed out.
    pub fn is_sent(&self) -> bool {
        self.sent == self.pieces.len()
    }

    /// What was sent, followed by `rest`, for another attempt.
    pub fn sent_with(&self, rest: Option<Bytes>) -> Option<Bytes> {
        let sent = self.pieces.get(..self.sent).unwrap_or_default();
        match (sent, rest) {
            ([], rest) => rest,
            ([one], None) => Some(one.clone()),
            (sent, rest) => Some([sent.concat(), rest.unwrap_or_default().into()].concat().into()),
        }
    }
}

impl Drop for BodyAhead {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize, byte: u8) -> Bytes {
        vec![byte; length].into()
    }

    #[test]
    fn small_pieces_are_joined_and_all_are_sent_again() {
        let budget = AheadBudget::new(1 << 20);
        let mut ahead = BodyAhead::new(&budget);
        (0..100).for_each(|_| assert!(ahead.push(bytes(1, b'a'))));
        assert!(ahead.push(bytes(20_000, b'b')) && ahead.push(bytes(5, b'c')));
        ahead.flush_tail();
        assert_eq!((ahead.len(), ahead.pieces.len()), (20_105, 3));
        assert_eq!(ahead.sent_with(None), None);
        assert_eq!(ahead.sent_with(Some(bytes(1, b'd'))), Some(bytes(1, b'd')));
        assert_eq!(ahead.next(), Some(bytes(100, b'a')));
        assert_eq!(ahead.sent_with(None), Some(bytes(100, b'a')));
        assert!(!ahead.is_sent());
        while ahead.next().is_some() {}
        assert!(ahead.is_sent());
        let whole = ahead.sent_with(Some(bytes(2, b'd'))).unwrap();
        assert_eq!((whole.len(), whole.slice(20_100..)), (20_107, Bytes::from_static(b"cccccdd")));
    }

    #[test]
    fn the_budget_is_shared_and_returned() {
        let budget = AheadBudget::new(100);
        let (mut one, mut other) = (BodyAhead::new(&budget), BodyAhead::new(&budget));
        assert!(one.push(bytes(60, b'a')) && !other.push(bytes(60, b'a')));
        drop(one);
        assert!(other.push(bytes(40, b'a')));
        drop(other);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
