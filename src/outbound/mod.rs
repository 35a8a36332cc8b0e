//! Calls to other people's services. Where a URL is configured, its target is https and a public address unless
//! the configuration says otherwise: nobody reaches what is inside by a name that points there, nor by a redirect.

mod services;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Url, redirect};

use crate::util::public_address::is_public;
pub use services::{Services, check};

/// What may be called, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Reach {
    /// Also addresses that are not public, and `http`.
    pub private: bool,
    /// The certificates that may sign the server's, as PEM. `None`: the system's.
    pub ca: Option<String>,
    /// How long a call may take, all in all.
    pub timeout: Duration,
}

/// An answer; what goes beyond the limit of its body is left out.
pub struct Answered {
    /// The status.
    pub status: u16,
    /// For how long `Retry-After` asks to be left alone, if it says so.
    pub retry_after: Option<Duration>,
    /// The beginning of the body.
    pub body: Vec<u8>,
}

/// Of an answer's body at most this is read.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Names that lead inside lead nowhere.
struct Outside;

impl Resolve for Outside {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("the name has no public address; `allow_private: true` allows others".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// A client that goes no further than that.
pub fn client(reach: &Reach) -> Result<Client, String> {
    // The only provider of cryptography that is compiled in; set already is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("Keylatch/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .timeout(reach.timeout)
        // A proxy from the environment would be asked for names instead of us.
        .no_proxy()
        .https_only(!reach.private);
    if !reach.private {
        builder = builder.dns_resolver(Arc::new(Outside));
    }
    if let Some(pem) = &reach.ca {
        let certificates = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|_| "ca_file holds no certificate in PEM".to_owned())?;
        if certificates.is_empty() {
            return Err("ca_file holds no certificate in PEM".into());
        }
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|error| format!("no client can be made: {}", plainly(error)))
}

/// Reads what is there, as text; what is longer than 64 KiB or no success is an error.
pub async fn get(client: &Client, url: Url) -> Result<String, String> {
    let mut answer = client.get(url).send().await.map_err(plainly)?;
    if !answer.status().is_success() {
        return Err(format!("the answer was {}", answer.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(plainly)? {
        body.extend_from_slice(&chunk);
        if body.len() > BODY_BYTES_MAX {
            return Err("the answer is longer than 64 KiB".into());
        }
    }
    String::from_utf8(body).map_err(|_| "the answer is not text".into())
}

/// Sends JSON.
pub async fn post(client: &Client, url: Url, headers: &[(&'static str, String)], body: String) -> Result<Answered, String> {
    let mut request = client.post(url).header("content-type", "application/json").body(body);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let mut answer = request.send().await.map_err(plainly)?;
    let retry_after = retry_after(answer.headers(), SystemTime::now());
    let (status, mut body) = (answer.status().as_u16(), Vec::new());
    while let Some(chunk) = answer.chunk().await.map_err(plainly)? {
        let room = BODY_BYTES_MAX.saturating_sub(body.len());
        body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        if body.len() == BODY_BYTES_MAX {
            break;
        }
    }
    Ok(Answered { status, retry_after, body })
}

/// For how long a service asks to be left alone: `Retry-After` (RFC 9110, 10.2.3) in seconds, or as a date, which is none once it
/// has passed.
pub fn retry_after(headers: &http::HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

/// What went wrong, down to its cause, without the URL.
pub fn plainly(error: reqwest::Error) -> String {
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
    fn what_may_be_called() {
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
    fn how_long_to_leave_a_service_alone() {
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
    async fn a_name_that_leads_inside_leads_nowhere() {
        let reach = Reach { private: false, ca: None, timeout: Duration::from_secs(2) };
        let client = client(&reach).unwrap();
        // `localhost` is refused before; here it stands for any name that resolves to an address inside.
        let failed = post(&client, Url::parse("https://localhost:1/x").unwrap(), &[], String::new()).await;
        assert!(failed.err().is_some_and(|text| text.contains("no public address") && !text.contains("/x")));
    }
}
