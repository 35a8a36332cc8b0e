//! The settings of a provider, their validation, and the mapping of claims to names and roles.

use std::sync::Arc;

use keylatch_filters::contract::{Endpoint, HumanDuration, Outbound, Service};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::operator::Fault;
use crate::operator::access::Role;

/// Timeout for a call to a provider, in seconds.
const CALL_TIME_MAX_S: u64 = 5;
const TEXT_BYTES_MAX: usize = 512;
const CA_BYTES_MAX: usize = 32 << 10;
const LIST_MAX: usize = 100;

/// The settings of a provider, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Text of its sign-in button. Default: its name.
    #[serde(default)]
    #[schema(max_length = 512)]
    pub label: String,
    /// The issuer, exactly as in its discovery document. It cannot be changed later.
    #[schema(example = "https://id.example.com", max_length = 512)]
    pub issuer: String,
    /// The client id of Keylatch at the provider.
    #[schema(min_length = 1, max_length = 512)]
    pub client_id: String,
    /// Scopes to request in addition to `openid`. Default: `profile` and `email`.
    #[serde(default = "usual_scopes")]
    #[schema(max_items = 100)]
    pub scopes: Vec<String>,
    /// The claim with the user's name; the account name is the provider's name, `:`, and this. Default:
    /// `preferred_username`, else `email`, else `sub`.
    #[serde(default = "usual_name")]
    #[schema(max_length = 512)]
    pub name_claim: String,
    /// The claim that decides the role: text or a list of texts. Dots select nested fields, as in `realm_access.roles`.
    /// `email` counts only if the provider has verified it. Default: `groups`.
    #[serde(default = "usual_roles")]
    #[schema(max_length = 512)]
    pub role_claim: String,
    /// The values of the role claim that grant a role. Users without any of them cannot sign in.
    pub roles: Roles,
    /// Whether the provider may use private addresses or `http`. Default: false.
    #[serde(default)]
    pub allow_private: bool,
    /// CA certificates (PEM) for the provider. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 32768)]
    pub ca: Option<String>,
}

/// Values of the role claim for each role; the highest role wins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Roles {
    /// Values that grant the role `viewer`.
    #[schema(max_items = 100)]
    pub viewer: Vec<String>,
    /// Values that grant the role `operator`.
    #[schema(max_items = 100)]
    pub operator: Vec<String>,
    /// Values that grant the role `admin`.
    #[schema(max_items = 100)]
    pub admin: Vec<String>,
}

fn usual_scopes() -> Vec<String> {
    vec!["profile".into(), "email".into()]
}

fn usual_name() -> String {
    "preferred_username".into()
}

fn usual_roles() -> String {
    "groups".into()
}

/// Checks a provider's name.
pub fn name(text: &str) -> Result<&str, Fault> {
    let fine =
        (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    match fine && !text.starts_with('-') {
        true => Ok(text),
        false => Err(Fault::invalid("name", "a provider name has 1 to 32 lower-case letters, digits and `-`, and does not begin with `-`")),
    }
}

impl Settings {
    /// Validates the settings without contacting the provider. Returns its service, ready for calls.
    pub fn check(&self, outbound: &dyn Outbound) -> Result<Arc<dyn Service>, Fault> {
        let texts =
            [("label", &self.label), ("client_id", &self.client_id), ("name_claim", &self.name_claim), ("role_claim", &self.role_claim)];
        for (field, text) in texts {
            if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
                return Err(Fault::invalid(field, format!("must have at most {TEXT_BYTES_MAX} bytes and no control characters")));
            }
        }
        for (field, text) in [("client_id", &self.client_id), ("role_claim", &self.role_claim)] {
            if text.is_empty() {
                return Err(Fault::invalid(field, "must not be empty"));
            }
        }
        // The syntax of a scope: RFC 6749, section 3.3.
        let token =
            |scope: &String| !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        if self.scopes.len() > LIST_MAX || !self.scopes.iter().all(token) {
            return Err(Fault::invalid("scopes", "a scope has visible ASCII characters only, without spaces, quotes and backslashes"));
        }
        let roles = [("roles.viewer", &self.roles.viewer), ("roles.operator", &self.roles.operator), ("roles.admin", &self.roles.admin)];
        for (field, values) in roles {
            if values.len() > LIST_MAX || values.iter().any(|value| value.is_empty() || value.len() > TEXT_BYTES_MAX) {
                return Err(Fault::invalid(field, format!("must have at most {LIST_MAX} values of 1 to {TEXT_BYTES_MAX} bytes")));
            }
        }
        if roles.iter().all(|(_, values)| values.is_empty()) {
            return Err(Fault::invalid("roles", "no user could sign in: assign at least one value of the role claim to a role"));
        }
        if self.issuer.len() > TEXT_BYTES_MAX || self.issuer.contains(['?', '#']) {
            return Err(Fault::invalid("issuer", "an issuer must be a URL without query and fragment, at most 512 bytes"));
        }
        if self.ca.as_ref().is_some_and(|ca| ca.len() > CA_BYTES_MAX) {
            return Err(Fault::invalid("ca", format!("must have at most {CA_BYTES_MAX} bytes")));
        }
        let endpoint = Endpoint {
            url: self.issuer.clone(),
            allow_private: self.allow_private,
            ca_file: None,
            authorization: None,
            timeout: HumanDuration::secs(CALL_TIME_MAX_S),
        };
        outbound.service(&endpoint, self.ca.clone(), None).map_err(|invalid| {
            let ca = invalid.path.first().is_some_and(|at| at == "ca_file");
            Fault::invalid(if ca { "ca" } else { "issuer" }, invalid.message.replace("ca_file", "this"))
        })
    }

    /// The `scope` parameter.
    pub fn scope(&self) -> String {
        let others = self.scopes.iter().filter(|scope| *scope != "openid").map(String::as_str);
        std::iter::once("openid").chain(others).collect::<Vec<_>>().join(" ")
    }

    /// The role that the claims grant.
    pub fn role(&self, claims: &Map<String, Value>) -> Option<Role> {
        if self.role_claim == "email" && !is_true(claims.get("email_verified")) {
            return None;
        }
        let said: Vec<&str> = match find(claims, &self.role_claim)? {
            Value::String(one) => vec![one],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let has = |values: &[String]| values.iter().any(|value| said.contains(&value.as_str()));
        let roles = [(Role::Admin, &self.roles.admin), (Role::Operator, &self.roles.operator), (Role::Viewer, &self.roles.viewer)];
        roles.into_iter().find(|(_, values)| has(values)).map(|(role, _)| role)
    }

    /// The user's name according to the claims, before it becomes an account name.
    pub fn display_name<'c>(&self, claims: &'c Map<String, Value>) -> &'c str {
        let text = |name: &str| find(claims, name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text(&self.name_claim).or_else(|| text("email")).or_else(|| text("sub")).unwrap_or_default()
    }
}

/// Some providers send booleans as text.
fn is_true(value: Option<&Value>) -> bool {
    matches!(value, Some(Value::Bool(true))) || value.and_then(Value::as_str) == Some("true")
}

/// Finds a claim by its name or by a dotted path. Names may contain dots themselves, such as URLs.
pub fn find<'c>(claims: &'c Map<String, Value>, path: &str) -> Option<&'c Value> {
    claims.get(path).or_else(|| {
        let mut way = path.split('.');
        let first = claims.get(way.next()?)?;
        way.try_fold(first, |value, name| value.get(name))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(more: Value) -> Settings {
        let mut all = json!({ "issuer": "https://id.example.com", "client_id": "k", "roles": { "viewer": ["staff"], "admin": ["ops"] } });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn role(settings: &Settings, claims: Value) -> Option<Role> {
        settings.role(claims.as_object().unwrap())
    }

    #[test]
    fn roles_follow_from_claims() {
        let usual = settings(json!({}));
        assert_eq!(usual.scope(), "openid profile email");
        assert_eq!(role(&usual, json!({ "groups": ["staff", "ops"] })), Some(Role::Admin), "the highest role wins");
        assert_eq!(role(&usual, json!({ "groups": "staff" })), Some(Role::Viewer));
        for none in [json!({}), json!({ "groups": [] }), json!({ "groups": ["stafff", 7, null] }), json!({ "groups": { "staff": true } })] {
            assert_eq!(role(&usual, none), None);
        }
        let deep = settings(json!({ "role_claim": "realm_access.roles" }));
        assert_eq!(role(&deep, json!({ "realm_access": { "roles": ["staff"] } })), Some(Role::Viewer));
        assert_eq!(role(&deep, json!({ "realm_access.roles": ["ops"] })), Some(Role::Admin));
        let mail = settings(json!({ "role_claim": "email", "roles": { "admin": ["a@example.com"] } }));
        assert_eq!(role(&mail, json!({ "email": "a@example.com" })), None, "an unverified address proves nothing");
        assert_eq!(role(&mail, json!({ "email": "a@example.com", "email_verified": false })), None);
        assert_eq!(role(&mail, json!({ "email": "a@example.com", "email_verified": true })), Some(Role::Admin));
    }

    #[test]
    fn names_follow_from_claims() {
        let usual = settings(json!({}));
        let called = |claims: Value| usual.display_name(claims.as_object().unwrap()).to_owned();
        assert_eq!(called(json!({ "sub": "1", "email": "a@b.c", "preferred_username": "ann" })), "ann");
        assert_eq!(called(json!({ "sub": "1", "email": "a@b.c", "preferred_username": "" })), "a@b.c");
        assert_eq!(called(json!({ "sub": "1" })), "1");
    }
}
