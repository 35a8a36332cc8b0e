//! # client_certificate
//!
//! Makes an identity from the client certificate of the connection. Limits, rules and the upstream
//! can then use the identity, as with the identity of a bearer token. The listener has verified the
//! signature, validity and revocation of the certificate (`listeners[].tls.client_certificates`).
//!
//! ```yaml
//! client_certificate:
//!   name: dns
//!   allow: ["*.agents.example.com"]
//! ```
//!
//! - `name` selects the kind of name: `dns`, `email`, `uri`, `common_name`, or `fingerprint`.
//! - The subject is the first name of that kind that `allow` permits. Without `allow`, every name
//!   is permitted.
//! - Rules see the certificate as `identity.claims.certificate`, with `fingerprint`, `serial`,
//!   `common_name`, `dns`, `email` and `uri`.
//! - A request without a certificate gets 403, unless `optional: true` lets it pass without an
//!   identity. A certificate without a permitted name always gets 403.
//!
//! The certificate is that of the peer. Behind a proxy, it is the certificate of the proxy.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::contract::{
    Arrival, ClientCertificate as Certificate, Filter, Flow, Hooks, Identity, Invalid, Problem, Reply, RequestCx, Result, Site,
};

/// The kind of name that becomes the subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateName {
    /// A DNS name among the alternative names.
    #[default]
    Dns,
    /// An email address among the alternative names.
    Email,
    /// A URI among the alternative names, such as a SPIFFE id.
    Uri,
    /// The common name of the certificate's subject.
    CommonName,
    /// The SHA-256 of the certificate, in hex.
    Fingerprint,
}

/// `client_certificate`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientCertificateConfig {
    /// The kind of name that becomes the subject. Default: `dns`.
    pub name: CertificateName,
    /// The permitted names. `*` at the start matches any prefix. Default: every name.
    pub allow: Vec<String>,
    /// Let requests without a certificate pass, without an identity. Default: false.
    pub optional: bool,
}

/// The compiled filter.
pub struct ClientCertificate(ClientCertificateConfig);

impl Filter for ClientCertificate {
    const NAME: &'static str = "client_certificate";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("client_certificate.rs");
    type Config = ClientCertificateConfig;
    type State = ();

    fn compile(mut config: ClientCertificateConfig, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        for (index, name) in config.allow.iter_mut().enumerate() {
            let fixed = name.strip_prefix('*').unwrap_or(name);
            if fixed.is_empty() || fixed.contains('*') {
                let says = format!("`{name}` is not a valid name; write it like `agent-1.example.com` or `*.agents.example.com`");
                return Err(Invalid::new(says).index(index).at("allow"));
            }
            if matches!(config.name, CertificateName::Dns | CertificateName::Fingerprint) {
                name.make_ascii_lowercase();
            }
        }
        Ok(Self(config))
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let certificate = cx.facts.get::<Arrival>().and_then(|arrival| arrival.certificate.clone());
        let Some(certificate) = certificate else {
            return Ok(if self.0.optional { Flow::Continue } else { refusal("no_certificate") });
        };
        match self.name(&certificate) {
            Some(name) => {
                let subject = Some(name.to_owned());
                cx.facts.put(Identity { subject, claims: Arc::new(claims(&certificate)) });
                Ok(Flow::Continue)
            }
            None => Ok(refusal("name_not_allowed")),
        }
    }
}

impl ClientCertificate {
    /// The first permitted name.
    fn name<'c>(&self, certificate: &'c Certificate) -> Option<&'c str> {
        let names: Vec<&str> = match self.0.name {
            CertificateName::Dns => certificate.dns.iter().map(String::as_str).collect(),
            CertificateName::Email => certificate.email.iter().map(String::as_str).collect(),
            CertificateName::Uri => certificate.uri.iter().map(String::as_str).collect(),
            CertificateName::CommonName => certificate.common_name.as_deref().into_iter().collect(),
            CertificateName::Fingerprint => vec![&certificate.fingerprint],
        };
        let fits = |name: &str, pattern: &String| match pattern.strip_prefix('*') {
            Some(end) => name.len() > end.len() && name.ends_with(end),
            None => name == pattern,
        };
        names.into_iter().find(|name| self.0.allow.is_empty() || self.0.allow.iter().any(|pattern| fits(name, pattern)))
    }
}

fn claims(certificate: &Certificate) -> serde_json::Map<String, serde_json::Value> {
    let about = json!({
        "fingerprint": certificate.fingerprint, "serial": certificate.serial, "common_name": certificate.common_name,
        "dns": certificate.dns, "email": certificate.email, "uri": certificate.uri,
    });
    serde_json::Map::from_iter([("certificate".to_owned(), about)])
}

fn refusal(reason: &'static str) -> Flow {
    Reply::new(Problem::Forbidden, "client_certificate_required", reason, "A permitted client certificate is required.").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::with_site;

    fn filter(name: CertificateName, allow: &[&str]) -> std::result::Result<ClientCertificate, Invalid> {
        let allow = allow.iter().map(|name| (*name).to_owned()).collect();
        with_site(|site| ClientCertificate::compile(ClientCertificateConfig { name, allow, optional: false }, site))
    }

    #[test]
    fn the_first_permitted_name_is_the_subject() {
        let certificate = Certificate {
            fingerprint: "ab12".into(),
            common_name: Some("Agent 1".into()),
            dns: vec!["other.example.org".into(), "a.agents.example.com".into()],
            uri: vec!["spiffe://example.com/agent".into()],
            ..Certificate::default()
        };
        for (kind, allow, found) in [
            (CertificateName::Dns, &[][..], Some("other.example.org")),
            (CertificateName::Dns, &["*.agents.example.com"], Some("a.agents.example.com")),
            (CertificateName::Dns, &["A.agents.example.com"], Some("a.agents.example.com")),
            (CertificateName::Dns, &["agents.example.com", "*.a.agents.example.com"], None),
            (CertificateName::Email, &[], None),
            (CertificateName::Uri, &["spiffe://example.com/agent"], Some("spiffe://example.com/agent")),
            (CertificateName::CommonName, &["Agent 1"], Some("Agent 1")),
            (CertificateName::CommonName, &["agent 1"], None),
            (CertificateName::Fingerprint, &["AB12"], Some("ab12")),
        ] {
            assert_eq!(filter(kind, allow).unwrap().name(&certificate), found, "{kind:?} {allow:?}");
        }
        for wrong in ["", "*", "a*b", "**.example.com"] {
            assert!(filter(CertificateName::Dns, &[wrong]).is_err(), "{wrong}");
        }
    }
}
