//! Who may do what: roles of people, scopes of their scripts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::sql::audit::Actor;

/// What somebody may do. Each call of the admin API needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at everything but accounts.
    Read = 1,
    /// Change bindings.
    Bindings = 2,
    /// End streams.
    Streams = 4,
    /// Give back what was used of a limit.
    Limits = 64,
    /// Change live settings.
    Settings = 8,
    /// Check and reload configurations.
    Config = 16,
    /// Look at and change accounts.
    Accounts = 32,
}

/// All of them.
pub const SCOPES: [Scope; 7] =
    [Scope::Read, Scope::Bindings, Scope::Streams, Scope::Limits, Scope::Settings, Scope::Config, Scope::Accounts];

impl Scope {
    /// As it is written.
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

/// What a person may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Changes bindings, ends streams and gives back limits, too.
    Operator,
    /// Does everything.
    Admin,
}

impl Role {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// From a store; what makes no sense may least.
    pub fn stored(text: &str) -> Self {
        match text {
            "admin" => Role::Admin,
            "operator" => Role::Operator,
            _ => Role::Viewer,
        }
    }

    /// What he may do.
    pub fn scopes(self) -> Scopes {
        match self {
            Role::Viewer => Scopes(Scope::Read as u8),
            Role::Operator => Scopes::of(&[Scope::Read, Scope::Bindings, Scope::Streams, Scope::Limits]),
            Role::Admin => Scopes::of(&SCOPES),
        }
    }
}

/// Several scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// These.
    pub fn of(scopes: &[Scope]) -> Self {
        Self(scopes.iter().fold(0, |all, scope| all | *scope as u8))
    }

    /// As a store keeps them; what is not known is nothing.
    pub fn stored(text: &str) -> Self {
        let known = |word: &str| SCOPES.into_iter().find(|scope| scope.as_str() == word);
        Self::of(&text.split(' ').filter_map(known).collect::<Vec<_>>())
    }

    /// Whether this one is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    /// Those that are among both.
    #[must_use]
    pub fn and(self, other: Scopes) -> Self {
        Self(self.0 & other.0)
    }

    /// Each of them.
    pub fn list(self) -> Vec<Scope> {
        SCOPES.into_iter().filter(|scope| self.has(*scope)).collect()
    }
}

/// Somebody who has shown who he is.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name of his account.
    pub account: String,
    /// What he is.
    pub role: Role,
    /// What he may do, this way.
    pub scopes: Scopes,
    /// His sign-in; `None`: a script with a token.
    pub session: Option<String>,
    /// He must choose a password first.
    pub must_change: bool,
    /// As he stands in the audit.
    pub actor: Actor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_add_up() {
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
