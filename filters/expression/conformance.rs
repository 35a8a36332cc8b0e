//! Runs the conformance tests of the CEL specification, which `scripts/cel-conformance` downloads and converts. The
//! repository contains no text of these tests. Without the script nothing runs.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::{SignedDuration, Timestamp};
    use pingora_http::RequestHeader;
    use serde_json::Value as Json;

    use super::super::types::Kind;
    use super::super::value::Value;
    use super::super::*;
    use crate::contract::{Dialect, Facts, Now, RequestCx};

    /// Passing tests and all tests. The manual of `rules` states these numbers; change both together.
    const PASSES: (usize, usize) = (1411, 2456);

    /// A value of the converted form: its kind and its content.
    fn value(json: &Json) -> Option<Value<'static>> {
        let parts = json.as_array()?;
        let text = |at: usize| parts.get(at).and_then(Json::as_str);
        let items = || parts.get(1).and_then(Json::as_array);
        Some(match text(0)? {
            "null" => Value::Null,
            "bool" => Value::Bool(text(1)? == "true"),
            "int" => Value::Int(text(1)?.parse().ok()?),
            "uint" => Value::Uint(text(1)?.parse().ok()?),
            "double" => Value::Double(text(1)?.parse().ok()?),
            "string" => Value::owned(text(1)?.to_owned()),
            "bytes" => {
                let digits = text(1)?.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
                Value::Bytes(digits.collect::<Option<Vec<u8>>>()?.into())
            }
            "type" => Value::Type(Kind::named(text(1)?)?),
            "list" => Value::list(items()?.iter().map(value).collect::<Option<_>>()?),
            "map" => {
                let entry = |entry: &Json| Some((value(entry.get(0)?)?, value(entry.get(1)?)?));
                Value::Map(std::sync::Arc::new(items()?.iter().map(entry).collect::<Option<_>>()?))
            }
            "timestamp" => Value::Timestamp(Timestamp::new(text(1)?.parse().ok()?, text(2)?.parse().ok()?).ok()?),
            "duration" => Value::Duration(SignedDuration::new(text(1)?.parse().ok()?, text(2)?.parse().ok()?)),
            _ => return None,
        })
    }

    /// Whether values are equal and of the same type. NaN equals NaN.
    fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
        match (a, b) {
            (Value::Double(a), Value::Double(b)) => a == b || a.is_nan() && b.is_nan(),
            _ if a.kind() != b.kind() => false,
            _ if a.kind() == Kind::List => {
                a.length() == b.length() && (0..a.length().unwrap()).all(|at| same(&a.item(at).unwrap(), &b.item(at).unwrap()))
            }
            _ => a.equals(b, &mut fuel::Fuel::default()).unwrap(),
        }
    }

    /// The reason for a failure. `None`: the test passes.
    fn failure(case: &Json) -> Option<String> {
        let bindings = case["bindings"].as_object().unwrap();
        let mut lowering = TypeChecker::new(&[]);
        let mut locals = Vec::new();
        for (name, bound) in bindings {
            let Some(bound) = value(bound) else { return Some("a binding is a message".into()) };
            lowering.bound.push((name.clone(), Type::Any));
            locals.push(bound);
        }
        if !case["unknown"].is_null() || !case["type"].is_null() {
            return Some("the test expects an unknown value or a type".into());
        }
        let wants_error = !case["error"].is_null();
        let parsed = match parse(case["expr"].as_str().unwrap()) {
            Ok((tree, _)) => tree,
            Err(_) if wants_error => return None,
            Err(invalid) => return Some(format!("parse: {}", invalid.message)),
        };
        let node = match lowering.lower(&parsed) {
            Ok((node, _)) => node,
            Err(_) if wants_error => return None,
            Err(wrong) => return Some(format!("check: {}", wrong.message)),
        };
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let (mut facts, peer) = (Facts::default(), "127.0.0.1".parse().unwrap());
        let cx =
            RequestCx { request: &request, facts: &mut facts, peer, route: "r", dialect: Dialect::OpenAi, now: Now::read(), shadow: false };
        let scope = Scope::new(&cx);
        let mut run = Run { locals, ..Run::new(&scope) };
        match (run.evaluate(&node), value(&case["value"])) {
            (Err(_), _) if wants_error => None,
            (Ok(found), Some(wanted)) if !wants_error && same(&found, &wanted) => None,
            (found, wanted) => Some(format!("is {found:?}, not {wanted:?}")),
        }
    }

    #[test]
    fn cel_spec() {
        let Ok(path) = std::env::var("KEYLATCH_CEL_CASES") else {
            println!("scripts/cel-conformance runs this test");
            return;
        };
        let cases: Vec<Json> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut files: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let (mut passes, mut failures) = (0, Vec::new());
        for case in &cases {
            let file = files.entry(case["file"].as_str().unwrap().to_owned()).or_default();
            file.1 += 1;
            match failure(case) {
                None => (passes, file.0) = (passes + 1, file.0 + 1),
                Some(why) => failures.push(format!("{} {}: {} => {why}", case["file"], case["name"], case["expr"])),
            }
        }
        failures.iter().for_each(|failure| println!("{failure}"));
        files.iter().for_each(|(name, (passed, all))| println!("{name}: {passed} of {all}"));
        println!("{passes} of {} pass", cases.len());
        assert_eq!((passes, cases.len()), PASSES, "the manual of `rules` states the share");
    }
}
