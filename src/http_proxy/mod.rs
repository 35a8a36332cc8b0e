//! Pingora's phases in the order in which they run, and the responses that Keylatch writes itself. The only place that sees a
//! `Session`. Sockets and connections are `listener`'s and `server`'s part.

mod admit;
mod base_path;
mod dialects;
pub mod errors;
mod fields;
mod phases;
mod reply;
mod request_context;
mod state;
mod stream;
mod stream_state;
mod timed_session;
mod upstream_choice;

pub use phases::Edge;
pub use state::Shared;
