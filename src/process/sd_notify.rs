//! Notifications to the service manager (systemd, by `sd_notify`): ready, status, watchdog, stopping, and the main process
//! after an upgrade. Without a service manager every call does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::Pulse;
use crate::util::periodic::every;

/// Another process is the main one. systemd rejects and logs notifications from any other process, so this one sends none.
static REPLACED: AtomicBool = AtomicBool::new(false);

fn notify(states: &[NotifyState<'_>]) {
    if REPLACED.load(Ordering::Relaxed) {
        return;
    }
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not notified");
    }
}

/// Reports that the process serves, and from here on that it is alive, if the manager has a watchdog for it. A process that
/// `succeeds` another does not report readiness: the service is ready already, and the predecessor names the new main process.
pub fn serving(pulse: &Arc<Pulse>, succeeds: bool) {
    if !succeeds {
        notify(&[NotifyState::Ready]);
    }
    if let Some(patience) = sd_notify::watchdog_enabled() {
        every(pulse, patience / 3, move |pulse| async move {
            // Request threads that have made no progress for half the watchdog time are taken for dead.
            if pulse.age() < patience / 2 {
                notify(&[NotifyState::Watchdog]);
            }
        });
    }
}

/// Sets the status text that `systemctl status` shows.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Reports that the process stops, and extends the stop timeout to this time.
pub fn stopping(time: Duration) {
    let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(time)]);
}

/// Reports that another process is the main one from now on.
pub fn replaced_by(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
    REPLACED.store(true, Ordering::Relaxed);
}

/// Whether a service manager runs this process. It restarts the service once all of its processes have ended.
pub fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}
