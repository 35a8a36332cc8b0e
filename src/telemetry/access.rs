//! The access log: one JSON object per request and line, on standard output.
//!
//! Requests add lines to a bounded queue, and one thread writes them. If the reader is too slow, lines are dropped and
//! counted; a request never waits.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keylatch_filters::contract::{Cost, KeyId, MicroUnits, UsageRecord, write_address};
use prometheus::IntCounter;

use super::line_queue::{Limits, LineQueue};
use crate::upstream::{Address, server_name};

/// The capacity of the queue, in bytes.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// The pause between writes, so that lines are written in batches: a wake-up costs more than a line.
const BATCH_PAUSE: Duration = Duration::from_millis(25);

/// The longest wait for the last lines at shutdown.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

/// One line of the access log. It never holds a key, a token or a query string.
pub struct AccessLine<'a> {
    /// When the header was complete; RFC 3339, UTC, milliseconds.
    pub time: SystemTime,
    /// The request id, if the filter `request_id` ran.
    pub request_id: Option<&'a str>,
    /// The trace id of a valid `traceparent`.
    pub trace_id: Option<&'a str>,
    /// The client address.
    pub client: IpAddr,
    /// How the client address was determined.
    pub client_source: &'a str,
    /// The address of the other end of the connection.
    pub peer: IpAddr,
    /// The key id, written as its first 12 hex digits.
    pub key: Option<KeyId>,
    /// The verified identity: the name or `sub` of a token or certificate.
    pub subject: Option<&'a str>,
    /// The name of the route.
    pub route: Option<&'a str>,
    /// The method.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The HTTP version: `1.0`, `1.1` or `2`.
    pub http: &'static str,
    /// The status that the client got; 0 if it disconnected before.
    pub status: u16,
    /// The status of the upstream, if an early answer was sent before it.
    pub late_status: Option<u16>,
    /// The filter that answered, or `gate`.
    pub answered_by: Option<&'static str>,
    /// The reason for that answer.
    pub reason: Option<&'static str>,
    /// Details of the reason that only the log may show.
    pub detail: Option<&'a str>,
    /// Refusals by filters in shadow mode, as filter and reason.
    pub shadow: Vec<(&'static str, &'static str)>,
    /// Filters that could not check the request and let it pass.
    pub let_through: &'a [&'static str],
    /// The tags that rules added.
    pub tags: &'a [Arc<str>],
    /// The server that answered.
    pub upstream: Option<&'a Address>,
    /// The usage, if the filter `usage` ran.
    pub usage: Option<&'a UsageRecord>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// The time to the first byte of data from the upstream.
    pub first_byte_ms: Option<Duration>,
    /// The time to the end.
    pub duration_ms: Duration,
    /// The failure after the request was admitted.
    pub error: Option<&'a str>,
}

impl AccessLine<'_> {
    /// Writes the line as JSON. Written by hand, because it is on the hot path of every request.
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = Object { out, first: true };
        object.ascii("time", humantime::format_rfc3339_millis(self.time).to_string().as_bytes());
        object.text("request_id", self.request_id);
        object.text("trace_id", self.trace_id);
        object.address("client", self.client, None);
        object.text("client_source", Some(self.client_source));
        object.address("peer", self.peer, None);
        self.key.iter().for_each(|key| object.ascii("key", &key.short()));
        object.text("subject", self.subject);
        object.text("route", self.route);
        object.text("method", Some(self.method));
        object.text("path", Some(self.path));
        object.text("http", Some(self.http));
        object.number("status", u64::from(self.status));
        self.late_status.iter().for_each(|status| object.number("late_status", u64::from(*status)));
        object.text("answered_by", self.answered_by);
        object.text("reason", self.reason);
        object.text("detail", self.detail);
        object.pairs("shadow", &self.shadow);
        object.list("let_through", self.let_through.iter().copied());
        object.list("tags", self.tags.iter().map(AsRef::as_ref));
        match self.upstream {
            Some(Address::Inet(server)) => object.address("upstream", server.ip(), Some(server.port())),
            Some(server) => object.text("upstream", Some(&server_name(server))),
            None => {}
        }
        if let Some(usage) = self.usage {
            object.text("model", usage.model.as_deref());
            object.count("input_tokens", usage.tokens.input);
            object.count("cached_input_tokens", usage.tokens.cached_input);
            object.count("cache_write_tokens", usage.tokens.cache_write);
            object.count("output_tokens", usage.tokens.output);
            object.count("reasoning_tokens", usage.tokens.reasoning);
            object.count("images", usage.units.images);
            object.count("audio_ms", usage.units.audio_ms);
            object.count("characters", usage.units.characters);
            if let Some(cost) = usage.cost {
                object.money("cost", cost);
                object.ascii("currency", &cost.currency.0);
            }
            usage.first_token.iter().for_each(|after| object.milliseconds("first_token_ms", *after));
            object.ascii("usage_source", usage.source.as_str().as_bytes());
        }
        object.number("bytes_in", self.bytes_in);
        object.number("bytes_out", self.bytes_out);
        self.first_byte_ms.iter().for_each(|duration| object.milliseconds("first_byte_ms", *duration));
        object.milliseconds("duration_ms", self.duration_ms);
        object.text("error", self.error);
        out.extend_from_slice(b"}\n");
    }
}

/// Writes a JSON object. Its keys are constants that need no escapes.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Object<'_> {
    fn key(&mut self, key: &'static str) {
        self.out.extend_from_slice(if self.first { b"{\"" } else { b",\"" });
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.first = false;
    }

    /// Text that may need escapes; absent if `None`.
    fn text(&mut self, key: &'static str, text: Option<&str>) {
        let Some(text) = text else { return };
        self.key(key);
        if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
            self.out.push(b'"');
            self.out.extend_from_slice(text.as_bytes());
            self.out.push(b'"');
        } else {
            // Writing into memory cannot fail.
            let _ = serde_json::to_writer(&mut *self.out, text);
        }
    }

    /// ASCII text that needs no escapes.
    fn ascii(&mut self, key: &'static str, text: &[u8]) {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(text);
        self.out.push(b'"');
    }

    fn address(&mut self, key: &'static str, address: IpAddr, port: Option<u16>) {
        self.key(key);
        let brackets = port.is_some() && address.is_ipv6();
        self.out.extend_from_slice(if brackets { b"\"[" } else { b"\"" });
        write_address(address, self.out);
        if brackets {
            self.out.push(b']');
        }
        if let Some(port) = port {
            self.out.push(b':');
            self.out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
        }
        self.out.push(b'"');
    }

    /// A count; absent if it is 0.
    fn count(&mut self, key: &'static str, count: u64) {
        if count > 0 {
            self.number(key, count);
        }
    }

    /// An amount of money in units of the currency.
    fn money(&mut self, key: &'static str, cost: Cost) {
        self.key(key);
        let _ = write!(self.out, "{}", MicroUnits(cost.micros));
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Milliseconds with three decimal places.
    fn milliseconds(&mut self, key: &'static str, value: Duration) {
        self.key(key);
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let mut digits = itoa::Buffer::new();
        self.out.extend_from_slice(digits.format(micros / 1000).as_bytes());
        // Formats 1000 to 1999 and drops the leading 1, which gives three digits with leading zeros.
        let thousandths = digits.format(1000 + micros % 1000).as_bytes();
        self.out.push(b'.');
        self.out.extend_from_slice(thousandths.get(1..).unwrap_or_default());
    }

    /// Words from constants or the configuration, which need no escapes; absent if there are none.
    fn list<'w>(&mut self, key: &'static str, words: impl Iterator<Item = &'w str>) {
        let mut none = true;
        for word in words {
            if none {
                self.key(key);
            }
            self.out.extend_from_slice(if none { b"[\"" } else { b",\"" });
            self.out.extend_from_slice(word.as_bytes());
            self.out.push(b'"');
            none = false;
        }
        if !none {
            self.out.push(b']');
        }
    }

    /// `["filter:reason", …]`; absent if there are none.
    fn pairs(&mut self, key: &'static str, pairs: &[(&'static str, &'static str)]) {
        if pairs.is_empty() {
            return;
        }
        self.key(key);
        for (index, (filter, reason)) in pairs.iter().enumerate() {
            let _ = write!(self.out, "{}\"{filter}:{reason}\"", if index == 0 { '[' } else { ',' });
        }
        self.out.push(b']');
    }
}

/// The queue of access lines.
#[derive(Clone)]
pub struct AccessLog(LineQueue);

impl AccessLog {
    /// Starts the thread that writes to standard output.
    pub fn stdout(lost: IntCounter) -> std::io::Result<Self> {
        let mut out = std::io::stdout();
        let limits = Limits { waiting_bytes_max: WAITING_BYTES_MAX, pause: BATCH_PAUSE };
        LineQueue::start("access-log", limits, lost, move |batch| out.write_all(batch).and_then(|()| out.flush())).map(Self)
    }

    /// Adds a line.
    pub fn write(&self, line: &AccessLine<'_>) {
        self.0.push(|out| line.write(out));
    }

    /// Waits until all lines are written, for at most one second.
    pub fn close(&self) {
        self.0.flush(CLOSE_WAIT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use keylatch_filters::contract::{CountSource, Currency, OtherUnits, TokenCounts};

    use super::*;

    fn json(change: impl FnOnce(&mut AccessLine<'_>)) -> serde_json::Value {
        let mut line = AccessLine {
            time: SystemTime::UNIX_EPOCH,
            request_id: None,
            trace_id: None,
            client: IpAddr::from([127, 0, 0, 1]),
            client_source: "peer",
            peer: IpAddr::from([0; 16]),
            key: None,
            subject: None,
            route: None,
            method: "GET",
            path: "/",
            http: "1.1",
            status: 200,
            late_status: None,
            answered_by: None,
            reason: None,
            detail: None,
            shadow: Vec::new(),
            let_through: &[],
            tags: &[],
            upstream: None,
            usage: None,
            bytes_in: 0,
            bytes_out: u64::MAX,
            first_byte_ms: None,
            duration_ms: Duration::from_micros(5),
            error: None,
        };
        change(&mut line);
        let mut out = Vec::new();
        line.write(&mut out);
        assert_eq!(out.pop(), Some(b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn every_line_is_json() {
        let least = json(|_| ());
        assert_eq!(
            least.to_string(),
            r#"{"time":"1970-01-01T00:00:00.000Z","client":"127.0.0.1","client_source":"peer","peer":"::","method":"GET","path":"/","http":"1.1","status":200,"bytes_in":0,"bytes_out":18446744073709551615,"duration_ms":0.005}"#
        );
        let upstream = |address: &str| Address::Inet(address.parse().unwrap());
        let full = json(|line| {
            line.key = Some(KeyId([0xab; 32]));
            line.subject = Some("a\"b\\c\nd\u{7}é");
            line.shadow = vec![("rate_limit", "limit"), ("bearer", "missing")];
            line.first_byte_ms = Some(Duration::from_micros(1_234_050));
        });
        assert_eq!(full["key"], "abababababab");
        assert_eq!(full["subject"], "a\"b\\c\nd\u{7}é");
        assert_eq!(full["shadow"], serde_json::json!(["rate_limit:limit", "bearer:missing"]));
        let unix = Address::Unix(std::os::unix::net::SocketAddr::from_pathname("/run/a \"b\".sock").unwrap());
        for (address, written) in
            [(upstream("127.0.0.1:80"), "127.0.0.1:80"), (upstream("[::1]:80"), "[::1]:80"), (unix, "unix:/run/a \"b\".sock")]
        {
            let address = &*Box::leak(Box::new(address));
            assert_eq!(json(|line| line.upstream = Some(address))["upstream"], written);
        }
        assert_eq!(full["first_byte_ms"], 1234.05);
        let usage = UsageRecord {
            at: SystemTime::UNIX_EPOCH,
            key: None,
            subject: None,
            model: Some("a\"b".into()),
            route: "r".into(),
            upstream: "u".into(),
            status: 200,
            tokens: TokenCounts { input: 7, output: 1, ..TokenCounts::default() },
            units: OtherUnits::default(),
            source: CountSource::Reported,
            cost: Some(Cost { micros: 1_000_125, currency: Currency(*b"USD") }),
            streamed: false,
            first_token: None,
            duration: Duration::ZERO,
        };
        let used = json(|line| line.usage = Some(Box::leak(Box::new(usage))));
        let shown = used.as_object().unwrap().iter().skip_while(|(key, _)| *key != "model").take(6).map(|(_, value)| value.to_string());
        assert_eq!(shown.collect::<Vec<_>>(), ["\"a\\\"b\"", "7", "1", "1.000125", "\"USD\"", "\"reported\""]);
    }
}
