"""Lingering close: a response sent during an upload reaches the client. Tested with real
clients."""

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import time

import httpx
import pytest

from support.keylatch import DEFAULT, wait_for
from support.raw import connect, read_body, read_head
from support.tls import context, files, tls_connect
from support.upstreams import Scripted, echo
from test_drain_h2 import Raw
from test_hostile_h2 import DATA, END_STREAM, HEADERS, RST_STREAM, data, fields, headers
from test_shipped_files import behind, caddy, nginx, running  # noqa: F401
from test_shipped_files import tls_connect as through

BEARER = "      - bearer: {accept: [well_formed]}"
SIZES = [300_000, 10_000_000, 40_000_000]
# Short limits, so that tests reach them quickly.
LINGERING = "{lingering_time: 2s, lingering_timeout: 500ms, lingering_bytes: 1MiB, header_timeout: 500ms}"
NODE = """
const [url, size, chunked] = [process.argv[1], Number(process.argv[2]), process.argv[3] === 'chunked'];
const body = Buffer.alloc(size, 'a');
const stream = () => new ReadableStream({ start(c) { for (let n = 0; n < size; n += 65536) c.enqueue(body.subarray(n, n + 65536)); c.close(); } });
const answer = await fetch(url, { method: 'POST', body: chunked ? stream() : body, duplex: 'half' });
console.log(JSON.stringify({ status: answer.status, body: await answer.json() }));
"""

EXPECT = """
const http = require('http'), agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const ask = (method, headers, then) => {
  const request = http.request(process.argv[1], { method, headers, agent });
  request.on('continue', () => { console.log('continue'); request.end('a'.repeat(1000)); });
  request.on('response', answer => { console.log(answer.statusCode); answer.resume().on('end', then); });
  request.on('error', error => { console.log(error.code); });
  headers.Expect ? request.flushHeaders() : request.end();
};
const expects = { Expect: '100-continue', 'Content-Length': 1000 };
ask('POST', expects, () => ask('POST', expects, () => ask('GET', { Authorization: 'Bearer sk-1' }, () => process.exit(0))));
"""


def lingered(keylatch):
    """The number of lingering closes, by outcome."""
    series = {name: value for name, value in keylatch.metrics().items() if name.startswith("keylatch_lingering_closes_total")}
    return {name.split('"')[1]: int(value) for name, value in series.items()}


def pieces(size, piece=65536):
    for _ in range(0, size, piece):
        yield b"a" * piece


def upload(connection, size, chunked=False, path="/v1/x", headers=()):
    """One POST by Python's http.client, which reads the response only after the whole upload."""
    client = http.client.HTTPConnection("api.test")
    client.sock = connection
    body = pieces(size, min(size, 65536)) if chunked else b"a" * size
    client.request("POST", path, body=body, headers=dict(headers), encode_chunked=chunked)
    answer = client.getresponse()
    return answer.status, json.loads(answer.read())["error"]["code"], answer.getheader("connection")


@pytest.fixture
def keylatch(start, echo_upstream):
    return start(echo_upstream, route_filters=BEARER)


@pytest.fixture
def over_tls(serve, authority, echo_upstream):
    return serve(echo_upstream, {"certificates": [files(authority.issue("api", "api.test"))]}, route_filters=BEARER)


# Real clients.


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [2000, *SIZES])
def test_http_client(keylatch, size, chunked):
    for _ in range(4):
        with connect(keylatch.port) as connection:
            status, code, _ = upload(connection, size, chunked)
        assert (status, code) == (401, "missing_token")


@pytest.mark.parametrize("chunked", [False, True])
def test_http_client_over_tls(over_tls, authority, chunked):
    for _ in range(4):
        with tls_connect(over_tls.port, authority) as connection:
            assert upload(connection, 10_000_000, chunked)[0] == 401


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
@pytest.mark.parametrize("chunked", ["length", "chunked"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_node_fetch(keylatch, over_tls, authority, scheme, chunked):
    url = f"{scheme}://localhost:{(over_tls if scheme == 'https' else keylatch).port}/v1/x"
    env = {"NODE_TLS_REJECT_UNAUTHORIZED": "0", "PATH": "/usr/bin:/bin"}
    for size in SIZES[:2]:
        command = ["node", "--input-type=module", "-e", NODE, "--", url, str(size), chunked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == 401


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("more", [["-H", "Expect:"], [], ["-H", "Transfer-Encoding: chunked"], ["--http2"]], ids=["length", "expect", "chunked", "http2"])
def test_curl(keylatch, over_tls, tmp_path, more, tls):
    (tmp_path / "body").write_bytes(b"a" * 10_000_000)
    url = f"https://127.0.0.1:{over_tls.port}/v1/x" if tls else keylatch.url("/v1/x")
    more = [{"--http2": "--http2" if tls else "--http2-prior-knowledge"}.get(word, word) for word in more] + ([] if "--http2" in more else ["--http1.1"])
    command = ["curl", "-sSk", "--max-time", "20", "-o", tmp_path / "answer", "-w", "%{http_code}", "-X", "POST", "-T", tmp_path / "body", *more, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("401", "", 0)
    assert json.loads((tmp_path / "answer").read_text())["error"]["code"] == "missing_token"


@pytest.mark.parametrize("http2", [False, True])
def test_httpx(over_tls, authority, http2):
    with httpx.Client(verify=context(authority, check_hostname=False), http1=not http2, http2=http2, trust_env=False) as client:
        for size in SIZES[:2]:
            for content in (b"a" * size, pieces(size)):
                answer = client.post(f"https://127.0.0.1:{over_tls.port}/v1/x", content=content)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_token")
                assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        # Over HTTP/2 the refused streams leave the connection usable.
        assert client.get(f"https://127.0.0.1:{over_tls.port}/v1/x", headers={"Authorization": "Bearer sk-1"}).status_code == 200


def test_behind_nginx(behind, echo_upstream):  # noqa: F811
    keylatch, port, pull = behind(nginx, echo_upstream, route_filters=BEARER)
    for chunked in (False, True):
        for size in (300_000, 10_000_000):
            for _ in range(4):
                with through(port, pull) as connection:
                    assert upload(connection, size, chunked)[0] == 401, (chunked, size)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_behind_caddy(behind, echo_upstream, authority, tmp_path, version):  # noqa: F811
    """Caddy reads at most 256 KiB after the answer, and resets the connection half a second later.
    With a larger body the answer reaches only a client that reads while it sends."""
    keylatch, port, pull = behind(caddy, echo_upstream, route_filters=BEARER)
    for chunked in (False, True):
        for _ in range(4):
            with through(port, pull) as connection:
                assert upload(connection, 200_000, chunked)[0] == 401, chunked
    (tmp_path / "body").write_bytes(b"a" * 10_000_000)
    issued = authority.issue("curl", "origin-pull.test", client=True)
    command = [
        "curl", "-sS", version, "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-T", tmp_path / "body", "-H", "Expect:",
        "--cacert", authority.ca, "--cert", issued.cert, "--key", issued.key, "--interface", "127.0.3.9",
        "--resolve", f"api.test:{port}:127.0.0.1", f"https://api.test:{port}/v1/x",
    ]
    for _ in range(4):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.stdout == "401", done.stderr


def test_expect_with_http_client(keylatch, over_tls, authority):
    """The final status replaces 100, and the body is not requested."""
    for connection in (connect(keylatch.port), tls_connect(over_tls.port, authority)):
        with connection:
            client = http.client.HTTPConnection("api.test")
            client.sock = connection
            client.putrequest("POST", "/v1/x")
            for name, value in (("Expect", "100-continue"), ("Content-Length", "1000000")):
                client.putheader(name, value)
            client.endheaders()
            answer = client.getresponse()
            assert (answer.status, answer.getheader("connection")) == (401, "close")
            answer.read()


def test_expect_with_the_body_at_once(keylatch, echo_upstream):
    """The body is complete, so the next byte begins a request."""
    with connect(keylatch.port) as connection:
        file = connection.makefile("rb")
        for _ in range(3):
            connection.sendall(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
            status, fields = read_head(file)
            assert (status, dict(fields).get("connection", "keep-alive")) == (401, "keep-alive")
            read_body(file, fields)
        connection.sendall(b"GET /v1/y HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\n\r\n")
        assert read_head(file)[0] == 200
    assert [seen["target"] for seen in echo_upstream.requests] == ["/v1/y"]


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
def test_expect_with_node(keylatch):
    done = subprocess.run(["node", "-e", EXPECT, "--", keylatch.url("/v1/x")], capture_output=True, text=True, timeout=20, check=False)
    # The second request of the pool uses another connection, and gets its own answer.
    assert (done.stdout.split(), done.returncode) == (["401", "401", "200"], 0), done.stderr


# All refusals.


def test_each_status(start, echo_upstream):
    limit = "      - rate_limit: {per: client, limit: 1/h}"
    keylatch = start(echo_upstream, route_filters=limit, limits="{body_bytes: 5MiB}")
    size = 4_000_000
    with connect(keylatch.port) as connection:
        client = http.client.HTTPConnection("api.test")
        client.sock = connection
        client.request("POST", "/v1/x", body=b"a" * 10)
        assert client.getresponse().status == 200
    for chunked in (False, True):
        for expected, path, headers, bytes_sent in [
            (429, "/v1/x", {}, size),
            (404, "/elsewhere", {}, size),
            (400, "/v1/%00", {}, size),
            (400, "/v1/x", {"Connection": "authorization"}, size),
        ]:
            with connect(keylatch.port) as connection:
                assert upload(connection, bytes_sent, chunked, path, headers)[0] == expected, (expected, chunked)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large(start, echo_upstream, chunked):
    keylatch = start(echo_upstream, limits="{body_bytes: 5MiB}")
    with connect(keylatch.port) as connection:
        assert upload(connection, 20_000_000, chunked)[:2] == (413, "body_too_large")


def test_an_early_answer_of_the_upstream(start):
    """An early answer of the upstream is forwarded, and reaches the client in the same way."""

    class Early(Scripted):
        def serve(self, connection):
            file = connection.makefile("rb")
            while file.readline().strip():
                pass
            body = b'{"error":{"code":"theirs"}}'
            with contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                while file.read1(65536):
                    pass

    with Early(echo) as upstream:
        keylatch = start(upstream)
        for _ in range(4):
            with connect(keylatch.port) as connection:
                assert upload(connection, 10_000_000)[:2] == (403, "theirs")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("head, expected, code", [
    (b"GET /v1/x HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * 200_000, 431, "header_bytes"),
    (b"GET /v1/x HTTP/1.1\r\nHost: h\r\n" + b"X-A: b\r\n" * 300, 431, "header_count"),
    (b"GET /v1/x HTTP/1.1\r\nHost: h\r\n", 408, "header_timeout"),
    (b"GET /v1/x HTTP/1.1\r\nHost: h\r\nX A: b\r\n\r\n" + b"a" * 500_000, 400, None),
])
def test_refusals_of_the_connection_layer(start, serve, authority, echo_upstream, head, expected, code, tls):
    if tls:
        keylatch = serve(echo_upstream, {"certificates": [files(authority.issue("api", "api.test"))]}, limits=LINGERING)
    else:
        keylatch = start(echo_upstream, limits=LINGERING)
    with tls_connect(keylatch.port, authority) if tls else connect(keylatch.port) as connection:
        connection.sendall(head)
        # Refusals of the connection layer.
        if expected != 408:
            connection.sendall(b"a" * 400_000)
        file = connection.makefile("rb")
        status, fields = read_head(file)
        assert status == expected and dict(fields)["connection"] == "close"
        body, whole = read_body(file, fields)
        assert whole
        if code:
            assert json.loads(body)["error"]["code"] == code
        assert file.read() == b""


# The limits.


def refused_upload(connection, length=100_000_000):
    """Begins an upload that is refused; returns the file after the whole response was read."""
    connection.sendall(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length)
    file = connection.makefile("rb")
    status, fields = read_head(file)
    assert status == 401 and dict(fields)["connection"] == "close"
    assert read_body(file, fields)[1]
    assert file.read() == b"", "Keylatch closes its write side"


def test_each_limit_cuts(start, echo_upstream):
    keylatch = start(echo_upstream, route_filters=BEARER, limits=LINGERING)

    def ends(outcome, count=1):
        wait_for(lambda: lingered(keylatch)[outcome] == count, outcome, 5)

    with connect(keylatch.port) as silent:
        refused_upload(silent)
        assert keylatch.metrics()["keylatch_connections"] == 1, "a lingering connection counts as open"
        ends("lingering_timeout")
        wait_for(lambda: keylatch.metrics()["keylatch_connections"] == 0, "the connection is released")
    with connect(keylatch.port) as steady:
        refused_upload(steady)
        with pytest.raises(OSError):
            while True:
                steady.sendall(b"a")
                time.sleep(0.1)  # Each pause is shorter than the silence limit.
        ends("lingering_time")
    with connect(keylatch.port) as greedy:
        refused_upload(greedy)
        with pytest.raises(OSError):
            for piece in pieces(50_000_000):
                greedy.sendall(piece)
        ends("lingering_bytes")
    with connect(keylatch.port) as polite:
        refused_upload(polite)
    ends("closed")


def test_lingering_does_not_extend_a_stop(start, echo_upstream):
    config = DEFAULT.replace("drain: 5s", "drain: 1s")
    keylatch = start(echo_upstream, route_filters=BEARER, config=config, limits="{lingering_time: 10min, lingering_timeout: 10min}")
    with connect(keylatch.port) as connection:
        refused_upload(connection)
        keylatch.process.send_signal(signal.SIGTERM)
        assert keylatch.process.wait(6) == 0


def test_http2_resets_the_stream_with_no_error(start, echo_upstream):
    """The stream of a refused upload ends after the limit, and the connection stays open (RFC 9113,
    section 8.1)."""
    keylatch = start(echo_upstream, route_filters=BEARER, limits=LINGERING)
    with connect(keylatch.port) as connection:
        client = Raw(connection)
        connection.sendall(headers(fields(method="POST"), end=False) + data(b"a" * 10_000, end=False))
        seen = []
        for kind, flags, stream, payload in client.frames():
            if stream == 1:
                seen.append((kind, bool(flags & END_STREAM and kind == DATA), payload if kind == RST_STREAM else b""))
            if kind == RST_STREAM:
                break
        assert seen[-2:] == [(DATA, True, b""), (RST_STREAM, False, b"\0\0\0\0")]
        connection.sendall(headers(fields(), 3))
        assert next(stream for kind, _, stream, _ in client.frames() if kind == HEADERS) == 3
    assert lingered(keylatch)["lingering_timeout"] == 1


# Discarded bytes must not become a request.

SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\n\r\n"


@pytest.mark.parametrize("head", [
    b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 73\r\nExpect: 100-continue\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 73\r\nConnection: close\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
])
def test_a_discarded_body_is_not_a_request(keylatch, echo_upstream, head):
    with connect(keylatch.port) as connection:
        connection.sendall(head)
        file = connection.makefile("rb")
        status, fields = read_head(file)
        assert status == 401 and dict(fields)["connection"] == "close"
        assert read_body(file, fields)[1]
        for _ in range(3):
            connection.sendall(SMUGGLED)
        assert file.read() == b"", "exactly one response"
    wait_for(lambda: keylatch.metrics()["keylatch_connections"] == 0, "the connection is over")
    assert echo_upstream.requests == []
    assert len(keylatch.access_log()) == 1


def test_a_small_body_leaves_the_connection_usable(keylatch, echo_upstream):
    """A body of up to 256 KiB with a `Content-Length` is read to its end."""
    with connect(keylatch.port) as connection:
        for _ in range(3):
            status, _, kept = upload(connection, 200_000)
            assert (status, kept) == (401, "keep-alive")
        connection.sendall(b"GET /v1/y HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-1\r\n\r\n")
        assert read_head(connection.makefile("rb"))[0] == 200
    assert [seen["target"] for seen in echo_upstream.requests] == ["/v1/y"]


def test_an_ordinary_close_does_not_linger(start, echo_upstream):
    """A connection without unread data closes at once."""
    keylatch = start(echo_upstream, limits="{lingering_time: 10min, lingering_timeout: 10min}")
    with connect(keylatch.port) as connection:
        connection.sendall(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        file = connection.makefile("rb")
        status, fields = read_head(file)
        assert status == 200 and read_body(file, fields)[1] and file.read() == b""
        wait_for(lambda: keylatch.metrics()["keylatch_connections"] == 0, "the connection is released")
    assert sum(lingered(keylatch).values()) == 0
