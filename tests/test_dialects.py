"""Every dialect, directly and through Keylatch: a client sees the same events, or the same error.

The cases are `{dialect} × {behaviour of the upstream} × {frame}`, read by WHATWG HTML, section 9.2,
and by client libraries that applications use. All cases run in parallel before the first test,
because most of their time is silence of the upstream."""

import concurrent.futures
import dataclasses
import http.client
import json

import httpx
import pytest
from support import sdks
from support.dialects import CASES, CUTS, DIALECTS, RETRY_AFTER, TEXT, Fake, sse_events
from support.keylatch import Keylatch, wait_for

KINDS = ["auto", "comment", "comment_line", "blank_line", "event"]
LATE = ("late_stream", "late_json", "late_error")


def address(kind, case):
    """A loopback address for each kind of frame and group of cases. Every library accepts an
    address, but not every one a `Host`.

    Early headers are enabled only for cases about them, because a busy machine may answer late in
    every case. A truncated stream ends its connection, which a library with keep-alive must not use
    for another case."""
    group = 1 if case in LATE else 3 if case.startswith("cut") else 0
    return f"127.0.{group}.{KINDS.index(kind) + 1}"


def routes(kind, case):
    """A route for all paths, and one for the dialect that only the configuration identifies."""
    options = f"interval: 100ms, frame: {kind}" + (", before_headers: 100ms" if case in LATE else "")
    return "".join(
        f"""
  - name: {kind}-{case}-{name}
    match: {{{{hosts: ["{address(kind, case)}"]{match}}}}}
    upstream: model
    {dialect}
    filters:
      - sse_keepalive: {{{{{options}}}}}"""
        for name, match, dialect in (("mistral", ', paths: ["/mistral/*"]', "dialect: mistral"), ("all", "", ""))
    )


PLACES = [(kind, case) for kind in KINDS for case in ("stream", "late_stream", "cut")]
PADDED = "127.0.2.1"
CONFIG = f"""
listeners: [{", ".join(f'{{{{address: "{host}:{{port}}"}}}}' for host in [*(address(*place) for place in PLACES), PADDED])}]
admin: {{{{address: "127.0.0.1:{{admin}}"}}}}
storage: memory
shutdown: {{{{drain: 1s}}}}
upstreams: [{{{{name: model, servers: [{{{{address: "127.0.0.1:{{upstream}}"}}}}]}}}}]
routes:{"".join(routes(*place) for place in PLACES)}
  - name: padded
    match: {{{{hosts: ["{PADDED}"]}}}}
    upstream: model
    filters:
      - sse_keepalive: {{{{interval: 100ms, json_padding: 100ms}}}}
"""

# The request accepts only an event stream, so Keylatch may send an early header.
EARLY = ("openai", "mistral", "responses", "anthropic", "gemini", "cohere", "dashscope")


@dataclasses.dataclass
class Answer:
    """The response as received."""

    status: int
    fields: dict
    body: bytes
    whole: bool

    @property
    def is_event_stream(self):
        return self.fields.get("content-type", "").startswith("text/event-stream")

    def events(self):
        """The events, without keep-alive events."""
        return [one for one in sse_events(self.body) if one[0] not in ("ping", "keepalive")]


def fields_of(dialect, case, cut):
    return {"X-Dialect": dialect.name, "X-Case": case, "X-Cut": cut, "Content-Type": "application/json", **dict(dialect.fields)}


def send_request(host, port, dialect, case, cut):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request("POST", dialect.path, json.dumps(dialect.request), fields_of(dialect, case, cut))
    response = connection.getresponse()
    body, whole = b"", True
    try:
        while piece := response.read1(65536):
            body += piece
    except (http.client.IncompleteRead, ConnectionError) as error:
        whole, body = False, body + getattr(error, "partial", b"")
    connection.close()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body, whole)


def ask_by_http2(host, port, dialect, case, cut):
    body, whole = b"", True
    with httpx.Client(http1=False, http2=True, timeout=20, trust_env=False, verify=False) as client:
        url = f"http://{host}:{port}{dialect.path}"
        with client.stream("POST", url, content=json.dumps(dialect.request), headers=fields_of(dialect, case, cut)) as response:
            try:
                for piece in response.iter_raw():
                    body += piece
            except httpx.HTTPError:
                whole = False
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body, whole)


class Matrix:
    """A fake, a Keylatch in front of it, and the results of all cases."""

    def __init__(self, folder):
        self.fake = Fake()
        self.keylatch = Keylatch(folder, self.fake.port, config=CONFIG)
        self.keylatch.start()
        self.node = sdks.Node()
        self.pool = concurrent.futures.ThreadPoolExecutor(48)
        self.done = {}

    def begin(self):
        """Starts every case."""
        for name, case, cut, kind in CASES_OF_CLIENTS:
            if kind == "direct":
                way, place = send_request, ("127.0.0.1", self.fake.port)
            elif kind == "http2":
                way, place = ask_by_http2, (address("auto", case), self.keylatch.port)
            else:
                way, place = send_request, (address(kind, case), self.keylatch.port)
            self._start((name, case, cut, kind), way, *place, DIALECTS[name], case, cut)
        for name in [*sdks.PYTHON, *sdks.JAVASCRIPT]:
            for case in CASES_OF_LIBRARIES:
                place = f"{address(KIND_FOR.get(name, 'auto'), case)}:{self.keylatch.port}"
                self._start((name, case, "direct"), self.run, name, f"http://127.0.0.1:{self.fake.port}", case)
                self._start((name, case, "through"), self.run, name, f"http://{place}", case)

    def _start(self, key, what, *arguments):
        self.done[key] = self.pool.submit(what, *arguments)

    def run(self, name, base, case):
        """Runs one library in a case."""
        fields = {"X-Case": case, "X-Cut": "lines"}
        if name in sdks.PYTHON:
            run, dialect = sdks.PYTHON[name]
            return run(base, {**fields, "X-Dialect": dialect})
        return self.node.run(name, base, {**fields, "X-Dialect": sdks.JAVASCRIPT[name]})

    def __getitem__(self, key):
        return self.done[key].result()

    def close(self):
        self.pool.shutdown(cancel_futures=True)
        self.node.close()
        self.keylatch.stop()
        self.fake.close()


def cases_of_clients():
    """Each case once, and streams in every division into chunks. Frames other than `auto` only in
    cases that send frames."""
    for name, dialect in DIALECTS.items():
        for case in CASES:
            for cut in CUTS if case == "stream" else ["lines"]:
                framed = dialect.is_event_stream and case not in ("json", "error_before")
                for kind in ["direct", *(KINDS if framed else ["auto"]), "http2"]:
                    yield name, case, cut, kind


CASES_OF_CLIENTS = list(cases_of_clients())
# Left out: unmodified answers are tested above, and libraries differ in their handling of a late
# JSON answer.
CASES_OF_LIBRARIES = [case for case in CASES if case not in ("json", "late_json", "cut_inside")]
# This library takes a blank line for a message, as test_heartbeats.py shows, and sends the
# browser's `User-Agent`.
KIND_FOR = {"fetch-event-source": "comment_line"}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    made = Matrix(tmp_path_factory.mktemp("matrix"))
    try:
        made.begin()
        yield made
    finally:
        made.close()


def error_contents(dialect, event):
    """The contents of an error event: a message, and type and code if the dialect has them."""
    kind, _, data = event
    said = json.loads(data)
    if dialect.name == "anthropic":
        assert (kind, said["type"]) == ("error", "error")
        return said["error"]["message"], said["error"]["type"]
    if dialect.name == "responses":
        assert (kind, said["type"]) == ("error", "error") and isinstance(said["sequence_number"], int)
        return said["error"]["message"], said["error"]["type"], said["error"]["code"]
    if dialect.name == "gemini":
        assert kind == "message"
        return said["error"]["message"], said["error"]["status"], said["error"]["code"]
    if dialect.name == "cohere":
        assert (kind, said["type"], said["delta"]["finish_reason"]) == ("message-end", "message-end", "ERROR")
        return (said["delta"]["error"],)
    if dialect.name == "mcp":
        assert (kind, said["jsonrpc"], said["id"]) == ("message", "2.0", "call-1")
        return (said["error"]["message"],)
    if dialect.name == "dashscope":
        return said["message"], said["code"]
    assert kind == "message" and (dialect.name == "mistral" or "status" in said["error"] or "request_id" in said["error"])
    return said["error"]["message"], said["error"]["type"], said["error"]["code"]


def answer_in(dialect, events):
    """The JSON answer inside a stream that Keylatch began."""
    said = [json.loads(data) for _, _, data in events if data != "[DONE]"]
    if dialect.name == "responses":
        return [said[-1]["response"]]
    if dialect.name == "anthropic":
        assert [kind for kind, _, _ in events] == ["message_start", "message_stop"]
        return [said[0]["message"]]
    return said


def refusal(dialect):
    """The contents of the upstream's own error, in the order of `error_contents`."""
    said = dialect.refusal.get("error", dialect.refusal)
    if dialect.name == "gemini":
        return said["message"], said["status"], said["code"]
    if dialect.name in ("cohere", "mcp"):
        return (said["message"],)
    if dialect.name == "dashscope":
        return said["message"], said["code"]
    return tuple(said[name] for name in ("message", "type", "code") if name in said)


def compare(dialect, case, direct, through, kind):
    """Asserts that a client sees the same as without Keylatch."""
    if case == "cut" and dialect.name == "ollama":
        # A stream of JSON lines can carry an error line.
        assert (direct.whole, through.whole) == (False, True) and through.body.startswith(direct.body)
        assert "ended the response too early" in json.loads(through.body.removeprefix(direct.body))["error"]
        return
    as_it_is = not dialect.is_event_stream or case in ("json", "error_before")
    if as_it_is or (case in ("late_json", "late_error") and dialect.name not in EARLY):
        assert (through.status, through.body, through.whole) == (direct.status, direct.body, direct.whole)
        assert through.fields["content-type"] == direct.fields["content-type"]
        assert through.fields.get("retry-after") == direct.fields.get("retry-after") == (RETRY_AFTER if direct.status > 400 else None)
        return
    # Within a line no error can be added, so the connection ends as the upstream's did.
    assert (through.status, through.is_event_stream, through.whole) == (200, True, case != "cut_inside")
    events = through.events()
    if case == "late_json":
        assert answer_in(dialect, events) == [dialect.answer]
    elif case == "late_error":
        assert len(events) == 1 and error_contents(dialect, events[0]) == refusal(dialect)
    elif case == "cut":
        assert not direct.whole and events[:-1] == direct.events()
        assert "ended the response too early" in error_contents(dialect, events[-1])[0]
    else:
        assert events == direct.events()
    if case == "stream":
        assert through.body != direct.body, "no frame was sent"
        check_frames(dialect, kind, through.body)


def check_frames(dialect, kind, body):
    """`auto` sends frames that the clients of the dialect accept."""
    if kind == "blank_line" or (kind == "auto" and dialect.name == "gemini"):
        assert b": keep-alive" not in body
    elif kind == "auto" and dialect.name == "anthropic":
        assert body.count(b"event: ping\n") > 1
    elif kind != "event":
        assert b": keep-alive\n" in body


@pytest.mark.parametrize(("dialect", "case", "cut", "kind"), [case for case in CASES_OF_CLIENTS if case[3] != "direct"])
def test_a_client_sees_the_same(matrix, dialect, case, cut, kind):
    compare(DIALECTS[dialect], case, matrix[dialect, case, cut, "direct"], matrix[dialect, case, cut, kind], "auto" if kind == "http2" else kind)


@pytest.mark.parametrize("case", CASES_OF_LIBRARIES)
@pytest.mark.parametrize("library", [*sdks.PYTHON, *sdks.JAVASCRIPT])
def test_a_library_sees_the_same(matrix, library, case):
    direct, through = matrix[library, case, "direct"], matrix[library, case, "through"]
    dialect = DIALECTS[sdks.PYTHON[library][1] if library in sdks.PYTHON else sdks.JAVASCRIPT[library]]
    if case == "cut":
        # At an aborted connection a library may drop unread data, so with Keylatch's error event it
        # may see more words, not fewer.
        assert through.text.startswith(direct.text) and TEXT.startswith(through.text) and direct.error
        assert through.error or (library, through.finish.split()[0]) == ("cohere", "ERROR")
    elif case == "late_error" and library == "mistralai":
        # This library does not recognise errors within a stream, not even the API's own.
        assert (through.text, through.error[0]) == ("", matrix[library, "error_inside", "direct"].error[0])
    elif case == "late_error" and dialect.name in EARLY:
        # Cohere's library does not raise on an error within a stream.
        said = through.finish if library == "cohere" else through.error[1]
        assert through.text == "" and refusal(dialect)[0] in said
    else:
        assert (through.text, through.finish, through.error) == (direct.text, direct.finish, direct.error)


def test_a_long_body_with_the_stream_flag_first(matrix):
    """The body arrives in two pieces, with the flag `stream` in the first."""
    content = [{"role": "user", "content": "x" * 100_000}]
    dialect = dataclasses.replace(DIALECTS["openai"], request={"stream": True, "messages": content})
    answer = send_request(address("auto", "late_error"), matrix.keylatch.port, dialect, "late_error", "lines")
    assert answer.status == 200 and error_contents(dialect, answer.events()[0]) == refusal(dialect)


@pytest.mark.parametrize(
    ("agent", "frame"),
    [
        ("codex_cli_rs/0.50.0 (Linux)", b"event: keepalive\n"),
        ("codex_exec/0.171.0 (Debian 12.0.0; x86_64) xterm (codex_exec; 0.171.0)", b"event: keepalive\n"),
        ("codex_sdk_ts/0.171.0 (Debian 12.0.0; x86_64) xterm (codex_exec; 0.171.0)", b"event: keepalive\n"),
        ("google-genai-sdk/3.6.1", b"\n\n\n"),
        ("my-app/1", b": keep-alive\n\n"),
    ],
)
def test_known_clients_get_their_own_frame(matrix, agent, frame):
    dialect = dataclasses.replace(DIALECTS["responses"], fields=(("User-Agent", agent),))
    answer = send_request(address("auto", "stream"), matrix.keylatch.port, dialect, "stream", "events")
    assert answer.events() == matrix["responses", "stream", "events", "direct"].events()
    others = {b"event: keepalive\n", b"\n\n\n", b": keep-alive\n"} - {frame, frame.rstrip(b"\n") + b"\n"}
    assert frame in answer.body and not any(other in answer.body for other in others)


@pytest.mark.parametrize("library", ["openai", "openai-responses", "anthropic", "google-genai", "cohere", "mistralai"])
def test_libraries_ignore_white_space_before_an_answer(matrix, library):
    dialect = sdks.PYTHON[library][1]
    fields = {"X-Dialect": dialect, "X-Case": "late_json"}
    early = 'keylatch_late_answers_total{route="padded",status="200"}'
    before = matrix.keylatch.metrics().get(early, 0)
    assert sdks.plain(library, f"http://{PADDED}:{matrix.keylatch.port}", fields) == TEXT
    wait_for(lambda: matrix.keylatch.metrics().get(early, 0) > before, "an early header was sent")
