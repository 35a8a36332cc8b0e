//! Which heartbeat frame a stream carries: one table by dialect, one by client.
//!
//! A parser that follows the WHATWG's rules ignores comments and blank lines; an event is one that the client passes
//! over. The tables hold what other clients were seen to accept; `tests/test_heartbeats.py` and `tests/test_gradio.py`
//! run the real ones.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Dialect, Frame, Invalid};

/// What is sent into a silent stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FrameChoice {
    /// The form that suits the API and the client.
    #[default]
    Auto,
    /// `: keep-alive` and a blank line.
    Comment,
    /// `: keep-alive` without a blank line.
    CommentLine,
    /// A blank line between events.
    BlankLine,
    /// An event of its own between events: `ping` for Anthropic, `keepalive` for others.
    Event,
}

/// The frame for clients with a certain `User-Agent`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientFrame {
    /// What their `User-Agent` contains, in any case; 3 to 100 bytes.
    pub user_agent: String,
    /// The frame they get.
    pub frame: FrameChoice,
}

/// As Anthropic's own API sends it.
const PING: &[u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";
/// For clients that take only events with data as a sign of life.
const KEEPALIVE: &[u8] = b"event: keepalive\ndata: {\"type\":\"keepalive\"}\n\n";

/// As Gradio's own queue sends it. Its Python client ends the stream at everything between two blank lines that does
/// not begin with `data:`: comments, `event` fields, and a single blank line before the next event.
const GRADIO_HEARTBEAT: &[u8] = b"data: {\"msg\":\"heartbeat\"}\n\n";

/// Clients that need another frame than their dialect's.
const CLIENTS: [(&str, Frame); 7] = [
    // Codex: its idle timer is reset by events with data alone. No slash: a program that runs Codex puts its own name
    // first, `codex_sdk_ts/0.171.0 (…) (codex_exec; 0.171.0)`.
    ("codex_cli_rs", Frame::Event(KEEPALIVE)),
    ("codex_exec", Frame::Event(KEEPALIVE)),
    ("codex_vscode", Frame::Event(KEEPALIVE)),
    ("codex-tui", Frame::Event(KEEPALIVE)),
    // They read a comment line as JSON.
    ("google-genai-sdk/", Frame::BlankLine),
    ("google-generativeai", Frame::BlankLine),
    ("gradio_client/", Frame::Event(GRADIO_HEARTBEAT)),
];

/// What `auto` means for a dialect.
fn of_dialect(dialect: Dialect) -> Frame {
    match dialect {
        // Google's client libraries fail on comments.
        Dialect::Gemini => Frame::BlankLine,
        Dialect::Anthropic => Frame::Event(PING),
        // The form that OpenRouter and DeepSeek send, which clients are used to.
        Dialect::OpenAi
        | Dialect::OpenAiResponses
        | Dialect::Cohere
        | Dialect::Mistral
        | Dialect::Ollama
        | Dialect::Mcp
        | Dialect::DashScope => Frame::Comment,
    }
}

fn of_choice(choice: FrameChoice, dialect: Dialect) -> Frame {
    match choice {
        FrameChoice::Auto => of_dialect(dialect),
        FrameChoice::Comment => Frame::Comment,
        FrameChoice::CommentLine => Frame::CommentLine,
        FrameChoice::BlankLine => Frame::BlankLine,
        FrameChoice::Event if dialect == Dialect::Anthropic => Frame::Event(PING),
        FrameChoice::Event => Frame::Event(KEEPALIVE),
    }
}

/// The operator's choice, with the clients that get another frame.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    choice: FrameChoice,
    clients: Vec<ClientFrame>,
}

impl Frames {
    /// Checks the operator's list.
    pub fn compile(choice: FrameChoice, mut clients: Vec<ClientFrame>) -> Result<Self, Invalid> {
        for (index, client) in clients.iter_mut().enumerate() {
            if !(3..=100).contains(&client.user_agent.len()) {
                return Err(Invalid::new("must have 3 to 100 bytes").at("user_agent").index(index).at("frame_by_client"));
            }
            client.user_agent.make_ascii_lowercase();
        }
        Ok(Self { choice, clients })
    }

    /// The frame for a request. An operator's row for the client comes first, then the route's own choice, then what is
    /// known of clients, then the dialect.
    pub fn choose(&self, dialect: Dialect, user_agent: Option<&str>) -> Frame {
        let agent = user_agent.unwrap_or_default();
        if !self.clients.is_empty() {
            let agent = agent.to_ascii_lowercase();
            if let Some(client) = self.clients.iter().find(|client| agent.contains(&client.user_agent)) {
                return of_choice(client.frame, dialect);
            }
        }
        if self.choice != FrameChoice::Auto {
            return of_choice(self.choice, dialect);
        }
        let known = CLIENTS.iter().find(|(name, _)| agent.contains(name));
        known.map_or_else(|| of_dialect(dialect), |(_, frame)| *frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_then_route_then_client_then_dialect() {
        let auto = Frames::default();
        assert_eq!(auto.choose(Dialect::OpenAi, None), Frame::Comment);
        assert_eq!(auto.choose(Dialect::Gemini, Some("curl/8")), Frame::BlankLine);
        assert_eq!(auto.choose(Dialect::Anthropic, None), Frame::Event(PING));
        assert_eq!(auto.choose(Dialect::OpenAiResponses, Some("codex_cli_rs/0.50.0 (Linux)")), Frame::Event(KEEPALIVE));
        assert_eq!(auto.choose(Dialect::OpenAi, Some("google-genai-sdk/3.6.1 gl-python/3.11")), Frame::BlankLine);
        let line = Frames::compile(FrameChoice::CommentLine, vec![]).unwrap();
        assert_eq!(line.choose(Dialect::OpenAiResponses, Some("codex_cli_rs/0.50.0")), Frame::CommentLine);
        let rows = vec![ClientFrame { user_agent: "My-App/".into(), frame: FrameChoice::Event }];
        let rows = Frames::compile(FrameChoice::Comment, rows).unwrap();
        assert_eq!(rows.choose(Dialect::OpenAi, Some("my-app/1")), Frame::Event(KEEPALIVE));
        assert_eq!(rows.choose(Dialect::Anthropic, Some("x my-app/1")), Frame::Event(PING));
        assert_eq!(rows.choose(Dialect::OpenAi, Some("other")), Frame::Comment);
        let short = vec![ClientFrame { user_agent: "x".into(), frame: FrameChoice::Event }];
        assert!(Frames::compile(FrameChoice::Auto, short).is_err());
    }

    /// What Codex 0.171.0 and gradio_client 2.7.2 were seen to send.
    #[test]
    fn user_agents_of_real_clients() {
        let auto = Frames::default();
        for agent in [
            "codex_exec/0.171.0 (Debian 12.0.0; x86_64) xterm (codex_exec; 0.171.0)",
            "codex-tui/0.171.0 (Debian 12.0.0; x86_64) xterm (codex-tui; 0.171.0)",
            "codex_sdk_ts/0.171.0 (Debian 12.0.0; x86_64) xterm (codex_exec; 0.171.0)",
        ] {
            assert_eq!(auto.choose(Dialect::OpenAiResponses, Some(agent)), Frame::Event(KEEPALIVE), "{agent}");
        }
        let gradio = Some("gradio_client/2.7.2; hf_hub/2.4.0; python/3.11.7");
        assert_eq!(auto.choose(Dialect::OpenAi, gradio), Frame::Event(GRADIO_HEARTBEAT));
        let rows = vec![ClientFrame { user_agent: "gradio_client/2".into(), frame: FrameChoice::BlankLine }];
        let rows = Frames::compile(FrameChoice::Auto, rows).unwrap();
        assert_eq!(rows.choose(Dialect::OpenAi, gradio), Frame::BlankLine);
        for agent in ["Groq/Python 1.7.0", "Together/Python 3.1.1", "AsyncOpenAI/Python 3.54.0"] {
            assert_eq!(auto.choose(Dialect::OpenAi, Some(agent)), Frame::Comment, "{agent}");
        }
    }
}
