//! Event streams and WebSockets that are open: how many, and each of them, so that it can be looked at and ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use keylatch_filters::contract::{CancelReason, CancellationHandle, Key};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};

use crate::upstream::Address;

/// All of them.
pub struct Streams {
    /// How many are open now.
    pub open: IntGauge,
    /// Comment frames sent.
    pub frames: IntCounter,
    each: Mutex<Each>,
}

#[derive(Default)]
struct Each {
    /// Numbers grow with time and are never given twice, not by the process before this one either.
    last: u64,
    open: BTreeMap<u64, (Arc<About>, Arc<CancellationHandle>)>,
}

/// What is known of one.
#[derive(Clone, Debug)]
pub struct About {
    /// When its request's header was complete.
    pub started_at: SystemTime,
    /// Its route.
    pub route: String,
    /// Whose it is.
    pub client: IpAddr,
    /// By which key, if by one.
    pub key: Option<Key>,
    /// Who he is, if that is known.
    pub subject: Option<String>,
    /// The path, without its query.
    pub path: String,
    /// Its id in the logs.
    pub request_id: Option<String>,
    /// The server it comes from.
    pub upstream: Option<Address>,
}

impl Streams {
    /// None is open. `before`: the number before the first one.
    pub fn new(open: IntGauge, frames: IntCounter, before: u64) -> Arc<Self> {
        Arc::new(Self { open, frames, each: Mutex::new(Each { last: before, open: BTreeMap::new() }) })
    }

    /// One begins; it is open for as long as what is returned lives.
    pub fn begin(self: &Arc<Self>, about: About, cancellation: Arc<CancellationHandle>) -> Open {
        self.open.inc();
        let mut each = self.each.lock();
        each.last += 1;
        let id = each.last;
        each.open.insert(id, (Arc::new(about), cancellation));
        Open { id, streams: Arc::clone(self) }
    }

    /// Those that are open, the oldest first, behind the one of this number.
    pub fn list(&self, after: u64, limit: usize) -> Vec<(u64, Arc<About>)> {
        let each = self.each.lock();
        each.open.range(after.saturating_add(1)..).take(limit).map(|(id, (about, _))| (*id, Arc::clone(about))).collect()
    }

    /// One of them; `None`: it is not open.
    pub fn get(&self, id: u64) -> Option<Arc<About>> {
        self.each.lock().open.get(&id).map(|(about, _)| Arc::clone(about))
    }

    /// Ends one. What it was; `None`: it is not open.
    pub fn end(&self, id: u64) -> Option<Arc<About>> {
        let (about, cancellation) = self.each.lock().open.get(&id).cloned()?;
        cancellation.cancel(CancelReason::Operator);
        Some(about)
    }

    /// Ends all of them: the process does.
    pub fn end_all(&self) {
        let handles: Vec<_> = self.each.lock().open.values().map(|(_, cancellation)| Arc::clone(cancellation)).collect();
        handles.iter().for_each(|cancellation| cancellation.cancel(CancelReason::Stop));
    }
}

/// An open stream.
pub struct Open {
    id: u64,
    streams: Arc<Streams>,
}

impl Open {
    /// It is ended by this one from here on.
    pub fn attach_cancellation(&self, cancellation: &Arc<CancellationHandle>) {
        if let Some((_, held)) = self.streams.each.lock().open.get_mut(&self.id) {
            *held = Arc::clone(cancellation);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.each.lock().open.remove(&self.id);
        self.streams.open.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn they_are_listed_ended_and_forgotten() {
        let streams = Streams::new(IntGauge::new("a", "a").unwrap(), IntCounter::new("b", "b").unwrap(), 0);
        let about = |path: &str| About {
            started_at: SystemTime::now(),
            route: "api".into(),
            client: [127, 0, 0, 1].into(),
            key: None,
            subject: None,
            path: path.into(),
            request_id: None,
            upstream: None,
        };
        let handles = [Arc::new(CancellationHandle::default()), Arc::new(CancellationHandle::default())];
        let one = streams.begin(about("/1"), Arc::clone(&handles[0]));
        let two = streams.begin(about("/2"), Arc::new(CancellationHandle::default()));
        two.attach_cancellation(&handles[1]);
        let paths = |after, limit| streams.list(after, limit).iter().map(|(id, about)| (*id, about.path.clone())).collect::<Vec<_>>();
        assert_eq!(paths(0, 9), [(1, "/1".into()), (2, "/2".into())]);
        assert_eq!((paths(0, 1).len(), paths(1, 9).len(), streams.open.get()), (1, 1, 2));
        assert_eq!(streams.end(2).unwrap().path, "/2");
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(
            (handles[0].poll_cancelled(&mut cx), handles[1].poll_cancelled(&mut cx)),
            (Poll::Pending, Poll::Ready(CancelReason::Operator))
        );
        drop((one, two));
        assert!(streams.list(0, 9).is_empty() && streams.open.get() == 0 && streams.end(1).is_none());
    }
}
