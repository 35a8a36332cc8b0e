//! What expressions come to.

use std::fmt;

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// `true` or `false`
    Bool,
    /// A whole number of 64 bits.
    Int,
    /// A number with a point.
    Double,
    /// Text.
    Text,
    /// A list of such values.
    List(Box<Type>),
    /// Such values by names.
    Map(Box<Type>),
    /// A value out of JSON: what it is shows when it is there.
    Any,
    /// Nothing.
    Null,
}

impl Type {
    /// Whether such a value can stand where `wanted` is needed.
    pub fn is_a(&self, wanted: &Type) -> bool {
        self == wanted || matches!(self, Type::Any) || matches!(wanted, Type::Any)
    }

    /// Whether it can be compared for which is more.
    pub fn is_ordered(&self) -> bool {
        matches!(self, Type::Int | Type::Double | Type::Text | Type::Any)
    }

    /// Whether it is, or may be, a number.
    pub fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Double | Type::Any)
    }

    /// Whether a value of this type can be equal to one of the other.
    pub fn can_equal(&self, other: &Type) -> bool {
        let plain = |t: &Type| !matches!(t, Type::List(_) | Type::Map(_));
        match (self, other) {
            (Type::Any, _) | (_, Type::Any) => true,
            (Type::Int | Type::Double, Type::Int | Type::Double) => true,
            _ => self == other && plain(self) && *self != Type::Null,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Bool => "true or false",
            Type::Int => "a whole number",
            Type::Double => "a number",
            Type::Text => "text",
            Type::List(_) => "a list",
            Type::Map(_) => "a map",
            Type::Any => "any value",
            Type::Null => "null",
        })
    }
}
