//! The type checker for calls of functions and macros.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};
use ipnet::IpNet;
use regex::RegexBuilder;

use super::constants;
use super::evaluate::{Each, Loop, Node, Pattern, Search};
use super::functions::{self, Function, Signature};
use super::lower::{CheckError, Lowered, TypeChecker, check_error};
use super::types::Type;

/// Size limits of a compiled regular expression in bytes, and the cost weight of each class.
const REGEX_BYTES: [(usize, usize); 3] = [(16 << 10, 1), (64 << 10, 4), (256 << 10, 64)];
/// The memory limit of the lazy DFA of a regular expression.
const DFA_BYTES_MAX: usize = 2 << 20;
/// The maximum number of nested bound names.
const BOUND_MAX: usize = 6;
/// Macros and functions with compiled arguments. They are not in the table of functions.
const SPECIAL: &[&str] = &[
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "inNetwork",
    "has",
    "exists",
    "exists_one",
    "all",
    "filter",
    "map",
    "existsOne",
    "transformList",
    "transformMap",
    "cel.bind",
];

impl TypeChecker<'_> {
    pub(super) fn function(&mut self, at: &IdedExpr, call: &CallExpr) -> Lowered {
        let text = Type::Text;
        match (call.func_name.as_str(), call.target.as_deref(), call.args.as_slice()) {
            ("contains", Some(target), [part]) => self.search(Search::Contains, target, part),
            ("startsWith", Some(target), [part]) => self.search(Search::StartsWith, target, part),
            ("endsWith", Some(target), [part]) => self.search(Search::EndsWith, target, part),
            ("matches", Some(target), [pattern]) | ("matches", None, [target, pattern]) => {
                let (target, pattern_node) = (self.typed(target, &text)?, regex(pattern)?);
                constants::check_pattern(&target, pattern, pattern_node.regex.as_str())?;
                Ok((Node::Matches(target, pattern_node), Type::Bool))
            }
            ("inNetwork", Some(target), networks) if !networks.is_empty() => {
                let networks = networks.iter().map(network).collect::<Result<_, _>>()?;
                Ok((Node::InNetwork(self.typed(target, &text)?, networks), Type::Bool))
            }
            ("has", None, [one]) => match &one.expr {
                Expr::Select(select) => self.presence(one, select),
                _ => check_error(one, "has() requires a member, such as has(identity.claims.team)"),
            },
            ("bind", Some(target), [name, value, body]) if self.is_namespace(target, "cel") => self.bind(name, value, body),
            ("quote", Some(target), args) if self.is_namespace(target, "strings") => self.table(at, "strings.quote", None, args),
            (name, Some(over), args) if each(name, args).is_some() => {
                let Some((each, names, only, body)) = each(name, args) else { return check_error(at, "this is not known here") };
                self.each(each, over, names, only, body)
            }
            (name, target, args) => self.table(at, name, target, args),
        }
    }

    /// Whether an identifier is the namespace of a CEL extension and not a bound name.
    fn is_namespace(&self, target: &IdedExpr, name: &str) -> bool {
        matches!(&target.expr, Expr::Ident(word) if word == name) && !self.bound.iter().any(|(bound, _)| bound == name)
    }

    /// Checks a call of a function of the table.
    fn table(&mut self, at: &IdedExpr, name: &str, target: Option<&IdedExpr>, args: &[IdedExpr]) -> Lowered {
        let count = args.len() + usize::from(target.is_some());
        let Some(signature) = Signature::find(name, target.is_some()).filter(|signature| signature.takes(count)) else {
            let known = functions::names().chain(SPECIAL.iter().copied()).collect::<Vec<_>>();
            return if known.contains(&name) {
                check_error(at, format!("wrong arguments for `{name}`; see `keylatch filters rules`"))
            } else {
                check_error(at, format!("unknown function `{name}`; known functions: {}", known.join(", ")))
            };
        };
        let mut nodes = Vec::with_capacity(count);
        for (position, arg) in target.into_iter().chain(args).enumerate() {
            let (node, found) = self.lower(arg)?;
            if !signature.fits(position, found.kind()) {
                return match (signature.wanted(position), signature.function) {
                    (Some(wanted), _) => check_error(arg, format!("expected {}, found {found}", Type::of_kind(wanted))),
                    (None, Function::Size) => check_error(arg, format!("{found} has no size")),
                    (None, Function::To(to)) => check_error(arg, format!("{found} cannot be converted to {}", Type::of_kind(to))),
                    (None, _) => check_error(arg, format!("{found} has no `{name}`")),
                };
            }
            nodes.push(node);
        }
        let node = constants::fold_constants(at, signature.function, nodes)?;
        Ok((node, Type::of_kind(signature.result)))
    }

    fn search(&mut self, search: Search, target: &IdedExpr, part: &IdedExpr) -> Lowered {
        let (target, part_node) = (self.typed(target, &Type::Text)?, self.typed(part, &Type::Text)?);
        constants::check_search(search, &target, part, &part_node)?;
        Ok((Node::Search(search, target, part_node), Type::Bool))
    }

    fn bind(&mut self, name: &IdedExpr, value: &IdedExpr, body: &IdedExpr) -> Lowered {
        let (value_node, found) = self.lower(value)?;
        self.enter(name, found, body)?;
        let lowered = self.lower(body);
        self.bound.pop();
        let (body, found) = lowered?;
        Ok((Node::Bind(Box::new(value_node), Box::new(body)), found))
    }

    /// Binds a name for a subexpression.
    fn enter(&mut self, name: &IdedExpr, found: Type, within: &IdedExpr) -> Result<(), CheckError> {
        let Expr::Ident(text) = &name.expr else {
            return check_error(name, "expected a name, such as x in list.exists(x, x == 1)");
        };
        if self.bound.len() >= BOUND_MAX {
            return check_error(within, format!("nested macros can bind at most {BOUND_MAX} names"));
        }
        self.bound.push((text.clone(), found));
        Ok(())
    }

    fn each(&mut self, each: Each, over: &IdedExpr, names: &[IdedExpr], only: Option<&IdedExpr>, body: &IdedExpr) -> Lowered {
        let pairs = names.len() == 2;
        let (over_node, found) = self.lower(over)?;
        let (first, second) = match found {
            Type::List(items) if pairs => (Type::Int, *items),
            Type::List(items) => (*items, Type::Any),
            Type::Map(keys, values) => (*keys, *values),
            Type::Any => (Type::Any, Type::Any),
            other => return check_error(over, format!("expected a list or a map, found {other}")),
        };
        let depth = self.bound.len();
        let key = first.clone();
        let entered = names.iter().zip([first.clone(), second]).try_for_each(|(name, found)| self.enter(name, found, body));
        let lowered = entered.and_then(|()| {
            let only = only.map(|only| self.typed(only, &Type::Bool)).transpose()?.map(|node| *node);
            let body =
                if matches!(each, Each::Map | Each::MapValues) { self.lower(body)? } else { (*self.typed(body, &Type::Bool)?, Type::Bool) };
            Ok((only, body))
        });
        self.bound.truncate(depth);
        let (only, (body, found)) = lowered?;
        let found = match each {
            Each::Exists | Each::ExistsOne | Each::All => Type::Bool,
            Each::Filter => Type::List(Box::new(first)),
            Each::Map => Type::List(Box::new(found)),
            Each::MapValues => Type::Map(Box::new(key), Box::new(found)),
        };
        Ok((Node::Each(Box::new(Loop { each, over: over_node, pairs, only, body })), found))
    }
}

type Parts<'t> = (Each, &'t [IdedExpr], Option<&'t IdedExpr>, &'t IdedExpr);

/// The macro of this name with its bound names, condition and body.
fn each<'t>(name: &str, args: &'t [IdedExpr]) -> Option<Parts<'t>> {
    let one = args.get(..1)?;
    let two = args.get(..2)?;
    Some(match (name, args) {
        ("exists", [_, body]) => (Each::Exists, one, None, body),
        ("all", [_, body]) => (Each::All, one, None, body),
        ("exists_one" | "existsOne", [_, body]) => (Each::ExistsOne, one, None, body),
        ("filter", [_, body]) => (Each::Filter, one, None, body),
        ("map", [_, body]) => (Each::Map, one, None, body),
        ("map", [_, only, body]) => (Each::Map, one, Some(only), body),
        ("exists", [_, _, body]) => (Each::Exists, two, None, body),
        ("all", [_, _, body]) => (Each::All, two, None, body),
        ("exists_one" | "existsOne", [_, _, body]) => (Each::ExistsOne, two, None, body),
        ("transformList", [_, _, body]) => (Each::Map, two, None, body),
        ("transformList", [_, _, only, body]) => (Each::Map, two, Some(only), body),
        ("transformMap", [_, _, body]) => (Each::MapValues, two, None, body),
        ("transformMap", [_, _, only, body]) => (Each::MapValues, two, Some(only), body),
        _ => return None,
    })
}

fn literal<'t>(tree: &'t IdedExpr, what: &str) -> Result<&'t str, CheckError> {
    match &tree.expr {
        Expr::Literal(LiteralValue::String(text)) => Ok(text.inner()),
        _ => check_error(tree, format!("{what} must be a text constant, because it is compiled when the configuration is read")),
    }
}

fn regex(pattern: &IdedExpr) -> Result<Pattern, CheckError> {
    let text = literal(pattern, "a regular expression")?;
    let mut reason = String::new();
    for (bytes, weight) in REGEX_BYTES {
        match RegexBuilder::new(text).size_limit(bytes).dfa_size_limit(DFA_BYTES_MAX).build() {
            Ok(regex) => return Ok(Pattern { regex, weight }),
            // The last line is the reason; the lines before show the position.
            Err(error) => reason = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        }
    }
    check_error(pattern, format!("`{text}` is not a valid regular expression: {reason}"))
}

fn network(tree: &IdedExpr) -> Result<IpNet, CheckError> {
    let text = literal(tree, "a network")?;
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    parsed.or_else(|_| check_error(tree, format!("`{text}` is not a network such as 203.0.113.0/24 or an address")))
}
