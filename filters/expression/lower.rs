//! The type checker: from the tree of the parser to typed nodes. It evaluates nothing.

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, LiteralValue, SelectExpr, operators};

use super::arithmetic::ArithmeticOp;
use super::constants;
use super::evaluate::{Node, Order};
use super::types::{Kind, Type};
use super::value::Value;
use super::variables::{VARIABLES, Var};

/// A type error and the id of its node in the parser's tree.
#[derive(Debug)]
pub struct CheckError {
    pub id: u64,
    pub message: String,
}

pub type Lowered = Result<(Node, Type), CheckError>;

/// The checker with the names that macros have bound so far, outermost first.
#[derive(Default)]
pub struct TypeChecker<'r> {
    pub(super) bound: Vec<(String, Type)>,
    /// The names of all routes; empty if unknown.
    pub(super) routes: &'r [String],
    nodes: usize,
    depth: usize,
    /// The expression reads `request.model`.
    pub(super) reads_model: bool,
    /// The header fields that the expression names.
    pub(super) header_fields: Vec<String>,
}

/// The deepest tree. The evaluator recurses once per level, so this bounds its stack.
const DEPTH_MAX: usize = 200;

/// The largest number of nodes of an expression.
const NODES_MAX: usize = 1000;

pub fn check_error<T>(at: &IdedExpr, message: impl Into<String>) -> Result<T, CheckError> {
    Err(CheckError { id: at.id, message: message.into() })
}

impl<'r> TypeChecker<'r> {
    pub fn new(routes: &'r [String]) -> Self {
        Self { routes, ..Self::default() }
    }

    pub fn lower(&mut self, tree: &IdedExpr) -> Lowered {
        self.nodes += 1;
        if self.nodes > NODES_MAX || self.depth >= DEPTH_MAX {
            return check_error(tree, format!("the expression has more than {NODES_MAX} parts or {DEPTH_MAX} levels; split it"));
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
                    common = Some(common.map_or(found.clone(), |known| known.common(found)));
                    items.push(node);
                }
                Ok((Node::List(items), Type::List(Box::new(common.unwrap_or(Type::Any)))))
            }
            Expr::Map(map) => self.map(&map.entries),
            Expr::Struct(_) => check_error(tree, "messages are not supported"),
            Expr::Comprehension(_) | Expr::Unspecified => check_error(tree, "this syntax is not supported"),
        }
    }

    fn map(&mut self, entries: &[IdedEntryExpr]) -> Lowered {
        let (mut made, mut common) = (Vec::new(), None::<(Type, Type)>);
        for entry in entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else {
                return Err(CheckError { id: entry.id, message: "this syntax is not supported".into() });
            };
            let ((key, one), (value, other)) = (self.lower(&entry.key)?, self.lower(&entry.value)?);
            if !one.is_key() {
                return check_error(&entry.key, format!("a map key must be text, an integer or a boolean; found {one}"));
            }
            common = Some(match common {
                Some((keys, values)) => (keys.common(one), values.common(other)),
                None => (one, other),
            });
            made.push((key, value));
        }
        let (keys, values) = common.unwrap_or((Type::Any, Type::Any));
        Ok((Node::Map(made), Type::Map(Box::new(keys), Box::new(values))))
    }

    fn variable(&mut self, var: Var) -> (Node, Type) {
        self.reads_model |= var == Var::Model;
        (Node::Var(var), var.type_of())
    }

    fn name(&mut self, at: &IdedExpr, name: &str) -> Lowered {
        if let Some(index) = self.bound.iter().rposition(|(bound, _)| bound == name) {
            let found = self.bound.get(index).map_or(Type::Any, |(_, found)| found.clone());
            return Ok((Node::Local(index), found));
        }
        match Var::named(name) {
            Some(var) => Ok(self.variable(var)),
            None if Var::is_family(name) => check_error(at, format!("`{name}` is not a variable; its members are {}", family(name))),
            None => match Kind::named(name) {
                Some(kind) => Ok((Node::Constant(Value::Type(kind)), Type::Type)),
                None => check_error(at, format!("unknown name `{name}`{}", advice(name))),
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
                Some(var) => Ok(self.variable(var)),
                None => check_error(&select.operand, format!("unknown name `{name}`{}", advice(&name))),
            };
        }
        let (operand, found) = self.lower(&select.operand)?;
        if matches!(operand, Node::Var(Var::Headers)) {
            self.header_field(at, &select.field)?;
        }
        let key = Box::new(Node::Constant(Value::owned(select.field.clone())));
        match found {
            Type::Map(keys, values) if keys.can_equal(&Type::Text) => Ok((Node::Member(Box::new(operand), key), *values)),
            Type::Any => Ok((Node::Member(Box::new(operand), key), Type::Any)),
            other => check_error(at, format!("`.{}` requires a value with members; found {other}", select.field)),
        }
    }

    /// `has(a.b)`
    pub(super) fn presence(&mut self, at: &IdedExpr, select: &SelectExpr) -> Lowered {
        if let Expr::Ident(root) = &select.operand.expr
            && !self.bound.iter().any(|(bound, _)| bound == root)
            && Var::is_family(root)
        {
            return check_error(at, format!("has() requires an optional member; `{root}.{}` always exists", select.field));
        }
        let lowered = self.lower(&select.operand)?;
        if matches!(lowered.0, Node::Var(Var::Headers)) {
            self.header_field(at, &select.field)?;
        }
        match lowered {
            (operand, Type::Map(..) | Type::Any) => Ok((Node::Has(Box::new(operand), select.field.clone()), Type::Bool)),
            (_, other) => check_error(at, format!("has() requires a value with members; found {other}")),
        }
    }

    /// Checks a subexpression that must have this type.
    pub(super) fn typed(&mut self, tree: &IdedExpr, wanted: &Type) -> Result<Box<Node>, CheckError> {
        let (node, found) = self.lower(tree)?;
        if found.is_assignable_to(wanted) { Ok(Box::new(node)) } else { check_error(tree, format!("expected {wanted}, found {found}")) }
    }

    fn call(&mut self, at: &IdedExpr, call: &CallExpr) -> Lowered {
        match (call.func_name.as_str(), call.args.as_slice(), &call.target) {
            (operators::LOGICAL_NOT, [one], None) => Ok((Node::Not(self.typed(one, &Type::Bool)?), Type::Bool)),
            (operators::LOGICAL_AND, [a, b], None) => Ok((Node::And(self.typed(a, &Type::Bool)?, self.typed(b, &Type::Bool)?), Type::Bool)),
            (operators::LOGICAL_OR, [a, b], None) => Ok((Node::Or(self.typed(a, &Type::Bool)?, self.typed(b, &Type::Bool)?), Type::Bool)),
            (operators::CONDITIONAL, [which, a, b], None) => {
                let which = self.typed(which, &Type::Bool)?;
                let ((a, one), (b_node, other)) = (self.lower(a)?, self.lower(b)?);
                if !one.is_assignable_to(&other) {
                    return check_error(b, format!("both branches of `? :` must have the same type; found {one} and {other}"));
                }
                Ok((Node::Either(which, Box::new(a), Box::new(b_node)), one.common(other)))
            }
            (operators::NEGATE, [one], None) => match self.lower(one)? {
                (node, found) if found.is_number() && found != Type::Uint => Ok((Node::Negate(Box::new(node)), found)),
                (_, other) => check_error(one, format!("expected a number, found {other}")),
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
                    return check_error(at, "this syntax is not supported");
                };
                if one.is_ordered() && other.is_ordered() && one.can_equal(&other) {
                    Ok((Node::Order(order, Box::new(a_node), Box::new(b_node)), Type::Bool))
                } else {
                    check_error(at, format!("{one} and {other} cannot be compared"))
                }
            }
            (name, [a, b], None) if sum(name).is_some() => {
                let (Some(sum), (a_node, one), (b_node, other)) = (sum(name), self.lower(a)?, self.lower(b)?) else {
                    return check_error(at, "this syntax is not supported");
                };
                let Some(found) = sum_type(sum, &one, &other) else {
                    return check_error(at, format!("the operator does not apply to {one} and {other}"));
                };
                Ok((Node::Arithmetic(sum, Box::new(a_node), Box::new(b_node)), found))
            }
            _ => self.function(at, call),
        }
    }

    fn equality(&mut self, at: &IdedExpr, a: &IdedExpr, b: &IdedExpr) -> Lowered {
        let ((a, one), (b, other)) = (self.lower(a)?, self.lower(b)?);
        if !one.can_equal(&other) {
            return check_error(at, format!("{one} and {other} are never equal"));
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
            other => return check_error(all, format!("`in` requires a list or a map; found {other}")),
        };
        if !fits {
            return check_error(one, format!("{found} is never in {of} with members of another type"));
        }
        if let (Node::Constant(Value::Text(name)), Node::Var(Var::Headers)) = (&one_node, &all_node) {
            self.header_field(at, name)?;
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
            other => return check_error(one, format!("`[…]` requires a list or a map; found {other}")),
        };
        Ok((Node::Member(Box::new(node), key), found))
    }

    /// Records and checks the constant name of a header field.
    fn header_field(&mut self, at: &IdedExpr, name: &str) -> Result<(), CheckError> {
        self.header_fields.push(name.to_owned());
        constants::check_field(at, name)
    }

    /// Checks the key of an index expression.
    fn key(&mut self, key: &IdedExpr, of: &Node, keys: &Type) -> Result<Box<Node>, CheckError> {
        let (node, found) = self.lower(key)?;
        if let (Node::Var(Var::Headers), Node::Constant(Value::Text(name))) = (of, &node) {
            self.header_field(key, name)?;
        }
        if found.can_equal(keys) { Ok(Box::new(node)) } else { check_error(key, format!("expected {keys}, found {found}")) }
    }
}

/// The dotted name of a chain of selections, such as `a.b.c`.
fn dotted(tree: &IdedExpr) -> Option<String> {
    match &tree.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", dotted(&select.operand)?, select.field)),
        _ => None,
    }
}

/// The result type of an arithmetic operation. `None`: the operand types are not supported.
fn sum_type(sum: ArithmeticOp, one: &Type, other: &Type) -> Option<Type> {
    let adds = matches!(sum, ArithmeticOp::Add);
    let moves = matches!(sum, ArithmeticOp::Add | ArithmeticOp::Subtract);
    match (one, other) {
        (Type::Any, b) | (b, Type::Any) => {
            let joined = adds && matches!(b, Type::Text | Type::Bytes | Type::List(_));
            let moved = moves && matches!(b, Type::Timestamp | Type::Duration);
            (b.is_number() || joined || moved).then_some(Type::Any)
        }
        (Type::Text, Type::Text) if adds => Some(Type::Text),
        (Type::Bytes, Type::Bytes) if adds => Some(Type::Bytes),
        (Type::List(a), Type::List(b)) if adds => Some(Type::List(Box::new((**a).clone().common((**b).clone())))),
        (Type::Timestamp, Type::Duration) if moves => Some(Type::Timestamp),
        (Type::Duration, Type::Timestamp) if adds => Some(Type::Timestamp),
        (Type::Duration, Type::Duration) if moves => Some(Type::Duration),
        (Type::Timestamp, Type::Timestamp) if sum == ArithmeticOp::Subtract => Some(Type::Duration),
        (Type::Int, Type::Int) => Some(Type::Int),
        (Type::Uint, Type::Uint) => Some(Type::Uint),
        (Type::Int | Type::Uint, Type::Double) | (Type::Double, Type::Int | Type::Uint | Type::Double) if sum != ArithmeticOp::Modulo => {
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

fn sum(name: &str) -> Option<ArithmeticOp> {
    Some(match name {
        operators::ADD => ArithmeticOp::Add,
        operators::SUBSTRACT => ArithmeticOp::Subtract,
        operators::MULTIPLY => ArithmeticOp::Multiply,
        operators::DIVIDE => ArithmeticOp::Divide,
        operators::MODULO => ArithmeticOp::Modulo,
        _ => return None,
    })
}

fn family(word: &str) -> String {
    let members = VARIABLES.iter().filter(|variable| variable.name.starts_with(&format!("{word}.")));
    members.map(|variable| format!("`{}`", variable.name)).collect::<Vec<_>>().join(", ")
}

/// The suffix of an error about an unknown name: its siblings, or the most similar name.
fn advice(name: &str) -> String {
    let family_word = name.split('.').next().unwrap_or_default();
    if Var::is_family(family_word) {
        return format!("; known names: {}", family(family_word));
    }
    let near = |known: &&str| known.split('.').any(|word| word == name || word.starts_with(name) || name.starts_with(word));
    match VARIABLES.iter().map(|variable| variable.name).find(near) {
        Some(known) => format!("; did you mean `{known}`?"),
        None => "; `keylatch filters rules` lists all names".into(),
    }
}
