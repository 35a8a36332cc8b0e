//! What the service manager (systemd, by sd_notify) is told: that the process serves, how it is, that it is alive, that it
//! stops, and which process is the main one after an upgrade. Where there is none, nobody is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::Pulse;
use crate::util::periodic::every;

/// Another process is the main one. It speaks then: the manager takes nobody else's word, and logs each of them.
static REPLACED: AtomicBool = AtomicBool::new(false);

fn tell(states: &[NotifyState<'_>]) {
    if REPLACED.load(Ordering::Relaxed) {
        return;
    }
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// It serves. From here on the manager hears that it is alive for as long as its threads are, if it wants to hear that. One that
/// `succeeds` another need not say so: the manager knows the service as ready, and hears of the main process from that other.
pub fn serving(pulse: &Arc<Pulse>, succeeds: bool) {
    if !succeeds {
        tell(&[NotifyState::Ready]);
    }
    if let Some(patience) = sd_notify::watchdog_enabled() {
        every(pulse, patience / 3, move |pulse| async move {
            // Threads that carry requests and have not moved for so long will not move again.
            if pulse.age() < patience / 2 {
                tell(&[NotifyState::Watchdog]);
            }
        });
    }
}

/// How it is, for people.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// It stops; what is open may take so long.
pub fn stopping(time: Duration) {
    let time = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(time)]);
}

/// Another process is the main one from now on.
pub fn replaced_by(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
    REPLACED.store(true, Ordering::Relaxed);
}

/// Whether there is a manager, which starts another main process once all of a service's processes have ended.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}
