//! The table of the functions that take values and return one: names, argument types, result types.

use super::convert::convert;
use super::format::format;
use super::fuel::{EvalError, Fuel};
use super::strings::{self, StringFunction};
use super::time::{self, Part};
use super::types::Kind;
use super::value::Value;

/// The maximum number of arguments of a function, including the receiver of a method.
pub const ARGS_MAX: usize = 4;

/// A function of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Size,
    /// A conversion to this type.
    To(Kind),
    Strings(StringFunction),
    Format,
    Part(Part),
}

/// The call syntax of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `a.name(b)`
    Method,
    /// `name(a, b)`
    Plain,
    /// Either.
    Both,
}

/// A function with its parameters.
pub struct Signature {
    pub name: &'static str,
    form: Form,
    /// The allowed types of each argument, the receiver of a method first. An empty list allows all types.
    args: &'static [&'static [Kind]],
    /// The number of required arguments.
    needed: usize,
    pub result: Kind,
    pub function: Function,
}

const fn method(name: &'static str, args: &'static [&'static [Kind]], needed: usize, result: Kind, function: Function) -> Signature {
    Signature { name, form: Form::Method, args, needed, result, function }
}

const fn conversion(name: &'static str, from: &'static [&'static [Kind]], to: Kind) -> Signature {
    Signature { name, form: Form::Plain, args: from, needed: 1, result: to, function: Function::To(to) }
}

const fn part(name: &'static str, of: &'static [&'static [Kind]], part: Part) -> Signature {
    method(name, of, 1, Kind::Int, Function::Part(part))
}

const TEXT: &[Kind] = &[Kind::Text];
const INT: &[Kind] = &[Kind::Int];
const LIST: &[Kind] = &[Kind::List];
const ANY: &[Kind] = &[];
const DATE: &[&[Kind]] = &[&[Kind::Timestamp], TEXT];
const TIME: &[&[Kind]] = &[&[Kind::Timestamp, Kind::Duration], TEXT];

/// All functions.
const SIGNATURES: &[Signature] = &[
    Signature {
        name: "size",
        form: Form::Both,
        args: &[&[Kind::Text, Kind::Bytes, Kind::List, Kind::Map]],
        needed: 1,
        result: Kind::Int,
        function: Function::Size,
    },
    conversion("bool", &[&[Kind::Bool, Kind::Text]], Kind::Bool),
    conversion("int", &[&[Kind::Int, Kind::Uint, Kind::Double, Kind::Text, Kind::Timestamp, Kind::Duration]], Kind::Int),
    conversion("uint", &[&[Kind::Int, Kind::Uint, Kind::Double, Kind::Text]], Kind::Uint),
    conversion("double", &[&[Kind::Int, Kind::Uint, Kind::Double, Kind::Text]], Kind::Double),
    conversion(
        "string",
        &[&[Kind::Bool, Kind::Int, Kind::Uint, Kind::Double, Kind::Text, Kind::Bytes, Kind::Timestamp, Kind::Duration, Kind::Type]],
        Kind::Text,
    ),
    conversion("bytes", &[&[Kind::Bytes, Kind::Text]], Kind::Bytes),
    conversion("timestamp", &[&[Kind::Timestamp, Kind::Text, Kind::Int]], Kind::Timestamp),
    conversion("duration", &[&[Kind::Duration, Kind::Text]], Kind::Duration),
    conversion("type", &[ANY], Kind::Type),
    conversion("dyn", &[ANY], Kind::Any),
    method("charAt", &[TEXT, INT], 2, Kind::Text, Function::Strings(StringFunction::CharAt)),
    method("indexOf", &[TEXT, TEXT, INT], 2, Kind::Int, Function::Strings(StringFunction::IndexOf)),
    method("lastIndexOf", &[TEXT, TEXT, INT], 2, Kind::Int, Function::Strings(StringFunction::LastIndexOf)),
    method("join", &[LIST, TEXT], 1, Kind::Text, Function::Strings(StringFunction::Join)),
    method("lowerAscii", &[TEXT], 1, Kind::Text, Function::Strings(StringFunction::LowerAscii)),
    method("upperAscii", &[TEXT], 1, Kind::Text, Function::Strings(StringFunction::UpperAscii)),
    method("replace", &[TEXT, TEXT, TEXT, INT], 3, Kind::Text, Function::Strings(StringFunction::Replace)),
    method("split", &[TEXT, TEXT, INT], 2, Kind::List, Function::Strings(StringFunction::Split)),
    method("substring", &[TEXT, INT, INT], 2, Kind::Text, Function::Strings(StringFunction::Substring)),
    method("trim", &[TEXT], 1, Kind::Text, Function::Strings(StringFunction::Trim)),
    method("reverse", &[TEXT], 1, Kind::Text, Function::Strings(StringFunction::Reverse)),
    method("format", &[TEXT, LIST], 2, Kind::Text, Function::Format),
    Signature {
        name: "strings.quote",
        form: Form::Plain,
        args: &[TEXT],
        needed: 1,
        result: Kind::Text,
        function: Function::Strings(StringFunction::Quote),
    },
    part("getFullYear", DATE, Part::Year),
    part("getMonth", DATE, Part::Month),
    part("getDate", DATE, Part::Date),
    part("getDayOfMonth", DATE, Part::DayOfMonth),
    part("getDayOfWeek", DATE, Part::DayOfWeek),
    part("getDayOfYear", DATE, Part::DayOfYear),
    part("getHours", TIME, Part::Hours),
    part("getMinutes", TIME, Part::Minutes),
    part("getSeconds", TIME, Part::Seconds),
    part("getMilliseconds", TIME, Part::Milliseconds),
];

impl Signature {
    /// The function of this name with this call syntax.
    pub fn find(name: &str, is_method: bool) -> Option<&'static Signature> {
        let form = if is_method { Form::Method } else { Form::Plain };
        SIGNATURES.iter().find(|signature| signature.name == name && (signature.form == form || signature.form == Form::Both))
    }

    /// Whether it takes `count` arguments.
    pub fn takes(&self, count: usize) -> bool {
        (self.needed..=self.args.len()).contains(&count)
    }

    /// Whether an argument may have this type.
    pub fn fits(&self, position: usize, kind: Kind) -> bool {
        let allowed = self.args.get(position).copied().unwrap_or_default();
        allowed.is_empty() || kind == Kind::Any || allowed.contains(&kind)
    }

    /// The required type of an argument, if only one is allowed.
    pub fn wanted(&self, position: usize) -> Option<Kind> {
        match self.args.get(position) {
            Some([one]) => Some(*one),
            _ => None,
        }
    }
}

/// The names of all functions of the table.
pub fn names() -> impl Iterator<Item = &'static str> {
    SIGNATURES.iter().map(|signature| signature.name)
}

impl Function {
    /// Calls the function.
    pub fn call<'v>(self, args: &[Value<'v>], fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
        let first = args.first().ok_or(EvalError::Type)?;
        match self {
            Function::Size => first.size(fuel).map(Value::Int),
            Function::To(kind) => convert(kind, first.clone(), fuel),
            Function::Strings(function) => strings::call(function, args, fuel),
            Function::Format => format(args, fuel),
            Function::Part(part) => time::part(part, first, args.get(1).map(Value::as_text).transpose()?).map(Value::Int),
        }
    }
}
