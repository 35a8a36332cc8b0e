//! The types of the checker, and the type tags that `type(…)` returns.

use std::fmt;

/// The tag of a type. `Any`: the type is known only at evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    List,
    Map,
    Timestamp,
    Duration,
    Type,
    Any,
}

/// The type names of CEL that expressions can use.
const NAMES: &[(&str, Kind)] = &[
    ("null_type", Kind::Null),
    ("bool", Kind::Bool),
    ("int", Kind::Int),
    ("uint", Kind::Uint),
    ("double", Kind::Double),
    ("string", Kind::Text),
    ("bytes", Kind::Bytes),
    ("list", Kind::List),
    ("map", Kind::Map),
    ("google.protobuf.Timestamp", Kind::Timestamp),
    ("google.protobuf.Duration", Kind::Duration),
    ("type", Kind::Type),
];

impl Kind {
    /// The type of this name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// The name in CEL; `dyn` for `Any`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, kind)| *kind == self).map_or("dyn", |(name, _)| name)
    }
}

/// The static type of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// `true` or `false`
    Bool,
    /// A signed 64-bit integer.
    Int,
    /// An unsigned 64-bit integer.
    Uint,
    /// A floating-point number.
    Double,
    /// Text.
    Text,
    /// A sequence of bytes.
    Bytes,
    /// A list with items of this type.
    List(Box<Type>),
    /// A map with keys and values of these types.
    Map(Box<Type>, Box<Type>),
    /// A point in time.
    Timestamp,
    /// A span of time.
    Duration,
    /// A type.
    Type,
    /// A value from JSON, with a type known only at evaluation.
    Any,
    /// `null`
    Null,
}

impl Type {
    /// A map with text keys.
    pub fn text_map(values: Type) -> Self {
        Type::Map(Box::new(Type::Text), Box::new(values))
    }

    /// The type of a tag. Items, keys and values are of any type.
    pub fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Null => Type::Null,
            Kind::Bool => Type::Bool,
            Kind::Int => Type::Int,
            Kind::Uint => Type::Uint,
            Kind::Double => Type::Double,
            Kind::Text => Type::Text,
            Kind::Bytes => Type::Bytes,
            Kind::List => Type::List(Box::new(Type::Any)),
            Kind::Map => Type::Map(Box::new(Type::Any), Box::new(Type::Any)),
            Kind::Timestamp => Type::Timestamp,
            Kind::Duration => Type::Duration,
            Kind::Type => Type::Type,
            Kind::Any => Type::Any,
        }
    }

    /// The tag of this type.
    pub fn kind(&self) -> Kind {
        match self {
            Type::Null => Kind::Null,
            Type::Bool => Kind::Bool,
            Type::Int => Kind::Int,
            Type::Uint => Kind::Uint,
            Type::Double => Kind::Double,
            Type::Text => Kind::Text,
            Type::Bytes => Kind::Bytes,
            Type::List(_) => Kind::List,
            Type::Map(..) => Kind::Map,
            Type::Timestamp => Kind::Timestamp,
            Type::Duration => Kind::Duration,
            Type::Type => Kind::Type,
            Type::Any => Kind::Any,
        }
    }

    /// Whether a value of this type can be used as `wanted`.
    pub fn is_assignable_to(&self, wanted: &Type) -> bool {
        match (self, wanted) {
            (Type::Any, _) | (_, Type::Any) => true,
            (Type::List(a), Type::List(b)) => a.is_assignable_to(b),
            (Type::Map(a, x), Type::Map(b, y)) => a.is_assignable_to(b) && x.is_assignable_to(y),
            _ => self == wanted,
        }
    }

    /// The common type of two alternatives; `Any` if they differ.
    pub fn common(self, other: Type) -> Type {
        if self == other { self } else { Type::Any }
    }

    /// Whether values of this type have an order.
    pub fn is_ordered(&self) -> bool {
        !matches!(self, Type::List(_) | Type::Map(..) | Type::Null | Type::Type)
    }

    /// Whether the value is a number, or may be one.
    pub fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Uint | Type::Double | Type::Any)
    }

    /// Whether the value can be a key of a map.
    pub fn is_key(&self) -> bool {
        matches!(self, Type::Int | Type::Uint | Type::Text | Type::Bool | Type::Any)
    }

    /// Whether a value of this type can equal a value of the other.
    pub fn can_equal(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Any, _) | (_, Type::Any) => true,
            (a, b) if a.is_number() && b.is_number() => true,
            (Type::List(a), Type::List(b)) => a.can_equal(b),
            (Type::Map(a, x), Type::Map(b, y)) => a.can_equal(b) && x.can_equal(y),
            _ => self == other,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Bool => "a boolean",
            Type::Int => "an integer",
            Type::Uint => "an unsigned integer",
            Type::Double => "a floating-point number",
            Type::Text => "text",
            Type::Bytes => "bytes",
            Type::List(_) => "a list",
            Type::Map(..) => "a map",
            Type::Timestamp => "a timestamp",
            Type::Duration => "a duration",
            Type::Type => "a type",
            Type::Any => "any value",
            Type::Null => "null",
        })
    }
}
