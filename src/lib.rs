//! Keylatch: a programmable edge proxy for model APIs.
//!
//! README.md has the code map. The binary is `main.rs`; this library exists so that tests and fuzzers
//! reach the parts that need no socket.

pub mod config;
pub mod store;
pub mod upstream;
