//! Parses the header of HAProxy's PROXY protocol, version 1 or 2, in which a load balancer names
//! the client of a connection. Which peers must send it is decided by the listener policy.

use std::io;
use std::net::IpAddr;

use keylatch_filters::contract::canonical;
use pingora::protocols::Stream;
use ppp::{v1, v2};
use tokio::io::AsyncReadExt;

const V1_START: &[u8] = b"PROXY ";
/// The longest version 1 header, with its line end.
const V1_BYTES_MAX: usize = 107;
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;
/// The longest accepted version 2 header: far more than addresses and the usual TLVs.
const V2_BYTES_MAX: usize = 4096;

/// A parsed header.
#[derive(Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client address. `None`: the header names none, as for health checks; the load balancer
    /// is the client.
    pub source: Option<IpAddr>,
    /// Bytes behind the header that were read already.
    pub rest: Vec<u8>,
}

/// Reads the header. After an error nothing on the connection can be trusted.
pub async fn read(stream: &mut Stream) -> io::Result<ProxyHeader> {
    let mut read = Vec::with_capacity(256);
    loop {
        if let Some(found) = parse(&read)? {
            return Ok(found);
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// `None`: the header is incomplete.
fn parse(read: &[u8]) -> io::Result<Option<ProxyHeader>> {
    let begins = |start: &[u8]| start.iter().zip(read).all(|(a, b)| a == b);
    let end = if begins(V1_START) {
        match memchr::memchr(b'\n', read.get(..V1_BYTES_MAX.min(read.len())).unwrap_or(read)) {
            Some(at) => at + 1,
            None if read.len() < V1_BYTES_MAX => return Ok(None),
            None => return Err(wrong("the version 1 header is too long")),
        }
    } else if begins(V2_START) {
        let Some([high, low]) = read.get(V2_HEAD_BYTES - 2..V2_HEAD_BYTES) else { return Ok(None) };
        let end = V2_HEAD_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
        if end > V2_BYTES_MAX {
            return Err(wrong("the version 2 header is too long"));
        }
        if read.len() < end {
            return Ok(None);
        }
        end
    } else {
        return Err(wrong("the PROXY protocol header is missing"));
    };
    let (header, rest) = read.split_at(end);
    let source = if header.starts_with(V1_START) { source_v1(header) } else { source_v2(header) };
    Ok(Some(ProxyHeader { source: source?.map(canonical), rest: rest.to_vec() }))
}

fn source_v1(header: &[u8]) -> io::Result<Option<IpAddr>> {
    let header = v1::Header::try_from(header).map_err(|_| wrong("the version 1 header is malformed"))?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    })
}

fn source_v2(header: &[u8]) -> io::Result<Option<IpAddr>> {
    let header = v2::Header::try_from(header).map_err(|_| wrong("the version 2 header is malformed"))?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    match (header.protocol, header.addresses) {
        (v2::Protocol::Stream, v2::Addresses::IPv4(addresses)) => Ok(Some(addresses.source_address.into())),
        (v2::Protocol::Stream, v2::Addresses::IPv6(addresses)) => Ok(Some(addresses.source_address.into())),
        (v2::Protocol::Datagram, _) => Err(wrong("the header is for datagrams, not for a stream")),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [V2_START, &[command, family], &length, payload].concat()
    }

    #[test]
    fn each_version_whole_and_in_any_pieces() {
        let v4 = [&[203, 0, 113, 7, 10, 0, 0, 1, 0x30, 0x39, 1, 187][..]].concat();
        let tlv = [v4.clone(), vec![0x04, 0, 2, 9, 9]].concat();
        let v6 = [&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0, 1, 0, 2]].concat();
        let mapped = [&"::ffff:203.0.113.7".parse::<std::net::Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[0, 1, 0, 2]].concat();
        for (header, named) in [
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 12345 443\r\n".to_vec(), Some("203.0.113.7")),
            (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), Some("2001:db8::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("203.0.113.7")),
            (v2(0x21, 0x11, &tlv), Some("203.0.113.7")),
            (v2(0x21, 0x21, &v6), Some("2001:db8::7")),
            (v2(0x21, 0x21, &mapped), Some("203.0.113.7")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
            (v2(0x21, 0x00, &[]), None),
        ] {
            let named = named.map(|text| text.parse().unwrap());
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]).unwrap(), None, "{:?}", header[..cut].escape_ascii().to_string());
            }
            let all = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let found = parse(&all).unwrap().unwrap();
            assert_eq!((found.source, found.rest.as_slice()), (named, &b"GET / HTTP/1.1\r\n"[..]), "{}", all.escape_ascii());
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let long = v2(0x21, 0x11, &[0; 5000]);
        for wrong in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 12345\r\n",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 012345 443\r\n",
            b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2\n",
            b"PROXY UDP4 203.0.113.7 10.0.0.1 1 2\r\n",
            &[b"PROXY UNKNOWN ", [b'x'; 200].as_slice()].concat(),
            &v2(0x31, 0x11, &[0; 12]),
            &v2(0x21, 0x12, &[0; 12]),
            &v2(0x21, 0x11, &[0; 4]),
            &long,
        ] {
            assert!(parse(wrong).is_err(), "{}: {:?}", wrong.escape_ascii(), parse(wrong));
        }
    }
}
