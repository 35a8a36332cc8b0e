//! Helpers for the tests of filters: a compile environment, ports without function, and test keys. Not part of the crate.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use ipnet::IpNet;

use crate::contract::*;
use crate::limiting::ledger::MemoryLedger;

struct NoFiles;
impl Resolve for NoFiles {
    fn file(&self, path: &str) -> Result<String, Invalid> {
        Err(Invalid::new(format!("no file {path}")))
    }
}

/// A store without bindings, and an outbound port without reachable services.
pub struct NoBindings;
impl Bindings for NoBindings {
    fn cached(&self, _: &KeyId) -> Option<Arc<Binding>> {
        None
    }
    fn authoritative(&self, _: KeyId, _: Option<KeyUse>) -> BoxFuture<'_, Result<Option<Arc<Binding>>, StoreError>> {
        Box::pin(async { Ok(None) })
    }
    fn bind_first_use(&self, _: FirstUse) -> BoxFuture<'_, Result<Arc<Binding>, StoreError>> {
        Box::pin(async { Err(StoreError::Away("no store".into())) })
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

/// Every service is unreachable.
impl Outbound for NoBindings {
    fn service(&self, _: &Endpoint, _: Option<String>, _: Option<http::HeaderValue>) -> Result<Arc<dyn Service>, Invalid> {
        Ok(Arc::new(NoBindings))
    }
    fn schedule(&self, _: Weak<dyn PeriodicTask>) -> Arc<dyn TaskHandle> {
        Arc::new(NoBindings)
    }
}
impl TaskHandle for NoBindings {
    fn run_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn wait_until_idle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
impl UsageSink for NoBindings {
    fn record(&self, _: &UsageRecord) {}
}
impl Service for NoBindings {
    fn call(&self, _: Call) -> BoxFuture<'_, Result<ServiceResponse, CallError>> {
        Box::pin(async { Err(CallError::Away("unreachable".into())) })
    }
    fn elsewhere(&self, _: &str) -> Result<Arc<dyn Service>, CallError> {
        Ok(Arc::new(NoBindings))
    }
}

/// The output of a future that never waits.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("the future waits"),
    }
}

/// Calls `compile` with an environment that trusts no proxy.
pub fn with_site<T>(compile: impl FnOnce(&mut Site<'_>) -> T) -> T {
    with_outbound(Arc::new(NoBindings), compile)
}

/// Calls `compile` with an environment that has this outbound port.
pub fn with_outbound<T>(outbound: Arc<dyn Outbound>, compile: impl FnOnce(&mut Site<'_>) -> T) -> T {
    let (hasher, meter) = (KeyHasher::new(b"test"), Arc::default());
    let (bindings, usage, ledger) = (Arc::new(NoBindings), Arc::new(NoBindings), Arc::<MemoryLedger>::default());
    let ports =
        Ports { bindings, hasher, meter, counters: None, outbound, usage_tracker: Arc::default(), usage, ledger, shared_ledger: None };
    compile(&mut Site {
        place: "filters[0]".into(),
        trusted: Arc::default(),
        prices: Arc::default(),
        keep: &Keep::default(),
        ports: &ports,
        resolve: &NoFiles,
        uses_shared_counters: &Cell::default(),
        reads_usage: &Cell::new(true),
        budgets: &Default::default(),
        limits: &std::cell::RefCell::default(),
        routes: &[],
        more_errors: &Default::default(),
    })
}

/// An RSA private key, made for these tests.
pub const RSA_PRIVATE_PEM: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIEowIBAAKCAQEAtGZ9It4q9HL4r7TDEtpBVg9Cudn8E1UZUHMCex4WIUEctH3a
QMLaA6TQqHTxXPeou2b4gDoNVNK5aeRLML2mcIWiSIdTbqDh0rC66QU62qnvHUH+
CBCTjmAEV/eZa394lqYrwDigGRIP3ud+ZxfBHQamGbeGlkGsqq0UBmoDCZy5Y9MN
hWuDx56BEvnDztFmZnlO4o4+gbwCbz9ITve4lDVgsOVMgDSLs9uUaInE13yRiMsK
mzuTAgawxd8nf0OPmXujsXJWn/eCKYlmI3BWnw9ZMeRFJ2G8dFGi/PseU+84xB5o
OPTYP9mViOcVWVYfT57WXHMPSG6wPPiVdcLWLwIDAQABAoIBABzT+fBIp32bzSYq
5ozMiD9Wk0z8ICj+DYcKcfLhunCYT/F/NmbonF/pBm0SZFWnv/TT6NHONROBKcmv
BohPQ4SHXl5lEw3tM1kbY9WulRqcqE45HagFRMcuNyjQM4Shq1ALqux96rDxmXap
8KGh1/rUSqvLulFS77hF40V+dbt4ZUkhskGCA4cGy750i/9DP2blBSSBlFsa/uDy
Qxbz/heH2NnhAWHQgL8vmYGxR02iIo4/3eAQu9PRlTJKnqMsmkqehf1W1vdSbOua
6Qo3azzyu9zubLk6ThSaRwI/eCj6FtNaPiGV69XJWf7ATpLbea5p+v3CygMKnUzU
Xs+YVHUCgYEA6XWwYm1u485EkEhv48m0CD7bnJa8pTCoMUOGSbRwWv4rTcw+Decz
h6SFvy8zwTekzZoWJYkx8s6LG+kD9HrbvmioZsWDU2wKQ7xmCesabS77FVJbN6S4
dJacjFE1OYTmywXLz1ZqO1LRLi69uiAFE7zbvqTnnYEGlaGpBisKHN0CgYEAxdFb
XYXwOQGFH2/QolC03FpDIDBAos3/wLq63y3u9HSB6hP8HuCpLqpkhOfJiZv4Tdp/
SzVHhnKnHszh4/12Kq8Dwti5hF7Dhh7Ss/vdoI1zFa+X39hL9ifJ+0bNf4idhdKJ
TLVy40RkTpiKMkFm/81ShXMAGg6Sphtk6py3WHsCgYARmA/56vtfaa0bHopoJUxP
DsWoMGf5Hwid5dPZ/CI3iU4kJ89JZvIoN8rolJsW5aWi5QjkPUmpXc14BgCJTTUA
TYzbaekywUKoxir+dlxgfBjqC3HaaKyKBMu5e2lCc3SdOkuYzY9l9yDSlS0xOLaJ
PUNmQ7E82ntvjWZak6XIdQKBgGadL1PYQsCPdUrVadiJHQihGej8nsrVKTIEqyNS
ZH4SYcHXFBXAXIKEiRgYVIc5jRh1m0qcHLo1h1OG3Da0KDQEDWNpoPJ1Zd+Q5aPP
pyu9tFEvgQzw2paaFUBvffIGIBBnIinUhgA2XgIXRrjDDHbtPz1SZl8d6ByaYUMC
gGk5AoGBAKJmMOhJ987vbC8Wl20Y77/cocmV/W+ljb4jmhKB70di3W4d9GVTIx5r
pAI0mWp1Fu/A6GybPpyni0QnsRdoZdAFFUtaJxicBjRimp1fMlpYSNClf9QiNKNc
Z600IW773DGHtNZbGKD1hgrH4LtwPjrnbBRx8yb/YrpHefI9IEHK
-----END RSA PRIVATE KEY-----";
/// The public key of [`RSA_PRIVATE_PEM`].
pub const RSA_PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtGZ9It4q9HL4r7TDEtpB
Vg9Cudn8E1UZUHMCex4WIUEctH3aQMLaA6TQqHTxXPeou2b4gDoNVNK5aeRLML2m
cIWiSIdTbqDh0rC66QU62qnvHUH+CBCTjmAEV/eZa394lqYrwDigGRIP3ud+ZxfB
HQamGbeGlkGsqq0UBmoDCZy5Y9MNhWuDx56BEvnDztFmZnlO4o4+gbwCbz9ITve4
lDVgsOVMgDSLs9uUaInE13yRiMsKmzuTAgawxd8nf0OPmXujsXJWn/eCKYlmI3BW
nw9ZMeRFJ2G8dFGi/PseU+84xB5oOPTYP9mViOcVWVYfT57WXHMPSG6wPPiVdcLW
LwIDAQAB
-----END PUBLIC KEY-----";
/// A P-256 private key, made for these tests.
pub const EC_PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgfNm9RX8xu7jVu+lZ
0CaRJmZ9M3iS4SMZs0vVo44qvRGhRANCAASKxkz70/tWCScj1mlNpJQa974Rkbv2
lsTMUIDk3Xi9pbQ1F6bLbDzSWAYA4x2qPiQyF7+rV9Ne1Yt2Syoa3dVg
-----END PRIVATE KEY-----";
/// The public key of [`EC_PRIVATE_PEM`].
pub const EC_PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEisZM+9P7VgknI9ZpTaSUGve+EZG7
9pbEzFCA5N14vaW0NRemy2w80lgGAOMdqj4kMhe/q1fTXtWLdksqGt3VYA==
-----END PUBLIC KEY-----";
/// An Ed25519 private key, made for these tests.
pub const ED_PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJJsPxh31ziHc7ufBLNLWh53IlhgRwNK0GJyL2AyS+/Q
-----END PRIVATE KEY-----";
/// The public key of [`ED_PRIVATE_PEM`].
pub const ED_PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAEct+cv2/pri4sx2/PCVP6zXON3fr6l81b6tspxXhziA=
-----END PUBLIC KEY-----";
/// The public key of [`ED_PRIVATE_PEM`] as the `x` of a JWK.
pub const ED_PUBLIC_X: &str = "Ect-cv2_pri4sx2_PCVP6zXON3fr6l81b6tspxXhziA";
