//! The control sockets: two Unix sockets through which commands reach the running process.
//!
//! The control socket takes one command line, such as `reload`, and answers with one line of JSON. The API socket serves the
//! admin API. This module carries commands and replies; what a command does belongs to [`crate::reload`] and [`crate::process`].

mod client;
mod paths;
mod protocol;
mod server;

pub use client::{is_running, running_pid, send_command};
pub use paths::trusted_socket;
pub use protocol::ControlReply;
pub use server::{ControlSockets, UpgradeRequest, is_owner, listen};
