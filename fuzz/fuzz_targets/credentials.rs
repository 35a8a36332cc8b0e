//! Key reader: returns one key or an error, and a key is visible ASCII. The signature of a token does not change its key id.
#![no_main]

use http::HeaderValue;
use keylatch_filters::contract::{KEY_BYTES_MAX, KeyForm, KeyHasher, KeyReader, KeySource, signed_part};
use libfuzzer_sys::fuzz_target;
use pingora_http::RequestHeader;

fuzz_target!(|data: &[u8]| {
    let Ok(mut request) = RequestHeader::build("POST", b"/v1/x", None) else { return };
    for line in data.split(|byte| *byte == b'\n').take(16) {
        let Some((first, value)) = line.split_first() else { continue };
        let source = &KeySource::FIELDS[usize::from(*first) % KeySource::FIELDS.len()];
        if let (Ok(value), Ok(Some(name))) = (HeaderValue::from_bytes(value), source.header()) {
            let _ = request.append_header(name, value);
        }
    }
    if let Ok(Some(key)) = KeyReader::of_known_fields(KeyForm::Exact).read(&request) {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX && key.bytes().all(|byte| byte.is_ascii_graphic()));
        let hasher = KeyHasher::new(b"fuzz");
        let hint = hasher.key(&key).hint;
        assert!(key.len() < 8 || !hint.contains(&*key));
        if let Some(signed) = signed_part(&key) {
            assert_eq!(hasher.id(&format!("{signed}.other")), hasher.id(&key));
        }
    }
});
