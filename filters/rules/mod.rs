//! # rules
//!
//! A list of rules. Each rule has a condition and an action. The rules are evaluated in order, and `deny` and `allow` end
//! the evaluation.
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
//! A rule has exactly one action:
//!
//! - `allow: {}` skips the rest of this list. Other filters, including other `rules`, still run.
//! - `deny` refuses the request with a `status` (default 403) and a `message`.
//! - `tag` sets a tag on the request, for later rules (`"heavy" in tags`), the access log and metrics.
//! - `limit` names a limit with `chosen: true` in a later `rate_limit`. That limit counts the request.
//!
//! With `shadow: true` the rule is evaluated, counted and logged, but its action is not applied. The metric
//! `keylatch_rules_total` counts each rule that was true, by outcome.
//!
//! ## The language
//!
//! The language is CEL (<https://cel.dev>). Expressions are type-checked when the configuration is read.
//!
//! - Operators: `&& || ! == != < <= > >= + - * / %`, `? :`, `in` and `[…]`.
//! - Literals: lists, maps, text in single or double quotes, text without escapes (`r"…"`) and bytes (`b"…"`).
//!
//! The functions are:
//!
//! - text: `contains(t)`, `startsWith(t)`, `endsWith(t)`, `matches(regex)`, `size()`, and the strings extension:
//!   `charAt(i)`, `indexOf(t)`, `lastIndexOf(t)`, `lowerAscii()`, `upperAscii()`, `replace(a, b)`, `split(t)`,
//!   `substring(i, j)`, `trim()`, `reverse()`, `format([…])`, `strings.quote(t)`, and `join(t)` on a list
//! - addresses: `inNetwork("203.0.113.0/24", …)`
//! - lists, and the keys of maps: `exists(x, …)`, `exists_one(x, …)`, `all(x, …)`, `filter(x, …)`, `map(x, …)`,
//!   `map(x, condition, …)`, `size()`; with two variables, for index and item or key and value: `exists`, `all`,
//!   `existsOne`, `transformList` and `transformMap`
//! - timestamps, with an optional time zone or offset: `getFullYear()`, `getMonth()`, `getDate()`, `getDayOfMonth()`,
//!   `getDayOfWeek()`, `getDayOfYear()`, `getHours("Europe/Berlin")`, `getMinutes()`, `getSeconds()`,
//!   `getMilliseconds()`; the last four also on durations
//! - `has(identity.claims.team)`, `cel.bind(name, value, …)`, and the conversions `bool`, `int`, `uint`, `double`, `string`,
//!   `bytes`, `timestamp("2026-11-29T21:00:00Z")`, `duration("1h30m")`, `type` and `dyn`
//!
//! | variable | value |
//! | --- | --- |
//! | `request.method` | the method, such as `POST` |
//! | `request.path` | the path that routes match and the upstream receives, without the query |
//! | `request.query` | the query as received, without the `?`; empty if there is none |
//! | `request.decoded` | path and query with all layers of encoding removed, in lower case, with `/` for `\` |
//! | `request.host` | the Host in lower case, without the port |
//! | `request.headers` | the header fields by name in lower case; an absent field is empty |
//! | `request.params` | the query parameters by name, decoded; an absent parameter is empty |
//! | `request.user_agent` | the User-Agent; empty if there is none |
//! | `request.size` | the `Content-Length` in bytes; 0 without a body, -1 if the length is unknown |
//! | `request.model` | the model that the path, the query of a WebSocket or the body names; empty if none does |
//! | `request.time` | the arrival time of the request, as a timestamp |
//! | `client.address` | the client address that `client_ip` determined |
//! | `client.network` | the network of the client: the /32 of an IPv4 address, the /64 of an IPv6 address |
//! | `client.country` | the value of CF-IPCountry if the client address comes from Cloudflare; otherwise empty |
//! | `client.peer` | the address of the peer of the connection |
//! | `identity.subject` | the subject of the token that `bearer` verified; empty without a token |
//! | `identity.scopes` | the scopes of the token, as a list |
//! | `identity.claims` | the claims of the token; an absent claim is null |
//! | `identity.authenticated` | whether `bearer` has verified a token |
//! | `key.id` | the first 12 hex digits of the key id, as in logs; empty without a key |
//! | `key.present` | whether `key_binding` has found a key |
//! | `binding.rule` | the rule of the key's binding: `single`, `multiple`, `all` or `roaming`; empty without a binding |
//! | `binding.networks` | the networks of the binding, as a list |
//! | `binding.labels` | the labels of the binding, as a list |
//! | `binding.present` | whether `key_binding` has admitted the key |
//! | `route` | the name of the route |
//! | `tags` | the tags that earlier rules have set, as a list |
//!
//! The values of `client_ip`, `bearer` and `key_binding` are available in filters after them in the chain.
//!
//! **`request.model`** reads the body ahead, at most `read_ahead_bytes` of the listener. Without such an expression nothing
//! is read ahead. The model comes from a path of Gemini, Azure or Bedrock, from `?model=` of a WebSocket, or else from the
//! top level of a JSON object or a form. The expression fails if the model is unknown: it comes too late in the body, or the
//! body is compressed or cannot be read. A request that names two models is refused with 400 `two_models`.
//!
//! **Errors.** The number of steps and the length of text that an expression creates are limited. An expression can fail on
//! a request: a claim of another type, a division by zero, an unknown model, too many steps. A failed expression counts as
//! true for `deny` and `limit` and as false for `allow` and `tag`. The metric counts it as `error`.
//!
//! **Constants.** A comparison with a constant that can never match is a configuration error: upper case against
//! `request.decoded` or `request.host`, lower case against `request.method` or `client.country`, a route that does not
//! exist, a network where an address is compared. The error shows the correct form.
//!
//! ### Differences from the CEL specification
//!
//! - An absent header field or parameter is empty. An absent claim is null, and so is a member of null. In a map that the
//!   expression creates, an absent key is an error, as in CEL. A claim with the value null exists: `has()` and `in` find it.
//! - A whole number in a claim is an `int`, or a `uint` if it is too large. In CEL every JSON number is a `double`.
//! - A whole number beside a floating-point number is converted: `1 + 0.5` is `1.5`. Whole numbers and floating-point
//!   numbers are compared without rounding. The CEL tests expect rounding, the CEL text does not.
//! - The checker is stricter: `["a"] == [1]`, `true ? 1 : "a"` and `false && 1` are configuration errors. `dyn(…)` disables
//!   the check for one value.
//! - The pattern of `matches` and the networks of `inNetwork` must be constants. Timestamps end at 9999-12-30T22:00:00Z.
//! - Messages (protocol buffers), enumerations, optional values, names with a leading dot, containers, and the math,
//!   network, encoder and block extensions are not supported.
//!
//! `scripts/cel-conformance` runs the conformance tests of the specification: 1411 of 2456 pass. 1462 of the tests concern
//! the language itself, the strings extension, two-variable macros and `cel.bind`; 1323 of these pass. The failures:
//!
//! | file | pass | failures |
//! | --- | --- | --- |
//! | basic, fields, namespace | 104 of 117 | names with a container or a leading dot; unknown names are configuration errors |
//! | comparisons | 329 of 406 | messages; comparisons with rounding (4); a comparison that is never true (1) |
//! | logic | 25 of 30 | operands of a wrong type are configuration errors |
//! | parse | 176 of 219 | messages; unknown functions are configuration errors |
//! | timestamps | 77 of 78 | the last day of the year 9999 |
//! | dynamic, enums, proto2, proto2_ext, proto3, wrappers | 47 of 568 | messages and enumerations |
//! | type_deduction | 12 of 47 | the tests query the types that a checker infers, in its own notation |
//! | block_ext, encoders_ext, math_ext, network_ext, optionals | 29 of 379 | unsupported extensions |

mod config;

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;
use prometheus::IntCounter;

use crate::contract::{Filter, Flow, Hooks, Invalid, Problem, Reply, RequestCx, Result, SelectedLimits, Site, Tags, Trace, check_name};
use crate::expression::{EvalError, Expression, Scope, Type};
pub use config::{AllowConfig, DenyConfig, RuleConfig};

/// The longest list of rules.
const RULES_MAX: usize = 200;
/// The maximum number of tags of a request. Further tags are ignored.
const TAGS_MAX: usize = 32;

enum Action {
    Allow,
    Deny { status: StatusCode, message: String },
    Tag(Arc<str>),
    Limit(Arc<str>),
}

impl Action {
    /// The value of the metric label `outcome`.
    fn as_str(&self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny { .. } => "deny",
            Action::Tag(_) => "tag",
            Action::Limit(_) => "limit",
        }
    }
}

struct CompiledRule {
    name: String,
    condition: Option<Expression>,
    action: Action,
    shadow: bool,
    /// Requests for which the rule was true.
    counted: IntCounter,
    /// Requests for which the rule was true while the whole filter was in shadow mode.
    shadowed: IntCounter,
    /// Requests for which the expression failed.
    errors: IntCounter,
}

/// The compiled filter.
pub struct Rules(Vec<CompiledRule>);

impl Filter for Rules {
    const NAME: &'static str = "rules";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Vec<RuleConfig>;
    type State = ();

    fn reads_model(&self) -> bool {
        self.0.iter().any(|rule| rule.condition.as_ref().is_some_and(Expression::reads_model))
    }

    fn enforces_model(&self) -> bool {
        self.0.iter().any(|rule| !rule.shadow && rule.condition.as_ref().is_some_and(Expression::reads_model))
    }

    fn compile(config: Vec<RuleConfig>, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.is_empty() || config.len() > RULES_MAX {
            return Err(Invalid::new(format!("list at least one rule and at most {RULES_MAX}")));
        }
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        let mut names: Vec<String> = Vec::new();
        for (index, rule) in config.into_iter().enumerate() {
            if let Some(first) = names.iter().position(|other| *other == rule.name) {
                errors.push(
                    Invalid::new(format!("`{}` is already the name of rule [{first}]; names must be unique", rule.name))
                        .at("name")
                        .index(index),
                );
            }
            names.push(rule.name.clone());
            match CompiledRule::compile(rule, site) {
                Ok(compiled) => rules.push(compiled),
                Err(invalid) => errors.push(invalid.index(index)),
            }
        }
        // Report the errors of all rules, not only the first.
        if let Some(last) = errors.pop() {
            errors.into_iter().for_each(|invalid| site.report(invalid));
            return Err(last);
        }
        Ok(Self(rules))
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let Evaluation { refusal, tags, chosen, trace } = self.evaluate(cx);
        // In shadow mode, later filters must not see the tags and the chosen limits.
        if !cx.shadow {
            if let Some(tags) = tags {
                cx.facts.put(Tags(tags));
            }
            if let Some(names) = chosen {
                cx.facts.put(SelectedLimits(names));
            }
        }
        if let Some(lines) = cx.facts.get_mut::<Trace>() {
            lines.0.extend(trace);
        }
        Ok(refusal.map_or(Flow::Continue, Flow::from))
    }
}

/// The result of a list of rules for one request.
struct Evaluation {
    refusal: Option<Reply>,
    /// All tags of the request. `None`: unchanged.
    tags: Option<Vec<Arc<str>>>,
    /// All chosen limits of the request. `None`: unchanged.
    chosen: Option<Vec<Arc<str>>>,
    trace: Vec<String>,
}

impl Rules {
    fn evaluate(&self, cx: &RequestCx<'_>) -> Evaluation {
        let mut scope = Scope::new(cx);
        let (mut tagged, mut chosen, mut trace) = (false, None::<Vec<Arc<str>>>, Vec::new());
        let mut refused = None;
        let traced = cx.facts.get::<Trace>().is_some();
        for rule in &self.0 {
            let (holds, error) = rule.holds(&scope);
            if traced {
                trace.push(rule.trace_line(holds, error));
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
                    .get_or_insert_with(|| cx.facts.get::<SelectedLimits>().map(|earlier| earlier.0.clone()).unwrap_or_default())
                    .push(Arc::clone(name)),
            }
        }
        Evaluation { refusal: refused, tags: tagged.then_some(scope.tags), chosen, trace }
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

impl CompiledRule {
    fn compile(rule: RuleConfig, site: &Site<'_>) -> Result<Self, Invalid> {
        check_name(&rule.name, "name").map_err(|e| e.at("name"))?;
        let RuleConfig { name, condition, allow, deny, tag, limit, shadow } = rule;
        let condition =
            condition.map(|source| Expression::compile(&source, &Type::Bool, site.routes)).transpose().map_err(|e| e.at("if"))?;
        let action = match (allow, deny, tag, limit) {
            (Some(AllowConfig {}), None, None, None) => Action::Allow,
            (None, Some(deny), None, None) => deny_action(deny).map_err(|e| e.at("deny"))?,
            (None, None, Some(tag), None) => {
                check_name(&tag, "tag").map_err(|e| e.at("tag"))?;
                Action::Tag(tag.into())
            }
            (None, None, None, Some(limit)) => {
                if !shadow {
                    site.select_limit(&limit);
                }
                Action::Limit(limit.into())
            }
            _ => return Err(Invalid::new("a rule has exactly one action: `allow: {}`, `deny`, `tag` or `limit`")),
        };
        let counter = |outcome| {
            let help = "Requests for which a rule was true or failed, by rule and outcome.";
            site.counter_by("rules_total", help, &[("rule", &name), ("outcome", outcome)])
        };
        let counted = counter(if shadow { "shadow" } else { action.as_str() });
        Ok(Self { errors: counter("error"), shadowed: counter("shadow"), counted, condition, action, shadow, name })
    }

    /// Whether the rule is true. A failed expression counts against the request: true for `deny` and `limit` only.
    fn holds(&self, scope: &Scope<'_>) -> (bool, Option<EvalError>) {
        let Some(condition) = &self.condition else { return (true, None) };
        match condition.holds(scope) {
            Ok(holds) => (holds, None),
            Err(error) => {
                self.errors.inc();
                (matches!(self.action, Action::Deny { .. } | Action::Limit(_)), Some(error))
            }
        }
    }

    fn trace_line(&self, holds: bool, error: Option<EvalError>) -> String {
        let outcome = match (holds, &self.action) {
            (false, _) => "false".to_owned(),
            (true, Action::Deny { status, .. }) => format!("deny, {}", status.as_u16()),
            (true, Action::Tag(name)) => format!("tag, `{name}`"),
            (true, Action::Limit(name)) => format!("limit, `{name}`"),
            (true, Action::Allow) => "allow, the rest of the list is skipped".to_owned(),
        };
        let error = error.map(|error| format!(" (error: {error})")).unwrap_or_default();
        format!("rule `{}`: {outcome}{error}{}", self.name, if self.shadow { " (shadow)" } else { "" })
    }
}

fn deny_action(deny: DenyConfig) -> Result<Action, Invalid> {
    let is_allowed = (400..=499).contains(&deny.status) || deny.status == 503;
    let status = StatusCode::from_u16(deny.status).ok().filter(|_| is_allowed);
    let status = status.ok_or_else(|| Invalid::new("must be between 400 and 499, or 503").at("status"))?;
    if deny.message.len() > 1000 {
        return Err(Invalid::new("must have at most 1000 bytes").at("message"));
    }
    Ok(Action::Deny { status, message: deny.message })
}

#[cfg(test)]
mod tests;
