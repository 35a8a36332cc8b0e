//! The variables of expressions: names, types and descriptions. Their values come from `scope.rs`.

use super::types::Type;

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Var {
    Method,
    Path,
    Query,
    Decoded,
    Host,
    Headers,
    Params,
    UserAgent,
    Size,
    Model,
    Time,
    Client,
    ClientNetwork,
    Country,
    Peer,
    Subject,
    Scopes,
    Claims,
    Authenticated,
    KeyId,
    KeyPresent,
    BindingRule,
    BindingNetworks,
    BindingLabels,
    Bound,
    Route,
    Tags,
}

/// A variable with its name and description.
pub struct Variable {
    /// The name in expressions, such as `request.path`.
    pub name: &'static str,
    /// The variable.
    pub var: Var,
    /// The description in the manual of `rules`.
    pub means: &'static str,
}

const fn variable(name: &'static str, var: Var, means: &'static str) -> Variable {
    Variable { name, var, means }
}

/// All variables, in the order of the manual.
pub const VARIABLES: &[Variable] = &[
    variable("request.method", Var::Method, "the method, such as `POST`"),
    variable("request.path", Var::Path, "the path that routes match and the upstream receives, without the query"),
    variable("request.query", Var::Query, "the query as received, without the `?`; empty if there is none"),
    variable("request.decoded", Var::Decoded, "path and query with all layers of encoding removed, in lower case, with `/` for `\\`"),
    variable("request.host", Var::Host, "the Host in lower case, without the port"),
    variable("request.headers", Var::Headers, "the header fields by name in lower case; an absent field is empty"),
    variable("request.params", Var::Params, "the query parameters by name, decoded; an absent parameter is empty"),
    variable("request.user_agent", Var::UserAgent, "the User-Agent; empty if there is none"),
    variable("request.size", Var::Size, "the `Content-Length` in bytes; 0 without a body, -1 if the length is unknown"),
    variable("request.model", Var::Model, "the model that the path, the query of a WebSocket or the body names; empty if none does"),
    variable("request.time", Var::Time, "the arrival time of the request, as a timestamp"),
    variable("client.address", Var::Client, "the client address that `client_ip` determined"),
    variable("client.network", Var::ClientNetwork, "the network of the client: the /32 of an IPv4 address, the /64 of an IPv6 address"),
    variable("client.country", Var::Country, "the value of CF-IPCountry if the client address comes from Cloudflare; otherwise empty"),
    variable("client.peer", Var::Peer, "the address of the peer of the connection"),
    variable("identity.subject", Var::Subject, "the subject of the token that `bearer` verified; empty without a token"),
    variable("identity.scopes", Var::Scopes, "the scopes of the token, as a list"),
    variable("identity.claims", Var::Claims, "the claims of the token; an absent claim is null"),
    variable("identity.authenticated", Var::Authenticated, "whether `bearer` has verified a token"),
    variable("key.id", Var::KeyId, "the first 12 hex digits of the key id, as in logs; empty without a key"),
    variable("key.present", Var::KeyPresent, "whether `key_binding` has found a key"),
    variable(
        "binding.rule",
        Var::BindingRule,
        "the rule of the key's binding: `single`, `multiple`, `all` or `roaming`; empty without a binding",
    ),
    variable("binding.networks", Var::BindingNetworks, "the networks of the binding, as a list"),
    variable("binding.labels", Var::BindingLabels, "the labels of the binding, as a list"),
    variable("binding.present", Var::Bound, "whether `key_binding` has admitted the key"),
    variable("route", Var::Route, "the name of the route"),
    variable("tags", Var::Tags, "the tags that earlier rules have set, as a list"),
];

impl Var {
    /// The type of its value.
    pub fn type_of(self) -> Type {
        match self {
            Var::Authenticated | Var::KeyPresent | Var::Bound => Type::Bool,
            Var::Size => Type::Int,
            Var::Headers | Var::Params => Type::text_map(Type::Text),
            Var::Claims => Type::text_map(Type::Any),
            Var::Time => Type::Timestamp,
            Var::Scopes | Var::Tags | Var::BindingNetworks | Var::BindingLabels => Type::List(Box::new(Type::Text)),
            _ => Type::Text,
        }
    }

    /// The name in expressions.
    pub fn name(self) -> &'static str {
        VARIABLES.iter().find(|variable| variable.var == self).map_or("", |variable| variable.name)
    }

    /// The variable of this name.
    pub fn named(name: &str) -> Option<Self> {
        VARIABLES.iter().find(|variable| variable.name == name).map(|variable| variable.var)
    }

    /// Whether a variable name starts with this word and a dot.
    pub fn is_family(word: &str) -> bool {
        VARIABLES.iter().any(|variable| variable.name.strip_prefix(word).is_some_and(|rest| rest.starts_with('.')))
    }
}
