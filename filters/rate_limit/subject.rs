//! What is counted: who or what a request is taken for by limits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::contract::{CountedSubject, Identity, Invalid, Key, KeyHasher, KeyId, KeyReader, RequestCx, field_name, hex};

/// What is kept of a claim for operators to read.
const CLAIM_CHARS_MAX: usize = 128;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Per {
    /// Each API key.
    Key,
    /// Each client address.
    Client,
    /// Each route: everybody together.
    Route,
    /// Each value of this header field.
    Header(String),
    /// Each value of this claim of a checked bearer.
    Claim(String),
}

/// One of them, or several together: each combination is counted by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pers(pub Vec<Per>);

impl<'de> Deserialize<'de> for Pers {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> de::Visitor<'de> for OneOrMore {
            type Value = Pers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("what is counted, such as `key` or `[client, key]`")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Pers, E> {
                Per::deserialize(word.into_deserializer()).map(|per| Pers(vec![per]))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Pers, A::Error> {
                Per::deserialize(MapAccessDeserializer::new(map)).map(|per| Pers(vec![per]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Pers, A::Error> {
                let mut pers = Vec::new();
                while let Some(per) = list.next_element()? {
                    pers.push(per);
                }
                Ok(Pers(pers))
            }
        }
        input.deserialize_any(OneOrMore)
    }
}

impl JsonSchema for Pers {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pers".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Per>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": 4 }] })
    }
}

/// Where a thing counted is read from.
enum Source {
    Key,
    Client,
    Route,
    Header(HeaderName),
    Claim(String),
}

/// Reads from requests what is counted.
pub struct Subject {
    sources: Vec<Source>,
    reader: KeyReader,
    hasher: KeyHasher,
    prefixes: Prefixes,
}

/// One thing counted. The kinds are kept apart, so that no header value can be taken for an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Thing {
    /// An API key.
    Key(KeyId),
    /// A client, IPv6 by its /64.
    Client(IpAddr),
    /// A route.
    Route(String),
    /// A header field's value, by its hash: it may be long, and a secret.
    Header([u8; 16]),
    /// A claim's value, as JSON.
    Claim(String),
}

impl Subject {
    /// With the word that it has where nobody gave it a name.
    pub fn compile(pers: Pers, prefixes: Prefixes, hasher: &KeyHasher) -> Result<(Self, String), Invalid> {
        if pers.0.is_empty() || pers.0.len() > 4 {
            return Err(Invalid::new("name one to four things to count by"));
        }
        let (mut sources, mut words) = (Vec::new(), Vec::new());
        for per in pers.0 {
            let (source, word) = match per {
                Per::Key => (Source::Key, "key".to_owned()),
                Per::Client => (Source::Client, "client".to_owned()),
                Per::Route => (Source::Route, "route".to_owned()),
                Per::Header(name) => {
                    let parsed = field_name(&name).map_err(|invalid| invalid.at("header"))?;
                    (Source::Header(parsed), name)
                }
                Per::Claim(name) => (Source::Claim(name.clone()), name),
            };
            if words.contains(&word) {
                return Err(Invalid::new(format!("`{word}` is named twice")));
            }
            sources.push(source);
            words.push(word);
        }
        Ok((Self { sources, reader: KeyReader::of_known_fields(hasher.form()), hasher: hasher.clone(), prefixes }, words.join("-")))
    }

    /// What this request is counted as. A request without the key, header or claim counts as its client.
    pub fn things(&self, cx: &RequestCx<'_>) -> Things {
        match self.sources.as_slice() {
            [one] => Things::One(self.thing(one, cx)),
            several => Things::More(several.iter().map(|source| self.thing(source, cx)).collect()),
        }
    }

    fn thing(&self, source: &Source, cx: &RequestCx<'_>) -> Thing {
        let client = || Thing::Client(self.prefixes.network(cx.client()));
        match source {
            Source::Client => client(),
            Source::Route => Thing::Route(cx.route.to_owned()),
            Source::Key => match cx.facts.get::<Key>() {
                Some(key) => Thing::Key(key.id),
                // No `key_binding` before this one.
                None => match self.reader.read(cx.request) {
                    Ok(Some(key)) => Thing::Key(self.hasher.id(&key)),
                    Ok(None) | Err(_) => client(),
                },
            },
            Source::Header(name) => cx.headers().get(name).map_or_else(client, |value| Thing::Header(hashed(value.as_bytes()))),
            Source::Claim(name) => match cx.facts.get::<Identity>().and_then(|identity| identity.claims.get(name)) {
                Some(value) => Thing::Claim(value.to_string()),
                None => client(),
            },
        }
    }
}

/// What a request is counted as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Things {
    /// One thing.
    One(Thing),
    /// A combination.
    More(Vec<Thing>),
}

impl Things {
    fn each(&self) -> &[Thing] {
        match self {
            Things::One(one) => std::slice::from_ref(one),
            Things::More(more) => more,
        }
    }

    /// For operators. A claim's value is shown to them, as it is in the list of streams.
    pub fn about(&self) -> CountedSubject {
        let mut about = CountedSubject { subject: self.to_string(), ..CountedSubject::default() };
        for thing in self.each() {
            match thing {
                Thing::Key(id) => about.key = Some(*id),
                Thing::Client(address) => about.client = Some(*address),
                Thing::Claim(value) => about.claim = Some(value.chars().take(CLAIM_CHARS_MAX).collect()),
                Thing::Route(_) | Thing::Header(_) => {}
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

/// As replicas name it to each other. What may be long or private is hashed.
impl fmt::Display for Things {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, thing) in self.each().iter().enumerate() {
            if index > 0 {
                f.write_str("+")?;
            }
            match thing {
                Thing::Key(id) => write!(f, "key={}", id.hex())?,
                Thing::Client(address) => write!(f, "client={address}")?,
                Thing::Route(name) => write!(f, "route={name}")?,
                Thing::Header(hash) => write!(f, "header={}", hex(hash))?,
                Thing::Claim(value) => write!(f, "claim={}", hex(&hashed(value.as_bytes())))?,
            }
        }
        Ok(())
    }
}

/// How much of a client's address counts, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    ipv4: u8,
    ipv6: u8,
}

impl Default for Prefixes {
    /// An IPv4 address, and the /64 that an IPv6 client has to itself, within which it could take a new address for each request.
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

impl Prefixes {
    /// As [`Self::new`]; refused where nothing is counted by client, also not requests that lack what they are counted by.
    pub fn for_subjects<'a>(ipv4: Option<u8>, ipv6: Option<u8>, mut subjects: impl Iterator<Item = &'a Pers>) -> Result<Self, Invalid> {
        let option = [(ipv4, "ipv4_prefix"), (ipv6, "ipv6_prefix")].into_iter().find(|(prefix, _)| prefix.is_some());
        match option {
            Some((_, name)) if subjects.all(|pers| pers.0 == [Per::Route]) => {
                Err(Invalid::new("has no effect with `per: route`: no client is counted").at(name))
            }
            _ => Self::new(ipv4, ipv6),
        }
    }

    /// From the options `ipv4_prefix` (8 to 32) and `ipv6_prefix` (16 to 128).
    pub fn new(ipv4: Option<u8>, ipv6: Option<u8>) -> Result<Self, Invalid> {
        let usual = Self::default();
        let (ipv4, ipv6) = (ipv4.unwrap_or(usual.ipv4), ipv6.unwrap_or(usual.ipv6));
        if !(8..=32).contains(&ipv4) {
            return Err(Invalid::new(format!("{ipv4} is not between 8 and 32")).at("ipv4_prefix"));
        }
        if !(16..=128).contains(&ipv6) {
            return Err(Invalid::new(format!("{ipv6} is not between 16 and 128")).at("ipv6_prefix"));
        }
        Ok(Self { ipv4, ipv6 })
    }

    /// The first address of the client's network: what stands for the client in counts.
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

/// A client's network by the usual prefixes.
pub fn client_network(client: IpAddr) -> IpAddr {
    Prefixes::default().network(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_clients() {
        for (prefixes, client, network) in [
            ((None, None), "203.0.113.7", "203.0.113.7"),
            ((Some(24), None), "203.0.113.7", "203.0.113.0"),
            ((Some(8), Some(48)), "2001:db8:1:2:3::4", "2001:db8:1::"),
            ((None, None), "2001:db8:1:2:3::4", "2001:db8:1:2::"),
            ((None, Some(128)), "2001:db8:1:2:3::4", "2001:db8:1:2:3::4"),
        ] {
            let found = Prefixes::new(prefixes.0, prefixes.1).unwrap().network(client.parse().unwrap());
            assert_eq!(found, network.parse::<IpAddr>().unwrap(), "{prefixes:?} {client}");
        }
        for wrong in [(Some(7), None), (Some(33), None), (None, Some(15)), (None, Some(129))] {
            assert!(Prefixes::new(wrong.0, wrong.1).is_err(), "{wrong:?}");
        }
    }
}
