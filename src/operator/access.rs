//! Access control: roles of accounts, scopes of tokens, and the authenticated caller.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::sql::audit::Actor;

/// A permission. Each call of the admin API requires one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Read everything except accounts.
    Read = 1,
    /// Change bindings.
    Bindings = 2,
    /// End streams.
    Streams = 4,
    /// Reset the usage of a limit.
    Limits = 64,
    /// Change live settings.
    Settings = 8,
    /// Check and reload configurations.
    Config = 16,
    /// Read and change accounts and providers.
    Accounts = 32,
}

/// All scopes.
pub const SCOPES: [Scope; 7] =
    [Scope::Read, Scope::Bindings, Scope::Streams, Scope::Limits, Scope::Settings, Scope::Config, Scope::Accounts];

impl Scope {
    /// The name in the API and the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Bindings => "bindings",
            Scope::Streams => "streams",
            Scope::Limits => "limits",
            Scope::Settings => "settings",
            Scope::Config => "config",
            Scope::Accounts => "accounts",
        }
    }
}

/// The role of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also changes bindings, ends streams and resets limits.
    Operator,
    /// Has every scope.
    Admin,
}

impl Role {
    /// The name in the API and the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// Parses a stored role; an unknown one becomes the least privileged.
    pub fn stored(text: &str) -> Self {
        match text {
            "admin" => Role::Admin,
            "operator" => Role::Operator,
            _ => Role::Viewer,
        }
    }

    /// The scopes of the role.
    pub fn scopes(self) -> Scopes {
        match self {
            Role::Viewer => Scopes(Scope::Read as u8),
            Role::Operator => Scopes::from_list(&[Scope::Read, Scope::Bindings, Scope::Streams, Scope::Limits]),
            Role::Admin => Scopes::from_list(&SCOPES),
        }
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// The set of these scopes.
    pub fn from_list(scopes: &[Scope]) -> Self {
        Self(scopes.iter().fold(0, |all, scope| all | *scope as u8))
    }

    /// Parses stored scopes; unknown words are ignored.
    pub fn stored(text: &str) -> Self {
        let known = |word: &str| SCOPES.into_iter().find(|scope| scope.as_str() == word);
        Self::from_list(&text.split(' ').filter_map(known).collect::<Vec<_>>())
    }

    /// Whether the set contains the scope.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    /// The intersection of two sets.
    #[must_use]
    pub fn and(self, other: Scopes) -> Self {
        Self(self.0 & other.0)
    }

    /// The scopes in the set.
    pub fn list(self) -> Vec<Scope> {
        SCOPES.into_iter().filter(|scope| self.has(*scope)).collect()
    }
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The account's name.
    pub account: String,
    /// The account's role.
    pub role: Role,
    /// The effective scopes: those of the role, or of the token.
    pub scopes: Scopes,
    /// The session id; `None` for a script with a token.
    pub session: Option<String>,
    /// The caller must choose a new password before anything else.
    pub must_change: bool,
    /// The caller's entry in the audit log.
    pub actor: Actor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_parsed_and_intersected() {
        assert_eq!(Role::Admin.scopes().list(), SCOPES);
        assert_eq!(Scopes::stored("read bindings nonsense").list(), [Scope::Read, Scope::Bindings]);
        assert_eq!(Scopes::stored("settings read").and(Role::Operator.scopes()).list(), [Scope::Read]);
        assert!(Scopes::stored("").list().is_empty() && !Role::Viewer.scopes().has(Scope::Bindings));
        for scope in SCOPES {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }
        assert_eq!(Role::stored("root"), Role::Viewer);
    }
}
