//! Tells when Pingora has written the latest piece of a request body to the upstream.
//!
//! The pipe to an HTTP/1 upstream holds four pieces. While it is full and the request is complete,
//! Pingora does not poll the client's session. So the end of a body is reported once the pieces
//! before it are written.

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

/// The latest piece of a request body.
#[derive(Default)]
pub struct LatestPiece(Option<oneshot::Receiver<()>>);

impl LatestPiece {
    /// Tracks a piece, which must not be empty: Pingora drops an empty piece before the pipe.
    pub fn track(&mut self, bytes: Bytes) -> Bytes {
        let (dropped, receiver) = oneshot::channel();
        self.0 = Some(receiver);
        Bytes::from_owner(Piece { bytes, _dropped: dropped })
    }

    /// Waits until the latest piece is written. Cancellation-safe.
    pub async fn written(&mut self) {
        if let Some(receiver) = self.0.as_mut() {
            // An error means that the sender was dropped, which is the expected signal.
            let _ = receiver.await;
            self.0 = None;
        }
    }
}
