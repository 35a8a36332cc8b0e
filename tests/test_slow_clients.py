"""Slow clients: time limits of HTTP/2 header blocks and of bodies. Time during which a client waits
for Keylatch does not count."""

import json
import threading
import time

import httpx
import pytest

from support.keylatch import wait_for
from support.raw import connect, read_body, read_head
from support.tls import files, tls_connect
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain
from test_drain_h2 import BOTH, Raw
from test_hostile_h2 import CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, block, data, fields, frame, headers

# The minimum rate applies after one second of a body, and no test pauses that long.
LIMITS = "{header_timeout: 400ms, body_timeout: 1s, body_min_rate: 2KB, idle_timeout: 20s, lingering_timeout: 1s}"
REFUSED = 'keylatch_gate_refusals_total{reason="%s"}'


@pytest.fixture
def begin(start, serve, authority):
    """Starts a Keylatch; returns it and a function that connects."""

    def ready(upstream, tls, **values):
        values = {"limits": LIMITS, **values}
        if not tls:
            keylatch = start(upstream, **values)
            return keylatch, lambda **_: connect(keylatch.port)
        keylatch = serve(upstream, {"certificates": [files(authority.issue("api", "api.test"))]}, **values)
        return keylatch, lambda alpn=None: tls_connect(keylatch.port, authority, alpn=alpn)

    return ready


def until_closed(connection, piece, pause=0.1):
    """Sends `piece` every `pause` seconds until the connection is closed."""
    stopped = threading.Event()

    def send():
        try:
            while not stopped.wait(pause):
                connection.sendall(piece)
        except OSError:
            pass

    thread = threading.Thread(target=send)
    thread.start()
    return stopped, thread


FIRST = block(fields())
UNFINISHED = [
    (frame(HEADERS, END_STREAM, 1, FIRST), b""),
    (frame(HEADERS, END_STREAM, 1, FIRST[:4]), frame(CONTINUATION, 0, 1, b"")),
    (frame(HEADERS, END_STREAM | END_HEADERS, 1, FIRST)[:12], b""),
    (frame(HEADERS, END_STREAM | END_HEADERS, 1, FIRST)[:5], b""),
    (frame(PING, 0, 0, b"x" * 8)[:12], b""),
]


@BOTH
@pytest.mark.parametrize("sent, more", UNFINISHED, ids=["headers", "continuations", "payload", "head", "ping"])
def test_an_unfinished_header_on_http2(begin, echo_upstream, tls, sent, more):
    keylatch, dial = begin(echo_upstream, tls)
    with dial(alpn=["h2"]) as connection:
        client = Raw(connection)
        connection.sendall(sent)
        # The h2 library itself refuses the sixth continuation, also with GOAWAY.
        stopped, thread = until_closed(connection, more, 0.2) if more else (None, None)
        kinds = [(kind, payload[4:8]) for kind, _, _, payload in client.frames()]
        assert (GOAWAY, b"\0\0\0\x0b") in kinds, "GOAWAY names the reason"
        if stopped:
            stopped.set()
            thread.join()
    # The refusal is counted after GOAWAY has left.
    wait_for(lambda: keylatch.metrics().get(REFUSED % "header_timeout") == 1, "the refusal is counted")
    assert echo_upstream.requests == []


def test_an_unfinished_header_beside_a_stream(begin):
    """Another open stream on the connection does not extend the limit."""

    def stream(request, send):
        send(STREAM_HEAD)
        while True:
            send(chunk(b"data: x\n\n"))
            time.sleep(0.05)

    with Scripted(stream) as upstream:
        keylatch, dial = begin(upstream, False)
        with dial() as connection:
            client = Raw(connection)
            client.send_request("/v1/stream", 1)
            frames = client.frames()
            next(seen for seen in frames if seen[0] == DATA)
            connection.sendall(frame(HEADERS, END_STREAM, 3, FIRST))
            assert GOAWAY in [seen[0] for seen in frames]
        wait_for(lambda: keylatch.metrics().get(REFUSED % "header_timeout") == 1, "the refusal is counted")


@BOTH
def test_many_slow_headers_within_the_limit(begin, echo_upstream, tls):
    """Header blocks in pieces, each complete in time, over a period longer than the limit."""
    _, dial = begin(echo_upstream, tls)
    with dial(alpn=["h2"]) as connection:
        client = Raw(connection)
        frames = client.frames()
        for stream in range(1, 15, 2):
            whole = headers(fields(), stream)
            connection.sendall(whole[:12])
            time.sleep(0.1)
            connection.sendall(whole[12:])
            next(seen for seen in frames if seen[:1] == (DATA,) and seen[1] & END_STREAM and seen[2] == stream)


def trickle(send, pause=0.1, pieces=60):
    """Sends single bytes until the connection fails."""
    try:
        for _ in range(pieces):
            send(b"a")
            time.sleep(pause)
    except OSError:
        pass


@BOTH
@pytest.mark.parametrize("chunked", [False, True])
def test_a_slow_body_on_http1(begin, echo_upstream, tls, chunked):
    keylatch, dial = begin(echo_upstream, tls)
    with dial() as connection:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000"
        connection.sendall(b"POST /v1/x HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n")
        send = (lambda piece: connection.sendall(chunk(piece))) if chunked else connection.sendall
        thread = threading.Thread(target=trickle, args=[send])
        thread.start()
        file = connection.makefile("rb")
        status, answer = read_head(file)
        assert status == 408 and dict(answer)["connection"] == "close"
        body, whole = read_body(file, answer)
        assert whole and json.loads(body)["error"]["code"] == "request_timeout"
        thread.join()
    assert keylatch.metrics()[REFUSED % "body_min_rate"] == 1
    line = wait_for(lambda: [line for line in keylatch.access_log() if line["path"] == "/v1/x"], "access line")[0]
    assert (line["status"], line["answered_by"], line["reason"]) == (408, "proxy", "request_timeout")


@BOTH
def test_a_slow_body_on_http2(begin, echo_upstream, tls):
    keylatch, dial = begin(echo_upstream, tls)
    with dial(alpn=["h2"]) as connection:
        client = Raw(connection)
        connection.sendall(headers(fields(method="POST"), end=False))
        stopped, thread = until_closed(connection, data(b"a", end=False))
        frames = client.frames()
        assert next(seen for seen in frames if seen[0] == HEADERS)
        text = next(seen for seen in frames if seen[0] == DATA)[3]
        assert json.loads(text)["error"]["code"] == "request_timeout"
        stopped.set()
        thread.join()
        # The connection stays open.
        client.send_request("/v1/y", 3)
        assert next(seen for seen in frames if seen[:1] == (HEADERS,) and seen[2] == 3)
    assert keylatch.metrics()[REFUSED % "body_min_rate"] == 1
    lines = wait_for(lambda: len(keylatch.access_log()) == 2 and keylatch.access_log(), "two access lines")
    assert {line["path"]: line["status"] for line in lines} == {"/v1/x": 408, "/v1/y": 200}


@pytest.mark.parametrize("http2", [False, True])
def test_a_body_above_the_minimum_rate(start, echo_upstream, http2):
    """The whole body takes longer than body_timeout."""
    keylatch = start(echo_upstream, limits=LIMITS)

    def body():
        for _ in range(20):
            yield b"a" * 500
            time.sleep(0.1)

    with httpx.Client(http1=not http2, http2=http2, trust_env=False, timeout=10) as client:
        assert client.post(keylatch.url("/v1/x"), content=body()).status_code == 200


@pytest.mark.parametrize("http2", [False, True])
def test_a_slow_upstream_does_not_make_the_client_slow(start, http2):
    """While the upstream does not read, Keylatch reads nothing from the client, and this time does
    not count."""

    class Slow(Scripted):
        def serve(self, connection):
            file = connection.makefile("rb")
            length = 0
            while line := file.readline().strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            read = 0
            # Several pauses, each longer than the limit.
            for _ in range(4):
                time.sleep(0.5)
                read += len(file.read(1_000_000))
            read += len(file.read(length - read))
            connection.sendall(plain(body=str(read).encode(), headers=["Connection: close"]))
            connection.close()

    size = 30_000_000
    with Slow(None) as upstream:
        keylatch = start(upstream, limits=LIMITS)
        with httpx.Client(http1=not http2, http2=http2, trust_env=False, timeout=20) as client:
            answer = client.post(keylatch.url("/v1/x"), content=b"a" * size)
        assert (answer.status_code, answer.text) == (200, str(size))


def test_a_body_during_its_response(start):
    """The limits do not apply after the response has begun, as in a bidirectional stream."""
    said = threading.Event()

    class Both(Scripted):
        def serve(self, connection):
            file = connection.makefile("rb")
            # A health probe connects and closes without a request: writing to it would raise
            # BrokenPipeError in this thread.
            if not file.readline():
                connection.close()
                return
            while file.readline().strip():
                pass
            connection.sendall(STREAM_HEAD + chunk(b"data: hello\n\n"))
            while (line := file.readline()) not in (b"0\r\n", b""):
                file.read(int(line, 16) + 2)
            connection.sendall(chunk(b"data: bye\n\n") + chunk(b""))
            said.set()
            connection.close()

    with Both(None) as upstream:
        keylatch = start(upstream, limits=LIMITS)
        with connect(keylatch.port) as connection:
            connection.sendall(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"a"))
            file = connection.makefile("rb")
            status, answer = read_head(file)
            assert status == 200
            trickle(lambda piece: connection.sendall(chunk(piece)), pieces=20)
            connection.sendall(chunk(b""))
            body, whole = read_body(file, answer)
            assert whole and body == b"data: hello\n\ndata: bye\n\n"
    assert said.wait(5) and REFUSED % "body_min_rate" not in keylatch.metrics()
