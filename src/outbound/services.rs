//! The services that filters ask, and the things that are tended to for them: on the runtime that is beside the proxy,
//! so that no connection and no task depends on a request's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use keylatch_filters::contract::{Answered, BoxFuture, Call, CallError, Endpoint, Invalid, Outbound, Service, Tend, Tended, Tender};
use reqwest::{Client, Url};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::{Reach, client, plainly, target};
use crate::breaker::Breaker;

/// Nothing is tended to more often than this, whatever it says.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// Calls and tends on this runtime.
pub struct Services(Handle);

impl Services {
    /// On the runtime of the caller.
    pub fn here() -> Self {
        Self(Handle::current())
    }
}

impl Outbound for Services {
    fn service(&self, endpoint: &Endpoint, ca: Option<String>) -> Result<Arc<dyn Service>, Invalid> {
        let (url, client) = check(endpoint, ca)?;
        Ok(Arc::new(Remote { url, private: endpoint.allow_private, client, runtime: self.0.clone(), breaker: Breaker::default() }))
    }

    fn tend(&self, task: Weak<dyn Tend>) -> Arc<dyn Tender> {
        let tending = Arc::new(Tending { wanted: Notify::new(), at_work: AtomicBool::new(true), done: watch::channel(0).0 });
        self.0.spawn(again_and_again(task, Arc::clone(&tending)));
        tending
    }
}

/// Nobody waits longer for something to be done.
const PATIENCE: Duration = Duration::from_secs(10);

/// A task and those who wait for it.
struct Tending {
    wanted: Notify,
    at_work: AtomicBool,
    /// How often it has been done.
    done: watch::Sender<u64>,
}

impl Tender for Tending {
    fn now(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut done = self.done.subscribe();
            // At work from now on: whoever comes before it has begun waits for the same.
            if !self.at_work.swap(true, Ordering::AcqRel) {
                self.wanted.notify_one();
            }
            let _ = tokio::time::timeout(PATIENCE, done.changed()).await;
        })
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut done = self.done.subscribe();
            if self.at_work.load(Ordering::Acquire) {
                let _ = tokio::time::timeout(PATIENCE, done.changed()).await;
            }
        })
    }
}

async fn again_and_again(task: Weak<dyn Tend>, tending: Arc<Tending>) {
    let mut failing = false;
    loop {
        let Some(held) = task.upgrade() else { return };
        tending.at_work.store(true, Ordering::Release);
        let Tended { pause, failed } = held.tend().await;
        tending.at_work.store(false, Ordering::Release);
        tending.done.send_modify(|times| *times += 1);
        // Told at the first failure and at the end of them, not each time.
        match (&failed, failing) {
            (Some(why), false) => tracing::warn!(what = held.name(), why, "could not be refreshed; what was known before stays"),
            (None, true) => tracing::info!(what = held.name(), "can be refreshed again"),
            _ => {}
        }
        failing = failed.is_some();
        drop(held);
        let _ = tokio::time::timeout(pause.max(SHORTEST_PAUSE), tending.wanted.notified()).await;
    }
}

/// Whether an endpoint can be called, without calling it.
pub fn check(endpoint: &Endpoint, ca: Option<String>) -> Result<(Url, Client), Invalid> {
    let url = target(&endpoint.url, endpoint.allow_private).map_err(|says| Invalid::new(says).at("url"))?;
    let reach = Reach { private: endpoint.allow_private, ca, timeout: endpoint.timeout.0 };
    let client = client(&reach).map_err(|says| Invalid::new(says).at("ca_file"))?;
    Ok((url, client))
}

struct Remote {
    url: Url,
    private: bool,
    client: Client,
    runtime: Handle,
    breaker: Breaker,
}

impl Service for Remote {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answered, CallError>> {
        let mut url = self.url.clone();
        if !call.path.is_empty() {
            let path = format!("{}{}", url.path().trim_end_matches('/'), call.path);
            url.set_path(&path);
        }
        let mut request = self.client.request(call.method, url).body(call.body);
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let answered = async move {
            let mut answer = request.send().await.map_err(plainly)?;
            let (status, headers, mut body) = (answer.status(), answer.headers().clone(), Vec::new());
            while let Some(chunk) = answer.chunk().await.map_err(plainly)? {
                if body.len() + chunk.len() > call.answer_bytes_max {
                    return Err(format!("the answer is longer than {} bytes", call.answer_bytes_max));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Answered { status, headers, body })
        };
        Box::pin(async move {
            // Begun by whoever waits for it: not at all where the breaker says no.
            let answer = async { self.runtime.spawn(answered).await.unwrap_or_else(|_| Err("this process is stopping".into())) };
            let asked = self.breaker.run(answer, |_| true).await;
            asked.unwrap_or_else(|| Err("it does not answer, and is asked again in a moment".into())).map_err(CallError)
        })
    }

    fn elsewhere(&self, url: &str) -> Result<Arc<dyn Service>, CallError> {
        let url = target(url, self.private).map_err(CallError)?;
        let (client, runtime) = (self.client.clone(), self.runtime.clone());
        Ok(Arc::new(Remote { url, private: self.private, client, runtime, breaker: Breaker::default() }))
    }
}
