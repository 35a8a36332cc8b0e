//! The compiled modes of `bearer`: one check for each item of `accept`. The order of the checks and the decision are elsewhere.

use http::HeaderName;

use super::config::Mode;
use super::forward_auth::ForwardAuth;
use super::introspection::Introspection;
use super::jwt::Jwt;
use super::static_tokens::{self, StaticTokens};
use crate::contract::{Invalid, Site};

/// A compiled item of `bearer.accept`.
pub enum Check {
    Static(StaticTokens),
    Jwt(Box<Jwt>),
    Introspection(Box<Introspection>),
    ForwardAuth(Box<ForwardAuth>),
    WellFormed,
}

impl Check {
    /// Compiles a mode.
    pub fn compile(mode: Mode, cache_max: usize, site: &Site<'_>) -> Result<Self, Invalid> {
        Ok(match mode {
            Mode::WellFormed => Check::WellFormed,
            Mode::Static(config) => Check::Static(static_tokens::compile(config).map_err(|e| e.at("static"))?),
            Mode::Jwt(config) => Check::Jwt(Box::new(Jwt::compile(*config, site).map_err(|e| e.at("jwt"))?)),
            Mode::Introspection(config) => {
                let compiled = Introspection::compile(*config, cache_max, site);
                Check::Introspection(Box::new(compiled.map_err(|e| e.at("introspection"))?))
            }
            Mode::ForwardAuth(config) => {
                Check::ForwardAuth(Box::new(ForwardAuth::compile(*config, cache_max, site).map_err(|e| e.at("forward_auth"))?))
            }
        })
    }

    /// Whether requests pass while the service of this mode is unavailable.
    pub fn fails_open(&self) -> bool {
        match self {
            Check::Jwt(jwt) => jwt.fails_open(),
            Check::Introspection(introspection) => introspection.fails_open(),
            Check::ForwardAuth(service) => service.fails_open(),
            Check::Static(_) | Check::WellFormed => false,
        }
    }

    /// The fields of the upstream request that only this mode may set.
    pub fn takes(&self) -> &[HeaderName] {
        match self {
            Check::ForwardAuth(service) => service.takes(),
            _ => &[],
        }
    }
}
