//! Reads parameters of a request from its body, piece by piece, while it is forwarded or read ahead.
//!
//! It delays nothing, and keeps only the current key, the current scalar or the tail of a form.

mod form;
mod json;
mod model;

pub use form::{FormFields, form_boundary};
pub use json::{JsonMembers, Member};
pub use model::{ModelScan, ModelSource, Scanned};

/// The longest key and value that are kept.
pub const TEXT_BYTES_MAX: usize = 512;

/// How far a body was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is expected.
    Reading,
    /// To its end, so an absent parameter is not in it.
    Complete,
    /// It has another format, a value is too long, or parsers read it differently.
    Unreadable,
}
