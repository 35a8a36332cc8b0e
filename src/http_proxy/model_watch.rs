//! Checks the rest of a body for a second model while the body is forwarded. Servers differ in which
//! of two names they use, so the request then fails.

use std::sync::Arc;

use keylatch_filters::body_scan::{ModelScan, Scanned};
use keylatch_filters::contract::RequestModel;
use pingora::{Error, Result};

use super::errors::TWO_MODELS_ERROR;

/// Reads the rest of a body after its first model.
pub struct ModelWatch {
    scan: ModelScan,
    model: Arc<str>,
    /// How many bytes of the body were scanned. Another attempt sends these bytes again; they are
    /// skipped then.
    read: u64,
}

impl ModelWatch {
    /// Continues a scan that has found `model` in the first `read` bytes of the body.
    pub fn new(scan: ModelScan, model: Arc<str>, read: u64) -> Self {
        Self { scan, model, read }
    }

    /// Reads a piece that begins at this position of the body.
    pub fn feed(&mut self, position: u64, piece: &[u8]) -> Result<()> {
        let known = usize::try_from(self.read.saturating_sub(position)).unwrap_or(usize::MAX);
        let Some(fresh) = piece.get(known..).filter(|fresh| !fresh.is_empty()) else { return Ok(()) };
        self.read += fresh.len() as u64;
        self.scan.feed(fresh);
        match self.scan.scanned(false) {
            Scanned::Model(RequestModel::Named(model)) if model == self.model => Ok(()),
            Scanned::Nothing => Ok(()),
            Scanned::Model(_) | Scanned::Two => Err(Error::explain(TWO_MODELS_ERROR, "the request body names two models").into_down()),
        }
    }
}
