//! # user_agent
//!
//! Refuses requests with a `User-Agent` that does not begin with one of the listed names.
//!
//! ```yaml
//! user_agent:
//!   allow: [my-desktop-app/]
//! ```

use http::header;
use keylatch_filters::contract::{Filter, Flow, Hooks, Invalid, Problem, Reply, RequestCx, Result, Site};
use schemars::JsonSchema;
use serde::Deserialize;

/// `user_agent`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The permitted beginnings of a `User-Agent`.
    pub allow: Vec<String>,
}

/// The compiled filter.
pub struct UserAgent {
    allow: Vec<String>,
}

impl Filter for UserAgent {
    const NAME: &'static str = "user_agent";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("worked_example.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.allow.is_empty() {
            return Err(Invalid::new("name at least one").at("allow"));
        }
        Ok(Self { allow: config.allow })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let agent = cx.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if self.allow.iter().any(|name| agent.starts_with(name.as_str())) {
            return Ok(Flow::Continue);
        }
        Ok(Reply::new(Problem::Forbidden, "client_not_allowed", "user_agent", "This client may not use the API.").into())
    }
}

#[cfg(test)]
mod tests {
    use keylatch_filters::chain::{Chain, Item, Outcome};
    use keylatch_filters::contract::{Dialect, Facts, Now};
    use pingora::http::RequestHeader;

    use super::*;

    #[test]
    fn others_are_refused() {
        let filter = UserAgent { allow: vec!["my-desktop-app/".into()] };
        let chain = Chain::new(vec![Item { filter: std::sync::Arc::new(filter), shadow: false }]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (agent, refused) in [("my-desktop-app/1.2", false), ("curl/8", true), ("", true)] {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            request.insert_header(header::USER_AGENT, agent).unwrap();
            let mut facts = Facts::default();
            let peer = "127.0.0.1".parse().unwrap();
            let mut cx = RequestCx {
                request: &request,
                facts: &mut facts,
                peer,
                route: "r",
                dialect: Dialect::OpenAi,
                now: Now::read(),
                shadow: false,
            };
            let outcome = runtime.block_on(chain.request(&mut cx, &mut chain.begin())).unwrap();
            assert_eq!(matches!(outcome, Outcome::Replied(_)), refused, "{agent}");
        }
    }
}
