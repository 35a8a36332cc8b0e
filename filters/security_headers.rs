//! # security_headers
//!
//! Sets security fields for browsers on every response and removes fields that reveal the server software.
//!
//! ```yaml
//! security_headers:
//!   hsts: {max_age: 365days, include_subdomains: true}
//!   frame: deny
//!   referrer: no-referrer
//!   content_security_policy: "default-src 'none'; frame-ancestors 'none'"
//! ```
//!
//! **Defaults.** `X-Content-Type-Options: nosniff` is always set. The other defaults fit an API: no framing, no referrer, no
//! content sources. HSTS is set only if configured, because browsers remember it for the whole `max_age`.
//!
//! **Upstream values.** The filter replaces the upstream's values. With `keep_own: true` a value of the upstream stays.

use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Filter, Hooks, HumanDuration, Invalid, ResponseCx, Result, Site, failure, field_name, is_framing};

/// Strict-Transport-Security (RFC 6797).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HstsConfig {
    /// The time for which browsers use only https.
    pub max_age: HumanDuration,
    /// Include all subdomains. Default: false.
    #[serde(default)]
    pub include_subdomains: bool,
    /// Allow the domain in the preload lists of browsers. Default: false.
    #[serde(default)]
    pub preload: bool,
}

/// Which pages may embed responses in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FrameOptions {
    /// No page.
    #[default]
    Deny,
    /// Pages of the same origin.
    SameOrigin,
    /// The field is not set.
    Unset,
}

/// `security_headers`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityHeadersConfig {
    /// Strict-Transport-Security. Default: not set.
    pub hsts: Option<HstsConfig>,
    /// X-Frame-Options. Default: `deny`.
    pub frame: FrameOptions,
    /// Referrer-Policy. An empty text omits the field. Default: `no-referrer`.
    pub referrer: String,
    /// Content-Security-Policy. An empty text omits the field. Default: `default-src 'none'; frame-ancestors 'none'`.
    pub content_security_policy: String,
    /// Cross-Origin-Resource-Policy. Default: empty, which omits the field.
    pub cross_origin_resource_policy: String,
    /// Keep the upstream's values of these fields. Default: false.
    pub keep_own: bool,
    /// Fields to remove. Default: Server, X-Powered-By.
    pub remove: Vec<String>,
}

impl Default for SecurityHeadersConfig {
    fn default() -> Self {
        Self {
            hsts: None,
            frame: FrameOptions::Deny,
            referrer: "no-referrer".into(),
            content_security_policy: "default-src 'none'; frame-ancestors 'none'".into(),
            cross_origin_resource_policy: String::new(),
            keep_own: false,
            remove: vec!["Server".into(), "X-Powered-By".into()],
        }
    }
}

/// The compiled filter.
pub struct SecurityHeaders {
    set: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
    keep_own: bool,
}

impl Filter for SecurityHeaders {
    const NAME: &'static str = "security_headers";
    const HOOKS: Hooks = Hooks { response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("security_headers.rs");
    type Config = SecurityHeadersConfig;
    type State = ();

    fn compile(config: SecurityHeadersConfig, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        let mut set = vec![(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
        match config.frame {
            FrameOptions::Deny => set.push((header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"))),
            FrameOptions::SameOrigin => set.push((header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"))),
            FrameOptions::Unset => {}
        }
        for (name, text, key) in [
            (header::REFERRER_POLICY, &config.referrer, "referrer"),
            (header::CONTENT_SECURITY_POLICY, &config.content_security_policy, "content_security_policy"),
            (HeaderName::from_static("cross-origin-resource-policy"), &config.cross_origin_resource_policy, "cross_origin_resource_policy"),
        ] {
            if !text.is_empty() {
                let value = HeaderValue::from_str(text)
                    .map_err(|_| Invalid::new("contains a character that is not allowed in header fields").at(key))?;
                set.push((name, value));
            }
        }
        if let Some(hsts) = &config.hsts {
            set.push((header::STRICT_TRANSPORT_SECURITY, hsts_value(hsts).map_err(|e| e.at("hsts"))?));
        }
        let remove = config.remove.iter().enumerate().map(|(index, name)| {
            let wrong = |invalid: Invalid| invalid.index(index).at("remove");
            let parsed = field_name(name).map_err(wrong)?;
            if is_framing(&parsed) {
                Err(wrong(Invalid::new(format!("`{name}` frames messages or belongs to one connection; it cannot be removed"))))
            } else {
                Ok(parsed)
            }
        });
        Ok(Self { set, remove: remove.collect::<Result<_, _>>()?, keep_own: config.keep_own })
    }

    fn response(&self, cx: &mut ResponseCx<'_>, (): &mut ()) -> Result<()> {
        for name in &self.remove {
            cx.response.remove_header(name);
        }
        for (name, value) in &self.set {
            if !(self.keep_own && cx.response.headers.contains_key(name)) {
                cx.response.insert_header(name.clone(), value.clone()).map_err(failure)?;
            }
        }
        Ok(())
    }
}

fn hsts_value(hsts: &HstsConfig) -> Result<HeaderValue, Invalid> {
    const A_YEAR: Duration = Duration::from_secs(365 * 86_400);
    if hsts.preload && (!hsts.include_subdomains || hsts.max_age.0 < A_YEAR) {
        return Err(Invalid::new("preload lists require `include_subdomains: true` and a `max_age` of at least 365days").at("preload"));
    }
    let mut text = format!("max-age={}", hsts.max_age.0.as_secs());
    for (wanted, directive) in [(hsts.include_subdomains, "; includeSubDomains"), (hsts.preload, "; preload")] {
        if wanted {
            text.push_str(directive);
        }
    }
    HeaderValue::try_from(text).map_err(|e| Invalid::new(e.to_string()))
}
