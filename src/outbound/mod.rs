//! HTTP calls to services that the configuration names. A target must use https and a public
//! address unless the configuration allows others; this is enforced on the resolved addresses, and
//! redirects are not followed (protection against SSRF).

mod services;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Url, redirect};

use crate::util::public_address::is_public;
pub use services::{Services, check};

/// The options of an HTTP client.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientOptions {
    /// Allows private addresses and `http`.
    pub private: bool,
    /// The CA certificates that may have signed the server's, as PEM. `None`: the CAs of the
    /// system.
    pub ca: Option<String>,
    /// The timeout of a whole call.
    pub timeout: Duration,
}

/// A response. Its body is cut at 64 KiB.
pub struct Response {
    /// The status.
    pub status: u16,
    /// The value of `Retry-After`, if there is one.
    pub retry_after: Option<Duration>,
    /// The body, or its first 64 KiB.
    pub body: Vec<u8>,
}

/// The most bytes that are read of a body.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A DNS resolver that returns public addresses only.
struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("the name has no public address; set `allow_private: true` to allow private ones".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// An HTTP client with these options. It follows no redirect and uses no proxy.
pub fn client(options: &ClientOptions) -> Result<Client, String> {
    // The only crypto provider that is compiled in. An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("Keylatch/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .timeout(options.timeout)
        // A proxy from the environment would resolve the names itself.
        .no_proxy()
        .https_only(!options.private);
    if !options.private {
        builder = builder.dns_resolver(Arc::new(PublicResolver));
    }
    if let Some(pem) = &options.ca {
        let certificates = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|_| "`ca_file` contains no PEM certificate".to_owned())?;
        if certificates.is_empty() {
            return Err("`ca_file` contains no PEM certificate".into());
        }
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|error| format!("the HTTP client cannot be created: {}", error_chain(error)))
}

/// Fetches a text. A status other than 2xx and a body over 64 KiB are errors.
pub async fn get(client: &Client, url: Url) -> Result<String, String> {
    let mut answer = client.get(url).send().await.map_err(error_chain)?;
    if !answer.status().is_success() {
        return Err(format!("the response has status {}", answer.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(error_chain)? {
        body.extend_from_slice(&chunk);
        if body.len() > BODY_BYTES_MAX {
            return Err("the response is longer than 64 KiB".into());
        }
    }
    String::from_utf8(body).map_err(|_| "the response is not UTF-8 text".into())
}

/// Sends a POST request with a JSON body.
pub async fn post(client: &Client, url: Url, headers: &[(&'static str, String)], body: String) -> Result<Response, String> {
    let mut request = client.post(url).header("content-type", "application/json").body(body);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let mut answer = request.send().await.map_err(error_chain)?;
    let retry_after = retry_after(answer.headers(), SystemTime::now());
    let (status, mut body) = (answer.status().as_u16(), Vec::new());
    while let Some(chunk) = answer.chunk().await.map_err(error_chain)? {
        let room = BODY_BYTES_MAX.saturating_sub(body.len());
        body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        if body.len() == BODY_BYTES_MAX {
            break;
        }
    }
    Ok(Response { status, retry_after, body })
}

/// The value of `Retry-After` (RFC 9110, section 10.2.3): seconds or a date. A date in the past is
/// `None`.
pub fn retry_after(headers: &http::HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

/// The error with its causes, without the URL.
pub fn error_chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::outbound_url::target;

    #[test]
    fn allowed_targets() {
        for (url, private, fine) in [
            ("https://hooks.example.com/x", false, true),
            ("https://1.1.1.1/x", false, true),
            ("https://[2606:4700::1111]/x", false, true),
            ("http://hooks.example.com/x", false, false),
            ("https://127.0.0.1/x", false, false),
            ("https://2130706433/x", false, false),
            ("https://0x7f.1/x", false, false),
            ("https://169.254.169.254/latest", false, false),
            ("https://[::ffff:10.0.0.1]/", false, false),
            ("https://localhost/x", false, false),
            ("http://127.0.0.1:8080/x", true, true),
            ("file:///etc/passwd", true, false),
            ("hooks.example.com", false, false),
        ] {
            let said = target(url, private);
            assert_eq!(said.is_ok(), fine, "{url}: {said:?}");
            assert!(said.err().is_none_or(|text| !text.contains("latest")));
        }
    }

    #[test]
    fn retry_after_values() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (said, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            let headers = http::HeaderMap::from_iter([(http::header::RETRY_AFTER, http::HeaderValue::from_static(said))]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{said}");
        }
        assert_eq!(retry_after(&http::HeaderMap::new(), now), None);
    }

    #[tokio::test]
    async fn a_name_with_a_private_address_is_not_called() {
        let options = ClientOptions { private: false, ca: None, timeout: Duration::from_secs(2) };
        let client = client(&options).unwrap();
        // `localhost` stands for any name that resolves to a private address; URLs with it are
        // refused elsewhere.
        let failed = post(&client, Url::parse("https://localhost:1/x").unwrap(), &[], String::new()).await;
        assert!(failed.err().is_some_and(|text| text.contains("no public address") && !text.contains("/x")));
    }
}
