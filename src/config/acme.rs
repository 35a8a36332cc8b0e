//! The part of [`super::model`] about certificates that are made by themselves.

use keylatch_filters::contract::{HumanDuration, Invalid, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// Where certificates come from, by ACME (RFC 8555). Account and certificates are kept in the store, encrypted under a key that
/// follows from `secrets.admin`, and shared by replicas, one of which has them made.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// The CA's directory. Default: that of Let's Encrypt.
    #[serde(default = "lets_encrypt")]
    pub directory: String,
    /// Who is told when something is wrong: `mailto:ops@example.com`.
    #[serde(default)]
    pub contact: Vec<String>,
    /// That you agree to the CA's terms; without it no certificate is made.
    #[serde(default)]
    pub accept_terms: bool,
    /// By what it is shown whose the names are. Default: `tls_alpn`.
    #[serde(default)]
    pub challenge: Challenge,
    /// An account that the CA knows already (external account binding), as some CAs ask for.
    pub external_account: Option<ExternalAccount>,
    /// How long before its end a certificate is made anew. One that lasts less than three times as long is in its last third.
    /// Default: 30days.
    #[serde(default = "a_month")]
    pub renew_before: HumanDuration,
    /// The certificates that may sign the CA's own server's, as PEM. Default: the system's.
    pub ca_file: Option<String>,
    /// The directory may be http, or an address that is not public. Default: false.
    #[serde(default)]
    pub allow_private: bool,
}

/// By what it is shown whose a name is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Challenge {
    /// TLS-ALPN-01 (RFC 8737): the CA comes to port 443, which must lead to the listener.
    #[default]
    TlsAlpn,
    /// HTTP-01: the CA comes to port 80, which must lead to a listener without TLS.
    Http,
}

/// An account that the CA knows already.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// The number the CA gives.
    pub key_id: String,
    /// The key the CA gives, in base64url.
    pub key: SecretRef,
}

impl Acme {
    /// What makes no sense, without asking anybody.
    pub fn mistakes(&self) -> Vec<Invalid> {
        let mut wrong = Vec::new();
        if !self.accept_terms {
            wrong.push(
                Invalid::new("must be `true`: the CA makes no certificate for who has not agreed to its terms")
                    .at("accept_terms")
                    .at("acme"),
            );
        }
        if !(1..=365 * 86_400).contains(&self.renew_before.0.as_secs()) {
            wrong.push(Invalid::new("must be between 1s and 365days").at("renew_before").at("acme"));
        }
        if let Err(says) = crate::util::outbound_url::target(&self.directory, self.allow_private) {
            wrong.push(Invalid::new(says).at("directory").at("acme"));
        }
        for (index, contact) in self.contact.iter().enumerate() {
            if !contact.starts_with("mailto:") || contact.contains(char::is_whitespace) {
                wrong.push(Invalid::new("must be such as `mailto:ops@example.com`").index(index).at("contact").at("acme"));
            }
        }
        wrong
    }
}

/// A name for which a certificate can be had by these challenges.
pub fn name(text: &str) -> Result<(), Invalid> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
    };
    if text.starts_with("*.") {
        return Err(Invalid::new("a wildcard cannot be had by these challenges; name each, or use `certificates`"));
    }
    let fine = text.len() <= 253 && text.contains('.') && text.split('.').all(label) && text.parse::<std::net::IpAddr>().is_err();
    if fine { Ok(()) } else { Err(Invalid::new(format!("`{text}` is not a host's name in lower case, such as `api.example.com`"))) }
}

fn lets_encrypt() -> String {
    "https://acme-v02.api.letsencrypt.org/directory".into()
}

fn a_month() -> HumanDuration {
    HumanDuration::secs(30 * 86_400)
}
