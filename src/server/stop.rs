//! How a process stops.

/// When and how to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Not yet.
    No,
    /// Another process serves on the same sockets; what is open here may go on for long.
    HandedOver,
    /// Open requests may go on for a while.
    Drain,
    /// Open requests end now, and are told so.
    Cut,
    /// At once.
    Now,
}
