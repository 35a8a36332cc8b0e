//! The implementation of the filters' outbound port: calls to services, and their periodic tasks.
//! Both run on the runtime beside the proxy, so that no task depends on a request.

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

use super::{ClientOptions, client, error_chain};
use crate::util::breaker::Breaker;
use crate::util::outbound_url::target;

/// The concurrent calls to one service. Further calls wait.
const CALLS_MAX: usize = 64;
/// The minimum pause between two runs of a periodic task.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Runs calls and periodic tasks on this runtime.
pub struct Services(Handle);

impl Services {
    /// Uses the runtime of the caller.
    pub fn on_current_runtime() -> Self {
        Self(Handle::current())
    }
}

impl Outbound for Services {
    fn service(&self, endpoint: &Endpoint, ca: Option<String>, authorization: Option<HeaderValue>) -> Result<Arc<dyn Service>, Invalid> {
        Ok(Arc::new(Remote { authorization, ..Remote::new(endpoint, ca, self.0.clone())? }))
    }

    fn schedule(&self, task: Weak<dyn PeriodicTask>) -> Arc<dyn TaskHandle> {
        let tending = Arc::new(TaskState { wanted: Notify::new(), running: AtomicBool::new(true), done: watch::channel(0).0 });
        self.0.spawn(run_repeatedly(task, Arc::clone(&tending)));
        Arc::new(ScheduledTask(tending))
    }
}

/// The handle of a periodic task. Dropping it ends the task.
struct ScheduledTask(Arc<TaskState>);

impl Drop for ScheduledTask {
    fn drop(&mut self) {
        self.0.wanted.notify_one();
    }
}

/// The longest that a caller waits for a run.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The state of a periodic task, shared with the callers that wait for it.
struct TaskState {
    wanted: Notify,
    running: AtomicBool,
    /// The number of finished runs.
    done: watch::Sender<u64>,
}

impl TaskHandle for ScheduledTask {
    fn run_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut done = self.0.done.subscribe();
            // Set before the run begins, so that concurrent callers share one run.
            if !self.0.running.swap(true, Ordering::AcqRel) {
                self.0.wanted.notify_one();
            }
            let _ = tokio::time::timeout(WAIT_MAX, done.changed()).await;
        })
    }

    fn wait_until_idle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut done = self.0.done.subscribe();
            if self.0.running.load(Ordering::Acquire) {
                let _ = tokio::time::timeout(WAIT_MAX, done.changed()).await;
            }
        })
    }
}

async fn run_repeatedly(task: Weak<dyn PeriodicTask>, tending: Arc<TaskState>) {
    let mut failing = false;
    loop {
        let Some(task) = task.upgrade() else { return };
        tending.running.store(true, Ordering::Release);
        let TaskOutcome { pause, failed } = task.run(Instant::now()).await;
        tending.running.store(false, Ordering::Release);
        tending.done.send_modify(|times| *times += 1);
        // Only changes are logged: the first failure, and the recovery.
        match (&failed, failing) {
            (Some(why), false) => tracing::warn!(what = task.name(), why, "refresh failed; the previous data stays in use"),
            (None, true) => tracing::info!(what = task.name(), "refresh works again"),
            _ => {}
        }
        failing = failed.is_some();
        drop(task);
        let _ = tokio::time::timeout(pause.max(PAUSE_MIN), tending.wanted.notified()).await;
    }
}

/// Validates an endpoint without calling it.
pub fn check(endpoint: &Endpoint, ca: Option<String>) -> Result<(Url, Client), Invalid> {
    let url = target(&endpoint.url, endpoint.allow_private).map_err(|says| Invalid::new(says).at("url"))?;
    let options = ClientOptions { private: endpoint.allow_private, ca, timeout: endpoint.timeout.0 };
    let client = client(&options).map_err(|says| Invalid::new(says).at("ca_file"))?;
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
                // A saturated limit is not a failure of the service: the breaker must not count it.
                return Err(CallError::Unclear(format!("all {CALLS_MAX} concurrent calls to the service are in use")));
            };
            let answer = async {
                // The call continues if the client leaves, so that its connection can be reused.
                let called = self.runtime.spawn(send(self.request(&call), call.answer, begun, turn));
                called.await.unwrap_or_else(|_| Err(CallError::Away("the process is stopping".into())))
            };
            let outcome = self.breaker.run(answer, |error| matches!(error, CallError::Away(_))).await;
            outcome.unwrap_or_else(|| Err(CallError::Away("the service does not answer; the next call is tried shortly".into())))
        })
    }

    fn elsewhere(&self, url: &str) -> Result<Arc<dyn Service>, CallError> {
        let url = target(url, self.private).map_err(CallError::Unclear)?;
        if self.url.scheme() == "https" && url.scheme() != "https" {
            return Err(CallError::Unclear("the URL leads from https to http".into()));
        }
        // Credentials are sent to their own origin only.
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
        // The request itself may have ended the connection, so other errors say nothing about the
        // service.
        let away = error.is_connect() || error.is_timeout();
        if away { CallError::Away(error_chain(error)) } else { CallError::Unclear(error_chain(error)) }
    })?;
    let (status, headers, mut body) = (answer.status(), answer.headers().clone(), Vec::new());
    let (AnswerBody::Whole(most) | AnswerBody::Cut(most)) = wanted;
    while body.len() < most || matches!(wanted, AnswerBody::Whole(_)) {
        // The service has answered, so it is available.
        let Some(chunk) = answer.chunk().await.map_err(|error| CallError::Unclear(error_chain(error)))? else { break };
        let room = most - body.len();
        if chunk.len() > room && matches!(wanted, AnswerBody::Whole(_)) {
            return Err(CallError::Unclear(format!("the response is longer than {most} bytes")));
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
    async fn an_open_breaker_sends_nothing() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let timeout = HumanDuration(Duration::from_millis(50));
        let service =
            Remote::new(&Endpoint { url, allow_private: true, ca_file: None, authorization: None, timeout }, None, Handle::current())
                .unwrap();
        let call = || {
            service.call(Call {
                method: Method::GET,
                path: "".into(),
                headers: Vec::new(),
                body: String::new(),
                answer: AnswerBody::Cut(0),
            })
        };
        for _ in 0..3 {
            assert!(matches!(call().await, Err(CallError::Away(_))));
        }
        assert!(service.breaker.is_open());
        assert!(matches!(call().await, Err(CallError::Away(_))));
        assert_eq!(service.turns.available_permits(), CALLS_MAX, "a call is under way");
    }
}
