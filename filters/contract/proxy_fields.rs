//! Header fields in which proxies and platforms state clients, users and targets. Only a trusted proxy may send them.
//! This module knows the names only; `client_ip` removes the fields.

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Invalid, field_name, is_framing};

/// Fields that state the client address. They are removed for every peer; Keylatch writes one clean set for the upstream.
pub const ADDRESS_FIELDS: [&str; 14] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-forwarded-for",
    "x-original-forwarded-for",
    "x-real-ip",
];

/// Fields that upstreams trust because proxies set them. `*` at the end matches any suffix. The manual of `client_ip` lists them.
pub const PROXY_FIELDS: [&str; 69] = [
    // The client's address and country.
    "ali-cdn-real-ip",
    "cdn-real-ip",
    "cdn-src-ip",
    "cf-ipcountry",
    "cloudfront-viewer-*",
    "do-connecting-ip",
    "eo-connecting-ip",
    "fly-client-ip",
    "forwarded-for",
    "forwarded-for-ip",
    "incap-client-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "x-appengine-*",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-ms-forwarded-client-ip",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-client-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-sucuri-clientip",
    "x-true-client-ip",
    "x-vercel-forwarded-for",
    "x-vercel-ip-*",
    "x-vercel-proxied-for",
    // The scheme that the client used.
    "cf-visitor",
    "cloudfront-forwarded-proto",
    "front-end-https",
    "x-arr-ssl",
    "x-scheme",
    "x-url-scheme",
    // Overrides of target, host or method, and switches of frameworks.
    "disguised-host",
    "proxy",
    "x-accel-mapping",
    "x-envoy-*",
    "x-forwarded-*",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-middleware-*",
    "x-original-*",
    "x-override-url",
    "x-rewrite-url",
    "x-sendfile-type",
    "x-waws-unencoded-url",
    // Users and certificates that a proxy has verified.
    "cf-access-*",
    "remote-email",
    "remote-groups",
    "remote-name",
    "remote-user",
    "ssl-client-*",
    "tailscale-user-*",
    "x-amzn-oidc-*",
    "x-auth-request-*",
    "x-authentik-*",
    "x-client-cert",
    "x-consumer-*",
    "x-credential-identifier",
    "x-goog-authenticated-user-*",
    "x-goog-iap-jwt-assertion",
    "x-ms-client-principal*",
    "x-pomerium-*",
    "x-remote-*",
    "x-ssl-client-*",
    "x-webauth-*",
];

/// Changes to the list of proxy fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyFieldsConfig {
    /// Additional fields to remove; `*` at the end matches any suffix. Default: none.
    pub add: Vec<String>,
    /// Fields of the list to pass on from every peer. Default: none.
    pub keep: Vec<String>,
}

/// A set of names and prefixes. It is queried for each field of each request, so that lookups must be fast.
#[derive(Clone, Debug)]
struct Names {
    exact: Vec<String>,
    /// For each length, the first letters of the exact names. Excludes nearly every name without a search.
    exact_letters: [u32; LENGTHS],
    beginnings: Vec<String>,
    beginning_letters: u32,
}

/// Names of this length or longer share one entry.
const LENGTHS: usize = 48;

/// The bit of the first letter of a name; all other first bytes share one bit.
fn letter(name: &str) -> u32 {
    match name.as_bytes().first() {
        Some(byte @ b'a'..=b'z') => 1 << (byte - b'a'),
        _ => 1 << 31,
    }
}

impl Default for Names {
    fn default() -> Self {
        Self { exact: Vec::new(), exact_letters: [0; LENGTHS], beginnings: Vec::new(), beginning_letters: 0 }
    }
}

impl Names {
    fn new<'n>(patterns: impl Iterator<Item = &'n str>) -> Self {
        let mut names = Self::default();
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(beginning) => names.beginnings.push(beginning.to_owned()),
                None => names.exact.push(pattern.to_owned()),
            }
        }
        for name in &names.exact {
            if let Some(letters) = names.exact_letters.get_mut(name.len().min(LENGTHS - 1)) {
                *letters |= letter(name);
            }
        }
        names.beginning_letters = names.beginnings.iter().fold(0, |letters, beginning| letters | letter(beginning));
        names.exact.sort();
        names.beginnings.sort();
        // Then only the greatest prefix that is not above a name can match it.
        names.beginnings.dedup_by(|longer, shorter| longer.starts_with(shorter.as_str()));
        names
    }

    fn has(&self, name: &str) -> bool {
        let letter = letter(name);
        let exact = self.exact_letters.get(name.len().min(LENGTHS - 1)).is_some_and(|letters| letters & letter != 0);
        (exact && self.has_exact(name)) || (self.beginning_letters & letter != 0 && self.has_beginning(name))
    }

    fn has_exact(&self, name: &str) -> bool {
        self.exact.binary_search_by(|exact| exact.as_str().cmp(name)).is_ok()
    }

    fn has_beginning(&self, name: &str) -> bool {
        let below = self.beginnings.partition_point(|beginning| beginning.as_str() <= name);
        below.checked_sub(1).and_then(|last| self.beginnings.get(last)).is_some_and(|last| name.starts_with(last.as_str()))
    }
}

/// The fields that only a trusted proxy may send.
#[derive(Clone, Debug)]
pub struct ProxyFields {
    removed: Names,
    kept: Names,
}

impl Default for ProxyFields {
    fn default() -> Self {
        Self { removed: Names::new(PROXY_FIELDS.into_iter()), kept: Names::default() }
    }
}

impl ProxyFields {
    /// The built-in list.
    pub fn standard() -> &'static Self {
        static STANDARD: LazyLock<ProxyFields> = LazyLock::new(ProxyFields::default);
        &STANDARD
    }

    /// The built-in list with the changes of a configuration.
    pub fn compile(config: &ProxyFieldsConfig) -> Result<Self, Invalid> {
        let add = config.add.iter().enumerate().map(|(index, text)| pattern(text).map_err(|e| e.index(index).at("add")));
        let add = add.collect::<Result<Vec<_>, _>>()?;
        let removed = Names::new(PROXY_FIELDS.into_iter().chain(add.iter().map(String::as_str)));
        let keep = |(index, text): (usize, &String)| {
            let pattern = pattern(text).map_err(|e| e.index(index).at("keep"))?;
            let name = pattern.trim_end_matches('*');
            let says = if ADDRESS_FIELDS.contains(&name) {
                format!("`{text}` states the client address and cannot be kept; the upstream gets the address that client_ip has found")
            } else if !removed.has(name) && !PROXY_FIELDS.contains(&pattern.as_str()) {
                format!("`{text}` is not on the list of removed fields; see `keylatch filters client_ip`")
            } else {
                return Ok(pattern);
            };
            Err(Invalid::new(says).index(index).at("keep"))
        };
        let kept = config.keep.iter().enumerate().map(keep).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { removed, kept: Names::new(kept.iter().map(String::as_str)) })
    }

    /// Whether a field name, in lower case, is removed unless a trusted proxy sent it. Names under `keep` are never removed.
    pub fn has(&self, name: &str) -> bool {
        self.removed.has(name) && !self.kept.has(name)
    }
}

/// A name in lower case, with an optional `*` at the end.
fn pattern(text: &str) -> Result<String, Invalid> {
    let (start, star) = text.strip_suffix('*').map_or((text, ""), |start| (start, "*"));
    let name = field_name(start).map_err(|_| Invalid::new(format!("`{text}` is not a valid header field name")))?;
    if is_framing(&name) || name == http::header::HOST {
        return Err(Invalid::new(format!("`{text}` controls message framing and cannot be removed here")));
    }
    Ok(format!("{name}{star}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(add: &[&str], keep: &[&str]) -> Result<ProxyFields, Invalid> {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        ProxyFields::compile(&ProxyFieldsConfig { add: own(add), keep: own(keep) })
    }

    #[test]
    fn the_list_matches_names_and_prefixes() {
        let fields = ProxyFields::default();
        for pattern in PROXY_FIELDS {
            assert!(fields.has(&pattern.replace('*', "anything")), "{pattern}");
            assert!(!fields.has(&format!("a{pattern}")), "{pattern}");
        }
        for name in [
            "accept",
            "authorization",
            "content-type",
            "host",
            "openai-organization",
            "x-amz-date",
            "x-amzn-bedrock-accept",
            "x-api-key",
            "x-forwarded",
            "x-goog-api-key",
            "x-goog-user-project",
            "x-ms-useragent",
            "x-request-id",
            "x-stainless-lang",
            "x-vercel-id",
            "zzz",
        ] {
            assert!(!fields.has(name), "{name}");
        }
    }

    #[test]
    fn a_configuration_changes_the_list() {
        let fields = compile(&["X-Tenant-*", "x-team"], &["X-HTTP-Method-Override", "x-forwarded-prefix", "x-envoy-*"]).unwrap();
        for (name, removed) in [
            ("x-tenant-id", true),
            ("x-team", true),
            ("x-teams", false),
            ("x-http-method-override", false),
            ("x-http-method", true),
            ("x-forwarded-prefix", false),
            ("x-forwarded-user", true),
            ("x-envoy-original-path", false),
        ] {
            assert_eq!(fields.has(name), removed, "{name}");
        }
    }

    #[test]
    fn invalid_changes() {
        for (add, keep, says) in [
            (&["a b"][..], &[][..], "not a valid header field name"),
            (&["*"], &[], "not a valid header field name"),
            (&["content-length"], &[], "framing"),
            (&["host"], &[], "framing"),
            (&[], &["x-real-ip"], "states the client address"),
            (&[], &["x-other"], "is not on the list"),
        ] {
            assert!(compile(add, keep).unwrap_err().message.contains(says), "{add:?} {keep:?}");
        }
    }
}
