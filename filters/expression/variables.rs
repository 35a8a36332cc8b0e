//! What expressions can ask of a request: the names, their types, and what they mean.

use super::types::Type;

/// One of them.
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
    Bound,
    Route,
    Tags,
}

/// A name that expressions know.
pub struct Variable {
    /// How it is written.
    pub name: &'static str,
    /// Which it is.
    pub var: Var,
    /// What it means, for the manual.
    pub means: &'static str,
}

const fn variable(name: &'static str, var: Var, means: &'static str) -> Variable {
    Variable { name, var, means }
}

/// All of them.
pub const VARIABLES: &[Variable] = &[
    variable("request.method", Var::Method, "the method, such as `POST`"),
    variable("request.path", Var::Path, "the path as routes match it and the upstream gets it, without the query"),
    variable("request.query", Var::Query, "the query as it came, without the `?`; empty if there is none"),
    variable("request.decoded", Var::Decoded, "path and query, decoded until nothing is left to decode, in lower case, `\\` as `/`"),
    variable("request.host", Var::Host, "the Host, in lower case, without its port"),
    variable("request.headers", Var::Headers, "the header fields by their names in lower case; one that is not there is empty"),
    variable("request.params", Var::Params, "the query's parameters by name, decoded; one that is not there is empty"),
    variable("request.user_agent", Var::UserAgent, "the User-Agent; empty if there is none"),
    variable("request.size", Var::Size, "the body's announced length in bytes, 0 without a body, -1 where none is announced"),
    variable("request.time", Var::Time, "the time at which the request came, as a timestamp"),
    variable("client.address", Var::Client, "the client's address, as `client_ip` found it"),
    variable("client.network", Var::ClientNetwork, "its network: the /32 of an IPv4 address, the /64 of an IPv6 one"),
    variable("client.country", Var::Country, "what CF-IPCountry says, if Cloudflare says who the client is; else empty"),
    variable("client.peer", Var::Peer, "the address at the other end of the connection"),
    variable("identity.subject", Var::Subject, "who `bearer` found; empty if nobody"),
    variable("identity.scopes", Var::Scopes, "what the token may do, as a list"),
    variable("identity.claims", Var::Claims, "what the token says; a claim that is not there is null"),
    variable("identity.authenticated", Var::Authenticated, "whether `bearer` has checked a token"),
    variable("key.id", Var::KeyId, "the first 12 digits of the key id, as logs show it; empty without a key"),
    variable("key.present", Var::KeyPresent, "whether `key_binding` has found a key"),
    variable(
        "binding.rule",
        Var::BindingRule,
        "the rule of the key's binding: `single`, `multiple`, `all`, `roaming`; empty if there is none",
    ),
    variable("binding.networks", Var::BindingNetworks, "the networks that it is bound to, as a list"),
    variable("binding.present", Var::Bound, "whether `key_binding` has admitted the key by a binding"),
    variable("route", Var::Route, "the route's name"),
    variable("tags", Var::Tags, "the labels that rules before this one have put on the request, as a list"),
];

impl Var {
    /// What it is.
    pub fn type_of(self) -> Type {
        match self {
            Var::Authenticated | Var::KeyPresent | Var::Bound => Type::Bool,
            Var::Size => Type::Int,
            Var::Headers | Var::Params => Type::fields(Type::Text),
            Var::Claims => Type::fields(Type::Any),
            Var::Time => Type::Timestamp,
            Var::Scopes | Var::Tags | Var::BindingNetworks => Type::List(Box::new(Type::Text)),
            _ => Type::Text,
        }
    }

    /// How it is written.
    pub fn name(self) -> &'static str {
        VARIABLES.iter().find(|variable| variable.var == self).map_or("", |variable| variable.name)
    }

    /// The variable of this name.
    pub fn named(name: &str) -> Option<Self> {
        VARIABLES.iter().find(|variable| variable.name == name).map(|variable| variable.var)
    }

    /// Whether names begin with this word and a dot.
    pub fn is_family(word: &str) -> bool {
        VARIABLES.iter().any(|variable| variable.name.strip_prefix(word).is_some_and(|rest| rest.starts_with('.')))
    }
}
