//! Gate: an accepted request is unambiguous, a second pass changes nothing, and the upstream reads the judged path.
#![no_main]

use keylatch::config::model::Underscores;
use keylatch::listener::gate::check;
use keylatch::listener::path::Slashes;
use keylatch::listener::refusal::{HeadLimits, Policy};
use libfuzzer_sys::fuzz_target;
use pingora_http::RequestHeader;

/// The bytes of each segment, percent-decoded once. Independent of the proxy's own decoder.
fn segments(path: &str) -> Vec<Vec<u8>> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let decode = |segment: &str| {
        let (bytes, mut out, mut at) = (segment.as_bytes(), Vec::new(), 0);
        while at < bytes.len() {
            if bytes[at] == b'%' {
                let (high, low) = (digit(bytes.get(at + 1)), digit(bytes.get(at + 2)));
                assert!(high.is_some() && low.is_some(), "{segment}");
                out.extend(u8::try_from(high.unwrap_or(0) * 16 + low.unwrap_or(0)));
                at += 3;
            } else {
                out.push(bytes[at]);
                at += 1;
            }
        }
        out
    };
    path.split('/').map(decode).collect()
}

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let slashes = if first & 1 == 0 { Slashes::Merge } else { Slashes::Keep };
    let scheme = if first & 2 == 0 { "http" } else { "https" };
    let underscores = if first & 4 == 0 { Underscores::Drop } else { Underscores::Allow };
    let policy = Policy { limits: HeadLimits { bytes: 32 * 1024, fields: 100 }, slashes, underscores, scheme };
    let mut lines = data.split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    let Ok(mut head) = RequestHeader::build("GET", target, None) else { return };
    for line in lines.take(200) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let Ok(name) = http::HeaderName::from_bytes(&line[..colon]) else { continue };
        let Ok(value) = http::HeaderValue::from_bytes(&line[colon + 1..]) else { continue };
        let _ = head.append_header(name, value);
    }
    let Ok(passed) = check(&mut head, None, &policy) else { return };
    assert_eq!(head.headers.get_all("host").iter().count(), 1);
    let dashed = |name: &http::HeaderName| name.as_str().replace('_', "-");
    let spelled: Vec<String> = head.headers.keys().filter(|name| name.as_str().contains('_')).map(dashed).collect();
    assert!(spelled.is_empty() || underscores == Underscores::Allow);
    assert!(spelled.iter().all(|name| !head.headers.contains_key(name) && name != "x-real-ip"));
    assert!(head.headers.get_all("content-length").iter().count() + head.headers.get_all("transfer-encoding").iter().count() <= 1);

    // The judged path.
    let judged = head.uri.path().to_owned();
    assert!(judged.starts_with('/') && (slashes == Slashes::Keep || !judged.contains("//")), "{judged}");
    let settled = head.raw_path().to_vec();
    assert!(settled.iter().all(u8::is_ascii_graphic));

    // The path that the upstream reads.
    let sent = passed.spelled_target.as_ref().unwrap_or(&head.uri);
    let read = segments(sent.path());
    assert_eq!(read, segments(&judged), "sent {sent}, judged {judged}");
    assert!(read.iter().all(|segment| segment != b"." && segment != b".."), "{sent}");
    assert!(!read.iter().flatten().any(|byte| byte.is_ascii_control() || *byte == b'\\'), "{sent}");
    assert!(!sent.path().starts_with("//"), "{sent}");
    assert_eq!(sent.query(), head.uri.query());
    assert!(sent.scheme().is_none() && sent.authority().is_none());

    let again = check(&mut head, None, &policy);
    assert_eq!(again.map(|again| again.spelled_target), Ok(None), "an accepted request is accepted again");
    assert_eq!(head.raw_path(), settled, "a second pass changes nothing");
});
