//! Pingora's phases in the order in which they run, and the responses that Keylatch writes itself.
//! Only this folder uses Pingora's `Session`; sockets and connections belong to `listener` and
//! `server`.

mod admit;
mod base_path;
mod body_ahead;
mod body_pieces;
mod dialects;
pub mod errors;
mod fields;
mod informational;
mod model_watch;
mod phases;
mod read_ahead;
mod reply;
mod request_context;
mod state;
mod stream;
mod stream_state;
mod timed_session;
mod upstream_choice;

pub use body_ahead::AheadBudget;
pub use phases::ProxyPhases;
pub use state::ProxyState;
