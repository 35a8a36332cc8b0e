//! How a process stops. It stops nothing itself.

/// Whether and how to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The process runs.
    No,
    /// Handover: another process serves the same sockets; open requests may continue for a long
    /// time.
    HandedOver,
    /// Open requests may continue for a while.
    Drain,
    /// Open requests end now, with an error.
    Cut,
    /// The process ends at once.
    Now,
}
