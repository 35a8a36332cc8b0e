//! Expressions: any text compiles or is refused, and evaluation ends quickly, with or without a value.
#![no_main]

use std::sync::Once;

use keylatch_filters::contract::{Dialect, Facts, Identity, Now, RequestCx};
use keylatch_filters::expression::{Expression, Scope, Type};
use libfuzzer_sys::fuzz_target;
use pingora_http::RequestHeader;

static QUIET: Once = Once::new();

fuzz_target!(|data: &[u8]| {
    // The caller catches panics of the parser; any other panic still ends the process.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(expression) = Expression::compile(source, &Type::Any, &[]) else { return };
    let Ok(mut request) = RequestHeader::build("POST", b"/v1/a%2e/x?model=a+b&n=1", None) else { return };
    for (name, value) in [("host", "api.example.com:80"), ("user-agent", "x/1"), ("x-n", "7"), ("content-length", "12")] {
        if request.append_header(name, value).is_err() {
            return;
        }
    }
    let claims = serde_json::json!({"n": 7, "f": 1.5, "s": "text", "l": [1, "a", [2]], "o": {"b": true}, "z": null});
    let mut facts = Facts::default();
    facts.put(Identity { subject: Some("s".into()), claims: std::sync::Arc::new(claims.as_object().cloned().unwrap_or_default()) });
    let cx = RequestCx {
        request: &request,
        facts: &mut facts,
        peer: [127, 0, 0, 1].into(),
        route: "r",
        dialect: Dialect::OpenAi,
        now: Now::read(),
        shadow: false,
    };
    let scope = Scope::new(&cx);
    let _ = (expression.holds(&scope), expression.number(&scope));
});
