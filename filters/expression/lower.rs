//! From the parser's tree to nodes whose types fit.

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, LiteralValue, SelectExpr, operators};

use super::arithmetic::Sum;
use super::constants;
use super::evaluate::{Node, Order};
use super::types::{Kind, Type};
use super::value::Value;
use super::variables::{VARIABLES, Var};

/// What does not fit, and at which node.
#[derive(Debug)]
pub struct Wrong {
    pub id: u64,
    pub message: String,
}

pub type Lowered = Result<(Node, Type), Wrong>;

/// The checker, and the names that are bound around its place, from outside to inside.
#[derive(Default)]
pub struct Lowering<'r> {
    pub(super) bound: Vec<(String, Type)>,
    /// The routes that there are; empty where they are not known.
    pub(super) routes: &'r [String],
    nodes: usize,
    depth: usize,
}

/// Each level is one of the stack's when it runs.
const DEPTH_MAX: usize = 200;

/// Larger expressions are better written as several rules.
const NODES_MAX: usize = 1000;

pub fn wrong<T>(at: &IdedExpr, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { id: at.id, message: message.into() })
}

impl<'r> Lowering<'r> {
    pub fn new(routes: &'r [String]) -> Self {
        Self { routes, ..Self::default() }
    }

    pub fn lower(&mut self, tree: &IdedExpr) -> Lowered {
        self.nodes += 1;
        if self.nodes > NODES_MAX || self.depth >= DEPTH_MAX {
            return wrong(
                tree,
                format!("the expression has more than {NODES_MAX} parts, or is more than {DEPTH_MAX} deep; write it as several"),
            );
        }
        self.depth += 1;
        let lowered = self.lower_one(tree);
        self.depth -= 1;
        lowered
    }

    fn lower_one(&mut self, tree: &IdedExpr) -> Lowered {
        match &tree.expr {
            Expr::Literal(literal) => Ok(constant(literal)),
            Expr::Ident(name) => self.name(tree, name),
            Expr::Select(select) => self.select(tree, select),
            Expr::Call(call) => self.call(tree, call),
            Expr::List(list) => {
                let mut items = Vec::new();
                let mut common: Option<Type> = None;
                for element in &list.elements {
                    let (node, found) = self.lower(element)?;
                    common = Some(common.map_or(found.clone(), |known| known.or(found)));
                    items.push(node);
                }
                Ok((Node::List(items), Type::List(Box::new(common.unwrap_or(Type::Any)))))
            }
            Expr::Map(map) => self.map(&map.entries),
            Expr::Struct(_) => wrong(tree, "messages cannot be made here"),
            Expr::Comprehension(_) | Expr::Unspecified => wrong(tree, "this is not known here"),
        }
    }

    fn map(&mut self, entries: &[IdedEntryExpr]) -> Lowered {
        let (mut made, mut common) = (Vec::new(), None::<(Type, Type)>);
        for entry in entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else {
                return Err(Wrong { id: entry.id, message: "this is not known here".into() });
            };
            let ((key, one), (value, other)) = (self.lower(&entry.key)?, self.lower(&entry.value)?);
            if !one.is_key() {
                return wrong(&entry.key, format!("the key of a map is text, a whole number or a truth value, and this is {one}"));
            }
            common = Some(match common {
                Some((keys, values)) => (keys.or(one), values.or(other)),
                None => (one, other),
            });
            made.push((key, value));
        }
        let (keys, values) = common.unwrap_or((Type::Any, Type::Any));
        Ok((Node::Map(made), Type::Map(Box::new(keys), Box::new(values))))
    }

    fn name(&mut self, at: &IdedExpr, name: &str) -> Lowered {
        if let Some(index) = self.bound.iter().rposition(|(bound, _)| bound == name) {
            let found = self.bound.get(index).map_or(Type::Any, |(_, found)| found.clone());
            return Ok((Node::Local(index), found));
        }
        match Var::named(name) {
            Some(var) => Ok((Node::Var(var), var.type_of())),
            None if Var::is_family(name) => wrong(at, format!("`{name}` is no value by itself; there are {}", family(name))),
            None => match Kind::named(name) {
                Some(kind) => Ok((Node::Constant(Value::Type(kind)), Type::Type)),
                None => wrong(at, format!("`{name}` is not known{}", advice(name))),
            },
        }
    }

    fn select(&mut self, at: &IdedExpr, select: &SelectExpr) -> Lowered {
        if select.test {
            return self.presence(at, select);
        }
        if let Some(kind) = dotted(at).and_then(|name| Kind::named(&name)) {
            return Ok((Node::Constant(Value::Type(kind)), Type::Type));
        }
        if let Expr::Ident(root) = &select.operand.expr
            && !self.bound.iter().any(|(bound, _)| bound == root)
            && Var::is_family(root)
        {
            let name = format!("{root}.{}", select.field);
            return match Var::named(&name) {
                Some(var) => Ok((Node::Var(var), var.type_of())),
                None => wrong(&select.operand, format!("`{name}` is not known{}", advice(&name))),
            };
        }
        let (operand, found) = self.lower(&select.operand)?;
        if matches!(operand, Node::Var(Var::Headers)) {
            constants::check_field(at, &select.field)?;
        }
        let key = Box::new(Node::Constant(Value::owned(select.field.clone())));
        match found {
            Type::Map(keys, values) if keys.can_equal(&Type::Text) => Ok((Node::Member(Box::new(operand), key), *values)),
            Type::Any => Ok((Node::Member(Box::new(operand), key), Type::Any)),
            other => wrong(at, format!("`.{}` asks for a member, and this is {other}", select.field)),
        }
    }

    /// `has(a.b)`
    pub(super) fn presence(&mut self, at: &IdedExpr, select: &SelectExpr) -> Lowered {
        if let Expr::Ident(root) = &select.operand.expr
            && !self.bound.iter().any(|(bound, _)| bound == root)
            && Var::is_family(root)
        {
            return wrong(at, format!("has() asks for a member, and `{root}.{}` is not one: it is always there", select.field));
        }
        let lowered = self.lower(&select.operand)?;
        if matches!(lowered.0, Node::Var(Var::Headers)) {
            constants::check_field(at, &select.field)?;
        }
        match lowered {
            (operand, Type::Map(..) | Type::Any) => Ok((Node::Has(Box::new(operand), select.field.clone()), Type::Bool)),
            (_, other) => wrong(at, format!("has() asks for a member, and this is {other}")),
        }
    }

    /// One that must be of this type.
    pub(super) fn typed(&mut self, tree: &IdedExpr, wanted: &Type) -> Result<Box<Node>, Wrong> {
        let (node, found) = self.lower(tree)?;
        if found.is_a(wanted) { Ok(Box::new(node)) } else { wrong(tree, format!("{wanted} is needed here, and this is {found}")) }
    }

    fn call(&mut self, at: &IdedExpr, call: &CallExpr) -> Lowered {
        match (call.func_name.as_str(), call.args.as_slice(), &call.target) {
            (operators::LOGICAL_NOT, [one], None) => Ok((Node::Not(self.typed(one, &Type::Bool)?), Type::Bool)),
            (operators::LOGICAL_AND, [a, b], None) => Ok((Node::And(self.typed(a, &Type::Bool)?, self.typed(b, &Type::Bool)?), Type::Bool)),
            (operators::LOGICAL_OR, [a, b], None) => Ok((Node::Or(self.typed(a, &Type::Bool)?, self.typed(b, &Type::Bool)?), Type::Bool)),
            (operators::CONDITIONAL, [which, a, b], None) => {
                let which = self.typed(which, &Type::Bool)?;
                let ((a, one), (b_node, other)) = (self.lower(a)?, self.lower(b)?);
                if !one.is_a(&other) {
                    return wrong(b, format!("both halves of `? :` must be of one type; these are {one} and {other}"));
                }
                Ok((Node::Either(which, Box::new(a), Box::new(b_node)), one.or(other)))
            }
            (operators::NEGATE, [one], None) => match self.lower(one)? {
                (node, found) if found.is_number() && found != Type::Uint => Ok((Node::Negate(Box::new(node)), found)),
                (_, other) => wrong(one, format!("a number is needed here, and this is {other}")),
            },
            (operators::EQUALS, [a, b], None) => self.equality(at, a, b),
            (operators::NOT_EQUALS, [a, b], None) => {
                let (node, found) = self.equality(at, a, b)?;
                Ok((Node::Not(Box::new(node)), found))
            }
            (operators::IN, [one, all], None) => self.membership(at, one, all),
            (operators::INDEX, [one, key], None) => self.index(one, key),
            (name, [a, b], None) if order(name).is_some() => {
                let (Some(order), (a_node, one), (b_node, other)) = (order(name), self.lower(a)?, self.lower(b)?) else {
                    return wrong(at, "this is not known here");
                };
                if one.is_ordered() && other.is_ordered() && one.can_equal(&other) {
                    Ok((Node::Order(order, Box::new(a_node), Box::new(b_node)), Type::Bool))
                } else {
                    wrong(at, format!("{one} and {other} cannot be compared"))
                }
            }
            (name, [a, b], None) if sum(name).is_some() => {
                let (Some(sum), (a_node, one), (b_node, other)) = (sum(name), self.lower(a)?, self.lower(b)?) else {
                    return wrong(at, "this is not known here");
                };
                let Some(found) = sum_type(sum, &one, &other) else {
                    return wrong(at, format!("{one} and {other} do not add up"));
                };
                Ok((Node::Sum(sum, Box::new(a_node), Box::new(b_node)), found))
            }
            _ => self.function(at, call),
        }
    }

    fn equality(&mut self, at: &IdedExpr, a: &IdedExpr, b: &IdedExpr) -> Lowered {
        let ((a, one), (b, other)) = (self.lower(a)?, self.lower(b)?);
        if !one.can_equal(&other) {
            return wrong(at, format!("{one} and {other} are never equal"));
        }
        constants::check_equal(at, &a, &b, self.routes)?;
        Ok((Node::Equal(Box::new(a), Box::new(b)), Type::Bool))
    }

    fn membership(&mut self, at: &IdedExpr, one: &IdedExpr, all: &IdedExpr) -> Lowered {
        let ((one_node, found), (all_node, of)) = (self.lower(one)?, self.lower(all)?);
        let fits = match &of {
            Type::List(items) => found.can_equal(items),
            Type::Map(keys, _) => found.can_equal(keys),
            Type::Any => true,
            other => return wrong(all, format!("`in` needs a list or a map, and this is {other}")),
        };
        if !fits {
            return wrong(one, format!("{found} is never in {of} of the kind that is there"));
        }
        constants::check_in(at, &one_node, &all_node, self.routes)?;
        Ok((Node::In(Box::new(one_node), Box::new(all_node)), Type::Bool))
    }

    fn index(&mut self, one: &IdedExpr, key: &IdedExpr) -> Lowered {
        let (node, found) = self.lower(one)?;
        let (key, found) = match found {
            Type::Map(keys, values) => (self.key(key, &node, &keys)?, *values),
            Type::List(items) => (self.typed(key, &Type::Int)?, *items),
            Type::Any => (Box::new(self.lower(key)?.0), Type::Any),
            other => return wrong(one, format!("`[…]` asks for a member, and this is {other}")),
        };
        Ok((Node::Member(Box::new(node), key), found))
    }

    /// The key of a member.
    fn key(&mut self, key: &IdedExpr, of: &Node, keys: &Type) -> Result<Box<Node>, Wrong> {
        let (node, found) = self.lower(key)?;
        if let (Node::Var(Var::Headers), Node::Constant(Value::Text(name))) = (of, &node) {
            constants::check_field(key, name)?;
        }
        if found.can_equal(keys) { Ok(Box::new(node)) } else { wrong(key, format!("{keys} is needed here, and this is {found}")) }
    }
}

/// The name that selections of an identifier spell, such as `a.b.c`.
fn dotted(tree: &IdedExpr) -> Option<String> {
    match &tree.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", dotted(&select.operand)?, select.field)),
        _ => None,
    }
}

/// The type of a sum, where there is one.
fn sum_type(sum: Sum, one: &Type, other: &Type) -> Option<Type> {
    let adds = matches!(sum, Sum::Add);
    let moves = matches!(sum, Sum::Add | Sum::Subtract);
    match (one, other) {
        (Type::Any, b) | (b, Type::Any) => {
            let joined = adds && matches!(b, Type::Text | Type::Bytes | Type::List(_));
            let moved = moves && matches!(b, Type::Timestamp | Type::Duration);
            (b.is_number() || joined || moved).then_some(Type::Any)
        }
        (Type::Text, Type::Text) if adds => Some(Type::Text),
        (Type::Bytes, Type::Bytes) if adds => Some(Type::Bytes),
        (Type::List(a), Type::List(b)) if adds => Some(Type::List(Box::new((**a).clone().or((**b).clone())))),
        (Type::Timestamp, Type::Duration) if moves => Some(Type::Timestamp),
        (Type::Duration, Type::Timestamp) if adds => Some(Type::Timestamp),
        (Type::Duration, Type::Duration) if moves => Some(Type::Duration),
        (Type::Timestamp, Type::Timestamp) if sum == Sum::Subtract => Some(Type::Duration),
        (Type::Int, Type::Int) => Some(Type::Int),
        (Type::Uint, Type::Uint) => Some(Type::Uint),
        (Type::Int | Type::Uint, Type::Double) | (Type::Double, Type::Int | Type::Uint | Type::Double) if sum != Sum::Modulo => {
            Some(Type::Double)
        }
        _ => None,
    }
}

fn constant(literal: &LiteralValue) -> (Node, Type) {
    match literal {
        LiteralValue::Boolean(truth) => (Node::Constant(Value::Bool(*truth.inner())), Type::Bool),
        LiteralValue::Int(number) => (Node::Constant(Value::Int(*number.inner())), Type::Int),
        LiteralValue::UInt(number) => (Node::Constant(Value::Uint(*number.inner())), Type::Uint),
        LiteralValue::Double(number) => (Node::Constant(Value::Double(*number.inner())), Type::Double),
        LiteralValue::String(text) => (Node::Constant(Value::owned(text.inner().to_owned())), Type::Text),
        LiteralValue::Null => (Node::Constant(Value::Null), Type::Null),
        LiteralValue::Bytes(bytes) => (Node::Constant(Value::Bytes(bytes.inner().into())), Type::Bytes),
    }
}

fn order(name: &str) -> Option<Order> {
    Some(match name {
        operators::LESS => Order::Less,
        operators::LESS_EQUALS => Order::LessOrEqual,
        operators::GREATER => Order::Greater,
        operators::GREATER_EQUALS => Order::GreaterOrEqual,
        _ => return None,
    })
}

fn sum(name: &str) -> Option<Sum> {
    Some(match name {
        operators::ADD => Sum::Add,
        operators::SUBSTRACT => Sum::Subtract,
        operators::MULTIPLY => Sum::Multiply,
        operators::DIVIDE => Sum::Divide,
        operators::MODULO => Sum::Modulo,
        _ => return None,
    })
}

fn family(word: &str) -> String {
    let members = VARIABLES.iter().filter(|variable| variable.name.starts_with(&format!("{word}.")));
    members.map(|variable| format!("`{}`", variable.name)).collect::<Vec<_>>().join(", ")
}

/// The names that are most like it.
fn advice(name: &str) -> String {
    let family_word = name.split('.').next().unwrap_or_default();
    if Var::is_family(family_word) {
        return format!("; there are {}", family(family_word));
    }
    let near = |known: &&str| known.split('.').any(|word| word == name || word.starts_with(name) || name.starts_with(word));
    match VARIABLES.iter().map(|variable| variable.name).find(near) {
        Some(known) => format!("; did you mean `{known}`?"),
        None => "; `keylatch filters rules` lists what is".into(),
    }
}
