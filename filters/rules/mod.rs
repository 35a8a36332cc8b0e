//! # rules
//!
//! A list of rules, each an expression and what is done where it is true. They are looked at in order; `deny` and
//! `allow` end the list.
//!
//! ```yaml
//! rules:
//!   - name: health-checks
//!     if: request.path == "/v1/ping"
//!     allow: {}
//!   - name: desktop-only
//!     if: '!request.user_agent.startsWith("my-desktop-app/")'
//!     deny: {status: 403, message: "Please use our application."}
//!   - name: probes
//!     if: request.decoded.matches(r"/\.(env|git)|eval\(") || request.decoded.contains("../")
//!     deny: {}
//!   - name: heavy
//!     if: request.path.startsWith("/v1/images") && !("premium" in identity.scopes)
//!     tag: heavy
//!   - name: office-hours
//!     if: request.time.getHours("Europe/Berlin") < 7 && identity.claims.groups == ["guest"]
//!     deny: {message: "Guests may call from 7 o'clock on."}
//!   - name: europe
//!     if: '!(client.country in ["DE", "FR", "AT"])'
//!     deny: {status: 451}
//!     shadow: true
//! ```
//!
//! - `allow: {}`: the rest of this list does not matter. Other filters, other `rules` too, go on.
//! - `deny`: the request is refused, with a `status` and a `message`.
//! - `tag`: a label, for later rules (`"heavy" in tags`), the access log and metrics.
//! - `limit`: a limit of a `rate_limit` behind this filter that says `chosen: true` counts the request.
//! - `shadow: true` beside any of them: it is decided, counted and logged, and not done.
//!
//! Metrics count each rule that was true (`keylatch_rules_total`), by what came of it.
//!
//! ## The language
//!
//! It is CEL (<https://cel.dev>), checked when the configuration is read. There are `&& || ! == != < <= > >= + - * / %`,
//! `? :`, `in`, `[…]`, lists, maps, text in single or double quotes (r"…" without escapes), bytes (b"…"), and
//!
//! - of text: `contains(t)`, `startsWith(t)`, `endsWith(t)`, `matches(regex)`, `size()`, and the strings extension:
//!   `charAt(i)`, `indexOf(t)`, `lastIndexOf(t)`, `lowerAscii()`, `upperAscii()`, `replace(a, b)`, `split(t)`,
//!   `substring(i, j)`, `trim()`, `reverse()`, `format([…])`, `strings.quote(t)`, and `join(t)` of a list
//! - of an address: `inNetwork("203.0.113.0/24", …)`
//! - of a list, or of the keys of a map: `exists(x, …)`, `exists_one(x, …)`, `all(x, …)`, `filter(x, …)`, `map(x, …)`,
//!   `map(x, condition, …)`, `size()`; with two names, for index and item or key and value: `exists`, `all`,
//!   `existsOne`, `transformList` and `transformMap`
//! - of a timestamp, with a time zone or an offset as an option: `getFullYear()`, `getMonth()`, `getDate()`,
//!   `getDayOfMonth()`, `getDayOfWeek()`, `getDayOfYear()`, `getHours("Europe/Berlin")`, `getMinutes()`, `getSeconds()`,
//!   `getMilliseconds()`; the last four of a duration, too
//! - `has(identity.claims.team)`, `cel.bind(name, value, …)`, and the conversions `bool`, `int`, `uint`, `double`, `string`,
//!   `bytes`, `timestamp("2026-11-29T21:00:00Z")`, `duration("1h30m")`, `type` and `dyn`
//!
//! | name | is |
//! | --- | --- |
//! | `request.method` | the method, such as `POST` |
//! | `request.path` | the path as routes match it and the upstream gets it, without the query |
//! | `request.query` | the query as it came, without the `?`; empty if there is none |
//! | `request.decoded` | path and query, decoded until nothing is left to decode, in lower case, `\` as `/` |
//! | `request.host` | the Host, in lower case, without its port |
//! | `request.headers` | the header fields by their names in lower case; one that is not there is empty |
//! | `request.params` | the query's parameters by name, decoded; one that is not there is empty |
//! | `request.user_agent` | the User-Agent; empty if there is none |
//! | `request.size` | the body's announced length in bytes, 0 without a body, -1 where none is announced |
//! | `request.time` | the time at which the request came, as a timestamp |
//! | `client.address` | the client's address, as `client_ip` found it |
//! | `client.network` | its network: the /32 of an IPv4 address, the /64 of an IPv6 one |
//! | `client.country` | what CF-IPCountry says, if Cloudflare says who the client is; else empty |
//! | `client.peer` | the address at the other end of the connection |
//! | `identity.subject` | who `bearer` found; empty if nobody |
//! | `identity.scopes` | what the token may do, as a list |
//! | `identity.claims` | what the token says; a claim that is not there is null |
//! | `identity.authenticated` | whether `bearer` has checked a token |
//! | `key.id` | the first 12 digits of the key id, as logs show it; empty without a key |
//! | `key.present` | whether `key_binding` has found a key |
//! | `binding.rule` | the rule of the key's binding: `single`, `multiple`, `all`, `roaming`; empty if there is none |
//! | `binding.networks` | the networks that it is bound to, as a list |
//! | `binding.present` | whether `key_binding` has admitted the key by a binding |
//! | `route` | the route's name |
//! | `tags` | the labels that rules before this one have put on the request, as a list |
//!
//! What `client_ip`, `bearer` and `key_binding` find out is known behind them in the chain.
//!
//! The steps of an expression and the text it puts together are bounded. One that has no result for a request (a claim
//! that is not of the type it is used as, a division by zero, too many steps) counts against the request: `deny` and
//! `limit` hold, `allow` and `tag` do not; it is counted as `error`.
//!
//! A constant that can never match is refused with a hint: upper case against `request.decoded` or `request.host`, lower
//! case against `request.method` or `client.country`, a route that is not there, a network where an address is compared.
//!
//! ### Differences from the CEL specification
//!
//! - An absent header field or parameter is empty, an absent claim is null, and so is a member of null; in a map that
//!   the expression makes, an absent key is an error, as in CEL. A claim that is null exists: `has()` and `in` find it.
//! - A whole number in a claim is an `int`, or a `uint` if it is too large; in CEL every number in JSON is a `double`.
//! - A whole number beside a floating-point number is converted: `1 + 0.5` is `1.5`. Whole numbers and floating-point
//!   numbers are compared without rounding; CEL's tests want a comparison after rounding, its text does not.
//! - The checker is stricter: `["a"] == [1]`, `true ? 1 : "a"` and `false && 1` are refused where the configuration is
//!   read. `dyn(…)` turns the check off for one value.
//! - A pattern of `matches` and the networks of `inNetwork` are constants. Timestamps end on 9999-12-30T22:00:00Z.
//! - There are no messages (protocol buffers), enumerations, optional values, names with a leading dot, containers, and
//!   no math, network, encoder and block extensions.
//!
//! `scripts/cel-conformance` runs the conformance tests of the specification: 1411 of 2456 pass. Of the 1462 tests in the
//! files about the language itself, the strings extension, two-variable macros and `cel.bind`, 1323 pass. Those that do
//! not:
//!
//! | file | pass | the rest |
//! | --- | --- | --- |
//! | basic, fields, namespace | 104 of 117 | names from a container or with a leading dot; unknown names are refused when read |
//! | comparisons | 329 of 406 | messages; comparisons after rounding (4); a comparison that is never true (1) |
//! | logic | 25 of 30 | operands of a wrong type are refused when read |
//! | parse | 176 of 219 | messages; functions that are not known are refused when read |
//! | timestamps | 77 of 78 | the last day of the year 9999 |
//! | dynamic, enums, proto2, proto2_ext, proto3, wrappers | 47 of 568 | messages and enumerations |
//! | type_deduction | 12 of 47 | the tests ask a checker for types, in its own notation |
//! | block_ext, encoders_ext, math_ext, network_ext, optionals | 29 of 379 | extensions that are not there |

mod config;

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;
use prometheus::IntCounter;

use crate::contract::{Filter, Flow, Hooks, Invalid, Problem, Reply, RequestCx, Result, SelectedLimits, Site, Tags, Trace};
use crate::expression::{Expression, Scope, Type};
pub use config::{Allow, Deny, Rule};

/// A longer list is better written as several.
const RULES_MAX: usize = 200;
const NAME_BYTES_MAX: usize = 64;
/// More labels than these are not put on a request.
const TAGS_MAX: usize = 32;

enum Action {
    Allow,
    Deny { status: StatusCode, message: String },
    Tag(Arc<str>),
    Limit(Arc<str>),
}

impl Action {
    fn word(&self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny { .. } => "deny",
            Action::Tag(_) => "tag",
            Action::Limit(_) => "limit",
        }
    }
}

struct Compiled {
    name: String,
    condition: Option<Expression>,
    action: Action,
    shadow: bool,
    /// Of times that it was true.
    counted: IntCounter,
    /// Of times that it was true while the whole filter is in shadow mode.
    shadowed: IntCounter,
    /// Of times that its expression came to nothing.
    errors: IntCounter,
}

/// The compiled filter.
pub struct Rules(Vec<Compiled>);

/// A name that stands in logs and metrics.
pub fn word(text: &str, what: &str) -> Result<(), Invalid> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(fine) {
        return Err(Invalid::new(format!("`{text}` is not a {what}; use up to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`")));
    }
    Ok(())
}

impl Filter for Rules {
    const NAME: &'static str = "rules";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Vec<Rule>;
    type State = ();

    fn compile(config: Vec<Rule>, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.is_empty() || config.len() > RULES_MAX {
            return Err(Invalid::new(format!("list at least one rule, and at most {RULES_MAX}")));
        }
        let (mut rules, mut wrong) = (Vec::new(), Vec::new());
        let mut names: Vec<String> = Vec::new();
        for (index, rule) in config.into_iter().enumerate() {
            if let Some(first) = names.iter().position(|other| *other == rule.name) {
                wrong.push(Invalid::new(format!("`{}` is the name of [{first}] already", rule.name)).at("name").index(index));
            }
            names.push(rule.name.clone());
            match Compiled::compile(rule, site) {
                Ok(compiled) => rules.push(compiled),
                Err(invalid) => wrong.push(invalid.index(index)),
            }
        }
        // Each wrong rule is told, not the first alone.
        if let Some(last) = wrong.pop() {
            wrong.into_iter().for_each(|invalid| site.report(invalid));
            return Err(last);
        }
        Ok(Self(rules))
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let (refused, tags, chosen, said) = self.judge(cx);
        // In shadow mode what would be found out is not told to the filters behind.
        if !cx.shadow {
            if let Some(tags) = tags {
                cx.facts.put(Tags(tags));
            }
            if let Some(names) = chosen {
                cx.facts.put(SelectedLimits(names));
            }
        }
        if let Some(trace) = cx.facts.get_mut::<Trace>() {
            trace.0.extend(said);
        }
        Ok(refused.map_or(Flow::Continue, Flow::from))
    }
}

type Judged = (Option<Reply>, Option<Vec<Arc<str>>>, Option<Vec<Arc<str>>>, Vec<String>);

impl Rules {
    /// What is refused, and, where they have changed, the labels and the limits that are chosen.
    fn judge(&self, cx: &RequestCx<'_>) -> Judged {
        let mut scope = Scope::new(cx);
        let (mut tagged, mut chosen, mut said) = (false, None::<Vec<Arc<str>>>, Vec::new());
        let mut refused = None;
        let traced = cx.facts.get::<Trace>().is_some();
        for rule in &self.0 {
            let (holds, trouble) = rule.holds(&scope);
            if traced {
                said.push(rule.says(holds, trouble));
            }
            if !holds {
                continue;
            }
            if cx.shadow {
                rule.shadowed.inc()
            } else {
                rule.counted.inc()
            }
            if rule.shadow {
                continue;
            }
            match &rule.action {
                Action::Allow => break,
                Action::Deny { status, message } => {
                    refused = Some(refusal(*status, message, &rule.name));
                    break;
                }
                Action::Tag(tag) => {
                    if scope.tags.len() < TAGS_MAX && !scope.tags.contains(tag) {
                        scope.tags.push(Arc::clone(tag));
                        tagged = true;
                    }
                }
                Action::Limit(name) => chosen
                    .get_or_insert_with(|| cx.facts.get::<SelectedLimits>().map(|known| known.0.clone()).unwrap_or_default())
                    .push(Arc::clone(name)),
            }
        }
        (refused, tagged.then_some(scope.tags), chosen, said)
    }
}

fn refusal(status: StatusCode, message: &str, rule: &str) -> Reply {
    let problem = match status {
        StatusCode::TOO_MANY_REQUESTS => Problem::RateLimited,
        StatusCode::SERVICE_UNAVAILABLE => Problem::Unavailable,
        StatusCode::UNAUTHORIZED => Problem::Unauthenticated,
        StatusCode::FORBIDDEN => Problem::Forbidden,
        _ => Problem::BadRequest,
    };
    Reply::new(problem, "denied_by_rule", "rule", Cow::Owned(message.to_owned())).status(status).detail(format!("rule `{rule}`"))
}

impl Compiled {
    fn compile(rule: Rule, site: &Site<'_>) -> Result<Self, Invalid> {
        word(&rule.name, "name").map_err(|e| e.at("name"))?;
        let Rule { name, condition, allow, deny, tag, limit, shadow } = rule;
        let condition =
            condition.map(|source| Expression::compile(&source, &Type::Bool, site.routes)).transpose().map_err(|e| e.at("if"))?;
        let action = match (allow, deny, tag, limit) {
            (Some(Allow {}), None, None, None) => Action::Allow,
            (None, Some(deny), None, None) => denial(deny).map_err(|e| e.at("deny"))?,
            (None, None, Some(tag), None) => {
                word(&tag, "label").map_err(|e| e.at("tag"))?;
                Action::Tag(tag.into())
            }
            (None, None, None, Some(limit)) => {
                if !shadow {
                    site.select_limit(&limit);
                }
                Action::Limit(limit.into())
            }
            _ => return Err(Invalid::new("say one thing that is done: `allow: {}`, `deny`, `tag` or `limit`")),
        };
        let counter = |outcome| {
            let help = "Requests by rule and what came of it, where the rule was true.";
            site.counter_by("rules_total", help, &[("rule", &name), ("outcome", outcome)])
        };
        let counted = counter(if shadow { "shadow" } else { action.word() });
        Ok(Self { errors: counter("error"), shadowed: counter("shadow"), counted, condition, action, shadow, name })
    }

    /// Whether it is true. What comes to nothing counts against the request.
    fn holds(&self, scope: &Scope<'_>) -> (bool, Option<crate::expression::Trouble>) {
        let Some(condition) = &self.condition else { return (true, None) };
        match condition.holds(scope) {
            Ok(holds) => (holds, None),
            Err(trouble) => {
                self.errors.inc();
                (matches!(self.action, Action::Deny { .. } | Action::Limit(_)), Some(trouble))
            }
        }
    }

    fn says(&self, holds: bool, trouble: Option<crate::expression::Trouble>) -> String {
        let outcome = match (holds, &self.action) {
            (false, _) => "not true".to_owned(),
            (true, Action::Deny { status, .. }) => format!("deny, {}", status.as_u16()),
            (true, Action::Tag(name)) => format!("tag, `{name}`"),
            (true, Action::Limit(name)) => format!("limit, `{name}`"),
            (true, Action::Allow) => "allow, the rest does not matter".to_owned(),
        };
        let why = trouble.map(|trouble| format!(" (comes to nothing: {trouble})")).unwrap_or_default();
        format!("rule `{}`: {outcome}{why}{}", self.name, if self.shadow { " (shadow)" } else { "" })
    }
}

fn denial(deny: Deny) -> Result<Action, Invalid> {
    let fits = (400..=499).contains(&deny.status) || deny.status == 503;
    let status = StatusCode::from_u16(deny.status).ok().filter(|_| fits);
    let status = status.ok_or_else(|| Invalid::new("must be between 400 and 499, or 503").at("status"))?;
    if deny.message.len() > 1000 {
        return Err(Invalid::new("at most 1000 bytes").at("message"));
    }
    Ok(Action::Deny { status, message: deny.message })
}

#[cfg(test)]
mod tests;
