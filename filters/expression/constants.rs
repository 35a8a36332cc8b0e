//! Checks of constants, and constants that are evaluated when an expression is compiled.
//!
//! A comparison with a constant that can never match makes a rule always true or always false. It is a configuration error
//! that shows the correct form.

use cel::common::ast::IdedExpr;
use ipnet::IpNet;
use regex_syntax::ast::{Ast, Flag, FlagsItemKind, GroupKind};

use super::evaluate::{Node, Search};
use super::functions::Function;
use super::lower::{CheckError, check_error};
use super::strings::StringFunction;
use super::time;
use super::types::Kind;
use super::value::Value;
use super::variables::Var;
use crate::contract::is_label;

/// How a text is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Within(Search),
}

/// The letter case of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
}

/// Folds calls with constant arguments. An error if the call would fail for every request.
pub fn fold_constants(at: &IdedExpr, function: Function, nodes: Vec<Node>) -> Result<Node, CheckError> {
    let constant = match (function, nodes.as_slice()) {
        (Function::To(Kind::Timestamp), [Node::Constant(Value::Text(text))]) => time::read_timestamp(text),
        (Function::To(Kind::Duration), [Node::Constant(Value::Text(text))]) => time::read_duration(text),
        (Function::Part(_), [_, Node::Constant(Value::Text(zone))]) if time::zone(zone).is_err() => {
            return check_error(at, format!("`{}` is not a time zone such as Europe/Berlin or an offset such as +05:30", &**zone));
        }
        _ => return Ok(Node::Call(function, nodes)),
    };
    match constant {
        Ok(value) => Ok(Node::Constant(value)),
        Err(_) if function == Function::To(Kind::Timestamp) => {
            check_error(at, "expected an RFC 3339 timestamp in the years 1 to 9999, such as 2026-11-29T21:30:00Z")
        }
        Err(_) => check_error(at, "expected a duration such as 1h30m or 1.5s"),
    }
}

/// `a == b`
pub fn check_equal(at: &IdedExpr, a: &Node, b: &Node, routes: &[String]) -> Result<(), CheckError> {
    match (a, b) {
        (Node::Constant(Value::Text(text)), other) | (other, Node::Constant(Value::Text(text))) => {
            reject(at, never(other, text, Comparison::Equal, routes))
        }
        _ => Ok(()),
    }
}

/// `one in all`
pub fn check_in(at: &IdedExpr, one: &Node, all: &Node, routes: &[String]) -> Result<(), CheckError> {
    match (one, all) {
        (one, Node::List(items)) => items.iter().try_for_each(|item| check_equal(at, one, item, routes)),
        (Node::Constant(Value::Text(text)), Node::Var(Var::BindingNetworks)) => reject(at, network(text)),
        (Node::Constant(Value::Text(text)), Node::Var(Var::BindingLabels)) => reject(at, label(text)),
        _ => Ok(()),
    }
}

/// A field name with upper-case letters never matches, since the keys of `request.headers` are in lower case.
pub fn check_field(at: &IdedExpr, name: &str) -> Result<(), CheckError> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return check_error(at, format!("header field names are in lower case: write `{}`", name.to_ascii_lowercase()));
    }
    Ok(())
}

/// `target.contains(part)` and the like.
pub fn check_search(search: Search, target: &Node, at: &IdedExpr, part: &Node) -> Result<(), CheckError> {
    match part {
        Node::Constant(Value::Text(text)) => reject(at, never(target, text, Comparison::Within(search), &[])),
        _ => Ok(()),
    }
}

/// `target.matches(pattern)`
pub fn check_pattern(target: &Node, at: &IdedExpr, pattern: &str) -> Result<(), CheckError> {
    let Some((what, case)) = case(target) else { return Ok(()) };
    let Ok(tree) = regex_syntax::ast::parse::Parser::new().parse(pattern) else { return Ok(()) };
    let mut letters = Some(Vec::new());
    literals(&tree, &mut letters);
    let wrong_case = |c: &&char| if case == Case::Lower { c.is_ascii_uppercase() } else { c.is_ascii_lowercase() };
    match letters.iter().flatten().find(wrong_case) {
        Some(letter) => check_error(at, format!("{what} is in {}: `{letter}` in this pattern never matches", case.words())),
        None => Ok(()),
    }
}

fn reject(at: &IdedExpr, why: Option<String>) -> Result<(), CheckError> {
    why.map_or(Ok(()), |why| check_error(at, why))
}

impl Case {
    fn words(self) -> &'static str {
        if self == Case::Lower { "lower case" } else { "upper case" }
    }

    fn apply(self, text: &str) -> String {
        if self == Case::Lower { text.to_ascii_lowercase() } else { text.to_ascii_uppercase() }
    }
}

/// The name and letter case of a value with all letters in the same case.
fn case(node: &Node) -> Option<(String, Case)> {
    Some(match node {
        Node::Var(var @ (Var::Decoded | Var::Host | Var::Client | Var::Peer | Var::ClientNetwork)) => {
            (format!("`{}`", var.name()), Case::Lower)
        }
        Node::Var(var @ (Var::Method | Var::Country)) => (format!("`{}`", var.name()), Case::Upper),
        Node::Call(Function::Strings(StringFunction::LowerAscii), _) => ("the result of lowerAscii()".into(), Case::Lower),
        Node::Call(Function::Strings(StringFunction::UpperAscii), _) => ("the result of upperAscii()".into(), Case::Upper),
        _ => return None,
    })
}

/// The reason why a value never matches a text, if there is one.
fn never(node: &Node, text: &str, how: Comparison, routes: &[String]) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    if let Some((what, case)) = case(node)
        && case.apply(text) != text
    {
        return Some(format!("{what} is in {}: write `{}`", case.words(), case.apply(text)));
    }
    let Node::Var(var) = node else { return None };
    let at_start = matches!(how, Comparison::Equal | Comparison::Within(Search::StartsWith));
    match var {
        Var::Decoded if text.contains('\\') => {
            Some(format!("`request.decoded` contains `/` instead of `\\`: write `{}`", text.replace('\\', "/")))
        }
        Var::Decoded if has_escape(text) => Some(format!("`request.decoded` never contains an escape such as in `{text}`")),
        Var::Path if text.contains('?') => Some("`request.path` does not contain the query; use `request.query`".into()),
        Var::Path | Var::Decoded if at_start && !text.starts_with('/') && text != "*" => {
            Some(format!("`{}` begins with `/`: write `/{text}`", var.name()))
        }
        Var::Route if how == Comparison::Equal && !routes.is_empty() && !routes.iter().any(|route| route == text) => {
            Some(format!("unknown route `{text}`; known routes: {}", listed(routes.iter().map(String::as_str))))
        }
        Var::Host if how == Comparison::Equal && text.contains(':') && !text.starts_with('[') => {
            Some(format!("`request.host` does not contain the port: write `{}`", text.split(':').next().unwrap_or_default()))
        }
        _ if how == Comparison::Equal => never_equal(*var, text),
        _ => None,
    }
}

fn never_equal(var: Var, text: &str) -> Option<String> {
    const RULES: [&str; 4] = ["single", "multiple", "all", "roaming"];
    match var {
        Var::Country if text.len() != 2 => Some(format!("`client.country` is a code of two letters; `{text}` never matches")),
        Var::Client | Var::Peer => address(var, text),
        Var::ClientNetwork => match text.parse::<IpNet>() {
            Ok(IpNet::V4(net)) if net.prefix_len() == 32 => None,
            Ok(IpNet::V6(net)) if net.prefix_len() == 64 => canonical(text, &net.trunc().to_string()),
            _ => Some("`client.network` is the /32 of an IPv4 address or the /64 of an IPv6 one; use `client.address.inNetwork(…)`".into()),
        },
        Var::BindingRule if !RULES.contains(&text) => Some(format!("unknown rule `{text}`; known rules: {}", listed(RULES.into_iter()))),
        Var::KeyId if text.len() != 12 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) => {
            Some(format!("`key.id` is 12 lower-case hex digits; `{text}` never matches"))
        }
        _ => None,
    }
}

/// Checks a constant that is compared with an address.
fn address(var: Var, text: &str) -> Option<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(address) => canonical(text, &address.to_string()),
        Err(_) if text.parse::<IpNet>().is_ok() => Some(format!(
            "`{}` is an address and never equals the network `{text}`; use `{}.inNetwork(\"{text}\")`",
            var.name(),
            var.name()
        )),
        Err(_) => Some(format!("`{}` is an address; `{text}` is not one", var.name())),
    }
}

/// Checks a constant that is compared with the networks of a binding.
fn network(text: &str) -> Option<String> {
    match text.parse::<IpNet>() {
        Ok(net) => canonical(text, &net.trunc().to_string()),
        Err(_) => Some(format!("`binding.networks` contains networks such as 203.0.113.7/32; `{text}` is not one")),
    }
}

/// Checks a constant that is compared with the labels of a binding.
fn label(text: &str) -> Option<String> {
    (!is_label(text)).then(|| format!("`{text}` is not a label: labels have 1 to 64 letters, digits and `-_.:/@`"))
}

fn canonical(text: &str, canonical: &str) -> Option<String> {
    (text != canonical).then(|| format!("`{text}` never matches: write `{canonical}`"))
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn has_escape(text: &str) -> bool {
    text.as_bytes().windows(3).any(|three| three.first() == Some(&b'%') && three.iter().skip(1).all(u8::is_ascii_hexdigit))
}

/// The literal letters of a pattern. `None`: a part of the pattern ignores the case.
fn literals(tree: &Ast, letters: &mut Option<Vec<char>>) {
    let ignores_case =
        |flags: &regex_syntax::ast::Flags| flags.items.iter().any(|item| item.kind == FlagsItemKind::Flag(Flag::CaseInsensitive));
    match tree {
        Ast::Literal(literal) => letters.iter_mut().for_each(|letters| letters.push(literal.c)),
        Ast::Flags(set) if ignores_case(&set.flags) => *letters = None,
        Ast::Group(group) => {
            if matches!(&group.kind, GroupKind::NonCapturing(flags) if ignores_case(flags)) {
                *letters = None;
            }
            literals(&group.ast, letters);
        }
        Ast::Repetition(repetition) => literals(&repetition.ast, letters),
        Ast::Alternation(alternation) => alternation.asts.iter().for_each(|ast| literals(ast, letters)),
        Ast::Concat(concat) => concat.asts.iter().for_each(|ast| literals(ast, letters)),
        _ => {}
    }
}
