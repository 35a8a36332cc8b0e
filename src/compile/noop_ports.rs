//! Ports for compiling a configuration without running it: they store nothing, know nothing and
//! make no calls.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use http::HeaderValue;
use ipnet::IpNet;
use keylatch_filters::contract::{
    Binding, Bindings, BoxFuture, Call, CallError, CancellationHandle, Counters, Endpoint, FirstUse, Hit, Intercept, Invalid, KeyHasher,
    KeyId, KeyUse, Lease, Meter, Outbound, Outcome, PeriodicTask, Ports, Service, ServiceResponse, StoreError, TaskHandle, UsageRecord,
    UsageSink,
};

use keylatch_filters::limiting::ledger::MemoryLedger;

use crate::outbound;

/// Ports for compiling a configuration without running it.
pub fn check_ports() -> Ports {
    Ports {
        bindings: Arc::new(NoopPort),
        hasher: KeyHasher::new(b""),
        meter: Arc::new(Meter::default()),
        counters: Some(Arc::new(NoopPort)),
        outbound: Arc::new(NoopPort),
        usage_tracker: Arc::default(),
        usage: Arc::new(NoopPort),
        ledger: Arc::<MemoryLedger>::default(),
        shared_ledger: Some(Arc::<MemoryLedger>::default()),
    }
}

struct NoopPort;

impl Outbound for NoopPort {
    fn service(&self, endpoint: &Endpoint, ca: Option<String>, _: Option<HeaderValue>) -> Result<Arc<dyn Service>, Invalid> {
        outbound::check(endpoint, ca)?;
        Ok(Arc::new(NoopPort))
    }
    fn schedule(&self, _: Weak<dyn PeriodicTask>) -> Arc<dyn TaskHandle> {
        Arc::new(NoopPort)
    }
}

impl TaskHandle for NoopPort {
    fn run_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn wait_until_idle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl Service for NoopPort {
    fn call(&self, _: Call) -> BoxFuture<'_, Result<ServiceResponse, CallError>> {
        Box::pin(async { Err(CallError::Away("no calls are made while a configuration is checked".into())) })
    }
    fn elsewhere(&self, _: &str) -> Result<Arc<dyn Service>, CallError> {
        Ok(Arc::new(NoopPort))
    }
}

impl UsageSink for NoopPort {
    fn record(&self, _: &UsageRecord) {}
}

impl Counters for NoopPort {
    fn hit(&self, _: Vec<Hit>) -> BoxFuture<'_, Result<Vec<Outcome>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no shared state while a configuration is checked".into())) })
    }
    fn peek<'a>(&'a self, _: &'a Hit) -> BoxFuture<'a, Result<Outcome, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no shared state while a configuration is checked".into())) })
    }
    fn forget<'a>(&'a self, _: &'a Hit) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Err(StoreError::Away("no shared state while a configuration is checked".into())) })
    }
    fn lease(&self, _: String, _: u32) -> BoxFuture<'_, Result<Option<Lease>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no shared state while a configuration is checked".into())) })
    }
}

impl Bindings for NoopPort {
    fn cached(&self, _: &KeyId) -> Option<Arc<Binding>> {
        None
    }
    fn authoritative(&self, _: KeyId, _: Option<KeyUse>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no store is open".into())) })
    }
    fn bind_first_use(&self, _: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no store is open".into())) })
    }
    fn adopt(&self, _: KeyId, _: Vec<KeyId>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async { Ok(None) })
    }
    fn roam(&self, _: KeyId, _: IpNet, _: SystemTime) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async { Ok(None) })
    }
    fn stream_cancellation(&self, _: KeyId, _: IpAddr) -> Arc<CancellationHandle> {
        Arc::default()
    }
    fn confirm(&self, _: &Binding) {}
    fn release(&self, _: &Binding) {}
    fn used(&self, _: KeyId, _: SystemTime) {}
    fn intercepted(&self, _: Intercept) {}
}
