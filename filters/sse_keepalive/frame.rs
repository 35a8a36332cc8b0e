//! Selects the heartbeat frame of a stream: one table by dialect, one by client. It does not decide where a frame may go.
//!
//! A parser that follows WHATWG HTML ignores comments and blank lines, and clients ignore events of unknown types. The
//! tables record the frames that real clients accept. `tests/test_heartbeats.py` and `tests/test_gradio.py` run them.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Dialect, Frame, Invalid};

/// The form of a heartbeat frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FrameChoice {
    /// By API and client.
    #[default]
    Auto,
    /// `: keep-alive` and a blank line.
    Comment,
    /// `: keep-alive` without a blank line.
    CommentLine,
    /// A blank line between events.
    BlankLine,
    /// A separate event between events: `ping` for Anthropic, `keepalive` for others.
    Event,
}

/// The frame for clients with a matching `User-Agent`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientFrame {
    /// A part of the `User-Agent`, case-insensitive, 3 to 100 bytes.
    pub user_agent: String,
    /// The form of the frame for these clients.
    pub frame: FrameChoice,
}

/// The heartbeat of Anthropic's API.
const PING: &[u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";
/// For clients with an idle timer that only events with data reset.
const KEEPALIVE: &[u8] = b"event: keepalive\ndata: {\"type\":\"keepalive\"}\n\n";

/// The heartbeat of Gradio's queue. Its Python client ends the stream at any block that does not start with `data:`, such
/// as a comment, an `event` field or a single blank line.
const GRADIO_HEARTBEAT: &[u8] = b"data: {\"msg\":\"heartbeat\"}\n\n";

/// Clients that need a different frame from that of their dialect.
const CLIENTS: [(&str, Frame); 7] = [
    // Only events with data reset the idle timer of Codex. No slash, since the name may come later in the `User-Agent`:
    // `codex_sdk_ts/0.171.0 (…) (codex_exec; 0.171.0)`.
    ("codex_cli_rs", Frame::Event(KEEPALIVE)),
    ("codex_exec", Frame::Event(KEEPALIVE)),
    ("codex_vscode", Frame::Event(KEEPALIVE)),
    ("codex-tui", Frame::Event(KEEPALIVE)),
    // These clients parse a comment line as JSON and fail.
    ("google-genai-sdk/", Frame::BlankLine),
    ("google-generativeai", Frame::BlankLine),
    ("gradio_client/", Frame::Event(GRADIO_HEARTBEAT)),
];

/// The frame of `auto` for a dialect.
fn dialect_frame(dialect: Dialect) -> Frame {
    match dialect {
        // Google's client libraries fail on comments.
        Dialect::Gemini => Frame::BlankLine,
        Dialect::Anthropic => Frame::Event(PING),
        // OpenRouter and DeepSeek send comments, so clients of these APIs handle them.
        Dialect::OpenAi
        | Dialect::OpenAiResponses
        | Dialect::Cohere
        | Dialect::Mistral
        | Dialect::Ollama
        | Dialect::Mcp
        | Dialect::DashScope => Frame::Comment,
    }
}

fn chosen_frame(choice: FrameChoice, dialect: Dialect) -> Frame {
    match choice {
        FrameChoice::Auto => dialect_frame(dialect),
        FrameChoice::Comment => Frame::Comment,
        FrameChoice::CommentLine => Frame::CommentLine,
        FrameChoice::BlankLine => Frame::BlankLine,
        FrameChoice::Event if dialect == Dialect::Anthropic => Frame::Event(PING),
        FrameChoice::Event => Frame::Event(KEEPALIVE),
    }
}

/// The configured frame and the frames for certain clients.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    choice: FrameChoice,
    clients: Vec<ClientFrame>,
}

impl Frames {
    /// Validates the list of clients.
    pub fn compile(choice: FrameChoice, mut clients: Vec<ClientFrame>) -> Result<Self, Invalid> {
        for (index, client) in clients.iter_mut().enumerate() {
            if !(3..=100).contains(&client.user_agent.len()) {
                return Err(Invalid::new("must have 3 to 100 bytes").at("user_agent").index(index).at("frame_by_client"));
            }
            client.user_agent.make_ascii_lowercase();
        }
        Ok(Self { choice, clients })
    }

    /// The frame for a request. Precedence: `frame_by_client`, `frame`, the built-in table of clients, the dialect.
    pub fn choose(&self, dialect: Dialect, user_agent: Option<&str>) -> Frame {
        let agent = user_agent.unwrap_or_default();
        if !self.clients.is_empty() {
            let agent = agent.to_ascii_lowercase();
            if let Some(client) = self.clients.iter().find(|client| agent.contains(&client.user_agent)) {
                return chosen_frame(client.frame, dialect);
            }
        }
        if self.choice != FrameChoice::Auto {
            return chosen_frame(self.choice, dialect);
        }
        let client = CLIENTS.iter().find(|(name, _)| agent.contains(name));
        client.map_or_else(|| dialect_frame(dialect), |(_, frame)| *frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_of_the_frame_tables() {
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

    /// Recorded from Codex 0.171.0 and gradio_client 2.7.2.
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
