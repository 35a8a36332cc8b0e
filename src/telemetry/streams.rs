//! The registry of open event streams and WebSockets, so that they can be counted, listed and ended.
//!
//! Ending a stream only triggers its cancellation handle; the proxy ends it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use keylatch_filters::contract::{CancelReason, CancellationHandle, Key};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};

use crate::upstream::Address;

/// The open streams of this process.
pub struct Streams {
    /// The number of open streams.
    pub open: IntGauge,
    /// Comment frames sent.
    pub frames: IntCounter,
    registry: Mutex<StreamTable>,
}

#[derive(Default)]
struct StreamTable {
    /// The last id. Ids grow and are never reused, not even after a restart.
    last: u64,
    open: BTreeMap<u64, (Arc<StreamInfo>, Arc<CancellationHandle>)>,
}

/// The description of an open stream.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// When the header of the request was complete.
    pub started_at: SystemTime,
    /// The name of the route.
    pub route: String,
    /// The client address.
    pub client: IpAddr,
    /// The key of the request, if it has one.
    pub key: Option<Key>,
    /// The verified identity, if there is one.
    pub subject: Option<String>,
    /// The path, without the query.
    pub path: String,
    /// The id of the request in the logs.
    pub request_id: Option<String>,
    /// The server that sends the stream.
    pub upstream: Option<Address>,
}

impl Streams {
    /// An empty registry. Ids start after `before`.
    pub fn new(open: IntGauge, frames: IntCounter, before: u64) -> Arc<Self> {
        Arc::new(Self { open, frames, registry: Mutex::new(StreamTable { last: before, open: BTreeMap::new() }) })
    }

    /// Registers a stream until the returned guard is dropped.
    pub fn begin(self: &Arc<Self>, info: StreamInfo, cancellation: Arc<CancellationHandle>) -> OpenStream {
        self.open.inc();
        let mut table = self.registry.lock();
        table.last += 1;
        let id = table.last;
        table.open.insert(id, (Arc::new(info), cancellation));
        OpenStream { id, streams: Arc::clone(self) }
    }

    /// The open streams with an id greater than `after`, the oldest first.
    pub fn list(&self, after: u64, limit: usize) -> Vec<(u64, Arc<StreamInfo>)> {
        let table = self.registry.lock();
        table.open.range(after.saturating_add(1)..).take(limit).map(|(id, (info, _))| (*id, Arc::clone(info))).collect()
    }

    /// An open stream; `None` if none has this id.
    pub fn get(&self, id: u64) -> Option<Arc<StreamInfo>> {
        self.registry.lock().open.get(&id).map(|(info, _)| Arc::clone(info))
    }

    /// Ends a stream for an operator, and returns its description; `None` if none has this id.
    pub fn end(&self, id: u64) -> Option<Arc<StreamInfo>> {
        let (info, cancellation) = self.registry.lock().open.get(&id).cloned()?;
        cancellation.cancel(CancelReason::Operator);
        Some(info)
    }

    /// Ends all streams, because the process stops.
    pub fn end_all(&self) {
        let handles: Vec<_> = self.registry.lock().open.values().map(|(_, cancellation)| Arc::clone(cancellation)).collect();
        handles.iter().for_each(|cancellation| cancellation.cancel(CancelReason::Stop));
    }
}

/// The registration of an open stream. Dropping it removes the stream.
pub struct OpenStream {
    id: u64,
    streams: Arc<Streams>,
}

impl OpenStream {
    /// Replaces the cancellation handle of the stream.
    pub fn attach_cancellation(&self, cancellation: &Arc<CancellationHandle>) {
        if let Some((_, current)) = self.streams.registry.lock().open.get_mut(&self.id) {
            *current = Arc::clone(cancellation);
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.registry.lock().open.remove(&self.id);
        self.streams.open.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn streams_are_listed_ended_and_removed() {
        let streams = Streams::new(IntGauge::new("a", "a").unwrap(), IntCounter::new("b", "b").unwrap(), 0);
        let info = |path: &str| StreamInfo {
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
        let one = streams.begin(info("/1"), Arc::clone(&handles[0]));
        let two = streams.begin(info("/2"), Arc::new(CancellationHandle::default()));
        two.attach_cancellation(&handles[1]);
        let paths = |after, limit| streams.list(after, limit).iter().map(|(id, info)| (*id, info.path.clone())).collect::<Vec<_>>();
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
