//! Reads an answer: what it reports, how much text it has, and whether it is complete. It prices and estimates nothing.

use std::sync::Arc;

use super::Reported;
use super::answer_paths::{Part, Place};
use super::event_stream::EventStream;
use super::json_paths::{JsonPaths, Sink};
use super::json_text::Text;
use super::reported::{Counts, parse_seconds};
use crate::contract::OtherUnits;

/// The format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFormat {
    /// One JSON value. The elements of an array are events, as Gemini sends them.
    Json,
    /// Server-sent events with JSON data.
    EventStream,
    /// JSON values in lines, as Ollama sends them.
    JsonLines,
}

/// The usage of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerUsage {
    /// What the answer reports, with the images in it. `None`: no count that is not zero.
    pub reported: Option<Reported>,
    /// The first model that the answer names, if the name has at most 128 bytes.
    pub model: Option<Arc<str>>,
    /// Characters of generated text, with reasoning and arguments of tools. A surrogate pair that is escaped counts two.
    pub text_chars: u64,
    /// Those of reasoning.
    pub reasoning_chars: u64,
    /// Generated images.
    pub images: u64,
    /// Whether the end of the answer was seen: the last event of a stream, the reason why a text ended, or a complete JSON value.
    pub ended: bool,
}

/// Reads an answer, piece by piece.
#[derive(Debug)]
pub struct AnswerScan {
    layer: Layer,
    json: JsonPaths<Place>,
    answer: Answer,
}

#[derive(Debug)]
enum Layer {
    Json,
    EventStream(EventStream),
    JsonLines,
}

impl AnswerScan {
    /// Starts before the first byte of the body.
    pub fn new(format: AnswerFormat) -> Self {
        let layer = match format {
            AnswerFormat::Json => Layer::Json,
            AnswerFormat::EventStream => Layer::EventStream(EventStream::new()),
            AnswerFormat::JsonLines => Layer::JsonLines,
        };
        Self { layer, json: JsonPaths::new(), answer: Answer::default() }
    }

    /// Reads the next piece of the body, without its content coding.
    pub fn feed(&mut self, bytes: &[u8]) {
        match &mut self.layer {
            Layer::Json => self.json.feed(bytes, &mut self.answer),
            Layer::EventStream(stream) => stream.feed(bytes, &mut self.json, &mut self.answer),
            Layer::JsonLines => {
                let mut rest = bytes;
                while let Some((line, after)) = memchr::memchr(b'\n', rest).and_then(|end| rest.split_at_checked(end)) {
                    self.json.feed(line, &mut self.answer);
                    self.json.line_end(&mut self.answer);
                    rest = after.get(1..).unwrap_or_default();
                }
                self.json.feed(rest, &mut self.answer);
            }
        }
    }

    /// Whether generated text was seen, for the time to the first token.
    pub fn text_seen(&self) -> bool {
        self.answer.text_seen
    }

    /// The usage of the body so far. Call it after the last piece: it ends the current event.
    pub fn finish(&mut self) -> AnswerUsage {
        let is_whole = self.json.is_complete();
        let ended = match &mut self.layer {
            Layer::Json => is_whole,
            Layer::JsonLines => false,
            Layer::EventStream(stream) => {
                stream.finish(&mut self.json, &mut self.answer);
                stream.is_done()
            }
        };
        self.json.reset(&mut self.answer);
        self.answer.usage(ended)
    }
}

/// Characters of text, and those of reasoning.
#[derive(Clone, Copy, Debug, Default)]
struct Chars {
    text: u64,
    reasoning: u64,
    /// Reasoning under its other name; servers that use both repeat it.
    reasoning_again: u64,
}

impl Chars {
    fn reasoning(&self) -> u64 {
        self.reasoning.max(self.reasoning_again)
    }

    fn all(&self) -> u64 {
        self.text.saturating_add(self.reasoning())
    }
}

/// The type of an event, where it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EventType {
    #[default]
    Other,
    /// The last one of a stream.
    Last,
    /// The last one of a stream of an image.
    LastOfImage,
    /// A part of reasoning.
    Reasoning,
    /// A part of audio, in base64.
    Audio,
}

impl EventType {
    fn parse(name: &str) -> Self {
        match name {
            "message_stop"
            | "message-end"
            | "stream-end"
            | "response.completed"
            | "response.incomplete"
            | "response.failed"
            | "transcript.text.done"
            | "speech.audio.done" => EventType::Last,
            "image_generation.completed" | "image_edit.completed" => EventType::LastOfImage,
            _ if name.starts_with("response.reasoning") => EventType::Reasoning,
            _ if name.ends_with("audio.delta") => EventType::Audio,
            _ => EventType::Other,
        }
    }
}

/// What was read so far.
#[derive(Debug, Default)]
struct Answer {
    counts: Counts,
    model: Option<Arc<str>>,
    billed_ms: u64,
    duration_ms: u64,
    images: u64,
    ended: bool,
    text_seen: bool,
    /// Of texts that follow each other.
    chars: Chars,
    /// Of the longest whole text of an event.
    whole_chars: Chars,
    event: Event,
}

/// The current event.
#[derive(Debug, Default)]
struct Event {
    kind: EventType,
    chars: Chars,
    whole_chars: Chars,
    /// Of a `delta` at the root: the type of the event says what it is.
    delta_chars: u64,
    /// Of the current part of Gemini.
    part_chars: u64,
    part_is_thought: bool,
    has_image: bool,
}

impl Answer {
    fn usage(&mut self, ended: bool) -> AnswerUsage {
        let chars = if self.chars.all() > 0 { self.chars } else { self.whole_chars };
        let audio_ms = if self.billed_ms > 0 { self.billed_ms } else { self.duration_ms };
        let units = OtherUnits { images: self.images, audio_ms, characters: 0 };
        let reported = Reported { tokens: self.counts.tokens(), units };
        AnswerUsage {
            reported: (reported != Reported::default()).then_some(reported),
            model: self.model.clone(),
            text_chars: chars.all(),
            reasoning_chars: chars.reasoning(),
            images: self.images,
            ended: ended || self.ended,
        }
    }

    fn chars_of(&mut self, part: Part) -> &mut Chars {
        match part {
            Part::Next => &mut self.event.chars,
            Part::Whole => &mut self.event.whole_chars,
        }
    }

    fn part_end(&mut self) {
        let chars = std::mem::take(&mut self.event.part_chars);
        let is_thought = std::mem::take(&mut self.event.part_is_thought);
        add(if is_thought { &mut self.event.chars.reasoning } else { &mut self.event.chars.text }, chars);
    }
}

impl Sink<Place> for Answer {
    fn scalar(&mut self, place: Place, token: &[u8]) {
        match (place, token) {
            (Place::Count(field), _) => self.counts.keep(field, token),
            (Place::Done, b"true") => self.ended = true,
            (Place::GeminiThought, b"true") => self.event.part_is_thought = true,
            (Place::BilledSeconds, _) => keep_seconds(&mut self.billed_ms, token),
            (Place::Duration, _) => keep_seconds(&mut self.duration_ms, token),
            _ => {}
        }
    }

    fn text(&mut self, place: Place, text: Text<'_>) {
        self.text_seen |= text.chars > 0;
        match place {
            Place::Text(part) | Place::Content(part) | Place::Arguments(part) => add(&mut self.chars_of(part).text, text.chars),
            Place::Reasoning(part) => add(&mut self.chars_of(part).reasoning, text.chars),
            Place::ReasoningAgain(part) => add(&mut self.chars_of(part).reasoning_again, text.chars),
            Place::Response => add(&mut self.event.chars.text, text.chars),
            Place::GeminiText => add(&mut self.event.part_chars, text.chars),
            Place::Delta => add(&mut self.event.delta_chars, text.chars),
            Place::Type => self.event.kind = text.whole().map(EventType::parse).unwrap_or_default(),
            // DashScope has the text `null` until the end.
            Place::EndReason => self.ended |= text.whole() != Some("null"),
            Place::Image => self.event.has_image |= text.bytes > 0,
            Place::Duration => keep_seconds(&mut self.duration_ms, text.start),
            Place::Model if self.model.is_none() => {
                self.model = text.whole().filter(|name| !name.is_empty()).map(Arc::from);
            }
            _ => {}
        }
    }

    fn object_end(&mut self, place: Place) {
        match place {
            Place::GeminiParts => self.part_end(),
            Place::Images => self.images = self.images.saturating_add(std::mem::take(&mut self.event.has_image).into()),
            _ => {}
        }
    }

    fn event_end(&mut self) {
        self.part_end();
        let event = std::mem::take(&mut self.event);
        match event.kind {
            EventType::Reasoning => add(&mut self.chars.reasoning, event.delta_chars),
            EventType::Audio => {}
            _ => add(&mut self.chars.text, event.delta_chars),
        }
        self.ended |= matches!(event.kind, EventType::Last | EventType::LastOfImage);
        self.images = self.images.saturating_add((event.kind == EventType::LastOfImage).into());
        add(&mut self.chars.text, event.chars.text);
        add(&mut self.chars.reasoning, event.chars.reasoning());
        if event.whole_chars.all() > self.whole_chars.all() {
            self.whole_chars = event.whole_chars;
        }
    }
}

fn add(sum: &mut u64, chars: u64) {
    *sum = sum.saturating_add(chars);
}

fn keep_seconds(kept_ms: &mut u64, token: &[u8]) {
    if let Some(ms) = std::str::from_utf8(token).ok().and_then(parse_seconds).filter(|ms| *ms > 0) {
        *kept_ms = ms;
    }
}
