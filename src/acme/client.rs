//! How the CA is called: as any other service that a configuration names, and no further than that.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::outbound::{self, Reach};
use crate::util::outbound_url;

const TIME_MAX: Duration = Duration::from_secs(30);
/// Chains and directories are a few KiB.
const BODY_BYTES_MAX: usize = 512 << 10;

/// A client for one CA.
pub struct Client {
    client: reqwest::Client,
    private: bool,
    /// For how many seconds the CA has asked not to be asked (`Retry-After` of 429 and 503).
    asked: Arc<AtomicU64>,
}

impl Client {
    /// `ca`: who may have signed its certificate, as PEM.
    pub fn new(private: bool, ca: Option<String>, asked: &Arc<AtomicU64>) -> Result<Self, String> {
        let client = outbound::client(&Reach { private, ca, timeout: TIME_MAX })?;
        Ok(Self { client, private, asked: Arc::clone(asked) })
    }
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Other(error.into())
}

impl HttpClient for Client {
    fn request(&self, request: http::Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (client, private, pause) = (self.client.clone(), self.private, Arc::clone(&self.asked));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            // Where it leads is the CA's to say, in its directory: it is looked at each time.
            let url = outbound_url::target(&parts.uri.to_string(), private).map_err(other)?;
            let asked = client.request(parts.method, url).headers(parts.headers).body(body);
            let mut answer = asked.send().await.map_err(|e| other(outbound::plainly(e)))?;
            if matches!(answer.status().as_u16(), 429 | 503) {
                let after = outbound::retry_after(answer.headers(), SystemTime::now()).unwrap_or_default();
                pause.fetch_max(after.as_secs(), Ordering::Relaxed);
            }
            let mut response = http::Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.extend(answer.headers().clone());
            }
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|e| other(outbound::plainly(e)))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > BODY_BYTES_MAX {
                    return Err(Error::Str("the CA's answer is too long"));
                }
            }
            Ok(BytesResponse::from(response.body(Full::new(Bytes::from(bytes))).map_err(other)?))
        })
    }
}
