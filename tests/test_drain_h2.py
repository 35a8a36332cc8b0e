"""HTTP/2 during a stop and an upgrade: streams run to their end, and GOAWAY follows the last
one."""

import contextlib
import json
import shutil
import signal
import subprocess
import threading

import httpx
import pytest

from support.keylatch import DEFAULT, wait_for
from support.raw import connect
from support.tls import context, files, tls_connect
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain
from test_hostile_h2 import DATA, END_STREAM, GOAWAY, PREFACE, SETTINGS, fields, frame, headers

SQLITE = "{sqlite: {path: keylatch.db}}"
NODE = """
const client = require('http2').connect(process.argv[1], { rejectUnauthorized: false });
const request = client.request({ ':path': '/v1/stream' });
let text = '';
request.on('data', piece => { text += piece; process.stdout.write(piece); });
request.on('error', error => { console.error(error); process.exit(1); });
request.on('end', () => client.close());
"""


class Model:
    """An upstream with streams that last until `end` is set, and immediate other answers."""

    def __init__(self):
        self.end = threading.Event()

    def __call__(self, request, send):
        if "stream" not in request["target"]:
            send(plain())
            return True
        send(STREAM_HEAD)
        while not self.end.wait(0.05):
            send(chunk(b"data: x\n\n"))
        send(chunk(b"data: last\n\n"))
        send(chunk(b""))
        return True


@pytest.fixture
def model():
    made = Model()
    with Scripted(made) as upstream:
        made.port = upstream.port
        yield made
        made.end.set()


@pytest.fixture
def begin(start, authority, model):
    """Starts a Keylatch with or without TLS; returns it and its URL."""

    def ready(tls, drain="20s", **values):
        config = DEFAULT.replace("drain: 5s", f"drain: {drain}")
        if tls:
            text = json.dumps({"certificates": [files(authority.issue("api", "api.test"))]}).replace("{", "{{").replace("}", "}}")
            config = config.replace("    limits: {limits}", "    limits: {limits}\n    tls: " + text)
        values = {"limits": "{lingering_timeout: 300ms}", **values}
        keylatch = start(model.port, config=config, storage=SQLITE, **values)
        return keylatch, f"{'https' if tls else 'http'}://127.0.0.1:{keylatch.port}"

    return ready


def stop(keylatch):
    """Sends SIGTERM, and returns once new connections are refused."""
    keylatch.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "no new connections" in keylatch.stderr.read_text(), "the process stops accepting")
    return keylatch.process


def upgrade(keylatch):
    old = keylatch.upgrade()
    wait_for(lambda: "no new connections" in keylatch.stderr.read_text(), "the old process stops accepting")
    return old


BOTH = pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
ENDS = pytest.mark.parametrize("ending", [stop, upgrade])


def http2(authority, tls):
    verify = context(authority, check_hostname=False) if tls else True
    return httpx.Client(http1=False, http2=True, verify=verify, trust_env=False, timeout=10)


@BOTH
@ENDS
def test_httpx_reads_its_stream_to_the_end(begin, model, authority, ending, tls):
    keylatch, url = begin(tls)
    with http2(authority, tls) as client, client.stream("GET", f"{url}/v1/stream") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: x"
        old = ending(keylatch)
        for _ in range(6):
            next(lines)
        # New requests on this connection are answered, because a stopping process accepts no other
        # connection.
        for _ in range(3):
            assert client.get(f"{url}/v1/x").status_code == 200
        assert len(client._transport._pool.connections) == 1
        assert next(lines) in ("", "data: x")
        model.end.set()
        assert list(lines)[-2:] == ["data: last", ""]
    assert old.wait(10) == 0
    assert "drain timeout reached" not in keylatch.stderr.read_text()


@BOTH
@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_reads_its_stream_to_the_end(begin, model, tls):
    keylatch, url = begin(tls)
    command = ["curl", "-sSNk", "--http2" if tls else "--http2-prior-knowledge", "--max-time", "20", f"{url}/v1/stream"]
    reads_to_the_end(keylatch, model, command)


@BOTH
@pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
def test_node_reads_its_stream_to_the_end(begin, model, tls):
    keylatch, url = begin(tls)
    reads_to_the_end(keylatch, model, ["node", "-e", NODE, url])


def reads_to_the_end(keylatch, model, command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout.readline() == b"data: x\n"
        old = stop(keylatch)
        for _ in range(6):
            client.stdout.readline()
        model.end.set()
        rest, wrong = client.communicate(timeout=15)
        assert rest.endswith(b"data: last\n\n") and client.returncode == 0, wrong
    assert old.wait(10) == 0


class Raw:
    """Reads and writes raw HTTP/2 frames."""

    def __init__(self, connection):
        self.connection, self.buffer = connection, b""
        connection.sendall(PREFACE + frame(SETTINGS))

    def send_request(self, path, stream):
        self.connection.sendall(headers(fields(path=path), stream))

    def frames(self):
        """Yields received frames as (type, flags, stream, payload) until the connection ends."""
        while True:
            while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
                piece = self.connection.recv(65536)
                if not piece:
                    return
                self.buffer += piece
            size = int.from_bytes(self.buffer[:3], "big")
            head, payload, self.buffer = self.buffer[:9], self.buffer[9 : 9 + size], self.buffer[9 + size :]
            yield head[3], head[4], int.from_bytes(head[5:9], "big"), payload


@BOTH
def test_goaway_follows_the_last_stream(begin, model, authority, tls):
    keylatch, _ = begin(tls)
    with tls_connect(keylatch.port, authority, alpn=["h2"]) if tls else connect(keylatch.port) as connection:
        client = Raw(connection)
        client.send_request("/v1/stream", 1)
        frames = client.frames()
        next(seen for seen in frames if seen[0] == DATA)
        old = stop(keylatch)
        client.send_request("/v1/x", 3)
        seen = []
        for kind, flags, stream, payload in frames:
            seen.append((kind, stream, bool(flags & END_STREAM and kind == DATA), payload[4:8]))
            if seen[-1][:3] == (DATA, 3, True):
                model.end.set()
        ended = seen.index(next(one for one in seen if one[:3] == (DATA, 1, True)))
        away = [at for at, one in enumerate(seen) if one[0] == GOAWAY]
        assert away and away[0] > ended and seen[away[0]][3] == b"\0" * 4, seen
    assert old.wait(10) == 0


@BOTH
def test_an_idle_client_that_does_not_read_delays_nothing(begin, authority, tls):
    """A connection pool reads an idle connection only with its next request."""
    keylatch, url = begin(tls, drain="10min")
    with http2(authority, tls) as client:
        assert client.get(f"{url}/v1/x").status_code == 200
        assert stop(keylatch).wait(10) == 0


def test_a_busy_connection_gets_goaway_at_the_deadline(begin, model):
    keylatch, _ = begin(False, drain="2s")
    with connect(keylatch.port) as connection:
        client = Raw(connection)
        client.send_request("/v1/stream", 1)
        frames = client.frames()
        next(seen for seen in frames if seen[0] == DATA)
        old = stop(keylatch)
        stream = 3
        for kind, _, on, _ in frames:
            if kind == GOAWAY:
                break
            # One more request after each event.
            if (kind, on) == (DATA, 1):
                client.send_request("/v1/x", stream)
                stream += 2
        else:
            pytest.fail("the connection ended without GOAWAY")
        assert stream > 9
        # Open streams end with the error event of a stop.
        assert b'"code":"stopping"' in b"".join(payload for kind, _, on, payload in frames if (kind, on) == (DATA, 1))
    assert old.wait(10) == 0


def test_http1_connections_during_a_stop(begin, model):
    """An idle connection closes at once, and a connection with a stream closes after the stream."""
    keylatch, url = begin(False)
    with connect(keylatch.port) as idle, httpx.Client(trust_env=False, timeout=10) as client, client.stream("GET", f"{url}/v1/stream") as answer:
        idle.sendall(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        lines = answer.iter_lines()
        next(lines)
        old = stop(keylatch)
        with contextlib.suppress(ConnectionResetError):
            while idle.recv(4096):
                pass
        model.end.set()
        assert list(lines)[-2:] == ["data: last", ""]
        assert old.wait(10) == 0
