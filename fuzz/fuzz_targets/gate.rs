//! The gate: whatever comes, what passes is one request, and passing it again changes nothing.
#![no_main]

use keylatch::proxy::gate::{HeadLimits, check};
use libfuzzer_sys::fuzz_target;
use pingora_http::RequestHeader;

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    let Ok(mut head) = RequestHeader::build("GET", target, None) else { return };
    for line in lines.take(200) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let Ok(name) = http::HeaderName::from_bytes(&line[..colon]) else { continue };
        let Ok(value) = http::HeaderValue::from_bytes(&line[colon + 1..]) else { continue };
        let _ = head.append_header(name, value);
    }
    let limits = HeadLimits { bytes: 32 * 1024, fields: 100 };
    if check(&mut head, None, true, limits).is_err() {
        return;
    }
    assert_eq!(head.headers.get_all("host").iter().count(), 1);
    assert!(head.headers.keys().all(|name| !name.as_str().contains('_')));
    assert!(head.headers.get_all("content-length").iter().count() + head.headers.get_all("transfer-encoding").iter().count() <= 1);
    let path = head.uri.path().to_owned();
    assert!(path.starts_with('/') && !path.contains("//") && !path.contains("/../") && !path.ends_with("/.."), "{path}");
    let settled = head.raw_path().to_vec();
    assert!(settled.iter().all(u8::is_ascii_graphic));
    assert!(check(&mut head, None, true, limits).is_ok(), "what has passed passes again");
    assert_eq!(head.raw_path(), settled, "and stays what it is");
});
