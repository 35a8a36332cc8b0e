//! The subject of a limit: what a request is counted under, such as its key or its client network. It counts nothing and
//! does not check keys or tokens.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::contract::{CountedSubject, Identity, Invalid, Key, KeyHasher, KeyId, KeyReader, RequestCx, field_name, hex};

/// Claims are shown to operators up to this length.
const CLAIM_CHARS_MAX: usize = 128;

/// What a limit counts by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SubjectKind {
    /// By API key.
    Key,
    /// By client network (`ipv4_prefix`, `ipv6_prefix`).
    Client,
    /// By route: all clients together.
    Route,
    /// By the verified identity of a token or client certificate.
    Subject,
    /// By the value of this header field.
    Header(String),
    /// By the value of this claim of a token that `bearer` has verified.
    Claim(String),
}

/// One kind, or one to four kinds of which each combination of values has its own count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectKinds(pub Vec<SubjectKind>);

impl<'de> Deserialize<'de> for SubjectKinds {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> de::Visitor<'de> for OneOrMore {
            type Value = SubjectKinds;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a subject to count by, such as `key` or `[client, key]`")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<SubjectKinds, E> {
                SubjectKind::deserialize(word.into_deserializer()).map(|kind| SubjectKinds(vec![kind]))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<SubjectKinds, A::Error> {
                SubjectKind::deserialize(MapAccessDeserializer::new(map)).map(|kind| SubjectKinds(vec![kind]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<SubjectKinds, A::Error> {
                let mut kinds = Vec::new();
                while let Some(kind) = list.next_element()? {
                    kinds.push(kind);
                }
                Ok(SubjectKinds(kinds))
            }
        }
        input.deserialize_any(OneOrMore)
    }
}

impl JsonSchema for SubjectKinds {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SubjectKinds".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<SubjectKind>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": 4 }] })
    }
}

/// Where one part of a subject is read from.
enum PartSource {
    Key,
    Client,
    Route,
    Subject,
    Header(HeaderName),
    Claim(String),
}

/// Reads the subject of a limit from requests.
pub struct SubjectReader {
    sources: Vec<PartSource>,
    reader: KeyReader,
    hasher: KeyHasher,
    prefixes: ClientPrefixes,
}

/// One part of a subject. Each kind is a variant of its own, so a header value cannot equal an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SubjectPart {
    /// An API key.
    Key(KeyId),
    /// The first address of a client network.
    Client(IpAddr),
    /// A route.
    Route(String),
    /// The hash of a header field's value. The value may be long or secret.
    Header([u8; 16]),
    /// The subject of a verified identity.
    Subject(String),
    /// A claim's value, as JSON.
    Claim(String),
}

impl SubjectReader {
    /// The reader, and the default name of a limit with this subject, such as `client-key`.
    pub fn compile(kinds: SubjectKinds, prefixes: ClientPrefixes, hasher: &KeyHasher) -> Result<(Self, String), Invalid> {
        if kinds.0.is_empty() || kinds.0.len() > 4 {
            return Err(Invalid::new("list one to four subjects to count by"));
        }
        let (mut sources, mut names) = (Vec::new(), Vec::new());
        for kind in kinds.0 {
            let (source, name) = match kind {
                SubjectKind::Key => (PartSource::Key, "key".to_owned()),
                SubjectKind::Client => (PartSource::Client, "client".to_owned()),
                SubjectKind::Route => (PartSource::Route, "route".to_owned()),
                SubjectKind::Subject => (PartSource::Subject, "subject".to_owned()),
                SubjectKind::Header(name) => {
                    let parsed = field_name(&name).map_err(|invalid| invalid.at("header"))?;
                    (PartSource::Header(parsed), name)
                }
                SubjectKind::Claim(name) => (PartSource::Claim(name.clone()), name),
            };
            if names.contains(&name) {
                return Err(Invalid::new(format!("`{name}` is listed twice")));
            }
            sources.push(source);
            names.push(name);
        }
        Ok((Self { sources, reader: KeyReader::of_known_fields(hasher.form()), hasher: hasher.clone(), prefixes }, names.join("-")))
    }

    /// The subject of a request. A request without the key, header or claim is counted by its client network.
    pub fn subject(&self, cx: &RequestCx<'_>) -> Subject {
        match self.sources.as_slice() {
            [one] => Subject::One(self.part(one, cx)),
            several => Subject::Combined(several.iter().map(|source| self.part(source, cx)).collect()),
        }
    }

    fn part(&self, source: &PartSource, cx: &RequestCx<'_>) -> SubjectPart {
        let client = || SubjectPart::Client(self.prefixes.network(cx.client()));
        match source {
            PartSource::Client => client(),
            PartSource::Route => SubjectPart::Route(cx.route.to_owned()),
            PartSource::Key => match cx.facts.get::<Key>() {
                Some(key) => SubjectPart::Key(key.id),
                // No `key_binding` ran before this filter.
                None => match self.reader.read(cx.request) {
                    Ok(Some(key)) => SubjectPart::Key(self.hasher.id(&key)),
                    Ok(None) | Err(_) => client(),
                },
            },
            PartSource::Subject => match cx.facts.get::<Identity>().and_then(|identity| identity.subject.clone()) {
                Some(subject) => SubjectPart::Subject(subject),
                None => client(),
            },
            PartSource::Header(name) => cx.headers().get(name).map_or_else(client, |value| SubjectPart::Header(hashed(value.as_bytes()))),
            PartSource::Claim(name) => match cx.facts.get::<Identity>().and_then(|identity| identity.claims.get(name)) {
                Some(value) => SubjectPart::Claim(value.to_string()),
                None => client(),
            },
        }
    }
}

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A single part.
    One(SubjectPart),
    /// A combination, in the order of the configuration.
    Combined(Vec<SubjectPart>),
}

impl Subject {
    fn parts(&self) -> &[SubjectPart] {
        match self {
            Subject::One(one) => std::slice::from_ref(one),
            Subject::Combined(parts) => parts,
        }
    }

    /// The description shown to operators. It contains the value of a claim in clear text, as the list of streams does.
    pub fn about(&self) -> CountedSubject {
        let mut about = CountedSubject { subject: self.to_string(), ..CountedSubject::default() };
        for part in self.parts() {
            match part {
                SubjectPart::Key(id) => about.key = Some(*id),
                SubjectPart::Client(address) => about.client = Some(*address),
                SubjectPart::Claim(value) => about.claim = Some(value.chars().take(CLAIM_CHARS_MAX).collect()),
                SubjectPart::Subject(value) => about.claim = Some(value.chars().take(CLAIM_CHARS_MAX).collect()),
                SubjectPart::Route(_) | SubjectPart::Header(_) => {}
            }
        }
        about
    }
}

fn hashed(bytes: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&Sha256::digest(bytes)[..16]);
    half
}

/// The name that all replicas use for a subject. Values that may be long or private are hashed.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts().iter().enumerate() {
            if index > 0 {
                f.write_str("+")?;
            }
            match part {
                SubjectPart::Key(id) => write!(f, "key={}", id.hex())?,
                SubjectPart::Client(address) => write!(f, "client={address}")?,
                SubjectPart::Route(name) => write!(f, "route={name}")?,
                SubjectPart::Header(hash) => write!(f, "header={}", hex(hash))?,
                SubjectPart::Subject(value) => write!(f, "subject={}", hex(&hashed(value.as_bytes())))?,
                SubjectPart::Claim(value) => write!(f, "claim={}", hex(&hashed(value.as_bytes())))?,
            }
        }
        Ok(())
    }
}

/// The prefix lengths, in bits, by which clients are grouped into networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPrefixes {
    ipv4: u8,
    ipv6: u8,
}

impl Default for ClientPrefixes {
    /// IPv4: the /32, a single address. IPv6: the /64, since one client can use a new address of its /64 for each request.
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

impl ClientPrefixes {
    /// Like [`Self::new`]. An error if a prefix is given and all subjects are `route`: then no client is counted.
    pub fn for_subjects<'a>(
        ipv4: Option<u8>,
        ipv6: Option<u8>,
        mut subjects: impl Iterator<Item = &'a SubjectKinds>,
    ) -> Result<Self, Invalid> {
        let option = [(ipv4, "ipv4_prefix"), (ipv6, "ipv6_prefix")].into_iter().find(|(prefix, _)| prefix.is_some());
        match option {
            Some((_, name)) if subjects.all(|kinds| kinds.0 == [SubjectKind::Route]) => {
                Err(Invalid::new("has no effect with `per: route`, which counts no clients; remove it").at(name))
            }
            _ => Self::new(ipv4, ipv6),
        }
    }

    /// From the options `ipv4_prefix` (8 to 32) and `ipv6_prefix` (16 to 128).
    pub fn new(ipv4: Option<u8>, ipv6: Option<u8>) -> Result<Self, Invalid> {
        let defaults = Self::default();
        let (ipv4, ipv6) = (ipv4.unwrap_or(defaults.ipv4), ipv6.unwrap_or(defaults.ipv6));
        if !(8..=32).contains(&ipv4) {
            return Err(Invalid::new(format!("{ipv4} is not between 8 and 32")).at("ipv4_prefix"));
        }
        if !(16..=128).contains(&ipv6) {
            return Err(Invalid::new(format!("{ipv6} is not between 16 and 128")).at("ipv6_prefix"));
        }
        Ok(Self { ipv4, ipv6 })
    }

    /// The first address of the client's network. It represents the client in counts.
    pub fn network(self, client: IpAddr) -> IpAddr {
        match client {
            IpAddr::V4(v4) => {
                let hosts = u32::MAX.checked_shr(self.ipv4.into()).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !hosts))
            }
            IpAddr::V6(v6) => {
                let hosts = u128::MAX.checked_shr(self.ipv6.into()).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !hosts))
            }
        }
    }
}

/// The network of a client by the default prefixes (IPv4 /32, IPv6 /64).
pub fn client_network(client: IpAddr) -> IpAddr {
    ClientPrefixes::default().network(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_grouped_by_prefix() {
        for (prefixes, client, network) in [
            ((None, None), "203.0.113.7", "203.0.113.7"),
            ((Some(24), None), "203.0.113.7", "203.0.113.0"),
            ((Some(8), Some(48)), "2001:db8:1:2:3::4", "2001:db8:1::"),
            ((None, None), "2001:db8:1:2:3::4", "2001:db8:1:2::"),
            ((None, Some(128)), "2001:db8:1:2:3::4", "2001:db8:1:2:3::4"),
        ] {
            let found = ClientPrefixes::new(prefixes.0, prefixes.1).unwrap().network(client.parse().unwrap());
            assert_eq!(found, network.parse::<IpAddr>().unwrap(), "{prefixes:?} {client}");
        }
        for wrong in [(Some(7), None), (Some(33), None), (None, Some(15)), (None, Some(129))] {
            assert!(ClientPrefixes::new(wrong.0, wrong.1).is_err(), "{wrong:?}");
        }
    }
}
