//! The model that a JSON body names is what a parser reads, however the body is cut. The first byte of
//! each piece gives its length.
#![no_main]

use std::collections::BTreeSet;
use std::fmt;

use keylatch_filters::body_scan::{ModelSource, Scanned};
use keylatch_filters::contract::{RequestModel, UnknownModel};
use libfuzzer_sys::fuzz_target;
use pingora_http::RequestHeader;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// The longest name that is compared: longer ones are unknown.
const NAME_BYTES_MAX: usize = 64;

/// The values of all members `model` of an object, in any case.
struct Models(Vec<Value>);

impl<'de> Deserialize<'de> for Models {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Models;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Models, A::Error> {
                let mut models = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    if key.eq_ignore_ascii_case("model") && value != Value::Null {
                        models.push(value);
                    }
                }
                Ok(Models(models))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn scan<'b>(pieces: impl Iterator<Item = &'b [u8]>) -> Option<Scanned> {
    let request = RequestHeader::build("POST", b"/v1/x", None).ok()?;
    let ModelSource::Body(mut scan) = ModelSource::of_request(&request, true, false) else { return None };
    pieces.for_each(|piece| scan.feed(piece));
    Some(scan.scanned(true))
}

fuzz_target!(|data: &[u8]| {
    let (mut pieces, mut rest) = (Vec::new(), data);
    while let Some((control, after)) = rest.split_first() {
        let (piece, after) = after.split_at(usize::from(control & 0x3f).min(after.len()));
        pieces.push(piece);
        rest = after;
    }
    let body = pieces.concat();
    let scanned = scan(pieces.into_iter());
    assert!(scanned.is_some() && scanned == scan(std::iter::once(&body[..])));
    let Ok(Models(models)) = serde_json::from_slice(&body) else { return };
    let names: BTreeSet<&str> = models.iter().filter_map(Value::as_str).collect();
    if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return;
    }
    let model = |model| Some(Scanned::Model(model));
    match (names.len(), names.first()) {
        _ if models.iter().any(|model| !model.is_string()) => {
            assert!(scanned == model(RequestModel::Unknown(UnknownModel::Unreadable)) || scanned == Some(Scanned::Two));
        }
        (0, _) => assert_eq!(scanned, model(RequestModel::Absent)),
        (1, Some(name)) => assert_eq!(scanned, model(RequestModel::Named((*name).into()))),
        _ => assert_eq!(scanned, Some(Scanned::Two)),
    }
});
