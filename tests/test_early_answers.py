"""Early response headers before the upstream's: when Keylatch sends them, and the form of a late
answer."""

import contextlib
import json
import signal
import socket
import threading
import time

import httpx
import pytest
from support import raw
from support.keylatch import DEFAULT, wait_for
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain

CONFIG = DEFAULT.replace('paths: ["/v1/*"]', 'paths: ["/*"]')
CHAIN = "      - sse_keepalive: {interval: 100ms, before_headers: 200ms%s}"
CHAT = {"model": "m", "messages": [], "stream": True}
JSON = "Content-Type: application/json"


class GatedUpstream:
    """An upstream that receives requests, and answers after `go` is set."""

    def __init__(self, answer):
        self.go = threading.Event()
        self.said = answer
        self.upstream = Scripted(self._answer)

    def _answer(self, request, send):
        assert self.go.wait(10)
        self.said(send)
        return False

    @property
    def port(self):
        return self.upstream.port

    @property
    def requests(self):
        return self.upstream.requests


class UnreadUpstream:
    """An upstream that reads chunked requests after `read` is set, and answers after `go` is set."""

    def __init__(self, answer):
        self.read, self.go, self.said = threading.Event(), threading.Event(), answer
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            threading.Thread(target=self._serve, args=self.listener.accept()[:1], daemon=True).start()

    def _serve(self, connection):
        with connection:
            end = connection.recv(1)
            assert self.read.wait(20)
            while end and not end.endswith(b"\r\n0\r\n\r\n"):
                end = (end + connection.recv(65_536))[-7:]
            # A health check sends nothing.
            if end and self.go.wait(20):
                self.said(connection.sendall)


def whole(status, body, *headers):
    return lambda send: send(plain(status, body if isinstance(body, bytes) else json.dumps(body).encode(), headers))


def stream(*events):
    def answer(send):
        send(STREAM_HEAD)
        for event in events:
            send(chunk(event))
        send(chunk(b""))

    return answer


def begin(port, path, body, headers=(), method="POST"):
    """Sends a request; returns the connection and a file to read from."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = raw.connect(port)
    fields = [("Host", "localhost"), ("Content-Length", str(len(body))), *headers]
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
    connection.sendall(head.encode() + body)
    return connection, connection.makefile("rb")


def assert_early_header(keylatch, held, path, body, headers=()):
    """Asserts an early header; returns the header and the whole body."""
    connection, file = begin(keylatch.port, path, body, headers)
    with connection:
        status, fields = raw.read_head(file)
        assert not held.go.is_set(), "the header arrives before the upstream answers"
        held.go.set()
        text, complete = raw.read_body(file, fields)
        return status, dict(fields), text, complete


def assert_no_early_header(keylatch, held, path, body, headers=(), method="POST"):
    """Asserts that no early header is sent; returns the upstream's own answer."""
    connection, file = begin(keylatch.port, path, body, headers, method)
    with connection:
        wait_for(lambda: held.requests, "the upstream has the request")
        connection.settimeout(0.6)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        held.go.set()
        # A file object is unusable after a time-out, so this reads the socket.
        file = connection.makefile("rb")
        status, fields = raw.read_head(file)
        text, complete = raw.read_body(file, fields)
        assert complete
        return status, dict(fields), text


def last_line(keylatch):
    return wait_for(keylatch.access_log, "the access line")[-1]


def without_frames(text):
    return text.replace(b": keep-alive\n\n", b"")


def form(*parts):
    body = b"".join(b"--b0\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + value + b"\r\n" for head, value in parts)
    return body + b"--b0--\r\n", [("Content-Type", "multipart/form-data; boundary=b0")]


# Early headers.


GEMINI = "/v1beta/models/m:streamGenerateContent"
ASKED = [
    ("/v1/chat/completions", CHAT, []),
    ("/v1/chat/completions", CHAT, [("Accept", "application/json")]),
    ("/v1/responses", {"input": "x", "stream": True}, []),
    ("/v1/audio/speech", {"input": "x", "stream_format": "sse"}, []),
    ("/v1/audio/transcriptions", *form((b'name="file"; filename="a.wav"', b"\0" * 300_000), (b'name="stream"', b"true"))),
    ("/v1/images/edits", *form((b'name="stream"', b"true"), (b'name="prompt"', b"x"))),
    (GEMINI + "?alt=sse", {"contents": []}, []),
    ("/v1/anything", {}, [("Accept", "text/event-stream")]),
    ("/api/v1/services/aigc/generation", {}, [("X-DashScope-SSE", "enable")]),
    ("/v1/agents/run", {"x": 1}, []),
]


@pytest.mark.parametrize("path,body,headers", ASKED, ids=[path for path, _, _ in ASKED])
def test_requests_for_a_stream_get_an_early_header(start, path, body, headers):
    held = GatedUpstream(stream(b"data: 1\n\n"))
    keylatch = start(held, config=CONFIG, route_filters=CHAIN % ", wanted_when: 'request.path == \"/v1/agents/run\"'")
    status, fields, text, complete = assert_early_header(keylatch, held, path, body, headers)
    assert (status, complete) == (200, True) and fields["content-type"].startswith("text/event-stream")
    assert text.endswith(b"data: 1\n\n")
    assert last_line(keylatch)["late_status"] == 200 and "error" not in last_line(keylatch)


NDJSON = b'{"message":{"content":"a"},"done":false}\n{"done":true}\n'
MCP = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {}}
NOT_ASKED = [
    ("/api/chat", {"model": "m", "stream": True}, [], NDJSON, "application/x-ndjson"),
    ("/api/chat", {"model": "m", "stream": True}, [("Accept", "text/event-stream")], NDJSON, "application/x-ndjson"),
    (GEMINI, {"contents": []}, [("Accept", "text/event-stream")], b"[{}]", "application/json"),
    ("/mcp", MCP, [("Accept", "application/json, text/event-stream")], b'{"jsonrpc":"2.0","id":7,"result":{}}', "application/json"),
    ("/v1/chat/completions", {"stream": False}, [], b"{}", "application/json"),
    ("/v1/chat/completions", {"x": {"stream": True}}, [], b"{}", "application/json"),
    ("/v1/audio/transcriptions", *form((b'name="stream"', b"false")), b"{}", "application/json"),
]


@pytest.mark.parametrize("path,body,headers,answer,kind", NOT_ASKED)
def test_other_requests_get_no_early_header(start, path, body, headers, answer, kind):
    held = GatedUpstream(whole("200 OK", answer, f"Content-Type: {kind}"))
    keylatch = start(held, config=CONFIG, route_filters=CHAIN % "")
    status, fields, text = assert_no_early_header(keylatch, held, path, body, headers)
    assert (status, fields["content-type"], text) == (200, kind, answer)
    line = last_line(keylatch)
    assert line["status"] == 200 and "late_status" not in line and "error" not in line


def test_a_get_gets_no_early_header(start):
    held = GatedUpstream(whole("401 Unauthorized", {"error": {"message": "no"}}, JSON))
    keylatch = start(held, config=CONFIG, route_filters=CHAIN % "")
    status, _, text = assert_no_early_header(keylatch, held, "/v1/events", b"", [("Accept", "text/event-stream")], "GET")
    assert status == 401 and json.loads(text)["error"]["message"] == "no"


def test_the_wait_begins_when_the_request_is_complete(start):
    """The flag `stream` is the last field of the body, and the upload takes longer than
    `before_headers`."""
    held = GatedUpstream(stream(b"data: 1\n\n"))
    keylatch = start(held, config=CONFIG, route_filters=CHAIN % ", first_byte: 400ms")
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with raw.connect(keylatch.port) as connection:
        connection.sendall(head + body[:-9])
        connection.settimeout(0.7)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        connection.sendall(body[-9:])
        file = connection.makefile("rb")
        status, fields = raw.read_head(file)
        assert status == 200 and not held.go.is_set(), "an early header, and no deadline that includes the upload"
        held.go.set()
        assert raw.read_body(file, fields) == (b": keep-alive\n\ndata: 1\n\n", True)


def test_first_byte_starts_after_the_upload(start):
    """Without `before_headers`: the upload alone takes longer than `first_byte`, and the stream is
    complete."""
    held = GatedUpstream(stream(b"data: 1\n\n"))
    keylatch = start(held, config=CONFIG, route_filters="      - sse_keepalive: {first_byte: 500ms}")
    body = json.dumps(CHAT).encode()
    with raw.connect(keylatch.port) as connection:
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:-9])
        connection.settimeout(0.8)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        held.go.set()
        connection.sendall(body[-9:])
        file = connection.makefile("rb")
        status, fields = raw.read_head(file)
        assert (status, raw.read_body(file, fields)) == (200, (b"data: 1\n\n", True))


def test_no_frame_directly_after_a_late_header(start):
    """The interval of frames starts at the response header, not at the request."""

    def slow(request, send):
        time.sleep(0.8)
        stream(b"data: 1\n\n")(send)

    keylatch = start(Scripted(slow), config=CONFIG, route_filters="      - sse_keepalive: {interval: 500ms}")
    answer = raw.request(keylatch.port, "/v1/chat/completions", "POST", body=json.dumps(CHAT).encode())
    assert answer.body == b"data: 1\n\n"


# Late answers.


OWN = {"error": {"message": "Slow down.", "type": "tokens", "param": None, "code": "rate_limit"}}
DONE = b"data: [DONE]\n\n"
LATE = [
    ("/v1/chat/completions", CHAT, "200 OK", {"id": "c", "choices": []}, b'data: {"id": "c", "choices": []}\n\n' + DONE),
    (
        "/v1/chat/completions",
        CHAT,
        "429 Too Many Requests",
        OWN,
        b'data: {"error":{"message":"Slow down.","type":"tokens","param":null,"code":"rate_limit","status":429,"retry_after":7}}\n\n',
    ),
    ("/v1/responses", CHAT, "500 X", OWN, b'event: error\ndata: {"type":"error","sequence_number":0,"code":"rate_limit","message":"Slow down."'),
    ("/v1/messages", CHAT, "529 X", {"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}}, b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Busy.","status":529'),
    (GEMINI + "?alt=sse", {}, "502 X", b"<html>", b'data: {"error":{"code":502,"message":"The server behind this API answered with status 502.","status":"UNAVAILABLE"'),
    (GEMINI + "?alt=sse", {}, "200 OK", {"candidates": []}, b'data: {"candidates": []}\n\n'),
    ("/v2/chat", CHAT, "401 X", {"message": "invalid api token"}, b'event: message-end\ndata: {"type":"message-end","delta":{"finish_reason":"ERROR","error":"invalid api token","status":401,"retry_after":7}}\n\n'),
    ("/api/v1/services/a/b", CHAT, "400 X", {"code": "Bad", "message": "m"}, b'event: error\n:HTTP_STATUS/400\ndata: {"code":"Bad","message":"m","status":400,"retry_after":7}\n\n'),
    ("/v1/chat/completions", CHAT, "429 X", b"slow down", b'data: {"error":{"message":"The server behind this API answered with status 429."'),
    ("/v1/chat/completions", CHAT, "422 X", {"detail": [{"msg": "field required"}]}, b'data: {"error":{"message":"field required","type":"invalid_request_error"'),
    ("/v1/chat/completions", CHAT, "204 No Content", b"", b'data: {"error":{"message":"The server behind this API answered with status 204 and no body."'),
]


@pytest.mark.parametrize("path,body,status,answer,told", LATE, ids=[f"{path} {status}" for path, _, status, _, _ in LATE])
def test_late_answers_have_the_form_of_the_dialect(start, path, body, status, answer, told):
    kind = "text/html" if isinstance(answer, bytes) else "application/json"
    held = GatedUpstream(whole(status, answer, f"Content-Type: {kind}", "Retry-After: 7"))
    keylatch = start(held, config=CONFIG, route_filters=CHAIN % "")
    got, _, text, complete = assert_early_header(keylatch, held, path, body, [("Accept", "text/event-stream"), ("X-DashScope-SSE", "enable")])
    events = text.lstrip(b"\n")
    for frame in (b": keep-alive\n\n", b'event: ping\ndata: {"type": "ping"}\n\n'):
        events = events.replace(frame, b"")
    assert got == 200 and complete and events.startswith(told), text
    line = last_line(keylatch)
    code = int(status.split()[0])
    assert (line["status"], line["late_status"]) == (200, code)
    assert keylatch.metrics()[f'keylatch_late_answers_total{{route="api",status="{code}"}}'] == 1
    assert line.get("error") == (None if code == 200 else f"the upstream answered {code} after the response had begun")


TOOLS = {"model": "m", "stream": True, "tools": ["x" * 1000] * 30}


def chunked(port, path, pieces):
    """Sends a POST with a chunked body; returns the connection and a file to read from."""
    connection = raw.connect(port)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"".join(map(chunk, pieces)) + chunk(b""))
    return connection, connection.makefile("rb")


@pytest.mark.parametrize("pieces", [[json.dumps(TOOLS).encode()], [json.dumps(TOOLS).encode()[:40], json.dumps(TOOLS).encode()[40:]]])
def test_the_stream_flag_of_a_chunked_body(start, pieces):
    """The flag `stream` comes first, and the end of the body arrives separately."""
    for way in ("chunked", "length", "http2"):
        held = GatedUpstream(stream(b"data: 1\n\n"))
        keylatch = start(held, config=CONFIG, route_filters="      - sse_keepalive: {interval: 100ms, before_headers: 200ms, json_padding: 400ms}")
        if way == "http2":
            with httpx.Client(http1=False, http2=True) as client, client.stream("POST", keylatch.url("/v1/chat/completions"), content=iter(pieces)) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream") and not held.go.is_set()
                held.go.set()
                assert without_frames(answer.read()) == b"data: 1\n\n"
            continue
        begun = chunked(keylatch.port, "/v1/chat/completions", pieces) if way == "chunked" else begin(keylatch.port, "/v1/chat/completions", b"".join(pieces))
        with begun[0]:
            status, fields = raw.read_head(begun[1])
            assert (status, dict(fields)["content-type"].split(";")[0], held.go.is_set()) == (200, "text/event-stream", False), way
            held.go.set()
            text, complete = raw.read_body(begun[1], fields)
            assert complete and without_frames(text) == b"data: 1\n\n", way


def test_an_upload_that_ends_while_the_upstream_does_not_read(start):
    """Pieces of the upload wait for the upstream when it ends. The sizes of the sockets' buffers are unknown, so the sizes vary."""
    upstream = UnreadUpstream(stream(b"data: 1\n\n"))
    keylatch = start(upstream, config=CONFIG, route_filters=CHAIN % "")
    uploads = [chunked(keylatch.port, "/v1/chat/completions", [json.dumps(CHAT).encode()] + [b" " * 60_000] * pieces) for pieces in range(0, 60, 3)]
    upstream.read.set()
    with contextlib.ExitStack() as connections:
        for connection, _ in uploads:
            connections.enter_context(connection)
        heads = [raw.read_head(file) for _, file in uploads]
        assert not upstream.go.is_set(), "the headers arrive before the upstream answers"
        upstream.go.set()
        for (_, file), (_, fields) in zip(uploads, heads, strict=True):
            text, complete = raw.read_body(file, fields)
            assert complete and without_frames(text) == b"data: 1\n\n"


def test_late_json_without_a_content_type(start):
    for kind in ("Content-Type: text/plain", "X-Type: none"):
        held = GatedUpstream(whole("200 OK", b'\n{"id":"c"}', kind))
        keylatch = start(held, config=CONFIG, route_filters=CHAIN % "")
        _, _, text, complete = assert_early_header(keylatch, held, "/v1/chat/completions", CHAT)
        assert complete and without_frames(text) == b'data: {"id":"c"}\n\n' + DONE


def test_an_early_answer_without_a_key_can_be_cancelled(start):
    """An operator or a stop of the process ends it, with an error event and an access line."""
    for body, chain in ((CHAT, CHAIN % ""), (ASK, PADDED)):
        held = GatedUpstream(whole("200 OK", {"id": "c"}, JSON))
        keylatch = start(held, config=CONFIG.replace("drain: 5s", "drain: 300ms"), route_filters=chain)
        connection, file = begin(keylatch.port, "/v1/chat/completions", body)
        with connection:
            _, fields = raw.read_head(file)
            wait_for(lambda: keylatch.metrics()["keylatch_open_streams"] == 1, "the stream is open")
            keylatch.process.send_signal(signal.SIGTERM)
            text, complete = raw.read_body(file, fields)
        assert complete and b'"code":"stopping"' in text, text
        keylatch.process.wait(10)
        held.go.set()
        assert last_line(keylatch)["status"] == 200


def test_max_age_and_first_byte_exclude_the_upload(start):
    upstream = Scripted(lambda request, send: stream(b"data: 1\n\n", b"data: 2\n\n")(send))
    keylatch = start(upstream, config=CONFIG, route_filters="      - sse_keepalive: {max_age: 400ms, first_byte: 300ms}")
    body = json.dumps(CHAT).encode()
    with raw.connect(keylatch.port) as connection:
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:-9])
        connection.settimeout(0.8)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        connection.sendall(body[-9:])
        file = connection.makefile("rb")
        status, fields = raw.read_head(file)
        assert (status, raw.read_body(file, fields)) == (200, (b"data: 1\n\ndata: 2\n\n", True))


def test_a_late_json_rpc_answer_has_the_id(start):
    chain = CHAIN % ", wanted_when: 'request.path == \"/mcp\"'"
    for status, answer, told in [
        ("200 OK", {"jsonrpc": "2.0", "id": 7, "result": {}}, b'event: message\ndata: {"jsonrpc": "2.0", "id": 7, "result": {}}\n\n'),
        ("503 X", b"busy", b'event: message\ndata: {"jsonrpc":"2.0","id":7,"error":{"code":-32603,"message":"busy"'),
    ]:
        kind = "text/plain" if isinstance(answer, bytes) else "application/json"
        held = GatedUpstream(whole(status, answer, f"Content-Type: {kind}"))
        keylatch = start(held, config=CONFIG, route_filters=chain)
        _, _, text, complete = assert_early_header(keylatch, held, "/mcp", MCP)
        assert complete and without_frames(text).startswith(told), text


def test_an_upstream_that_dies_before_its_late_answer(start):
    held = GatedUpstream(lambda send: None)
    keylatch = start(held, config=CONFIG, route_filters=CHAIN % "")
    _, _, text, complete = assert_early_header(keylatch, held, "/v1/chat/completions", CHAT)
    assert complete and b'data: {"error":{"message":"The server behind this API ended the response too early."' in text


def test_a_truncated_late_json_answer_stays_incomplete(start):
    held = GatedUpstream(lambda send: send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"id\":"))
    keylatch = start(held, config=CONFIG, route_filters=CHAIN % "")
    _, _, text, complete = assert_early_header(keylatch, held, "/v1/chat/completions", CHAT)
    assert not complete and text.endswith(b'data: {"id":'), "a truncated event is not dispatched, and the client sees an incomplete body"


# White space before JSON.


PADDED = "      - sse_keepalive: {interval: 100ms, json_padding: 200ms}"
ASK = {"model": "m", "messages": []}


def test_white_space_before_a_json_answer(start):
    held = GatedUpstream(whole("200 OK", {"id": "c"}, JSON))
    keylatch = start(held, config=CONFIG, route_filters=PADDED)
    connection, file = begin(keylatch.port, "/v1/chat/completions", ASK)
    with connection:
        status, fields = raw.read_head(file)
        assert status == 200 and dict(fields)["content-type"] == "application/json"
        assert [file.readline(), file.read(1), file.read(2)] == [b"1\r\n", b" ", b"\r\n"]
        assert file.readline() == b"1\r\n", "white space is sent repeatedly"
        assert file.read(3) == b" \r\n"
        held.go.set()
        text, complete = raw.read_body(file, fields)
    assert complete and json.loads(text) == {"id": "c"}
    assert last_line(keylatch)["late_status"] == 200 and "error" not in last_line(keylatch)


def test_a_failure_after_white_space(start):
    for answer, message in [
        (whole("429 X", OWN, JSON), "Slow down."),
        (whole("500 X", b"oops", "Content-Type: text/plain"), "oops"),
        (lambda send: None, "The server behind this API ended the response too early."),
    ]:
        held = GatedUpstream(answer)
        keylatch = start(held, config=CONFIG, route_filters=PADDED)
        status, _, text, complete = assert_early_header(keylatch, held, "/v1/chat/completions", ASK)
        assert (status, complete) == (200, True) and json.loads(text)["error"]["message"] == message, text
        assert last_line(keylatch)["error"]


@pytest.mark.parametrize(
    "path,body,headers",
    [
        ("/v1/audio/speech", {"input": "x"}, []),
        ("/v1/chat/completions", ASK, [("Accept", "application/octet-stream")]),
        ("/v1/chat/completions", CHAT, []),
        ("/api/chat", {"stream": True}, []),
        ("/v1/chat/completions", {"stream": 1}, []),
        ("/v1/chat/completions", b"model=m&stream=true", [("Content-Type", "application/x-www-form-urlencoded")]),
        ("/v1/chat/completions", b"\x1f\x8b", [("Content-Encoding", "gzip")]),
    ],
)
def test_no_white_space_before_other_answers(start, path, body, headers):
    held = GatedUpstream(whole("200 OK", b"\0\1", "Content-Type: application/octet-stream"))
    keylatch = start(held, config=CONFIG, route_filters=PADDED)
    assert assert_no_early_header(keylatch, held, path, body, headers)[2] == b"\0\1"


# Frames and errors within streams.


def silent_stretch(held_events):
    """A stream with pauses between and within events."""

    def answer(request, send):
        send(STREAM_HEAD)
        for piece in held_events:
            send(chunk(piece))
            time.sleep(0.45)
        send(chunk(b""))

    return answer


PING = b'event: ping\ndata: {"type": "ping"}\n\n'
ALIVE = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'
COMMENT = b": keep-alive\n\n"
LINE = b": keep-alive\n"
FRAMES = [
    ("/v1/chat/completions", "", "auto", COMMENT, LINE),
    ("/v1/messages", "", "auto", PING, b""),
    (GEMINI + "?alt=sse", "", "auto", b"\n", b""),
    ("/v1/chat/completions", "google-genai-sdk/1.2", "auto", b"\n", b""),
    ("/v1/responses", "codex_cli_rs/0.50.0", "auto", ALIVE, b""),
    ("/v1/chat/completions", "", "comment_line", LINE, LINE),
    ("/v1/chat/completions", "", "blank_line", b"\n", b""),
    ("/v1/chat/completions", "", "event", ALIVE, b""),
    ("/v1/messages", "", "comment", COMMENT, LINE),
    ("/v1/chat/completions", "My-App/2", "auto", ALIVE, b""),
]


@pytest.mark.parametrize("path,agent,frame,between,inside", FRAMES)
def test_frames_by_dialect_client_and_route(start, path, agent, frame, between, inside):
    upstream = Scripted(silent_stretch([b"data: 1\n\n", b"data: 2\n", b"\n"]))
    chain = f"      - sse_keepalive: {{interval: 100ms, frame: {frame}, frame_by_client: [{{user_agent: my-app, frame: event}}]}}"
    keylatch = start(upstream, config=CONFIG, route_filters=chain)
    answer = raw.request(keylatch.port, path, "POST", [("User-Agent", agent)], json.dumps(CHAT).encode())
    first, rest = answer.body.removeprefix(b"data: 1\n\n"), b""
    while first.startswith(between):
        first, rest = first.removeprefix(between), rest + between
    assert rest.count(between) >= 2, answer.body
    middle, _, last = first.removeprefix(b"data: 2\n").partition(b"\n") if not inside else first.removeprefix(b"data: 2\n").partition(b"\n\n")
    if inside:
        assert middle and (middle + b"\n").replace(inside, b"") == b"", answer.body
    else:
        assert middle == b"", answer.body
    assert last.replace(between, b"") == b"", answer.body


CUT = [
    ("/v1/chat/completions", b'data: {"error":{"message":"The server behind this API ended'),
    ("/v1/responses", b'event: error\ndata: {"type":"error","sequence_number":1,"code":"upstream_error"'),
    ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"api_error"'),
    (GEMINI + "?alt=sse", b'data: {"error":{"code":502,"message":"The server behind this API ended the response too early.","status":"UNAVAILABLE"'),
    ("/v2/chat", b'event: message-end\ndata: {"type":"message-end","delta":{"finish_reason":"ERROR"'),
    ("/v1/fim/completions", b'data: {"error":{"object":"error","message":"The server behind'),
    ("/mcp", b'event: message\ndata: {"jsonrpc":"2.0","id":7,"error":{"code":-32603'),
    ("/api/v1/services/a/b", b"event: error\n:HTTP_STATUS/502\ndata: "),
]


@pytest.mark.parametrize("path,told", CUT)
def test_a_truncated_stream_ends_with_the_error_of_the_dialect(start, path, told):
    upstream = Scripted(lambda request, send: send(STREAM_HEAD + chunk(b"data: 1\n\n")) and False)
    config = CONFIG.replace("    upstream: model", "    upstream: model\n    dialect: mistral") if "fim" in path else CONFIG
    keylatch = start(upstream, config=config, route_filters="      - sse_keepalive: {}")
    answer = raw.request(keylatch.port, path, "POST", [("Accept", "application/json, text/event-stream")], json.dumps(MCP).encode())
    assert answer.whole and answer.body.removeprefix(b"data: 1\n\n").startswith(told), answer.body


def test_truncated_json_lines_end_with_an_error_line(start):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    for sent, whole_body in [(b'{"a":1}\n', True), (b'{"a":', False)]:
        upstream = Scripted(lambda request, send, sent=sent: send(head + chunk(sent)) and False)
        keylatch = start(upstream, config=CONFIG, route_filters="      - sse_keepalive: {interval: 100ms}")
        answer = raw.request(keylatch.port, "/api/chat", "POST", body=b"{}")
        told = b'{"error":"The server behind this API ended the response too early."}\n' if whole_body else b""
        assert (answer.body, answer.whole) == (sent + told, whole_body)


REFUSED = [
    ("/v1/chat/completions", lambda body: body["error"]["code"]),
    ("/v1/messages", lambda body: body["type"] == "error" and body["error"]["type"] == "authentication_error"),
    ("/v1beta/models/m:generateContent", lambda body: (body["error"]["code"], body["error"]["status"]) == (401, "UNAUTHENTICATED")),
    ("/v2/chat", lambda body: body["message"]),
    ("/api/chat", lambda body: isinstance(body["error"], str)),
    ("/mcp", lambda body: (body["jsonrpc"], body["id"]) == ("2.0", None) and body["error"]["message"]),
    ("/api/v1/services/a/b", lambda body: body["code"] and body["message"]),
]


def test_refusals_in_every_dialect(start, echo_upstream):
    keylatch = start(echo_upstream, config=CONFIG, route_filters="      - bearer: {accept: [well_formed]}")
    for path, right in REFUSED:
        answer = raw.request(keylatch.port, path, "POST", body=b"{}")
        assert answer.status == 401 and right(json.loads(answer.body)), (path, answer.body)


def test_long_waits_tell_clients_not_to_retry(start, echo_upstream):
    for limit, longest, hint in [("1/h", "60s", "false"), ("1/min", "5m", ""), ("1/min", "10s", "false")]:
        chain = f"      - rate_limit: {{per: client, limit: {limit}}}"
        keylatch = start(echo_upstream, route_filters=chain, limits=f"{{client_retry_max: {longest}}}")
        assert raw.request(keylatch.port).status == 200
        answer = raw.request(keylatch.port)
        assert (answer.status, answer.header("x-should-retry")) == (429, hint), (limit, longest)
