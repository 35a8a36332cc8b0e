//! The functions that expressions know, and the types they take.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};
use ipnet::IpNet;
use regex::RegexBuilder;

use super::evaluate::{Convert, Each, Node, Pattern, Search};
use super::lower::{Lowered, Lowering, Wrong, wrong};
use super::types::Type;

/// The memory that a compiled regular expression may take, and what it then weighs.
const REGEX_BYTES: [(usize, usize); 3] = [(16 << 10, 1), (64 << 10, 4), (256 << 10, 64)];
/// The memory of its automaton while it runs.
const DFA_BYTES_MAX: usize = 2 << 20;
/// How deep lists may be gone through within lists.
const NESTED_MAX: usize = 2;
const KNOWN: &str = "contains, startsWith, endsWith, matches, inNetwork, lowerAscii, upperAscii, size, has, int, double, string, \
                     exists, all, filter, map";

impl Lowering {
    pub(super) fn function(&mut self, at: &IdedExpr, call: &CallExpr) -> Lowered {
        let text = Type::Text;
        match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            ("contains", Some(target), [part]) => self.search(Search::Contains, target, part),
            ("startsWith", Some(target), [part]) => self.search(Search::StartsWith, target, part),
            ("endsWith", Some(target), [part]) => self.search(Search::EndsWith, target, part),
            ("matches", Some(target), [pattern]) | ("matches", None, [target, pattern]) => {
                Ok((Node::Matches(self.typed(target, &text)?, regex(pattern)?), Type::Bool))
            }
            ("inNetwork", Some(target), networks) if !networks.is_empty() => {
                let networks = networks.iter().map(network).collect::<Result<_, _>>()?;
                Ok((Node::InNetwork(self.typed(target, &text)?, networks), Type::Bool))
            }
            ("lowerAscii", Some(target), []) => Ok((Node::Convert(Convert::Lower, self.typed(target, &text)?), text)),
            ("upperAscii", Some(target), []) => Ok((Node::Convert(Convert::Upper, self.typed(target, &text)?), text)),
            ("size", Some(one), []) | ("size", None, [one]) => match self.lower(one)? {
                (node, Type::Text | Type::List(_) | Type::Map(_) | Type::Any) => {
                    Ok((Node::Convert(Convert::Size, Box::new(node)), Type::Int))
                }
                (_, other) => wrong(one, format!("{other} has no size")),
            },
            ("int", None, [one]) => self.convert(Convert::Int, one, Type::Int),
            ("double", None, [one]) => self.convert(Convert::Double, one, Type::Double),
            ("string", None, [one]) => self.convert(Convert::Text, one, Type::Text),
            ("has", None, [one]) => match &one.expr {
                Expr::Select(select) => self.presence(one, select),
                _ => wrong(one, "has() takes a member, such as has(identity.claims.team)"),
            },
            ("exists", Some(list), [name, body]) => self.each(Each::Exists, list, name, body),
            ("all", Some(list), [name, body]) => self.each(Each::All, list, name, body),
            ("filter", Some(list), [name, body]) => self.each(Each::Filter, list, name, body),
            ("map", Some(list), [name, body]) => self.each(Each::Map, list, name, body),
            (name, ..) if KNOWN.split(", ").any(|known| known == name) => {
                wrong(at, format!("`{name}` is not called like this; `keylatch filters rules` shows how"))
            }
            (name, ..) => wrong(at, format!("`{name}` is not known; there are {KNOWN}")),
        }
    }

    fn search(&mut self, search: Search, target: &IdedExpr, part: &IdedExpr) -> Lowered {
        Ok((Node::Search(search, self.typed(target, &Type::Text)?, self.typed(part, &Type::Text)?), Type::Bool))
    }

    fn convert(&mut self, convert: Convert, one: &IdedExpr, to: Type) -> Lowered {
        match self.lower(one)? {
            (node, Type::Int | Type::Double | Type::Text | Type::Any) => Ok((Node::Convert(convert, Box::new(node)), to)),
            (node, Type::Bool) if convert == Convert::Text => Ok((Node::Convert(convert, Box::new(node)), to)),
            (_, other) => wrong(one, format!("{other} cannot be made {to}")),
        }
    }

    fn each(&mut self, each: Each, list: &IdedExpr, name: &IdedExpr, body: &IdedExpr) -> Lowered {
        let Expr::Ident(name_text) = &name.expr else {
            return wrong(name, "a name is needed here, such as x in list.exists(x, x == 1)");
        };
        if self.bound.len() >= NESTED_MAX {
            return wrong(body, format!("lists are gone through at most {NESTED_MAX} deep"));
        }
        let (list_node, item) = match self.lower(list)? {
            (node, Type::List(items)) => (node, *items),
            (node, Type::Any) => (node, Type::Any),
            (_, other) => return wrong(list, format!("a list is needed here, and this is {other}")),
        };
        self.bound.push((name_text.clone(), item.clone()));
        let lowered = if each == Each::Map { self.lower(body) } else { self.typed(body, &Type::Bool).map(|node| (*node, Type::Bool)) };
        self.bound.pop();
        let (body_node, found) = lowered?;
        if each == Each::Map && matches!(found, Type::List(_) | Type::Map(_)) {
            return wrong(body, "a list holds plain values");
        }
        let body = body_node;
        let found = match each {
            Each::Exists | Each::All => Type::Bool,
            Each::Filter => Type::List(Box::new(item)),
            Each::Map => Type::List(Box::new(found)),
        };
        Ok((Node::Each(each, Box::new(list_node), Box::new(body)), found))
    }
}

fn literal<'t>(tree: &'t IdedExpr, what: &str) -> Result<&'t str, Wrong> {
    match &tree.expr {
        Expr::Literal(LiteralValue::String(text)) => Ok(text.inner()),
        _ => wrong(tree, format!("{what} must stand here itself, as text: it is made ready when the configuration is read")),
    }
}

fn regex(pattern: &IdedExpr) -> Result<Pattern, Wrong> {
    let text = literal(pattern, "a regular expression")?;
    let mut says = String::new();
    for (bytes, weight) in REGEX_BYTES {
        match RegexBuilder::new(text).size_limit(bytes).dfa_size_limit(DFA_BYTES_MAX).build() {
            Ok(regex) => return Ok(Pattern { regex, weight }),
            // Its last line says what is wrong, the ones before draw where.
            Err(error) => says = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        }
    }
    wrong(pattern, format!("`{text}` is not a regular expression: {says}"))
}

fn network(tree: &IdedExpr) -> Result<IpNet, Wrong> {
    let text = literal(tree, "a network")?;
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    parsed.or_else(|_| wrong(tree, format!("`{text}` is neither a network such as 203.0.113.0/24 nor an address")))
}
