//! # security_headers
//!
//! Sets what browsers are to keep to, on every response, and removes what tells strangers about the server.
//!
//! ```yaml
//! security_headers:
//!   hsts: {max_age: 365days, include_subdomains: true}
//!   frame: deny
//!   referrer: no-referrer
//!   content_security_policy: "default-src 'none'; frame-ancestors 'none'"
//! ```
//!
//! `X-Content-Type-Options: nosniff` is always set. The rest has defaults that fit an API: no frames, no referrer,
//! nothing to be loaded. A response that brings its own value of a field keeps it with `keep_own: true`. HSTS is set only
//! if it is asked for: it binds browsers to https for as long as it says.

use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Filter, Hooks, HumanDuration, Invalid, ResponseCx, Result, Site, failure, field_name, is_framing};

/// Strict-Transport-Security (RFC 6797).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hsts {
    /// How long browsers remember to come by https only.
    pub max_age: HumanDuration,
    /// For all names below this one too. Default: false.
    #[serde(default)]
    pub include_subdomains: bool,
    /// That the name may be put into browsers' own lists. Default: false.
    #[serde(default)]
    pub preload: bool,
}

/// Who may show it in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// Nobody.
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
pub struct Config {
    /// Strict-Transport-Security. Default: not set.
    pub hsts: Option<Hsts>,
    /// X-Frame-Options. Default: `deny`.
    pub frame: Frame,
    /// Referrer-Policy; empty: not set. Default: `no-referrer`.
    pub referrer: String,
    /// Content-Security-Policy; empty: not set. Default: `default-src 'none'; frame-ancestors 'none'`.
    pub content_security_policy: String,
    /// Cross-Origin-Resource-Policy; empty: not set. Default: not set.
    pub cross_origin_resource_policy: String,
    /// Whether a response's own value of one of these fields stays. Default: false.
    pub keep_own: bool,
    /// Fields that are removed. Default: Server, X-Powered-By.
    pub remove: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hsts: None,
            frame: Frame::Deny,
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
    type Config = Config;
    type State = ();

    fn compile(config: Config, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        let mut set = vec![(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
        match config.frame {
            Frame::Deny => set.push((header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"))),
            Frame::SameOrigin => set.push((header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"))),
            Frame::Unset => {}
        }
        for (name, text, key) in [
            (header::REFERRER_POLICY, &config.referrer, "referrer"),
            (header::CONTENT_SECURITY_POLICY, &config.content_security_policy, "content_security_policy"),
            (HeaderName::from_static("cross-origin-resource-policy"), &config.cross_origin_resource_policy, "cross_origin_resource_policy"),
        ] {
            if !text.is_empty() {
                let value =
                    HeaderValue::from_str(text).map_err(|_| Invalid::new("holds a character that no header field may hold").at(key))?;
                set.push((name, value));
            }
        }
        if let Some(hsts) = &config.hsts {
            set.push((header::STRICT_TRANSPORT_SECURITY, strict(hsts).map_err(|e| e.at("hsts"))?));
        }
        let remove = config.remove.iter().enumerate().map(|(index, name)| {
            let wrong = |invalid: Invalid| invalid.index(index).at("remove");
            let parsed = field_name(name).map_err(wrong)?;
            if is_framing(&parsed) { Err(wrong(Invalid::new(format!("`{name}` belongs to the framing of messages")))) } else { Ok(parsed) }
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

fn strict(hsts: &Hsts) -> Result<HeaderValue, Invalid> {
    const A_YEAR: Duration = Duration::from_secs(365 * 86_400);
    if hsts.preload && (!hsts.include_subdomains || hsts.max_age.0 < A_YEAR) {
        return Err(Invalid::new("browsers' lists take only what has `include_subdomains` and a max_age of a year or more").at("preload"));
    }
    let mut text = format!("max-age={}", hsts.max_age.0.as_secs());
    for (wanted, directive) in [(hsts.include_subdomains, "; includeSubDomains"), (hsts.preload, "; preload")] {
        if wanted {
            text.push_str(directive);
        }
    }
    HeaderValue::try_from(text).map_err(|e| Invalid::new(e.to_string()))
}
