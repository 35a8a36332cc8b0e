//! Finds the client address in the header fields of one request, from the configured sources. It changes no fields and makes no
//! replies.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};

use super::fields::{elements, forwarded_for, single};
use super::{Source, X_FORWARDED_FOR, X_REAL_IP};
use crate::contract::{TrustedProxies, Vouched, parse_address};

/// The most list entries examined, from the right. Real chains have fewer than ten.
pub const HOPS_MAX: usize = 64;

const CF_CONNECTING_IP: HeaderName = HeaderName::from_static("cf-connecting-ip");

/// The item at this index, or the last one if there are fewer.
pub fn nth_or_last<T>(items: impl Iterator<Item = Option<T>>, index: usize) -> Option<T> {
    items.take(HOPS_MAX).enumerate().take_while(|(at, _)| *at <= index).last()?.1
}

/// Whether a list field has an element.
pub fn has_elements(headers: &HeaderMap, name: &HeaderName) -> bool {
    elements(headers, name).next().is_some()
}

/// The header fields of one request, and the peer that sent them.
pub struct Walk<'r> {
    /// The trusted proxies.
    pub trusted: &'r TrustedProxies,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The trust that an origin secret grants.
    pub vouched: Vouched,
    /// The header fields of the request.
    pub headers: &'r HeaderMap,
}

impl Walk<'_> {
    /// Whether the header fields count.
    pub fn is_trusted(&self) -> bool {
        self.trusted.trusts(self.peer) || self.vouched != Vouched::Nothing
    }

    /// The address from the first source that yields one. `None` also if the peer is not trusted.
    pub fn find(&self, sources: &[Source]) -> Option<(IpAddr, Source)> {
        if !self.is_trusted() {
            return None;
        }
        for source in sources {
            let (field, address) = match source {
                Source::CfConnectingIp => (&CF_CONNECTING_IP, self.cloudflare()),
                Source::XRealIp => (&X_REAL_IP, single(self.headers, &X_REAL_IP)),
                Source::XForwardedFor => (&X_FORWARDED_FOR, self.walk(elements(self.headers, &X_FORWARDED_FOR).map(parse_address))),
                Source::Forwarded => (&header::FORWARDED, self.walk(elements(self.headers, &header::FORWARDED).map(forwarded_for))),
            };
            match address {
                Some(address) => return Some((address, *source)),
                // After an unreadable list, no later source is tried: the client may have written that field.
                None if matches!(source, Source::XForwardedFor | Source::Forwarded) && has_elements(self.headers, field) => return None,
                None => {}
            }
        }
        None
    }

    fn cloudflare(&self) -> Option<IpAddr> {
        if self.vouched == Vouched::Cloudflare || self.trusted.is_cloudflare(self.peer) {
            return single(self.headers, &CF_CONNECTING_IP);
        }
        let hop = match elements(self.headers, &X_FORWARDED_FOR).next() {
            // An unreadable hop may be any client.
            Some(entry) => Some(parse_address(entry)?),
            None => None,
        };
        let trusted = self.trusted.speaks_for_cloudflare(self.peer, hop);
        trusted.then(|| single(self.headers, &CF_CONNECTING_IP)).flatten()
    }

    /// The first address from the right that is not trusted, or the leftmost trusted one if all are trusted.
    fn walk(&self, entries: impl Iterator<Item = Option<IpAddr>>) -> Option<IpAddr> {
        let mut last_trusted = None;
        for entry in entries.take(HOPS_MAX) {
            match entry {
                Some(address) if self.trusted.trusts(address) => last_trusted = Some(address),
                Some(address) => return Some(address),
                None => break,
            }
        }
        last_trusted
    }
}
