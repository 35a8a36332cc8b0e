//! The policy of a listener before the gate: the PROXY protocol, TLS, the origin secret. It is
//! compiled with the rest of a configuration and applies to the next connection; sockets belong to
//! `server`.

mod certificates;
mod clients;
mod origin;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use keylatch_filters::contract::{Invalid, Keep};

use crate::acme::{AcmeCertificates, WantedCertificate};
use crate::config::model::{Acme, Listener, ListenerTls, Underscores};
use crate::config::{Files, acme_name};

pub use certificates::ServerCertificate;
pub use clients::{ClientCertPolicy, client_certificate};
pub use origin::OriginSecretCheck;
pub use tls::TlsPolicy;

/// How requests are read where servers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// Whether repeated slashes in a path are merged.
    pub merge_slashes: bool,
    /// The treatment of field names with an underscore.
    pub underscores: Underscores,
}

impl RequestRules {
    /// The rules of a listener.
    pub fn from_listener(config: &Listener) -> Self {
        Self { merge_slashes: config.merge_slashes, underscores: config.underscores_in_headers }
    }
}

/// The policy of one listener.
pub struct ListenerPolicy {
    /// The address of the listener.
    pub address: SocketAddr,
    /// TLS; `None`: plain TCP.
    pub tls: Option<TlsPolicy>,
    /// The ACME certificate.
    pub acme: Option<(Arc<AcmeCertificates>, WantedCertificate)>,
    /// The secret that each request must have.
    pub origin: Option<OriginSecretCheck>,
    /// How its requests are read.
    pub requests: RequestRules,
    /// The peers that must send a PROXY protocol header.
    proxies: Vec<IpNet>,
    /// The configuration that it was compiled from.
    source: (Listener, Option<Acme>),
}

impl ListenerPolicy {
    /// Reports every error, with its place below the listener.
    pub fn compile(config: &Listener, acme: Option<&Acme>, files: &Files, keep: &Keep) -> Result<Self, Vec<Invalid>> {
        let mut wrong = Vec::new();
        let made = config.tls.as_ref().map(|tls| wanted(tls, acme, keep)).transpose().map(Option::flatten);
        let made = made.map_err(|invalid| wrong.push(invalid.at("acme").at("tls"))).ok().flatten();
        let mut proxies = Vec::new();
        for (index, text) in config.proxy_protocol.iter().enumerate() {
            match network(text) {
                Ok(network) => proxies.push(network),
                Err(invalid) => wrong.push(invalid.index(index).at("proxy_protocol")),
            }
        }
        let tls = config.tls.as_ref().map(|tls| tls::compile(tls, made.clone(), files, keep)).transpose();
        let tls = tls.map_err(|invalid| wrong.extend(invalid.into_iter().map(|invalid| invalid.at("tls")))).ok().flatten();
        let origin = config.origin_secret.as_ref().map(|origin| OriginSecretCheck::compile(origin, files)).transpose();
        match origin.map_err(|invalid| wrong.push(invalid.at("origin_secret"))) {
            Ok(origin) if wrong.is_empty() => {
                let requests = RequestRules::from_listener(config);
                Ok(Self { address: config.address, tls, acme: made, origin, requests, proxies, source: (config.clone(), acme.cloned()) })
            }
            _ => Err(wrong),
        }
    }

    /// Compiles the same configuration again, because its files may have changed.
    pub fn recompile(&self, files: &Files, keep: &Keep) -> Result<Self, Vec<Invalid>> {
        Self::compile(&self.source.0, self.source.1.as_ref(), files, keep)
    }

    /// The server certificates from files; without the ACME certificate.
    pub fn shown(&self) -> &[ServerCertificate] {
        self.tls.as_ref().map_or(&[], |tls| &tls.shown)
    }

    /// The client certificate policy, if there is one.
    pub fn clients(&self) -> Option<&Arc<ClientCertPolicy>> {
        self.tls.as_ref()?.clients.as_ref()
    }

    /// Whether this peer must send a PROXY protocol header.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(&peer))
    }
}

/// The ACME certificate of a listener, and the certificates in memory.
fn wanted(config: &ListenerTls, acme: Option<&Acme>, keep: &Keep) -> Result<Option<(Arc<AcmeCertificates>, WantedCertificate)>, Invalid> {
    if config.acme.is_empty() {
        return Ok(None);
    }
    let acme = acme.ok_or_else(|| Invalid::new("needs the section `acme`, which names the CA"))?;
    for (index, name) in config.acme.iter().enumerate() {
        acme_name(name).map_err(|invalid| invalid.index(index))?;
    }
    let certificates = keep.get("acme", AcmeCertificates::default);
    Ok(Some((certificates, WantedCertificate { names: config.acme.clone(), directory: acme.directory.clone() })))
}

/// Parses a network or an address. The whole internet is refused: any client could claim any
/// address.
fn network(text: &str) -> Result<IpNet, Invalid> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| Invalid::new(format!("`{text}` is neither a CIDR nor an address")))?;
    if let IpNet::V6(v6) = network
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(Invalid::new(format!("`{text}` is an IPv4-mapped IPv6 address, which no peer has: write it as IPv4")));
    }
    match network.prefix_len() {
        0 => Err(Invalid::new(format!("`{text}` is the whole internet: any client could then claim any address"))),
        _ => Ok(network.trunc()),
    }
}
