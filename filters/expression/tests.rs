//! Tests of results, of checker errors, and of the limits of evaluation.

use std::sync::Arc;

use pingora_http::RequestHeader;
use serde_json::json;

use super::parse::DEPTH_MAX;
use super::*;
use crate::contract::{ClientAddress, Dialect, Facts, Identity, Now, RequestCx};

fn request() -> RequestHeader {
    let mut request =
        RequestHeader::build("POST", b"/v1/chat/completions?model=gpt%2B4&q=a+b&%73=1&twice=a&twice=b&same=1&same=1", None).unwrap();
    for (name, value) in [
        ("host", "API.example.com:8080"),
        ("user-agent", "desktop/2.1"),
        ("x-team", "a"),
        ("x-team", "b"),
        ("content-length", "1234"),
        ("cf-ipcountry", "DE"),
    ] {
        request.append_header(name, value).unwrap();
    }
    request
}

fn facts() -> Facts {
    let mut facts = Facts::default();
    let claims =
        json!({"team": "core", "level": 7, "admin": true, "groups": ["dev", "ops"], "scope": "chat images", "deep": {"a": {"b": 1.5}}});
    let claims = claims.as_object().unwrap().clone();
    facts.put(Identity { subject: Some("alice".into()), claims: Arc::new(claims) });
    facts.put(ClientAddress { address: "203.0.113.7".parse().unwrap(), source: "cf-connecting-ip" });
    facts
}

fn holds(source: &str, request: &RequestHeader, facts: &mut Facts) -> Result<bool, EvalError> {
    let expression = Expression::compile(source, &Type::Bool, &[]).unwrap_or_else(|e| panic!("{source}: {e}"));
    let peer = "127.0.0.1".parse().unwrap();
    let cx = RequestCx { request, facts, peer, route: "api", dialect: Dialect::OpenAi, now: Now::read(), shadow: false };
    expression.holds(&Scope::new(&cx))
}

#[test]
fn the_deepest_nesting_needs_no_large_stack() {
    let nested = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
    let compile = |depth| Expression::compile(&nested(depth), &Type::Bool, &[]).map(drop);
    assert!(compile(10).is_ok());
    // A thread of a test has 2 MiB, as have those of the server.
    assert!(compile(usize::from(DEPTH_MAX) + 5).is_err());
}

#[test]
fn expressions_that_are_true() {
    for source in [
        r#"request.method == "POST" && request.path.startsWith("/v1/")"#,
        r#"request.query.contains("gpt%2B4") && request.params["model"] == "gpt+4" && request.params.q == "a b" && request.params.s == "1""#,
        r#"request.params.same == "1" && "twice" in request.params && request.user_agent.startsWith("desktop/")"#,
        r#"request.params["nothing"] == "" && !("nothing" in request.params) && "s" in request.params"#,
        r#"request.host == "api.example.com" && request.user_agent.matches("^desktop/[0-9.]+$")"#,
        r#"request.headers["x-team"] == "a, b" && request.headers["x-other"] == "" && "x-team" in request.headers"#,
        r#"request.size == 1234 && request.size > 1000 && request.size <= 1234 && request.size < 1234.5"#,
        r#"client.address.inNetwork("203.0.113.0/24", "10.0.0.1") && !client.address.inNetwork("203.0.113.8")"#,
        r#"client.network == "203.0.113.7/32" && client.peer == "127.0.0.1" && client.country in ["DE", "AT"]"#,
        r#"identity.authenticated && identity.subject == "alice" && "chat" in identity.scopes && identity.scopes.size() == 2"#,
        r#"identity.claims.team == "core" && identity.claims["level"] >= 7 && identity.claims.admin"#,
        r#"identity.claims.groups.exists(g, g == "ops") && "dev" in identity.claims.groups && identity.claims.groups[1] == "ops""#,
        r#"has(identity.claims.team) && !has(identity.claims.absent) && identity.claims.absent == null && identity.claims.absent != "x""#,
        r#"identity.claims.deep.a.b == 1.5 && identity.claims.deep.x.y == null && size(identity.claims.groups) == 2"#,
        r#"identity.claims.groups.all(g, g.size() == 3) && identity.claims.groups.filter(g, g != "dev") .size() == 1"#,
        r#"identity.scopes.map(s, s.upperAscii()).exists(s, s == "IMAGES")"#,
        r#"!key.present && key.id == "" && binding.rule == "" && binding.networks.size() == 0 && route == "api" && tags.size() == 0"#,
        r#"1 + 2 * 3 == 7 && 7 % 4 == 3 && -1 < 0 && 1 / 2.0 == 0.5 && int("12") + int(1.9) == 13 && string(7) + "x" == "7x" && double(2) == 2"#,
        r#"(request.method == "GET" ? 1 : 2) == 2"#,
        // An operand that decides the result decides it even if the other one fails.
        r#"true || identity.claims.team < 3"#,
        r#"identity.claims.team < 3 || true"#,
        r#"!(identity.claims.team < 3 && false)"#,
        r#"identity.claims.groups.exists(g, g == "ops" || g < 3)"#,
        "request.method\n  == \"POST\" // a comment\n",
    ] {
        assert_eq!(holds(source, &request(), &mut facts()), Ok(true), "{source}");
    }
}

/// Claims are JSON: lists, objects, numbers and null are compared as the language definition says.
#[test]
fn claims_are_compared_by_what_they_hold() {
    let claims = json!({
        "groups": ["guest"], "pair": [1, [2.5, null]], "empty": [], "team": null, "level": 3, "ratio": 3.0, "big": u64::MAX,
        "org": {"id": 7, "tags": ["a"], "deep": {"x": null}},
    });
    let mut facts = Facts::default();
    facts.put(Identity { subject: None, claims: Arc::new(claims.as_object().unwrap().clone()) });
    for source in [
        r#"identity.claims.groups == ["guest"] && !(identity.claims.groups != ["guest"])"#,
        r#"["guest"] == identity.claims.groups && identity.claims.groups in [["admin"], ["guest"]]"#,
        r#"identity.claims.groups != ["guest", "admin"] && identity.claims.groups != ["admin"] && identity.claims.groups != []"#,
        r#"identity.claims.empty == [] && identity.claims.empty == dyn({}.map(k, k)) && identity.claims.empty != {}"#,
        r#"identity.claims.pair == [1, [2.5, null]] && identity.claims.pair == [1.0, [2.5, null]] && identity.claims.pair[1][1] == null"#,
        r#"identity.claims.level == 3 && identity.claims.level == 3.0 && identity.claims.level == 3u && identity.claims.ratio == 3"#,
        r#"identity.claims.big == 18446744073709551615u && identity.claims.big > 9223372036854775807 && identity.claims.level < 3.5"#,
        r#"identity.claims.org == {"id": 7, "tags": ["a"], "deep": {"x": null}} && identity.claims.org.deep == {"x": null}"#,
        r#"identity.claims.org != {"id": 7} && identity.claims.org != {"id": 7, "tags": ["a"], "deep": {"y": null}}"#,
        r#"{"id": 7.0, "tags": ["a"], "deep": {"x": null}} == identity.claims.org && identity.claims.org == identity.claims.org"#,
        r#"has(identity.claims.team) && "team" in identity.claims && identity.claims.team == null && has(identity.claims.org.deep.x)"#,
        r#"!has(identity.claims.none) && !("none" in identity.claims) && identity.claims.none == null && !has(identity.claims.none.x)"#,
        r#"null in identity.claims.pair[1] && 2.5 in identity.claims.pair[1] && !("guest" in identity.claims.team)"#,
        r#"identity.claims.groups != "guest" && identity.claims.team != 0 && identity.claims.level != "3" && identity.claims.level != true"#,
        r#"identity.claims.exists(name, name == "org") && identity.claims.org.all(k, v, k == "id" || v != 7)"#,
        r#"type(identity.claims.team) == null_type && type(identity.claims.org) == map && type(identity.claims.groups) == list"#,
    ] {
        assert_eq!(holds(source, &request(), &mut facts), Ok(true), "{source}");
    }
    let absent = r#"identity.claims == {} && identity.claims.size() == 0 && !("sub" in identity.claims) && identity.claims.sub == null"#;
    assert_eq!(holds(absent, &request(), &mut Facts::default()), Ok(true));
}

#[test]
fn country_is_trusted_from_cloudflare_only() {
    let mut facts = facts();
    facts.put(ClientAddress { address: "203.0.113.7".parse().unwrap(), source: "x-forwarded-for" });
    assert_eq!(holds(r#"client.country == """#, &request(), &mut facts), Ok(true));
    let mut twice = request();
    twice.append_header("cf-ipcountry", "US").unwrap();
    assert_eq!(holds(r#"client.country == """#, &twice, &mut self::facts()), Ok(true));
}

#[test]
fn all_layers_of_encoding_are_removed() {
    for target in
        ["/a/%2e%2e/x", "/a/%252e%252e/x", "/a/..%5cx", "/a?f=%25252e%25252E/", "/a?f=%u002e%u002e/", "/a?f=..%255c", "/a?f=%2525252e./"]
    {
        let request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        assert_eq!(holds(r#"request.decoded.contains("../")"#, &request, &mut Facts::default()), Ok(true), "{target}");
    }
    let deep = format!("/a?f=%{}2e./", "25".repeat(40));
    let request = RequestHeader::build("GET", deep.as_bytes(), None).unwrap();
    assert_eq!(holds(r#"request.decoded == """#, &request, &mut Facts::default()), Err(EvalError::Layers));
    let request = RequestHeader::build("GET", b"/?x=EVAL%28+%25zz%u12&y=%", None).unwrap();
    assert_eq!(holds(r#"request.decoded == "/?x=eval( %zz%u12&y=%""#, &request, &mut Facts::default()), Ok(true));
}

#[test]
fn evaluation_errors() {
    for (source, error) in [
        (r#"identity.claims.team > 3"#, EvalError::Type),
        (r#"identity.claims.team"#, EvalError::Type),
        (r#"1 / (request.size - 1234) == 1"#, EvalError::Range),
        ("9223372036854775807 + request.size > 0", EvalError::Range),
        ("identity.scopes[7] == \"x\"", EvalError::Range),
        ("{'a': 1}.b == 1", EvalError::Missing),
        ("{request.method: 1, request.method: 2}.size() == 1", EvalError::Repeated),
        ("has(identity.claims.team.name)", EvalError::Type),
        (r#"int(request.method) == 1"#, EvalError::Type),
        (r#"identity.claims.team < 3 || false"#, EvalError::Type),
        (r#"request.params.twice == "a""#, EvalError::Several),
    ] {
        assert_eq!(holds(source, &request(), &mut facts()), Err(error), "{source}");
    }
}

#[test]
fn evaluation_is_bounded() {
    let mut facts = Facts::default();
    let many: Vec<usize> = (0..4000).collect();
    let claims = json!({ "many": many }).as_object().unwrap().clone();
    facts.put(Identity { subject: None, claims: Arc::new(claims) });
    let nested = "identity.claims.many.exists(a, identity.claims.many.exists(b, a + b < 0))";
    assert_eq!(holds(nested, &request(), &mut facts), Err(EvalError::Budget));
    let long = "x".repeat(30_000);
    let mut large = request();
    large.insert_header("x-long", long).unwrap();
    let grows = r#"(request.headers["x-long"] + request.headers["x-long"] + request.headers["x-long"]).size() > 0"#;
    assert_eq!(holds(grows, &large, &mut facts), Err(EvalError::Budget));
    assert!(holds(r#"request.headers["x-long"].matches("(x+x+)+y")"#, &large, &mut facts).is_ok(), "patterns run in linear time");
    let heavy = r#"request.headers["x-long"].matches(r"(?i)\w*1\w{2}[01]{600}x")"#;
    assert_eq!(holds(heavy, &large, &mut facts), Err(EvalError::Budget));
    // Each stage multiplies the work by ten.
    let list = format!("[{}]", ["1"; 10].join(","));
    let squares = (0..2).fold(format!("{list}.map(x, x)"), |so_far, _| format!("{so_far}.filter(a, {list}.exists(b, a == b))"));
    assert!(holds(&format!("{squares}.size() > 0"), &request(), &mut facts).is_ok());
    // Invalid UTF-8, which is decoded for each use.
    large.insert_header("x-bytes", http::HeaderValue::from_bytes(&[0x80; 30_000]).unwrap()).unwrap();
    let copies = r#"[1,2,3,4].map(a, request.headers["x-bytes"]).size() > 0"#;
    assert_eq!(holds(copies, &large, &mut facts), Err(EvalError::Budget));
    let query = format!("/?{}", "a=1&".repeat(8000));
    let many = RequestHeader::build("GET", query.as_bytes(), None).unwrap();
    let scans = r#"[1,2,3,4,5,6,7].exists(a, request.params["nope"] == "x")"#;
    assert_eq!(holds(scans, &many, &mut facts), Err(EvalError::Budget));
    // A worst case for decoders that look ahead at each escape.
    let hostile = RequestHeader::build("GET", format!("/?%{}{}", "25".repeat(9), "%U".repeat(15_000)).as_bytes(), None).unwrap();
    assert_eq!(holds(r#"request.decoded.contains("%u%u")"#, &hostile, &mut facts), Ok(true));
}

#[test]
fn checker_errors() {
    for (source, message) in [
        ("", "column 1: "),
        ("request.method ==", "column"),
        ("requst.method == \"x\"", "column 1: unknown name `requst`"),
        ("request.methd == \"x\"", "unknown name `request.methd`; known names: `request.method`, `request.path`"),
        ("true &&\n  request.verb == 1", "line 2, column"),
        ("request == 1", "`request` is not a variable"),
        ("method == \"x\"", "did you mean `request.method`?"),
        ("request.method", "the expression returns text, but a boolean is required"),
        ("request.method == 1", "text and an integer are never equal"),
        ("request.size > \"1\"", "an integer and text cannot be compared"),
        ("request.method && true", "expected a boolean, found text"),
        ("request.method + 1 == 2", "the operator does not apply to text and an integer"),
        ("request.path.startswith(\"/\")", "unknown function `startswith`; known functions: size, bool, int"),
        ("request.path.startsWith()", "wrong arguments for `startsWith`"),
        ("request.path.matches(\"(\")", "is not a valid regular expression"),
        ("request.path.matches(request.query)", "must be a text constant"),
        ("client.address.inNetwork(\"10.0.0.0/99\")", "is not a network"),
        ("request.headers[\"X-Team\"] == \"a\"", "header field names are in lower case: write `x-team`"),
        ("request.method in [1, 2]", "is never in"),
        ("\"a\" in request.path", "requires a list or a map"),
        ("request.path.exists(x, true)", "expected a list or a map"),
        ("tags.exists(1, true)", "expected a name"),
        ("tags.all(a, tags.all(b, tags.all(c, tags.all(d, tags.all(e, tags.all(f, tags.all(g, true)))))))", "at most 6 names"),
        ("has(request.path)", "has() requires an optional member"),
        ("{1.5: 1}.size() == 1", "a map key must be text"),
        ("Message{a: 1} == 1", "messages are not supported"),
        ("request.time > timestamp(\"2026-11-29\")", "expected an RFC 3339 timestamp"),
        ("request.time - request.time > duration(\"1 day\")", "expected a duration"),
        ("request.time.getHours(\"Berlin\") == 1", "`Berlin` is not a time zone"),
        ("request.time.getHours(\"+-9:-9\") == 1", "`+-9:-9` is not a time zone"),
        ("request.headers[\"x\"] == null", "text and null are never equal"),
        ("request.path.startsWith(1)", "expected text, found an integer"),
        ("1 + 1u == 2", "the operator does not apply to an integer and an unsigned integer"),
        ("(true ? 1 : \"a\") == 1", "both branches"),
        ("request.?method == \"x\"", "column"),
    ] {
        let error = Expression::compile(source, &Type::Bool, &[]).err().unwrap_or_else(|| panic!("{source} compiles"));
        assert!(error.message.contains(message), "{source}: {}", error.message);
    }
    let wide = vec!["true"; 600].join(" || ");
    assert!(Expression::compile(&wide, &Type::Bool, &[]).is_err());
    let deep = format!("{}true{}", "(".repeat(500), ")".repeat(500));
    assert!(Expression::compile(&deep, &Type::Bool, &[]).is_err());
    for (part, times, end) in
        [("1+", 2000, "1 == 1"), ("1 in ", 1000, "[1] == [1]"), ("-", 3000, "1 == 1"), ("(", 900, "1"), ("true ? 1 : ", 700, "2")]
    {
        assert!(Expression::compile(&format!("{}{end}", part.repeat(times)), &Type::Any, &[]).is_err(), "{part}");
    }
    for chain in [".a", ".lowerAscii()", "[0]"] {
        assert!(Expression::compile(&format!("identity.claims{} == 1", chain.repeat(600)), &Type::Any, &[]).is_err(), "{chain}");
    }
    let hidden = format!(r#""\"" + "{}" == """#, r#"" + ""#.repeat(600));
    assert!(Expression::compile(&hidden, &Type::Any, &[]).is_err(), "an escaped quote does not end the text");
    // Wide expressions that are not deep are accepted.
    let listed = format!("request.path in [{}]", vec!["\"/a\""; 400].join(","));
    assert!(Expression::compile(&listed, &Type::Bool, &[]).is_ok());
    let either = vec!["request.path.startsWith(\"/a.b.c\")"; 150].join(" || ");
    assert!(Expression::compile(&either, &Type::Bool, &[]).is_ok());
    let two_lines = Expression::compile("true &&\nfoo", &Type::Bool, &[]).unwrap_err();
    assert!(two_lines.message.starts_with("line 2, column 1: unknown name `foo`"), "{}", two_lines.message);
    let long = format!("\"{}\" == \"\"", "x".repeat(9000));
    assert!(Expression::compile(&long, &Type::Bool, &[]).unwrap_err().message.contains("8192"));
}

proptest::proptest! {
    /// Compiling any text returns an expression or an error.
    #[test]
    fn compiling_never_panics(source in "[a-z.()\\[\\]\"'!&|<>=+*/%?:, 0-9{}\\\\`~-]{0,60}") {
        let _ = Expression::compile(&source, &Type::Bool, &[]);
    }
}

/// A rule with one of these constants would be always true or always false.
#[test]
fn constants_that_never_match_are_rejected() {
    let routes = ["api".to_owned(), "images".to_owned()];
    for (source, message) in [
        (r#"request.decoded.contains("/Admin")"#, "`request.decoded` is in lower case: write `/admin`"),
        (r#"request.decoded == "/A""#, "write `/a`"),
        (r#"request.decoded.endsWith(".PHP")"#, "write `.php`"),
        (r#"request.decoded.contains("..\\")"#, "write `../`"),
        (r#"request.decoded.contains("%2e%2e")"#, "never contains an escape"),
        (r#"request.decoded.startsWith("v1")"#, "write `/v1`"),
        (r#"request.decoded.matches("/(admin|Login)")"#, "`L` in this pattern never matches"),
        (r#"request.host == "API.example.com""#, "write `api.example.com`"),
        (r#"request.host == "api.example.com:443""#, "does not contain the port"),
        (r#"request.method == "post""#, "`request.method` is in upper case: write `POST`"),
        (r#""get" != request.method"#, "write `GET`"),
        (r#"request.method in ["GET", "post"]"#, "write `POST`"),
        (r#"request.method.matches("^(get|HEAD)$")"#, "`g` in this pattern"),
        (r#"request.method.lowerAscii() == "POST""#, "the result of lowerAscii() is in lower case: write `post`"),
        (r#"client.country == "de""#, "write `DE`"),
        (r#"client.country in ["DE", "at"]"#, "write `AT`"),
        (r#"client.country == "DEU""#, "a code of two letters"),
        (r#"client.address in ["203.0.113.0/24", "10.0.0.0/8"]"#, "use `client.address.inNetwork(\"203.0.113.0/24\")`"),
        (r#"client.address == "203.0.113""#, "`203.0.113` is not one"),
        (r#"client.peer == "2001:db8:0::1""#, "write `2001:db8::1`"),
        (r#"client.network == "203.0.113.0/24""#, "the /32 of an IPv4 address"),
        (r#"client.network == "2001:db8::1/64""#, "write `2001:db8::/64`"),
        (r#""203.0.113.7" in binding.networks"#, "networks such as 203.0.113.7/32"),
        (r#""team a" in binding.labels"#, "`team a` is not a label"),
        (r#"binding.rule == "Single""#, "unknown rule `Single`"),
        (r#"key.id == "0F1E2D3C4B5A""#, "12 lower-case hex digits"),
        (r#"request.path == "v1/models""#, "write `/v1/models`"),
        (r#"request.path.contains("?x=")"#, "does not contain the query"),
        (r#"route == "apis""#, "unknown route `apis`; known routes: `api`, `images`"),
        (r#"route in ["api", "web"]"#, "unknown route `web`"),
        (r#""X-Team" in request.headers"#, "in lower case: write `x-team`"),
        ("has(request.headers.Host)", "in lower case: write `host`"),
    ] {
        let error = Expression::compile(source, &Type::Bool, &routes).err().unwrap_or_else(|| panic!("{source} compiles"));
        assert!(error.message.contains(message), "{source}: {}", error.message);
    }
    for source in [
        r#"request.decoded.matches("(?i)/Admin") || request.decoded.matches(r"\W[A-Z]") || request.decoded.contains("%zz")"#,
        r#"request.path == "*" || request.path.contains("Admin") || request.host == "[::1]" || request.user_agent == "Curl""#,
        r#"client.address == "203.0.113.7" || client.address == "" || client.network == "2001:db8::/64" || client.country == """#,
        r#"route == "api" || key.id == "0f1e2d3c4b5a" || "203.0.113.7/32" in binding.networks || binding.rule == "roaming""#,
    ] {
        assert!(Expression::compile(source, &Type::Bool, &routes).is_ok(), "{source}");
    }
}
