//! The phase of a connection, and the only table of its transitions.

use std::sync::atomic::{AtomicU8, Ordering};

/// What the next bytes from the client are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The beginning of a header: nothing of the next request has arrived.
    Idle,
    /// The rest of a header.
    Header,
    /// A body, or bytes behind it that wait for the next request.
    Request,
    /// Another protocol, after an upgrade was requested.
    Upgraded,
    /// HTTP/2, from its preface on.
    Http2,
}

/// What moves a connection to another phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A byte of a header has arrived.
    HeaderByte,
    /// A request has passed the gate.
    Admitted,
    /// A request to upgrade has passed the gate.
    UpgradeAdmitted,
    /// A request and its response have ended.
    Finished,
    /// The preface of HTTP/2 has arrived.
    Http2Preface,
}

const PHASES: [Phase; 5] = [Phase::Idle, Phase::Header, Phase::Request, Phase::Upgraded, Phase::Http2];

impl Phase {
    /// The phase after an event; `None` if the event changes nothing. On HTTP/2 the phase stays: one
    /// connection carries many requests.
    fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Phase::Idle, Event::HeaderByte) => Some(Phase::Header),
            (Phase::Header, Event::Admitted) => Some(Phase::Request),
            (Phase::Header, Event::UpgradeAdmitted) => Some(Phase::Upgraded),
            (Phase::Request, Event::Finished) => Some(Phase::Idle),
            (_, Event::Http2Preface) => Some(Phase::Http2),
            _ => None,
        }
    }
}

/// The current phase, shared by the stream of a connection and its requests.
#[derive(Debug)]
pub struct CurrentPhase(AtomicU8);

impl CurrentPhase {
    /// The phase of a new connection.
    pub fn new() -> Self {
        Self(AtomicU8::new(Phase::Idle as u8))
    }

    /// The current phase.
    pub fn get(&self) -> Phase {
        phase(self.0.load(Ordering::Relaxed))
    }

    /// Applies an event. Returns whether the phase has changed.
    pub fn apply(&self, event: Event) -> bool {
        let next = |now| phase(now).after(event).map(|next| next as u8);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

fn phase(index: u8) -> Phase {
    PHASES.get(usize::from(index)).copied().unwrap_or(Phase::Idle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions() {
        use Event::*;
        let events = [HeaderByte, Admitted, UpgradeAdmitted, Finished, Http2Preface];
        // One row for each phase, one column for each event; `None`: it stays.
        let table = [
            (Phase::Idle, [Some(Phase::Header), None, None, None, Some(Phase::Http2)]),
            (Phase::Header, [None, Some(Phase::Request), Some(Phase::Upgraded), None, Some(Phase::Http2)]),
            (Phase::Request, [None, None, None, Some(Phase::Idle), Some(Phase::Http2)]),
            (Phase::Upgraded, [None, None, None, None, Some(Phase::Http2)]),
            (Phase::Http2, [None, None, None, None, Some(Phase::Http2)]),
        ];
        for (index, (phase, row)) in table.into_iter().enumerate() {
            assert_eq!((phase as usize, PHASES[index]), (index, phase));
            for (event, next) in events.into_iter().zip(row) {
                let current = CurrentPhase(AtomicU8::new(phase as u8));
                assert_eq!(current.apply(event), next.is_some(), "{phase:?} {event:?}");
                assert_eq!(current.get(), next.unwrap_or(phase), "{phase:?} {event:?}");
            }
        }
    }
}
