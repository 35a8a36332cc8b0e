//! The services that filters ask, and the things that are tended to for them: on the runtime that is beside the proxy,
//! so that no connection and no task depends on a request's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::{HeaderValue, header};
use keylatch_filters::contract::{
    AnswerBody, BoxFuture, Call, CallError, Endpoint, Invalid, Outbound, PeriodicTask, Service, ServiceResponse, TaskHandle, TaskOutcome,
};
use reqwest::{Client, RequestBuilder, Url};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::{Reach, client, plainly};
use crate::util::breaker::Breaker;
use crate::util::outbound_url::target;

/// So many calls to one service are under way at once; others wait for their turn.
const CALLS_MAX: usize = 64;
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
    fn service(&self, endpoint: &Endpoint, ca: Option<String>, authorization: Option<HeaderValue>) -> Result<Arc<dyn Service>, Invalid> {
        Ok(Arc::new(Remote { authorization, ..Remote::new(endpoint, ca, self.0.clone())? }))
    }

    fn schedule(&self, task: Weak<dyn PeriodicTask>) -> Arc<dyn TaskHandle> {
        let tending = Arc::new(Tending { wanted: Notify::new(), at_work: AtomicBool::new(true), done: watch::channel(0).0 });
        self.0.spawn(again_and_again(task, Arc::clone(&tending)));
        Arc::new(Held(tending))
    }
}

/// What is handed out: when it is dropped, the task notices.
struct Held(Arc<Tending>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.wanted.notify_one();
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

impl TaskHandle for Held {
    fn run_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut done = self.0.done.subscribe();
            // At work from now on: whoever comes before it has begun waits for the same.
            if !self.0.at_work.swap(true, Ordering::AcqRel) {
                self.0.wanted.notify_one();
            }
            let _ = tokio::time::timeout(PATIENCE, done.changed()).await;
        })
    }

    fn wait_until_idle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut done = self.0.done.subscribe();
            if self.0.at_work.load(Ordering::Acquire) {
                let _ = tokio::time::timeout(PATIENCE, done.changed()).await;
            }
        })
    }
}

async fn again_and_again(task: Weak<dyn PeriodicTask>, tending: Arc<Tending>) {
    let mut failing = false;
    loop {
        let Some(held) = task.upgrade() else { return };
        tending.at_work.store(true, Ordering::Release);
        let TaskOutcome { pause, failed } = held.run(Instant::now()).await;
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
    authorization: Option<HeaderValue>,
    private: bool,
    timeout: Duration,
    client: Client,
    runtime: Handle,
    breaker: Breaker,
    turns: Arc<Semaphore>,
}

impl Service for Remote {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<ServiceResponse, CallError>> {
        Box::pin(async move {
            let begun = Instant::now();
            let turn = tokio::time::timeout(self.timeout, Arc::clone(&self.turns).acquire_owned()).await;
            let Ok(Ok(turn)) = turn else {
                // Whoever asks for much at once must not make it look as if nobody were there.
                return Err(CallError::Unclear(format!("{CALLS_MAX} calls are under way already")));
            };
            let answer = async {
                // It goes on where the proxy's client leaves: its connection can be used again.
                let called = self.runtime.spawn(send(self.request(&call), call.answer, begun, turn));
                called.await.unwrap_or_else(|_| Err(CallError::Away("this process is stopping".into())))
            };
            let asked = self.breaker.run(answer, |error| matches!(error, CallError::Away(_))).await;
            asked.unwrap_or_else(|| Err(CallError::Away("it does not answer, and is asked again in a moment".into())))
        })
    }

    fn elsewhere(&self, url: &str) -> Result<Arc<dyn Service>, CallError> {
        let url = target(url, self.private).map_err(CallError::Unclear)?;
        if self.url.scheme() == "https" && url.scheme() != "https" {
            return Err(CallError::Unclear("leads from https to http".into()));
        }
        // Credentials are for their own origin.
        let authorization = self.authorization.clone().filter(|_| url.origin() == self.url.origin());
        Ok(Arc::new(Remote {
            url,
            authorization,
            private: self.private,
            timeout: self.timeout,
            client: self.client.clone(),
            runtime: self.runtime.clone(),
            breaker: Breaker::default(),
            turns: Arc::clone(&self.turns),
        }))
    }
}

impl Remote {
    fn new(endpoint: &Endpoint, ca: Option<String>, runtime: Handle) -> Result<Self, Invalid> {
        let (url, client) = check(endpoint, ca)?;
        Ok(Self {
            url,
            authorization: None,
            private: endpoint.allow_private,
            timeout: endpoint.timeout.0,
            client,
            runtime,
            breaker: Breaker::default(),
            turns: Arc::new(Semaphore::new(CALLS_MAX)),
        })
    }

    fn request(&self, call: &Call) -> RequestBuilder {
        let mut url = self.url.clone();
        if !call.path.is_empty() {
            let path = format!("{}{}", url.path().trim_end_matches('/'), call.path);
            url.set_path(&path);
        }
        let mut request = self.client.request(call.method.clone(), url).body(call.body.clone());
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        request
    }
}

async fn send(
    request: RequestBuilder,
    wanted: AnswerBody,
    begun: Instant,
    _turn: OwnedSemaphorePermit,
) -> Result<ServiceResponse, CallError> {
    let mut answer = request.send().await.map_err(|error| {
        // A connection that ends in the middle may have been ended because of what was asked.
        let away = error.is_connect() || error.is_timeout();
        if away { CallError::Away(plainly(error)) } else { CallError::Unclear(plainly(error)) }
    })?;
    let (status, headers, mut body) = (answer.status(), answer.headers().clone(), Vec::new());
    let (AnswerBody::Whole(most) | AnswerBody::Cut(most)) = wanted;
    while body.len() < most || matches!(wanted, AnswerBody::Whole(_)) {
        // It has answered: it is there.
        let Some(chunk) = answer.chunk().await.map_err(|error| CallError::Unclear(plainly(error)))? else { break };
        let room = most - body.len();
        if chunk.len() > room && matches!(wanted, AnswerBody::Whole(_)) {
            return Err(CallError::Unclear(format!("the answer is longer than {most} bytes")));
        }
        body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
    }
    Ok(ServiceResponse { status, headers, body, took: begun.elapsed() })
}

#[cfg(test)]
mod tests {
    use http::Method;
    use keylatch_filters::contract::HumanDuration;

    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_to_a_service_that_is_known_to_be_away() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let timeout = HumanDuration(Duration::from_millis(50));
        let service =
            Remote::new(&Endpoint { url, allow_private: true, ca_file: None, authorization: None, timeout }, None, Handle::current())
                .unwrap();
        let ask = || {
            service.call(Call {
                method: Method::GET,
                path: "".into(),
                headers: Vec::new(),
                body: String::new(),
                answer: AnswerBody::Cut(0),
            })
        };
        for _ in 0..3 {
            assert!(matches!(ask().await, Err(CallError::Away(_))));
        }
        assert!(service.breaker.is_open());
        assert!(matches!(ask().await, Err(CallError::Away(_))));
        assert_eq!(service.turns.available_permits(), CALLS_MAX, "something is under way");
    }
}
