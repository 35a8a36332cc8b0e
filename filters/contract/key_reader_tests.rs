//! Tests of the key reader: every source, every spelling, and every error.

use super::*;

fn request(target: &str, fields: &[(&str, &str)]) -> RequestHeader {
    let mut request = RequestHeader::build("POST", target.as_bytes(), None).unwrap();
    for (name, value) in fields {
        request.append_header((*name).to_owned(), *value).unwrap();
    }
    request
}

fn read_by(reader: &KeyReader, target: &str, fields: &[(&str, &str)]) -> Result<Option<String>, KeyError> {
    reader.read(&request(target, fields)).map(|key| key.map(Cow::into_owned))
}

fn reader(sources: &[KeySource], form: KeyForm) -> KeyReader {
    KeyReader::new(sources, KEY_BYTES, UnlistedQuery::Refused, form).unwrap()
}

fn read(fields: &[(&str, &str)]) -> Result<Option<String>, KeyError> {
    read_by(&reader(&KeySource::FIELDS, KeyForm::Exact), "/v1/x", fields)
}

fn some(key: &str) -> Result<Option<String>, KeyError> {
    Ok(Some(key.to_owned()))
}

#[test]
fn every_field_and_its_spellings() {
    assert_eq!(read(&[]), Ok(None));
    for (name, value) in [
        ("authorization", "Bearer sk-1"),
        ("authorization", "bEARER   sk-1 "),
        ("authorization", "Bearer\tsk-1"),
        ("authorization", "sk-1"),
        ("x-api-key", "sk-1"),
        ("api-key", "sk-1"),
        ("x-goog-api-key", " sk-1"),
        ("mj-api-secret", "sk-1"),
        ("mj-api-secret", "Bearer sk-1"),
        ("sec-websocket-protocol", "realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1"),
    ] {
        assert_eq!(read(&[(name, value)]), some("sk-1"), "{name}: {value}");
    }
    assert_eq!(read(&[("sec-websocket-protocol", "realtime")]), Ok(None));
}

#[test]
fn an_empty_line_beside_another_line_of_the_same_field_is_an_error() {
    assert_eq!(read(&[("authorization", "Bearer"), ("authorization", "Bearer sk-1")]), Err(KeyError::Two));
    assert_eq!(read(&[("x-api-key", "sk-1"), ("x-api-key", "")]), Err(KeyError::Two));
    assert_eq!(read(&[("x-api-key", ""), ("x-api-key", "")]), Ok(None));
}

#[test]
fn two_different_keys_anywhere_are_an_error() {
    let bearer = ("authorization", "Bearer sk-1");
    for other in [
        ("authorization", "Bearer sk-2"),
        ("authorization", "sk-2"),
        ("x-api-key", "sk-2"),
        ("mj-api-secret", "sk-2"),
        ("sec-websocket-protocol", "realtime, openai-insecure-api-key.sk-2"),
        ("sec-websocket-protocol", "openai-insecure-api-key.sk-1, openai-insecure-api-key.sk-2"),
    ] {
        assert_eq!(read(&[bearer, other]), Err(KeyError::Two), "{other:?}");
    }
    let first = ("sec-websocket-protocol", "realtime, openai-insecure-api-key.A, openai-insecure-api-key.B");
    assert_eq!(read(&[first]), Err(KeyError::Two));
    let lines = [("sec-websocket-protocol", "openai-insecure-api-key.A"), ("sec-websocket-protocol", "openai-insecure-api-key.B")];
    assert_eq!(read(&lines), Err(KeyError::Two));
    // The same key in several places counts once.
    assert_eq!(read(&[bearer, ("x-api-key", "sk-1"), ("authorization", "sk-1")]), some("sk-1"));
}

#[test]
fn an_empty_credential_is_none() {
    for empty in [
        ("x-api-key", ""),
        ("x-api-key", " "),
        ("authorization", ""),
        ("authorization", "Bearer"),
        ("authorization", "Bearer "),
        ("sec-websocket-protocol", "realtime, openai-insecure-api-key."),
    ] {
        assert_eq!(read(&[empty]), Ok(None), "{empty:?}");
        assert_eq!(read(&[("api-key", "sk-1"), empty]), some("sk-1"), "{empty:?}");
    }
}

#[test]
fn malformed_keys() {
    for wrong in ["Bearer sk 1", "Bearer a,b c", "Basic Zm9v", "Bearer é"] {
        let mut request = request("/", &[]);
        request.append_header("authorization", http::HeaderValue::from_bytes(wrong.as_bytes()).unwrap()).unwrap();
        assert_eq!(reader(&KeySource::FIELDS, KeyForm::Exact).read(&request), Err(KeyError::Malformed), "{wrong}");
    }
    assert_eq!(read(&[("authorization", "Basic Zm9v"), ("x-api-key", "sk-1")]), Err(KeyError::Malformed));
    let long = "k".repeat(KEY_BYTES + 1);
    assert_eq!(read(&[("x-api-key", &long)]), Err(KeyError::TooLong(KEY_BYTES)));
    let longer = KeyReader::new(&[KeySource::XApiKey], KEY_BYTES + 1, UnlistedQuery::Refused, KeyForm::Exact).unwrap();
    assert_eq!(read_by(&longer, "/", &[("x-api-key", &long)]), some(&long));
}

#[test]
fn keys_in_the_query() {
    let fields = reader(&KeySource::FIELDS, KeyForm::Exact);
    let mut sources = KeySource::FIELDS.to_vec();
    sources.push(KeySource::QueryKey);
    let query = reader(&sources, KeyForm::Exact);
    let bearer = [("authorization", "Bearer sk-1")];
    for same in ["/", "/?a=1", "/?key=sk-1", "/?a&KEY=sk%2D1&b=", "/?monkey=sk-2", "/?api_key=", "/?key"] {
        assert_eq!(read_by(&fields, same, &bearer), some("sk-1"), "{same}");
        assert_eq!(read_by(&query, same, &bearer), some("sk-1"), "{same}");
    }
    for other in ["/?key=sk-2", "/?key=sk-1&key=sk-2", "/?%6bey=sk-2", "/?api_key=sk-2", "/?apikey=sk-1%20"] {
        assert_eq!(read_by(&fields, other, &bearer), Err(KeyError::Two), "{other}");
        assert_eq!(read_by(&query, other, &bearer), Err(KeyError::Two), "{other}");
    }
    assert_eq!(read_by(&fields, "/?key=sk-1", &[]), Err(KeyError::InQuery));
    assert_eq!(read_by(&query, "/?alt=sse&key=sk-1", &[]), some("sk-1"));
    assert_eq!(read_by(&query, "/?key=sk-1&key=sk-2", &[]), Err(KeyError::Two));
    assert_eq!(read_by(&query, "/?api_key=sk-1", &[]), Err(KeyError::InQuery));
    for wrong in ["/?key=sk%201", "/?key=sk-1+", "/?key=+sk-1"] {
        assert_eq!(read_by(&query, wrong, &[]), Err(KeyError::Malformed), "{wrong}");
    }
    for other in ["/?a=b;key=sk-2", "/?access_token=sk-2"] {
        assert_eq!(read_by(&fields, other, &bearer), Err(KeyError::Two), "{other}");
    }
    let ignores = KeyReader::new(&KeySource::FIELDS, KEY_BYTES, UnlistedQuery::Ignored, KeyForm::Exact).unwrap();
    assert_eq!(read_by(&ignores, "/?key=sk-2", &bearer), some("sk-1"));
    assert_eq!(read_by(&ignores, "/?key=sk-2", &[]), Ok(None));
}

#[test]
fn a_custom_header_field() {
    let access = reader(&[KeySource::Header("CF-Access-JWT-Assertion".into())], KeyForm::Exact);
    for value in ["a.b.c", "Bearer a.b.c"] {
        assert_eq!(read_by(&access, "/", &[("cf-access-jwt-assertion", value), ("authorization", "sk-1")]), some("a.b.c"));
    }
    for wrong in ["a b", "", "content-length", "host", "cookie"] {
        let sources = [KeySource::Authorization, KeySource::Header(wrong.into())];
        let invalid = KeyReader::new(&sources, KEY_BYTES, UnlistedQuery::Refused, KeyForm::Exact).unwrap_err();
        assert_eq!(invalid.path.len(), 2, "{wrong}: {invalid:?}");
    }
    let twice = [KeySource::XApiKey, KeySource::Header("X-Api-Key".into())];
    assert!(KeyReader::new(&twice, KEY_BYTES, UnlistedQuery::Refused, KeyForm::Exact).is_err());
}

#[test]
fn the_placeholder_of_midjourney_clients() {
    let fields = [("authorization", "Bearer midjourney-proxy"), ("mj-api-secret", "sk-1")];
    assert_eq!(read_by(&reader(&KeySource::FIELDS, KeyForm::NewApi), "/mj/x", &fields), some("sk-1"));
    assert_eq!(read_by(&reader(&KeySource::FIELDS, KeyForm::Exact), "/mj/x", &fields), Err(KeyError::Two));
}

#[test]
fn websocket_protocols_that_new_api_reads_as_a_key() {
    let new_api = reader(&KeySource::FIELDS, KeyForm::NewApi);
    let bearer = ("authorization", "Bearer sk-1");
    for (protocols, expected) in [
        ("realtime, openai-beta.realtime-v1", some("sk-1")),
        ("sk-2", Err(KeyError::Malformed)),
        ("sk-2-, realtime", Err(KeyError::Malformed)),
    ] {
        assert_eq!(read_by(&new_api, "/v1/realtime", &[bearer, ("sec-websocket-protocol", protocols)]), expected, "{protocols}");
    }
    assert_eq!(read(&[bearer, ("sec-websocket-protocol", "graphql-ws")]), some("sk-1"));
}

#[test]
fn removing_the_key_from_a_line() {
    let protocols = KeySource::SecWebsocketProtocol;
    assert_eq!(
        protocols.without_key(b"realtime, openai-insecure-api-key.A,openai-beta.v1", KeyForm::Exact).as_deref(),
        Some("realtime, openai-beta.v1")
    );
    assert_eq!(protocols.without_key(b"openai-insecure-api-key.A", KeyForm::Exact), None);
    assert_eq!(KeySource::XApiKey.without_key(b"sk-1", KeyForm::Exact), None);
    assert!(protocols.carries_key(b"a, openai-insecure-api-key.", KeyForm::Exact) && !protocols.carries_key(b"realtime", KeyForm::Exact));
    assert_eq!(protocols.without_key(b"realtime, sk-1", KeyForm::NewApi).as_deref(), Some("realtime"));
    assert_eq!(protocols.without_key(b"realtime, sk-1", KeyForm::Exact).as_deref(), Some("realtime, sk-1"));
}
