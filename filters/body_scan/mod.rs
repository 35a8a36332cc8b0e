//! Reads parameters of a request from its body, piece by piece, while it is forwarded or read ahead.
//!
//! The scanners never wait for data. They keep the current key and value, the tail of a multipart form, or a URL-encoded
//! form of at most 64 KiB.

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
    /// The whole body was read: a parameter that was not found is absent.
    Complete,
    /// It has another format, a value is too long, or parsers read it differently.
    Unreadable,
}
