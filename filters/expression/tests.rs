//! What expressions come to, what is refused when they are compiled, and that they end.

use std::sync::Arc;

use pingora_http::RequestHeader;
use serde_json::json;

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

fn holds(source: &str, request: &RequestHeader, facts: &mut Facts) -> Result<bool, Trouble> {
    let expression = Expression::compile(source, &Type::Bool, &[]).unwrap_or_else(|e| panic!("{source}: {e}"));
    let peer = "127.0.0.1".parse().unwrap();
    let cx = RequestCx { request, facts, peer, route: "api", dialect: Dialect::OpenAi, now: Now::read(), shadow: false };
    expression.holds(&Scope::new(&cx))
}

#[test]
fn what_is_true_of_a_request() {
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
        r#"has(identity.claims.team) && !has(identity.claims.nobody) && identity.claims.nobody == null && identity.claims.nobody != "x""#,
        r#"identity.claims.deep.a.b == 1.5 && identity.claims.deep.x.y == null && size(identity.claims.groups) == 2"#,
        r#"identity.claims.groups.all(g, g.size() == 3) && identity.claims.groups.filter(g, g != "dev") .size() == 1"#,
        r#"identity.scopes.map(s, s.upperAscii()).exists(s, s == "IMAGES")"#,
        r#"!key.present && key.id == "" && binding.rule == "" && binding.networks.size() == 0 && route == "api" && tags.size() == 0"#,
        r#"1 + 2 * 3 == 7 && 7 % 4 == 3 && -1 < 0 && 1 / 2.0 == 0.5 && int("12") + int(1.9) == 13 && string(7) + "x" == "7x" && double(2) == 2"#,
        r#"(request.method == "GET" ? 1 : 2) == 2"#,
        // The half that decides alone decides.
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
    let nobody = r#"identity.claims == {} && identity.claims.size() == 0 && !("sub" in identity.claims) && identity.claims.sub == null"#;
    assert_eq!(holds(nobody, &request(), &mut Facts::default()), Ok(true));
}

#[test]
fn a_country_counts_from_cloudflare_only() {
    let mut facts = facts();
    facts.put(ClientAddress { address: "203.0.113.7".parse().unwrap(), source: "x-forwarded-for" });
    assert_eq!(holds(r#"client.country == """#, &request(), &mut facts), Ok(true));
    let mut twice = request();
    twice.append_header("cf-ipcountry", "US").unwrap();
    assert_eq!(holds(r#"client.country == """#, &twice, &mut self::facts()), Ok(true));
}

#[test]
fn every_layer_of_encoding_is_off() {
    for target in
        ["/a/%2e%2e/x", "/a/%252e%252e/x", "/a/..%5cx", "/a?f=%25252e%25252E/", "/a?f=%u002e%u002e/", "/a?f=..%255c", "/a?f=%2525252e./"]
    {
        let request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        assert_eq!(holds(r#"request.decoded.contains("../")"#, &request, &mut Facts::default()), Ok(true), "{target}");
    }
    let deep = format!("/a?f=%{}2e./", "25".repeat(40));
    let request = RequestHeader::build("GET", deep.as_bytes(), None).unwrap();
    assert_eq!(holds(r#"request.decoded == """#, &request, &mut Facts::default()), Err(Trouble::Layers));
    let request = RequestHeader::build("GET", b"/?x=EVAL%28+%25zz%u12&y=%", None).unwrap();
    assert_eq!(holds(r#"request.decoded == "/?x=eval( %zz%u12&y=%""#, &request, &mut Facts::default()), Ok(true));
}

#[test]
fn what_comes_to_nothing() {
    for (source, trouble) in [
        (r#"identity.claims.team > 3"#, Trouble::Type),
        (r#"identity.claims.team"#, Trouble::Type),
        (r#"1 / (request.size - 1234) == 1"#, Trouble::Range),
        ("9223372036854775807 + request.size > 0", Trouble::Range),
        ("identity.scopes[7] == \"x\"", Trouble::Range),
        ("{'a': 1}.b == 1", Trouble::Missing),
        ("{request.method: 1, request.method: 2}.size() == 1", Trouble::Repeated),
        ("has(identity.claims.team.name)", Trouble::Type),
        (r#"int(request.method) == 1"#, Trouble::Type),
        (r#"identity.claims.team < 3 || false"#, Trouble::Type),
        (r#"request.params.twice == "a""#, Trouble::Several),
    ] {
        assert_eq!(holds(source, &request(), &mut facts()), Err(trouble), "{source}");
    }
}

#[test]
fn it_ends() {
    let mut facts = Facts::default();
    let many: Vec<usize> = (0..4000).collect();
    let claims = json!({ "many": many }).as_object().unwrap().clone();
    facts.put(Identity { subject: None, claims: Arc::new(claims) });
    let nested = "identity.claims.many.exists(a, identity.claims.many.exists(b, a + b < 0))";
    assert_eq!(holds(nested, &request(), &mut facts), Err(Trouble::Budget));
    let long = "x".repeat(30_000);
    let mut large = request();
    large.insert_header("x-long", long).unwrap();
    let grows = r#"(request.headers["x-long"] + request.headers["x-long"] + request.headers["x-long"]).size() > 0"#;
    assert_eq!(holds(grows, &large, &mut facts), Err(Trouble::Budget));
    assert!(holds(r#"request.headers["x-long"].matches("(x+x+)+y")"#, &large, &mut facts).is_ok(), "no pattern runs away");
    let heavy = r#"request.headers["x-long"].matches(r"(?i)\w*1\w{2}[01]{600}x")"#;
    assert_eq!(holds(heavy, &large, &mut facts), Err(Trouble::Budget));
    // Each stage multiplies what there is by ten.
    let list = format!("[{}]", ["1"; 10].join(","));
    let squares = (0..2).fold(format!("{list}.map(x, x)"), |so_far, _| format!("{so_far}.filter(a, {list}.exists(b, a == b))"));
    assert!(holds(&format!("{squares}.size() > 0"), &request(), &mut facts).is_ok());
    // Not valid UTF-8: to be made text of again and again.
    large.insert_header("x-bytes", http::HeaderValue::from_bytes(&[0x80; 30_000]).unwrap()).unwrap();
    let copies = r#"[1,2,3,4].map(a, request.headers["x-bytes"]).size() > 0"#;
    assert_eq!(holds(copies, &large, &mut facts), Err(Trouble::Budget));
    let query = format!("/?{}", "a=1&".repeat(8000));
    let many = RequestHeader::build("GET", query.as_bytes(), None).unwrap();
    let scans = r#"[1,2,3,4,5,6,7].exists(a, request.params["nope"] == "x")"#;
    assert_eq!(holds(scans, &many, &mut facts), Err(Trouble::Budget));
    // An attack on a decoder that looks ahead for each.
    let hostile = RequestHeader::build("GET", format!("/?%{}{}", "25".repeat(9), "%U".repeat(15_000)).as_bytes(), None).unwrap();
    assert_eq!(holds(r#"request.decoded.contains("%u%u")"#, &hostile, &mut facts), Ok(true));
}

#[test]
fn what_is_refused_when_it_is_compiled() {
    for (source, says) in [
        ("", "column 1: "),
        ("request.method ==", "column"),
        ("requst.method == \"x\"", "column 1: `requst` is not known"),
        ("request.methd == \"x\"", "`request.methd` is not known; there are `request.method`, `request.path`"),
        ("true &&\n  request.verb == 1", "line 2, column"),
        ("request == 1", "`request` is no value by itself"),
        ("method == \"x\"", "did you mean `request.method`?"),
        ("request.method", "it comes to text, and true or false is needed here"),
        ("request.method == 1", "text and a whole number are never equal"),
        ("request.size > \"1\"", "a whole number and text cannot be compared"),
        ("request.method && true", "true or false is needed here, and this is text"),
        ("request.method + 1 == 2", "do not add up"),
        ("request.path.startswith(\"/\")", "`startswith` is not known; there are size, bool, int"),
        ("request.path.startsWith()", "`startsWith` is not called like this"),
        ("request.path.matches(\"(\")", "is not a regular expression"),
        ("request.path.matches(request.query)", "must stand here itself"),
        ("client.address.inNetwork(\"10.0.0.0/99\")", "neither a network"),
        ("request.headers[\"X-Team\"] == \"a\"", "names of header fields are in lower case here: `x-team`"),
        ("request.method in [1, 2]", "is never in"),
        ("\"a\" in request.path", "needs a list or a map"),
        ("request.path.exists(x, true)", "a list or a map is needed here"),
        ("tags.exists(1, true)", "a name is needed here"),
        ("tags.all(a, tags.all(b, tags.all(c, tags.all(d, tags.all(e, tags.all(f, tags.all(g, true)))))))", "at most 6 names"),
        ("has(request.path)", "has() asks for a member"),
        ("{1.5: 1}.size() == 1", "the key of a map is text"),
        ("Message{a: 1} == 1", "messages cannot be made here"),
        ("request.time > timestamp(\"2026-11-29\")", "not a timestamp of RFC 3339"),
        ("request.time - request.time > duration(\"1 day\")", "not a duration"),
        ("request.time.getHours(\"Berlin\") == 1", "`Berlin` is neither a time zone"),
        ("request.time.getHours(\"+-9:-9\") == 1", "`+-9:-9` is neither a time zone"),
        ("request.headers[\"x\"] == null", "text and null are never equal"),
        ("request.path.startsWith(1)", "text is needed here"),
        ("1 + 1u == 2", "a whole number and an unsigned number do not add up"),
        ("(true ? 1 : \"a\") == 1", "both halves"),
        ("request.?method == \"x\"", "column"),
    ] {
        let error = Expression::compile(source, &Type::Bool, &[]).err().unwrap_or_else(|| panic!("{source} compiles"));
        assert!(error.message.contains(says), "{source}: {}", error.message);
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
    assert!(Expression::compile(&hidden, &Type::Any, &[]).is_err(), "an escaped quote hides nothing");
    // What is wide and not deep is taken.
    let listed = format!("request.path in [{}]", vec!["\"/a\""; 400].join(","));
    assert!(Expression::compile(&listed, &Type::Bool, &[]).is_ok());
    let either = vec!["request.path.startsWith(\"/a.b.c\")"; 150].join(" || ");
    assert!(Expression::compile(&either, &Type::Bool, &[]).is_ok());
    let two_lines = Expression::compile("true &&\nfoo", &Type::Bool, &[]).unwrap_err();
    assert!(two_lines.message.starts_with("line 2, column 1: `foo`"), "{}", two_lines.message);
    let long = format!("\"{}\" == \"\"", "x".repeat(9000));
    assert!(Expression::compile(&long, &Type::Bool, &[]).unwrap_err().message.contains("8192"));
}

proptest::proptest! {
    /// Whatever is written, compiling it ends in an expression or in an error.
    #[test]
    fn nothing_panics(source in "[a-z.()\\[\\]\"'!&|<>=+*/%?:, 0-9{}\\\\`~-]{0,60}") {
        let _ = Expression::compile(&source, &Type::Bool, &[]);
    }
}

/// A rule with one of these would always or never hold.
#[test]
fn constants_that_never_match_are_refused() {
    let routes = ["api".to_owned(), "images".to_owned()];
    for (source, says) in [
        (r#"request.decoded.contains("/Admin")"#, "`request.decoded` is in lower case: write `/admin`"),
        (r#"request.decoded == "/A""#, "write `/a`"),
        (r#"request.decoded.endsWith(".PHP")"#, "write `.php`"),
        (r#"request.decoded.contains("..\\")"#, "write `../`"),
        (r#"request.decoded.contains("%2e%2e")"#, "an escape that it never has"),
        (r#"request.decoded.startsWith("v1")"#, "write `/v1`"),
        (r#"request.decoded.matches("/(admin|Login)")"#, "`L` of this pattern never matches"),
        (r#"request.host == "API.example.com""#, "write `api.example.com`"),
        (r#"request.host == "api.example.com:443""#, "without its port"),
        (r#"request.method == "post""#, "`request.method` is in upper case: write `POST`"),
        (r#""get" != request.method"#, "write `GET`"),
        (r#"request.method in ["GET", "post"]"#, "write `POST`"),
        (r#"request.method.matches("^(get|HEAD)$")"#, "`g` of this pattern"),
        (r#"request.method.lowerAscii() == "POST""#, "what lowerAscii() returns is in lower case: write `post`"),
        (r#"client.country == "de""#, "write `DE`"),
        (r#"client.country in ["DE", "at"]"#, "write `AT`"),
        (r#"client.country == "DEU""#, "a code of two letters"),
        (r#"client.address in ["203.0.113.0/24", "10.0.0.0/8"]"#, "use `client.address.inNetwork(\"203.0.113.0/24\")`"),
        (r#"client.address == "203.0.113""#, "`203.0.113` is not one"),
        (r#"client.peer == "2001:db8:0::1""#, "is written `2001:db8::1` here"),
        (r#"client.network == "203.0.113.0/24""#, "the /32 of an IPv4 address"),
        (r#"client.network == "2001:db8::1/64""#, "is written `2001:db8::/64` here"),
        (r#""203.0.113.7" in binding.networks"#, "networks such as 203.0.113.7/32"),
        (r#"binding.rule == "Single""#, "there is no rule `Single`"),
        (r#"key.id == "0F1E2D3C4B5A""#, "12 digits"),
        (r#"request.path == "v1/models""#, "write `/v1/models`"),
        (r#"request.path.contains("?x=")"#, "without the query"),
        (r#"route == "apis""#, "there is no route `apis`; there are `api`, `images`"),
        (r#"route in ["api", "web"]"#, "there is no route `web`"),
        (r#""X-Team" in request.headers"#, "in lower case here: `x-team`"),
        ("has(request.headers.Host)", "in lower case here: `host`"),
    ] {
        let error = Expression::compile(source, &Type::Bool, &routes).err().unwrap_or_else(|| panic!("{source} compiles"));
        assert!(error.message.contains(says), "{source}: {}", error.message);
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
