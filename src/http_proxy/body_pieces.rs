//! Tells when Pingora has written the latest piece of a request body to the upstream.
//!
//! The pipe to an HTTP/1 upstream holds four pieces. While it is full and the request is complete,
//! Pingora does not poll the client's session. So the end of a body is reported once the pieces
//! before it are written. A body of one or two pieces cannot fill the pipe, and is not tracked.

use bytes::Bytes;
use tokio::sync::oneshot;

/// A piece that tells when it is dropped.
struct Piece {
    bytes: Bytes,
    _dropped: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// So many pieces need no tracking: together with the end of the body they do not fill the pipe. A
/// retry sends them again as one piece.
const UNTRACKED_MAX: u8 = 2;

/// The latest piece of a request body.
#[derive(Default)]
pub struct LatestPiece {
    /// The number of untracked pieces so far.
    untracked: u8,
    dropped: Option<oneshot::Receiver<()>>,
}

impl LatestPiece {
    /// Tracks a piece, which must not be empty: Pingora drops an empty piece before the pipe.
    pub fn track(&mut self, bytes: Bytes) -> Bytes {
        if self.untracked < UNTRACKED_MAX {
            self.untracked += 1;
            return bytes;
        }
        let (dropped, receiver) = oneshot::channel();
        self.dropped = Some(receiver);
        Bytes::from_owner(Piece { bytes, _dropped: dropped })
    }

    /// Waits until the latest piece is written. Cancellation-safe.
    pub async fn written(&mut self) {
        if let Some(receiver) = self.dropped.as_mut() {
            // An error means that the sender was dropped, which is the expected signal.
            let _ = receiver.await;
            self.dropped = None;
        }
    }
}
