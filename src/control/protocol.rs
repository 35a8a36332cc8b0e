//! The protocol of the control socket: one line with a command, one line of JSON with the reply.
//!
//! This file has its types and limits; it opens no socket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest time from a command to its reply: an upgrade waits until the new process serves.
pub const REPLY_TIME_MAX: Duration = Duration::from_secs(200);

/// The longest command line, in bytes.
pub const COMMAND_BYTES_MAX: u64 = 256;

/// The reply to a command.
#[derive(Debug, Serialize, Deserialize)]
pub struct ControlReply {
    /// Whether the command succeeded.
    pub ok: bool,
    /// The outcome, as a sentence for the operator.
    pub message: String,
}
