//! The credential parser: one key or a refusal, and a key is always plain text without spaces.
#![no_main]

use http::{HeaderMap, HeaderValue};
use keylatch_filters::contract::{KEY_BYTES_MAX, KeyHasher, KeyReader, KeySource};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(16) {
        let Some((first, value)) = line.split_first() else { continue };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(KeySource::ALL[usize::from(*first) % 4].header(), value);
        }
    }
    if let Ok(Some(key)) = KeyReader::default().read(&headers) {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX && key.bytes().all(|byte| byte.is_ascii_graphic()));
        let hint = KeyHasher::new(b"fuzz").key(key).hint;
        assert!(key.len() < 8 || !hint.contains(key));
    }
});
