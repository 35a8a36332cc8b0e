//! What a listener asks of whoever connects, before the gate looks at a request: the PROXY protocol, TLS, a secret of the
//! origin's. Compiled with the rest of a file, in force for the next connection; sockets are `proxy`'s.

mod certificates;
mod clients;
mod origin;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use keylatch_filters::contract::{Invalid, Keep};

use crate::acme::{Held, Wanted};
use crate::config::model::{Acme, Listener, ListenerTls, Underscores};
use crate::config::{Files, acme_name};

pub use certificates::Shown;
pub use clients::{Clients, client_certificate};
pub use origin::Origin;
pub use tls::Tls;

/// How requests are read where servers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// Whether repeated slashes in a path are one.
    pub merge_slashes: bool,
    /// What happens to fields with an underscore in their names.
    pub underscores: Underscores,
}

impl Requests {
    /// As the listener says.
    pub fn of(config: &Listener) -> Self {
        Self { merge_slashes: config.merge_slashes, underscores: config.underscores_in_headers }
    }
}

/// What one listener asks.
pub struct Entry {
    /// Which listener.
    pub address: SocketAddr,
    /// TLS; `None`: it is not spoken.
    pub tls: Option<Tls>,
    /// The certificate that is had made by itself.
    pub acme: Option<(Arc<Held>, Wanted)>,
    /// The secret that each request must have.
    pub origin: Option<Origin>,
    /// How requests that come in here are read.
    pub requests: Requests,
    /// Who must say whom he speaks for.
    proxies: Vec<IpNet>,
    /// What it was compiled from.
    said: (Listener, Option<Acme>),
}

impl Entry {
    /// What is wrong has its place below the listener.
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
        let origin = config.origin_secret.as_ref().map(|origin| Origin::compile(origin, files)).transpose();
        match origin.map_err(|invalid| wrong.push(invalid.at("origin_secret"))) {
            Ok(origin) if wrong.is_empty() => {
                let requests = Requests::of(config);
                Ok(Self { address: config.address, tls, acme: made, origin, requests, proxies, said: (config.clone(), acme.cloned()) })
            }
            _ => Err(wrong),
        }
    }

    /// Compiles the same once more, since its files may hold something else.
    pub fn again(&self, files: &Files, keep: &Keep) -> Result<Self, Vec<Invalid>> {
        Self::compile(&self.said.0, self.said.1.as_ref(), files, keep)
    }

    /// The certificates that are shown, but for one that makes itself.
    pub fn shown(&self) -> &[Shown] {
        self.tls.as_ref().map_or(&[], |tls| &tls.shown)
    }

    /// Who may come in by a certificate, if that is asked.
    pub fn clients(&self) -> Option<&Arc<Clients>> {
        self.tls.as_ref()?.clients.as_ref()
    }

    /// Whether this peer must begin with a header of the PROXY protocol.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(&peer))
    }
}

/// The certificate that is to be had made, and where those are held that were.
fn wanted(config: &ListenerTls, acme: Option<&Acme>, keep: &Keep) -> Result<Option<(Arc<Held>, Wanted)>, Invalid> {
    if config.acme.is_empty() {
        return Ok(None);
    }
    let acme = acme.ok_or_else(|| Invalid::new("needs the section `acme`, which says where certificates come from"))?;
    for (index, name) in config.acme.iter().enumerate() {
        acme_name(name).map_err(|invalid| invalid.index(index))?;
    }
    let held = keep.get("acme", Held::default);
    Ok(Some((held, Wanted { names: config.acme.clone(), directory: acme.directory.clone() })))
}

/// A network or an address; never the whole internet, which could then say anything.
fn network(text: &str) -> Result<IpNet, Invalid> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| Invalid::new(format!("`{text}` is neither a CIDR nor an address")))?;
    if let IpNet::V6(v6) = network
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(Invalid::new(format!("`{text}` is IPv4 in the form of IPv6, in which no peer is seen: write it as IPv4")));
    }
    match network.prefix_len() {
        0 => Err(Invalid::new(format!("`{text}` is the whole internet: anybody could then claim any address"))),
        _ => Ok(network.trunc()),
    }
}
