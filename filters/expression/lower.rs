//! From the parser's tree to nodes whose types fit.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};

use super::evaluate::{Node, Order, Sum};
use super::types::Type;
use super::value::Value;
use super::variables::{VARIABLES, Var};

/// What does not fit, and at which node.
#[derive(Debug)]
pub struct Wrong {
    pub id: u64,
    pub message: String,
}

pub type Lowered = Result<(Node, Type), Wrong>;

/// The names that are bound around the place that is looked at, from outside to inside.
#[derive(Default)]
pub struct Lowering {
    pub(super) bound: Vec<(String, Type)>,
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

impl Lowering {
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
            Expr::Literal(literal) => constant(tree, literal),
            Expr::Ident(name) => self.name(tree, name),
            Expr::Select(select) => self.select(tree, select),
            Expr::Call(call) => self.call(tree, call),
            Expr::List(list) => {
                let mut items = Vec::new();
                let mut common: Option<Type> = None;
                for element in &list.elements {
                    let (node, found) = self.lower(element)?;
                    if matches!(found, Type::List(_) | Type::Map(_)) {
                        return wrong(element, "a list holds plain values");
                    }
                    common = Some(match common {
                        Some(known) if known != found => Type::Any,
                        _ => found,
                    });
                    items.push(node);
                }
                Ok((Node::List(items), Type::List(Box::new(common.unwrap_or(Type::Any)))))
            }
            Expr::Map(_) | Expr::Struct(_) => wrong(tree, "maps cannot be made here"),
            Expr::Comprehension(_) | Expr::Unspecified => wrong(tree, "this is not known here"),
        }
    }

    fn name(&mut self, at: &IdedExpr, name: &str) -> Lowered {
        if let Some(index) = self.bound.iter().rposition(|(bound, _)| bound == name) {
            let found = self.bound.get(index).map_or(Type::Any, |(_, found)| found.clone());
            return Ok((Node::Local(index), found));
        }
        match Var::named(name) {
            Some(var) => Ok((Node::Var(var), var.type_of())),
            None if Var::is_family(name) => wrong(at, format!("`{name}` is no value by itself; there are {}", family(name))),
            None => wrong(at, format!("`{name}` is not known{}", advice(name))),
        }
    }

    fn select(&mut self, at: &IdedExpr, select: &SelectExpr) -> Lowered {
        if select.test {
            return self.presence(at, select);
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
        let key = Box::new(Node::Constant(Value::owned(select.field.clone())));
        match found {
            Type::Map(values) => Ok((Node::Member(Box::new(operand), key), *values)),
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
        match self.lower(&select.operand)? {
            (operand, Type::Map(_) | Type::Any) => Ok((Node::Has(Box::new(operand), select.field.clone()), Type::Bool)),
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
                let found = if one == other { one } else { Type::Any };
                Ok((Node::Either(which, Box::new(a), Box::new(b_node)), found))
            }
            (operators::NEGATE, [one], None) => match self.lower(one)? {
                (node, found) if found.is_number() => Ok((Node::Negate(Box::new(node)), found)),
                (_, other) => wrong(one, format!("a number is needed here, and this is {other}")),
            },
            (operators::EQUALS, [a, b], None) => self.equality(at, a, b),
            (operators::NOT_EQUALS, [a, b], None) => {
                let (node, found) = self.equality(at, a, b)?;
                Ok((Node::Not(Box::new(node)), found))
            }
            (operators::IN, [one, all], None) => self.membership(one, all),
            (operators::INDEX, [one, key], None) => self.index(one, key),
            (name, [a, b], None) if order(name).is_some() => {
                let (Some(order), (a_node, one), (b_node, other)) = (order(name), self.lower(a)?, self.lower(b)?) else {
                    return wrong(at, "this is not known here");
                };
                if one.is_ordered() && one.can_equal(&other) {
                    Ok((Node::Order(order, Box::new(a_node), Box::new(b_node)), Type::Bool))
                } else {
                    wrong(at, format!("{one} and {other} cannot be compared"))
                }
            }
            (name, [a, b], None) if sum(name).is_some() => {
                let (Some(sum), (a_node, one), (b_node, other)) = (sum(name), self.lower(a)?, self.lower(b)?) else {
                    return wrong(at, "this is not known here");
                };
                let texts = sum == Sum::Add && one.is_a(&Type::Text) && other.is_a(&Type::Text);
                if !(texts || one.is_number() && other.is_number()) {
                    return wrong(at, format!("{one} and {other} do not add up"));
                }
                let found = if one == other {
                    one
                } else if one == Type::Any || other == Type::Any {
                    Type::Any
                } else {
                    Type::Double
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
        Ok((Node::Equal(Box::new(a), Box::new(b)), Type::Bool))
    }

    fn membership(&mut self, one: &IdedExpr, all: &IdedExpr) -> Lowered {
        let ((one_node, found), (all_node, of)) = (self.lower(one)?, self.lower(all)?);
        let fits = match &of {
            Type::List(items) => found.can_equal(items),
            Type::Map(_) => found.is_a(&Type::Text),
            Type::Any => true,
            other => return wrong(all, format!("`in` needs a list or a map, and this is {other}")),
        };
        if !fits {
            return wrong(one, format!("{found} is never in {of} of the kind that is there"));
        }
        Ok((Node::In(Box::new(one_node), Box::new(all_node)), Type::Bool))
    }

    fn index(&mut self, one: &IdedExpr, key: &IdedExpr) -> Lowered {
        let (node, found) = self.lower(one)?;
        let (key, found) = match found {
            Type::Map(values) => (self.lowered_name(key, &node)?, *values),
            Type::List(items) => (self.typed(key, &Type::Int)?, *items),
            Type::Any => (Box::new(self.lower(key)?.0), Type::Any),
            other => return wrong(one, format!("`[…]` asks for a member, and this is {other}")),
        };
        Ok((Node::Member(Box::new(node), key), found))
    }

    /// The name of a member. Those of header fields are in lower case, and one that is not would never be found.
    fn lowered_name(&mut self, key: &IdedExpr, of: &Node) -> Result<Box<Node>, Wrong> {
        if let (Node::Var(Var::Headers), Expr::Literal(LiteralValue::String(name))) = (of, &key.expr)
            && name.inner().bytes().any(|b| b.is_ascii_uppercase())
        {
            return wrong(key, format!("names of header fields are in lower case here: `{}`", name.inner().to_ascii_lowercase()));
        }
        self.typed(key, &Type::Text)
    }
}

fn constant(at: &IdedExpr, literal: &LiteralValue) -> Lowered {
    Ok(match literal {
        LiteralValue::Boolean(truth) => (Node::Constant(Value::Bool(*truth.inner())), Type::Bool),
        LiteralValue::Int(number) => (Node::Constant(Value::Int(*number.inner())), Type::Int),
        LiteralValue::UInt(number) => match i64::try_from(*number.inner()) {
            Ok(number) => (Node::Constant(Value::Int(number)), Type::Int),
            Err(_) => return wrong(at, "the number is too large"),
        },
        LiteralValue::Double(number) => (Node::Constant(Value::Double(*number.inner())), Type::Double),
        LiteralValue::String(text) => (Node::Constant(Value::owned(text.inner().to_owned())), Type::Text),
        LiteralValue::Null => (Node::Constant(Value::Null), Type::Null),
        LiteralValue::Bytes(_) => return wrong(at, "bytes are not known here; write text"),
    })
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
