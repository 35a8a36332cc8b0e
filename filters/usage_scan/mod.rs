//! Reads the usage that an answer reports, and the parameters of a request that determine it, piece by piece while they are forwarded.
//!
//! Fields are found by their names at fixed places below the root, in every dialect at once, so a proxy that translates dialects is
//! read, too. The scanners keep no body and no event: one of them needs less than 2 KiB, whatever it reads. They read plain bytes; a
//! body with a content coding must be decoded before. Of a number that an answer repeats, the last one that is not zero counts.

mod answer;
mod answer_paths;
#[cfg(test)]
mod answer_tests;
mod event_stream;
mod json_paths;
mod json_text;
mod reported;
mod request;

pub use answer::{AnswerFormat, AnswerScan, AnswerUsage};
pub use reported::Reported;
pub use request::{OutputLimits, RequestParameters, RequestScan, has_body};
