//! What an operator says of a provider.

use std::sync::Arc;

use keylatch_filters::contract::{Endpoint, HumanDuration, Outbound, Service};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::operator::Fault;
use crate::operator::access::Role;

/// A call to a provider takes no longer.
const CALL_TIME_MAX_S: u64 = 5;
const TEXT_BYTES_MAX: usize = 512;
const CA_BYTES_MAX: usize = 32 << 10;
const LIST_MAX: usize = 100;

/// What is known of a provider, but for its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What stands on its button. Default: its name.
    #[serde(default)]
    #[schema(max_length = 512)]
    pub label: String,
    /// The issuer, as its discovery document names it. It cannot be changed later.
    #[schema(example = "https://id.example.com", max_length = 512)]
    pub issuer: String,
    /// Under which Keylatch is known there.
    #[schema(min_length = 1, max_length = 512)]
    pub client_id: String,
    /// What is asked for beside `openid`. Default: `profile` and `email`.
    #[serde(default = "usual_scopes")]
    #[schema(max_items = 100)]
    pub scopes: Vec<String>,
    /// The claim that names people here, behind the provider's name. Default: `preferred_username`; where that is not there,
    /// `email`, then `sub`.
    #[serde(default = "usual_name")]
    #[schema(max_length = 512)]
    pub name_claim: String,
    /// The claim that says what somebody is: text or a list of texts. Dots lead inside, as in `realm_access.roles`. `email` counts
    /// only where the provider says that it was verified. Default: `groups`.
    #[serde(default = "usual_roles")]
    #[schema(max_length = 512)]
    pub role_claim: String,
    /// Which of its values makes somebody what. Whoever has none of them is not let in.
    pub roles: Roles,
    /// Whether it may be an address that is not public, or `http`. Default: false.
    #[serde(default)]
    pub allow_private: bool,
    /// The certificates, in PEM, that may sign the provider's. Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 32768)]
    pub ca: Option<String>,
}

/// Values of the role claim; the highest role counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Roles {
    /// Of those who look.
    #[schema(max_items = 100)]
    pub viewer: Vec<String>,
    /// Of those who change bindings and end streams, too.
    #[schema(max_items = 100)]
    pub operator: Vec<String>,
    /// Of those who do everything.
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

/// The one form of a provider's name.
pub fn name(text: &str) -> Result<&str, Fault> {
    let fine =
        (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    match fine && !text.starts_with('-') {
        true => Ok(text),
        false => Err(Fault::invalid("name", "a provider's name has 1 to 32 lower-case letters, digits and `-`")),
    }
}

impl Settings {
    /// Whether they make sense, as far as can be told without asking the provider. Its service, ready to be asked.
    pub fn check(&self, outbound: &dyn Outbound) -> Result<Arc<dyn Service>, Fault> {
        let texts =
            [("label", &self.label), ("client_id", &self.client_id), ("name_claim", &self.name_claim), ("role_claim", &self.role_claim)];
        for (field, text) in texts {
            if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
                return Err(Fault::invalid(field, format!("at most {TEXT_BYTES_MAX} bytes, and no control characters")));
            }
        }
        for (field, text) in [("client_id", &self.client_id), ("role_claim", &self.role_claim)] {
            if text.is_empty() {
                return Err(Fault::invalid(field, "must not be empty"));
            }
        }
        // RFC 6749, section 3.3: what a scope may be made of.
        let token =
            |scope: &String| !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        if self.scopes.len() > LIST_MAX || !self.scopes.iter().all(token) {
            return Err(Fault::invalid("scopes", "a scope is a word of visible ASCII characters without quotes"));
        }
        let roles = [("roles.viewer", &self.roles.viewer), ("roles.operator", &self.roles.operator), ("roles.admin", &self.roles.admin)];
        for (field, values) in roles {
            if values.len() > LIST_MAX || values.iter().any(|value| value.is_empty() || value.len() > TEXT_BYTES_MAX) {
                return Err(Fault::invalid(field, format!("at most {LIST_MAX} values of 1 to {TEXT_BYTES_MAX} bytes")));
            }
        }
        if roles.iter().all(|(_, values)| values.is_empty()) {
            return Err(Fault::invalid("roles", "nobody would be let in: say of at least one value of the claim what it makes somebody"));
        }
        if self.issuer.len() > TEXT_BYTES_MAX || self.issuer.contains(['?', '#']) {
            return Err(Fault::invalid("issuer", "an issuer is a URL without query and fragment"));
        }
        if self.ca.as_ref().is_some_and(|ca| ca.len() > CA_BYTES_MAX) {
            return Err(Fault::invalid("ca", format!("at most {CA_BYTES_MAX} bytes")));
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

    /// What is asked for, as one text.
    pub fn scope(&self) -> String {
        let others = self.scopes.iter().filter(|scope| *scope != "openid").map(String::as_str);
        std::iter::once("openid").chain(others).collect::<Vec<_>>().join(" ")
    }

    /// What its claims make somebody; `None`: nothing.
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

    /// What somebody is called, before it is made a name here.
    pub fn called<'c>(&self, claims: &'c Map<String, Value>) -> &'c str {
        let text = |name: &str| find(claims, name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text(&self.name_claim).or_else(|| text("email")).or_else(|| text("sub")).unwrap_or_default()
    }
}

/// Some providers say it as text.
fn is_true(value: Option<&Value>) -> bool {
    matches!(value, Some(Value::Bool(true))) || value.and_then(Value::as_str) == Some("true")
}

/// A claim by its name, or by the way to it. Names may have dots themselves, as those that are URLs do.
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
    fn what_claims_make_somebody() {
        let usual = settings(json!({}));
        assert_eq!(usual.scope(), "openid profile email");
        assert_eq!(role(&usual, json!({ "groups": ["staff", "ops"] })), Some(Role::Admin), "the highest counts");
        assert_eq!(role(&usual, json!({ "groups": "staff" })), Some(Role::Viewer));
        for nobody in [json!({}), json!({ "groups": [] }), json!({ "groups": ["stafff", 7, null] }), json!({ "groups": { "staff": true } })]
        {
            assert_eq!(role(&usual, nobody), None);
        }
        let deep = settings(json!({ "role_claim": "realm_access.roles" }));
        assert_eq!(role(&deep, json!({ "realm_access": { "roles": ["staff"] } })), Some(Role::Viewer));
        assert_eq!(role(&deep, json!({ "realm_access.roles": ["ops"] })), Some(Role::Admin));
        let mail = settings(json!({ "role_claim": "email", "roles": { "admin": ["a@example.com"] } }));
        assert_eq!(role(&mail, json!({ "email": "a@example.com" })), None, "anybody may say so");
        assert_eq!(role(&mail, json!({ "email": "a@example.com", "email_verified": false })), None);
        assert_eq!(role(&mail, json!({ "email": "a@example.com", "email_verified": true })), Some(Role::Admin));
    }

    #[test]
    fn what_somebody_is_called() {
        let usual = settings(json!({}));
        let called = |claims: Value| usual.called(claims.as_object().unwrap()).to_owned();
        assert_eq!(called(json!({ "sub": "1", "email": "a@b.c", "preferred_username": "ann" })), "ann");
        assert_eq!(called(json!({ "sub": "1", "email": "a@b.c", "preferred_username": "" })), "a@b.c");
        assert_eq!(called(json!({ "sub": "1" })), "1");
    }
}
