//! The types that the checker knows, and the tags that `type(…)` returns.

use std::fmt;

/// The tag of a value or of a type. `Any` is the tag of a value that is known only when it is there.
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

/// The types that an expression can name, as CEL writes them.
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

    /// Its name in CEL.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, kind)| *kind == self).map_or("dyn", |(name, _)| name)
    }
}

/// The type of an expression, as far as it is known before a request comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// `true` or `false`
    Bool,
    /// A whole number of 64 bits with a sign.
    Int,
    /// A whole number of 64 bits without a sign.
    Uint,
    /// A floating-point number.
    Double,
    /// Text.
    Text,
    /// A sequence of bytes.
    Bytes,
    /// A list of such values.
    List(Box<Type>),
    /// Keys and values of these types.
    Map(Box<Type>, Box<Type>),
    /// A point in time.
    Timestamp,
    /// A span of time.
    Duration,
    /// A type.
    Type,
    /// A value from JSON: its type is known when it is there.
    Any,
    /// `null`
    Null,
}

impl Type {
    /// A map whose keys are text.
    pub fn fields(values: Type) -> Self {
        Type::Map(Box::new(Type::Text), Box::new(values))
    }

    /// The type of a tag, with members of any type.
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

    /// Its tag.
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

    /// Whether such a value can stand where `wanted` is needed.
    pub fn is_a(&self, wanted: &Type) -> bool {
        match (self, wanted) {
            (Type::Any, _) | (_, Type::Any) => true,
            (Type::List(a), Type::List(b)) => a.is_a(b),
            (Type::Map(a, x), Type::Map(b, y)) => a.is_a(b) && x.is_a(y),
            _ => self == wanted,
        }
    }

    /// The type of a value that has one of two types.
    pub fn or(self, other: Type) -> Type {
        if self == other { self } else { Type::Any }
    }

    /// Whether values of this type have an order.
    pub fn is_ordered(&self) -> bool {
        !matches!(self, Type::List(_) | Type::Map(..) | Type::Null | Type::Type)
    }

    /// Whether it is, or may be, a number.
    pub fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Uint | Type::Double | Type::Any)
    }

    /// Whether it can be the key of a map.
    pub fn is_key(&self) -> bool {
        matches!(self, Type::Int | Type::Uint | Type::Text | Type::Bool | Type::Any)
    }

    /// Whether a value of this type can be equal to one of the other.
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
            Type::Bool => "true or false",
            Type::Int => "a whole number",
            Type::Uint => "an unsigned number",
            Type::Double => "a number",
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
