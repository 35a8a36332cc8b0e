//! The HTTP client of an ACME CA, with the limits of every outbound call. It does not know the
//! protocol.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::outbound::{self, ClientOptions};
use crate::util::outbound_url;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Certificate chains and directories are a few KiB.
const BODY_BYTES_MAX: usize = 512 << 10;

/// An HTTP client for one CA.
pub struct Client {
    client: reqwest::Client,
    private: bool,
    /// The longest `Retry-After` of the CA's 429 and 503 responses, in seconds.
    retry_after_s: Arc<AtomicU64>,
}

impl Client {
    /// `ca`: the CA certificates that may have signed the server's certificate, as PEM.
    pub fn new(private: bool, ca: Option<String>, retry_after_s: &Arc<AtomicU64>) -> Result<Self, String> {
        let client = outbound::client(&ClientOptions { private, ca, timeout: TIMEOUT })?;
        Ok(Self { client, private, retry_after_s: Arc::clone(retry_after_s) })
    }
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Other(error.into())
}

impl HttpClient for Client {
    fn request(&self, request: http::Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (client, private, retry_after_s) = (self.client.clone(), self.private, Arc::clone(&self.retry_after_s));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            // The CA's directory chooses these URLs, so each one is checked.
            let url = outbound_url::target(&parts.uri.to_string(), private).map_err(other)?;
            let request = client.request(parts.method, url).headers(parts.headers).body(body);
            let mut answer = request.send().await.map_err(|e| other(outbound::error_chain(e)))?;
            if matches!(answer.status().as_u16(), 429 | 503) {
                let after = outbound::retry_after(answer.headers(), SystemTime::now()).unwrap_or_default();
                retry_after_s.fetch_max(after.as_secs(), Ordering::Relaxed);
            }
            let mut response = http::Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.extend(answer.headers().clone());
            }
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|e| other(outbound::error_chain(e)))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > BODY_BYTES_MAX {
                    return Err(Error::Str("the response of the CA is longer than 512 KiB"));
                }
            }
            Ok(BytesResponse::from(response.body(Full::new(Bytes::from(bytes))).map_err(other)?))
        })
    }
}
