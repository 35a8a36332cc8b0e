//! Finds the model that a request names: in its path, in the query of a WebSocket, or in its body.
//!
//! A body may name the model twice, and parsers differ in which one they use; Go also ignores the case of JSON keys. So two
//! different names are reported, and a body that parsers could read differently has an unknown model.

use std::ops::ControlFlow;
use std::sync::Arc;

use http::header;
use percent_encoding::percent_decode_str;
use pingora_http::RequestHeader;

use super::{FormFields, JsonMembers, Member, Progress, form_boundary};
use crate::contract::{RequestModel, UnknownModel};

/// The longest URL-encoded form.
const URL_ENCODED_BYTES_MAX: usize = 1 << 20;

/// Where the model of a request is.
#[derive(Debug)]
pub enum ModelSource {
    /// The header tells it.
    Header(RequestModel),
    /// The body must be read.
    Body(ModelScan),
}

impl ModelSource {
    /// The source for a request. `has_body`: whether a body may follow. `upgrades`: whether it requests an upgrade.
    pub fn of_request(request: &RequestHeader, has_body: bool, upgrades: bool) -> Self {
        let in_path = in_path(request.uri.path());
        let engine = in_path.as_ref().and_then(|(model, certain)| if *certain { None } else { named_model(model) });
        if let (Some((model, _)), None) = (in_path, &engine) {
            return ModelSource::Header(model);
        }
        if upgrades {
            return ModelSource::Header(in_query(request.uri.query().unwrap_or_default()));
        }
        if !has_body {
            return ModelSource::Header(engine.map_or(RequestModel::Absent, RequestModel::Named));
        }
        let mut codings = request.headers.get_all(header::CONTENT_ENCODING).iter();
        if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return ModelSource::Header(RequestModel::Unknown(UnknownModel::Compressed));
        }
        let unreadable = ModelSource::Header(RequestModel::Unknown(UnknownModel::Unreadable));
        let mut types = request.headers.get_all(header::CONTENT_TYPE).iter();
        let content_type = types.next();
        if types.next().is_some() || content_type.is_some_and(|value| !is_clear(value)) {
            return unreadable;
        }
        let is = |kind: &[u8]| {
            content_type.is_some_and(|value| value.as_bytes().get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind)))
        };
        let body = if is(b"multipart/") {
            match content_type.and_then(form_boundary) {
                Some(boundary) => Body::Form(Box::new(FormFields::new(&boundary, "model"))),
                None => return unreadable,
            }
        } else if is(b"application/x-www-form-urlencoded") {
            Body::UrlEncoded(Vec::new())
        } else {
            // Servers such as Ollama read JSON whatever its type.
            Body::Json(Box::default())
        };
        let mut scan = ModelScan { body, model: engine, two: false, empty: true };
        // Servers look for a form field in the query, too.
        if !matches!(scan.body, Body::Json(_)) {
            named_in(request.uri.query().unwrap_or_default().as_bytes(), &mut scan.model, &mut scan.two);
        }
        ModelSource::Body(scan)
    }
}

/// What a body says about the model so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// Nothing yet.
    Nothing,
    /// The model so far. In later bytes, another name can make it [`Scanned::Two`], or a value that is no text unknown.
    Model(RequestModel),
    /// The body has two different names.
    Two,
}

/// Reads the model from a body, piece by piece.
#[derive(Debug)]
pub struct ModelScan {
    body: Body,
    model: Option<Arc<str>>,
    two: bool,
    empty: bool,
}

#[derive(Debug)]
enum Body {
    Json(Box<JsonMembers>),
    Form(Box<FormFields>),
    UrlEncoded(Vec<u8>),
    /// A URL-encoded form that is too long.
    TooLong,
}

impl ModelScan {
    /// Whether the body is a form, and not JSON.
    pub fn is_form(&self) -> bool {
        !matches!(self.body, Body::Json(_))
    }

    /// Reads the next piece.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.empty &= bytes.is_empty();
        let (model, two) = (&mut self.model, &mut self.two);
        match &mut self.body {
            Body::Json(members) => members.feed(bytes, |member| json_member(&member, model, two)),
            Body::Form(fields) => fields.feed(bytes, |value| match std::str::from_utf8(value) {
                Ok(name) => named(name, model, two),
                Err(_) => ControlFlow::Break(()),
            }),
            Body::UrlEncoded(body) if body.len() + bytes.len() > URL_ENCODED_BYTES_MAX => self.body = Body::TooLong,
            Body::UrlEncoded(body) => body.extend_from_slice(bytes),
            Body::TooLong => {}
        }
    }

    /// What is known. `ended`: whether the body has ended.
    pub fn scanned(&mut self, ended: bool) -> Scanned {
        let progress = match &self.body {
            Body::Json(members) => members.progress(),
            Body::Form(fields) => fields.progress(),
            Body::TooLong => Progress::Unreadable,
            Body::UrlEncoded(body) if ended => {
                let (model, two) = (&mut self.model, &mut self.two);
                named_in(body, model, two);
                // curl declares JSON as a form, and servers such as Ollama read it.
                if body.trim_ascii_start().starts_with(b"{") {
                    let mut members = JsonMembers::default();
                    members.feed(body, |member| json_member(&member, model, two));
                    if members.progress() == Progress::Complete { Progress::Complete } else { Progress::Unreadable }
                } else {
                    Progress::Complete
                }
            }
            Body::UrlEncoded(_) => return Scanned::Nothing,
        };
        // A name from the path or the query counts once the body is known.
        if !ended && progress == Progress::Reading && self.empty {
            return Scanned::Nothing;
        }
        let unreadable = RequestModel::Unknown(UnknownModel::Unreadable);
        match (&self.model, progress) {
            _ if self.two => Scanned::Two,
            (_, Progress::Unreadable) => Scanned::Model(unreadable),
            (Some(model), _) => Scanned::Model(RequestModel::Named(Arc::clone(model))),
            (None, Progress::Complete) => Scanned::Model(RequestModel::Absent),
            (None, Progress::Reading) if ended && self.empty => Scanned::Model(RequestModel::Absent),
            (None, Progress::Reading) if ended => Scanned::Model(unreadable),
            (None, Progress::Reading) => Scanned::Nothing,
        }
    }
}

fn named(name: &str, model: &mut Option<Arc<str>>, two: &mut bool) -> ControlFlow<()> {
    match model {
        Some(known) => *two |= **known != *name,
        None => *model = Some(name.into()),
    }
    ControlFlow::Continue(())
}

fn json_member(member: &Member<'_>, model: &mut Option<Arc<str>>, two: &mut bool) -> ControlFlow<()> {
    if !member.key.eq_ignore_ascii_case(b"model") || member.scalar == b"null" {
        return ControlFlow::Continue(());
    }
    // Fails for a value that is no text, and for one that was cut.
    match serde_json::from_slice::<String>(member.scalar) {
        Ok(name) => named(&name, model, two),
        Err(_) => ControlFlow::Break(()),
    }
}

/// Adds the fields `model` of a URL-encoded form.
fn named_in(form: &[u8], model: &mut Option<Arc<str>>, two: &mut bool) {
    for (_, value) in form_urlencoded::parse(form).filter(|(key, _)| key == "model") {
        let _ = named(&value, model, two);
    }
}

fn named_model(model: &RequestModel) -> Option<Arc<str>> {
    match model {
        RequestModel::Named(model) => Some(Arc::clone(model)),
        RequestModel::Absent | RequestModel::Unknown(_) => None,
    }
}

/// Whether all servers read this `Content-Type` in the same way: one boundary, no quotes but around it, UTF-8.
fn is_clear(value: &http::HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let text = text.to_ascii_lowercase();
    let charsets = text.split(';').filter_map(|parameter| parameter.trim().strip_prefix("charset"));
    let utf8 = |rest: &str| matches!(rest.trim_start_matches([' ', '=']).trim_matches(['"', ' ']), "utf-8" | "utf8");
    let quotes = text.matches('"').count();
    let quoted = text.matches("boundary=\"").count() + text.matches("charset=\"").count();
    !text.contains('\\')
        && text.matches("boundary").count() <= 1
        && quotes == 2 * quoted
        && charsets.clone().all(utf8)
        && charsets.count() <= 1
}

/// The model in a path: of Gemini (`/v1beta/models/MODEL:generateContent`), Azure OpenAI (`/openai/deployments/MODEL/…`),
/// Amazon Bedrock (`/model/MODEL/converse`), and the former engines of OpenAI (`/v1/engines/MODEL/…`), where
/// a model in the body counts, too. `false`: such an engine.
fn in_path(path: &str) -> Option<(RequestModel, bool)> {
    let mut before = "";
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        let next = segments.peek().copied();
        let found = match before {
            "models" | "tunedModels" => segment.split_once(':').filter(|_| next.is_none_or(str::is_empty)).map(|(model, _)| model),
            "deployments" | "engines" | "model" => next.map(|_| segment),
            _ => None,
        };
        if let Some(model) = found.filter(|model| !model.is_empty()) {
            let decoded = percent_decode_str(model).decode_utf8().ok();
            // Servers cut at the first colon or at the last one.
            let clear = !matches!(before, "models" | "tunedModels") || segment.matches(':').count() == 1;
            let model = decoded
                .filter(|_| clear)
                .map_or(RequestModel::Unknown(UnknownModel::Unreadable), |model| RequestModel::Named(model.into()));
            return Some((model, before != "engines"));
        }
        before = segment;
    }
    None
}

/// The model of a WebSocket, such as `/v1/realtime?model=MODEL`.
fn in_query(query: &str) -> RequestModel {
    let (mut model, mut two) = (None, false);
    named_in(query.as_bytes(), &mut model, &mut two);
    match model {
        _ if two => RequestModel::Unknown(UnknownModel::Unreadable),
        Some(model) => RequestModel::Named(model),
        None => RequestModel::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("POST", target.as_bytes(), None).unwrap();
        fields.iter().for_each(|(name, value)| drop(request.append_header(*name, *value)));
        request
    }

    fn header_model(target: &str, fields: &[(&'static str, &str)], has_body: bool, upgrades: bool) -> Option<RequestModel> {
        match ModelSource::of_request(&request(target, fields), has_body, upgrades) {
            ModelSource::Header(model) => Some(model),
            ModelSource::Body(_) => None,
        }
    }

    /// The result after the whole body, which must be the same for all ways to cut it.
    fn body_model(content_type: &str, body: &str) -> Scanned {
        let scan = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let ModelSource::Body(mut scan) = ModelSource::of_request(&request("/v1/x", &[("content-type", content_type)]), true, false)
            else {
                panic!("{content_type}")
            };
            pieces.for_each(|piece| scan.feed(piece));
            scan.scanned(true)
        };
        let whole = scan(&mut std::iter::once(body.as_bytes()));
        assert_eq!(whole, scan(&mut body.as_bytes().chunks(1)), "byte by byte: {body}");
        whole
    }

    fn model(name: &str) -> RequestModel {
        RequestModel::Named(name.into())
    }

    #[test]
    fn model_in_the_path() {
        for (path, found) in [
            ("/v1beta/models/gemini-2.5-pro:generateContent", Some("gemini-2.5-pro")),
            ("/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", Some("gemini-2.5-pro")),
            ("/v1/publishers/google/models/tuned%2Fone:predict", Some("tuned/one")),
            ("/openai/deployments/my-gpt/chat/completions?api-version=1", Some("my-gpt")),
            ("/model/anthropic.claude-3-5-sonnet-20241022-v2%3A0/converse", Some("anthropic.claude-3-5-sonnet-20241022-v2:0")),
            ("/model/a:b/invoke", Some("a:b")),
            ("/v1beta/models/gemini-2.5-pro", None),
            ("/v1/models", None),
            ("/v1/models/:x", None),
            ("/v1beta/models/gemini-2.5-pro:generateContent/", Some("gemini-2.5-pro")),
            ("/v1beta/tunedModels/mine:generateContent", Some("mine")),
            ("/model/a/count-tokens", Some("a")),
            ("/v1/chat/completions", None),
        ] {
            assert_eq!(header_model(path, &[], true, false), found.map(model), "{path}");
        }
        for path in ["/v1beta/models/a:b:generateContent", "/v1beta/models/%ff:generateContent"] {
            assert_eq!(header_model(path, &[], true, false), Some(RequestModel::Unknown(UnknownModel::Unreadable)), "{path}");
        }
        assert_eq!(header_model("/v1/engines/ada/embeddings", &[], false, false), Some(model("ada")));
        assert_eq!(header_model("/model/%ff/invoke", &[], true, false), Some(RequestModel::Unknown(UnknownModel::Unreadable)));
    }

    #[test]
    fn model_of_a_websocket_and_of_no_body() {
        for (query, found) in [
            ("?model=gpt-realtime&x=1", model("gpt-realtime")),
            ("?x=1", RequestModel::Absent),
            ("?model=a&model=a", model("a")),
            ("?model=a&model=b", RequestModel::Unknown(UnknownModel::Unreadable)),
        ] {
            assert_eq!(header_model(&format!("/v1/realtime{query}"), &[], false, true), Some(found), "{query}");
        }
        assert_eq!(header_model("/v1/models", &[], false, false), Some(RequestModel::Absent));
        let gzip = header_model("/v1/x", &[("content-encoding", "gzip")], true, false);
        assert_eq!(gzip, Some(RequestModel::Unknown(UnknownModel::Compressed)));
        let mixed = header_model("/v1/x", &[("content-type", "multipart/mixed; boundary=b")], true, false);
        assert_eq!(mixed, Some(RequestModel::Unknown(UnknownModel::Unreadable)));
    }

    #[test]
    fn model_in_json() {
        let named = |name| Scanned::Model(model(name));
        let (absent, unreadable) = (Scanned::Model(RequestModel::Absent), Scanned::Model(RequestModel::Unknown(UnknownModel::Unreadable)));
        for (body, found) in [
            (r#"{"model":"m"}"#, named("m")),
            (r#"{"messages":[{"content":"\"model\":\"x\"","model":"y"}],"model":"m"}"#, named("m")),
            (r#"{"metadata":{"model":"x"},"model":"m","n":1e400}"#, named("m")),
            (r#"{"mod\u0065l":"a\u002fb"}"#, named("a/b")),
            (r#"{"Model":"m"}"#, named("m")),
            (r#"{"model":"m","model":"m"}"#, named("m")),
            (r#"{"model":"m","model":null}"#, named("m")),
            (r#"{"model":"m","model":"n"}"#, Scanned::Two),
            (r#"{"model":"m","MODEL":"n"}"#, Scanned::Two),
            (r#"{"model":"m"}{"model":"n"}"#, named("m")),
            (r#"{"model":""}"#, named("")),
            (r#"{"model":null}"#, absent.clone()),
            (r#"{"prompt":"x"}"#, absent.clone()),
            ("{}", absent.clone()),
            ("", absent),
            (r#"{"model":7}"#, unreadable.clone()),
            (r#"{"model":["m"]}"#, unreadable.clone()),
            (r#"{"model":{"name":"m"}}"#, unreadable.clone()),
            (r#"{"model":"m\x"}"#, unreadable.clone()),
            (r#"[{"model":"m"}]"#, unreadable.clone()),
            (r#"{"prompt":"x""#, unreadable.clone()),
            ("model=m", unreadable.clone()),
            ("{\u{0}\"\u{0}m\u{0}o\u{0}d\u{0}e\u{0}l\u{0}\"\u{0}:\u{0}\"\u{0}m\u{0}\"\u{0}}\u{0}", unreadable.clone()),
            (r#"{"a":1/*"model":"x"*/}"#, unreadable.clone()),
            ("{\0\"\0m\0", unreadable.clone()),
        ] {
            assert_eq!(body_model("application/json", body), found, "{body}");
        }
        assert_eq!(body_model("application/json", &format!(r#"{{"model":"{}"}}"#, "x".repeat(600))), unreadable);
        // The type is not what decides.
        assert_eq!(body_model("text/plain", r#"{"model":"m"}"#), named("m"));
    }

    #[test]
    fn model_in_a_form() {
        let part = |name: &str, value: &str| format!("--b0\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        let form = "multipart/form-data; boundary=b0";
        for (parts, found) in [
            (part("prompt", "x") + &part("model", "whisper-1"), Scanned::Model(model("whisper-1"))),
            (part("model", "a") + &part("model", "b"), Scanned::Two),
            (part("prompt", "x"), Scanned::Model(RequestModel::Absent)),
        ] {
            assert_eq!(body_model(form, &(parts.clone() + "--b0--\r\n")), found, "{parts}");
        }
        let plain = "application/x-www-form-urlencoded";
        assert_eq!(body_model(plain, "a=1&mod%65l=x%2Fy"), Scanned::Model(model("x/y")));
        assert_eq!(body_model(plain, "model=a&model=b"), Scanned::Two);
        assert_eq!(body_model(plain, "a=1"), Scanned::Model(RequestModel::Absent));
        assert_eq!(body_model(plain, r#"{"model":"m","prompt":"a&b=c"}"#), Scanned::Model(model("m")));
        assert_eq!(body_model(plain, r#"{"model":"m"}&model=n"#), Scanned::Two);
        assert_eq!(body_model(plain, r#"{"prompt":"m""#), Scanned::Model(RequestModel::Unknown(UnknownModel::Unreadable)));
        let unclear = Some(RequestModel::Unknown(UnknownModel::Unreadable));
        for content_type in [
            "application/json; charset=utf-7",
            "multipart/form-data; boundary=b0; boundary=b1",
            "multipart/form-data; x=\"; boundary=b0; y=\"; boundary=b1",
            "multipart/form-data; boundary=b0; boundary*=utf-8''b1",
        ] {
            assert_eq!(header_model("/v1/x", &[("content-type", content_type)], true, false), unclear, "{content_type}");
        }
        let two = [("content-type", "application/json"), ("content-type", "application/json")];
        assert_eq!(header_model("/v1/x", &two, true, false), unclear);
        assert_eq!(header_model("/v1/x", &[("content-type", "Application/JSON; Charset=\"UTF-8\"")], true, false), None);
        assert_eq!(body_model(plain, &"x".repeat(2_000_000)), Scanned::Model(RequestModel::Unknown(UnknownModel::Unreadable)));
    }
}
