"""Real clients: the SDKs of OpenAI and Anthropic, httpx-sse, curl, nghttp, and Caddy as a front
proxy."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import anthropic
import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import httpx2
import httpx_sse
import openai
import pytest
from support import raw
from support.keylatch import BINARY, free_port, wait_for
from support.upstreams import STREAM_HEAD, Scripted, chunk, echo

CHAIN = """      - key_binding: {}
      - bearer: {accept: [well_formed]}
      - rate_limit: {per: key, limit: 600/min}
      - sse_keepalive: {interval: %s%s}"""
FRAME = b": keep-alive\n"
WORDS = [f"word{n} " for n in range(8)]
ASK = [{"role": "user", "content": "Say some words."}]
FRAMES, OPEN = "keylatch_stream_frames_total", "keylatch_open_streams"


def chain(interval="300ms", **more):
    return CHAIN % (interval, "".join(f", {name}: {value}" for name, value in more.items()))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The port of the demo upstream."""
    port = free_port()
    with open(tmp_path_factory.mktemp("demo") / "log", "wb") as log:
        process = subprocess.Popen([BINARY, "demo-upstream", "--listen", f"127.0.0.1:{port}"], stdout=log, stderr=log)

        def listens():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True

        try:
            wait_for(listens, "the demo upstream listens")
            yield port
        finally:
            process.kill()
            process.wait()


def from_address(source):
    """An httpx client, which both SDKs use, with this source address."""
    return httpx2.Client(transport=httpx2.HTTPTransport(local_address=source), trust_env=False, timeout=20)


def openai_client(keylatch, key="sk-openai", source="127.0.0.1", **values):
    return openai.OpenAI(base_url=keylatch.url("/v1"), api_key=key, http_client=from_address(source), **{"max_retries": 0, **values})


def anthropic_client(keylatch, key="sk-anthropic", source="127.0.0.1"):
    return anthropic.Anthropic(base_url=keylatch.url(), api_key=key, http_client=from_address(source), max_retries=0)


def chat(client, **wishes):
    """A chat completion by OpenAI's SDK, without streaming."""
    answer = client.chat.completions.create(model="demo", messages=ASK, extra_query=wishes)
    return answer.choices[0].message.content


def chat_stream(client, **wishes):
    """A streamed chat completion: yields the words as they arrive."""
    stream = client.chat.completions.create(model="demo", messages=ASK, stream=True, extra_query=wishes)
    for part in stream:
        if part.choices[0].delta.content:
            yield part.choices[0].delta.content


def message_stream(client, **wishes):
    with client.messages.stream(model="demo", max_tokens=100, messages=ASK, extra_query=wishes) as stream:
        yield from stream.text_stream


def until_error(words, kind):
    """The words before the error of a stream, and the error."""
    seen = []
    with pytest.raises(kind) as caught:
        for word in words:
            seen.append(word)
    return seen, caught.value


def frames(keylatch):
    return keylatch.metrics().get(FRAMES, 0)


def none_open(keylatch):
    wait_for(lambda: keylatch.metrics()[OPEN] == 0, "no stream is open", 2)


def dialects(body):
    """The words of a raw event stream in OpenAI's dialect."""
    data = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    assert data.pop() == b"[DONE]"
    return [word for part in data if (word := json.loads(part)["choices"][0]["delta"].get("content"))]


# OpenAI's SDK.


def test_openai_plain_and_streamed_with_a_pause(start, demo):
    keylatch = start(demo, route_filters=chain())
    with openai_client(keylatch) as client:
        assert chat(client) == "".join(WORDS)
        assert frames(keylatch) == 0
        assert list(chat_stream(client, pause="1500ms")) == WORDS
        assert 3 <= frames(keylatch) <= 6
        assert chat(client) == "".join(WORDS), "the connection is reused"
    none_open(keylatch)


def test_openai_many_streams_at_once(start, demo):
    keylatch = start(demo, route_filters=chain("100ms"))

    async def one(client):
        stream = await client.chat.completions.create(model="demo", messages=ASK, stream=True, extra_query={"pause": "400ms"})
        return [part.choices[0].delta.content async for part in stream if part.choices[0].delta.content]

    async def many():
        async with openai.AsyncOpenAI(base_url=keylatch.url("/v1"), api_key="sk-many", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(20)))

    assert asyncio.run(many()) == [WORDS] * 20
    assert frames(keylatch) >= 20
    none_open(keylatch)


def test_openai_from_another_address(start, demo):
    keylatch = start(demo, route_filters=chain())
    with openai_client(keylatch) as owner, openai_client(keylatch, source="127.0.0.2") as thief:
        assert chat(owner)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            chat(thief)
        error = caught.value
        assert (error.status_code, error.code, error.type) == (403, "key_not_allowed_here", "permission_error")
        assert error.request_id and error.body["request_id"] == error.request_id
        with pytest.raises(openai.PermissionDeniedError):
            list(chat_stream(thief))
        assert chat(owner)


def test_openai_above_the_limit(start, demo):
    keylatch = start(demo, route_filters=chain().replace("limit: 600/min", "limit: 60/min, burst: 1"))
    with openai_client(keylatch) as client:
        assert chat(client)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
        assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "1")
    with openai_client(keylatch, key="sk-patient", max_retries=2) as patient:
        assert chat(patient)
        before = time.monotonic()
        assert chat(patient) == "".join(WORDS)
        assert time.monotonic() - before >= 1, "the SDK waits for the time in Retry-After"
    wait_for(lambda: keylatch.access_log()[4:], "five lines")
    lines = wait_for(lambda: keylatch.access_log()[4:] and keylatch.access_log(), "five lines")
    assert [line["status"] for line in lines] == [200, 429, 200, 429, 200]


def test_openai_when_the_upstream_dies_during_a_stream(start, demo):
    keylatch = start(demo, route_filters=chain())
    with openai_client(keylatch) as client:
        seen, error = until_error(chat_stream(client, die=3), openai.APIError)
        assert seen == WORDS[:3]
        assert not isinstance(error, openai.APIConnectionError), "the stream ends with an error event"
        assert (error.code, error.type) == ("upstream_error", "server_error")
        # Frames were sent during the silence; the upstream dies after five of ten events.
        seen, error = until_error(chat_stream(client, pause="700ms", die=6), openai.APIError)
        assert (seen, error.code) == (WORDS[:6], "upstream_error")
        assert frames(keylatch) >= 1
    none_open(keylatch)


def test_openai_before_headers(start, demo):
    keylatch = start(demo, route_filters=chain(before_headers="300ms"))
    with openai_client(keylatch) as client:
        before = time.monotonic()
        stream = client.chat.completions.create(model="demo", messages=ASK, stream=True, extra_query={"wait": "2s"})
        assert time.monotonic() - before < 1.9, "the response header is sent before the upstream's"
        assert stream.response.status_code == 200
        assert [part.choices[0].delta.content for part in stream if part.choices[0].delta.content] == WORDS
        assert time.monotonic() - before >= 2
        assert frames(keylatch) >= 2
        # Without a stream in the request, and with a fast upstream, the client gets the upstream's
        # own header.
        already = frames(keylatch)
        assert chat(client, wait="600ms") == "".join(WORDS)
        with pytest.raises(openai.InternalServerError):
            list(chat_stream(client, status=500))
        with pytest.raises(openai.InternalServerError):
            chat(client, wait="600ms", status=500)
        assert frames(keylatch) == already
    none_open(keylatch)


def test_openai_before_headers_and_then_a_failure(start, demo):
    keylatch = start(demo, route_filters=chain(before_headers="300ms"))
    with openai_client(keylatch) as client:
        seen, error = until_error(chat_stream(client, wait="1s", status=500), openai.APIError)
        assert seen == [] and not isinstance(error, openai.APIStatusError | openai.APIConnectionError)
        assert error.message == "the demo fails as requested" and error.code == "demo"
        seen, error = until_error(chat_stream(client, wait="600ms", die=0), openai.APIError)
        assert (seen, error.code) == ([], "upstream_error")
        assert list(chat_stream(client)) == WORDS
    none_open(keylatch)


# Anthropic's SDK.


def test_anthropic_plain_and_streamed_with_a_pause(start, demo):
    keylatch = start(demo, route_filters=chain())
    with anthropic_client(keylatch) as client:
        answer = client.messages.create(model="demo", max_tokens=100, messages=ASK)
        assert answer.content[0].text == "".join(WORDS)
        assert list(message_stream(client, pause="1500ms")) == WORDS
        assert 3 <= frames(keylatch) <= 6
        with client.messages.stream(model="demo", max_tokens=100, messages=ASK, extra_query={"pause": "400ms"}) as stream:
            whole = stream.get_final_message()
        assert (whole.content[0].text, whole.stop_reason) == ("".join(WORDS), "end_turn")
    none_open(keylatch)


def test_anthropic_from_another_address(start, demo):
    keylatch = start(demo, route_filters=chain())
    with anthropic_client(keylatch) as owner, anthropic_client(keylatch, source="127.0.0.2") as thief:
        assert list(message_stream(owner)) == WORDS
        with pytest.raises(anthropic.PermissionDeniedError) as caught:
            list(message_stream(thief))
    error = caught.value
    assert error.body["type"] == "error" and error.body["error"]["type"] == "permission_error" and error.body["error"]["message"]
    assert error.body["request_id"] == error.response.headers["x-request-id"]
    assert "code" not in error.body["error"], "the error has Anthropic's format"


def test_anthropic_above_the_limit(start, demo):
    keylatch = start(demo, route_filters=chain().replace("limit: 600/min", "limit: 1/h"))
    with anthropic_client(keylatch) as client:
        assert list(message_stream(client)) == WORDS
        with pytest.raises(anthropic.RateLimitError) as caught:
            list(message_stream(client))
    assert caught.value.body["error"]["type"] == "rate_limit_error"
    assert 3590 <= int(caught.value.response.headers["retry-after"]) <= 3600


def test_anthropic_when_the_upstream_dies_during_a_stream(start, demo):
    keylatch = start(demo, route_filters=chain())
    with anthropic_client(keylatch) as client:
        # Two events precede the first word.
        seen, error = until_error(message_stream(client, die=4), anthropic.APIStatusError)
        assert seen == WORDS[:2]
        assert error.body["type"] == "error" and error.body["error"]["type"] == "api_error"
        assert "ended the response too early" in error.body["error"]["message"]
    none_open(keylatch)


def test_anthropic_before_headers(start, demo):
    keylatch = start(demo, route_filters=chain(before_headers="300ms"))
    with anthropic_client(keylatch) as client:
        assert list(message_stream(client, wait="1s")) == WORDS
        assert frames(keylatch) >= 2
        seen, error = until_error(message_stream(client, wait="1s", status=500), anthropic.APIStatusError)
        assert seen == [] and "the demo fails as requested" in str(error)
        assert error.status_code == 200, "the status was sent before the failure"
    none_open(keylatch)


# EventSource, curl, nghttp.


def test_an_event_source_sees_no_frames(start, demo):
    keylatch = start(demo, route_filters=chain())
    arguments = {"json": {"model": "demo", "messages": ASK, "stream": True}, "headers": {"Authorization": "Bearer sk-es"}}
    with httpx.Client(trust_env=False, timeout=20) as client:
        with httpx_sse.connect_sse(client, "POST", keylatch.url("/v1/chat/completions?pause=1s"), **arguments) as source:
            events = [event.data for event in source.iter_sse()]
        assert frames(keylatch) >= 2
        with httpx_sse.connect_sse(client, "POST", f"http://127.0.0.1:{demo}/v1/chat/completions", **arguments) as source:
            direct = [event.data for event in source.iter_sse()]
    assert events == direct and len(events) == 10 and events[-1] == "[DONE]"
    assert source.response.headers["content-type"].startswith("text/event-stream")


CURL = ["curl", "-sS", "-N", "--noproxy", "*", "--max-time", "20"]
CURL += ["-H", "Authorization: Bearer sk-curl", "-H", "Content-Type: application/json"]
BODY = json.dumps({"model": "demo", "messages": ASK, "stream": True})


SHOWN = {"--http1.1": b"HTTP/1.1 200", "--http2-prior-knowledge": b"HTTP/2 200"}


@pytest.mark.parametrize("version", SHOWN)
def test_curl_streams_with_frames(start, demo, version):
    keylatch = start(demo, route_filters=chain())
    url = keylatch.url("/v1/chat/completions?pause=1s")
    done = subprocess.run([*CURL, "-i", version, "-d", BODY, url], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    fields = head.lower()
    assert head.startswith(SHOWN[version])
    assert b"x-accel-buffering: no" in fields and b"no-transform" in fields and b"content-length" not in fields
    assert dialects(body) == WORDS
    url = f"http://127.0.0.1:{demo}/v1/chat/completions"
    direct = subprocess.run([*CURL, "-d", BODY, url], capture_output=True, timeout=30, check=True)
    assert body.replace(FRAME + b"\n", b"") == direct.stdout, "equal except for the frames"
    assert 2 <= body.count(FRAME) <= 4 and body.count(FRAME) == frames(keylatch), "the metric counts the frames sent"
    none_open(keylatch)


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_before_headers(start, demo, version):
    keylatch = start(demo, route_filters=chain("200ms", before_headers="200ms"))

    def send_request(wishes):
        url = keylatch.url(f"/v1/chat/completions?{wishes}")
        done = subprocess.run([*CURL, version, "-d", BODY, url], capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    body = send_request("wait=700ms")
    assert body.startswith(FRAME + b"\n" + FRAME) and dialects(body) == WORDS
    assert body.count(FRAME) == frames(keylatch)
    failed = send_request("wait=500ms&status=500")
    assert failed.replace(FRAME + b"\n", b"").startswith(b'data: {"error":{') and failed.endswith(b"}\n\n")
    died = send_request("die=3")
    assert [line[:16] for line in died.split(b"\n\n") if line][-1] == b'data: {"error":{'
    none_open(keylatch)


@pytest.mark.parametrize("wait", [0, 0.5], ids=["upstream's header", "our header"])
def test_a_client_of_http_1_0_gets_no_chunks(start, wait):
    """HTTP/1.0 has no chunked coding (RFC 9112, section 6.1), so the body ends with the connection.
    curl would decode chunks anyway."""

    def answer(request, send):
        time.sleep(wait)
        send(STREAM_HEAD + chunk(b"data: first\n\n"))
        time.sleep(0.3)
        send(chunk(b"data: second\n\n") + chunk(b""))
        return True

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain("200ms", before_headers="300ms"))
        with raw.connect(keylatch.port) as client, client.makefile("rb") as file:
            client.sendall(b"GET /v1/x HTTP/1.0\r\nHost: h\r\nAuthorization: Bearer sk-old\r\nAccept: text/event-stream\r\n\r\n")
            status, fields = raw.read_head(file)
            body = file.read()
    assert (status, dict(fields).get("transfer-encoding")) == (200, None)
    assert FRAME in body and body.replace(FRAME + b"\n", b"") == b"data: first\n\ndata: second\n\n"


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_a_head_request_is_never_answered_with_frames(start, version):
    """A response to HEAD has no body, whatever the request accepts (RFC 9110, section 9.3.2)."""

    def answer(request, send):
        time.sleep(0.8)
        send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-From: upstream\r\n\r\n")
        return False

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain("200ms", before_headers="300ms"))
        command = [*CURL, "-I", version, "-H", "Accept: text/event-stream", keylatch.url("/v1/x")]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert b"x-from: upstream" in done.stdout.lower() and frames(keylatch) == 0
        none_open(keylatch)


@pytest.mark.parametrize("wishes", ["pause=1s", "wait=800ms&pause=500ms"])
def test_nghttp_streams_with_frames(start, demo, tmp_path, wishes):
    nghttp = shutil.which("nghttp")
    assert nghttp, "the tests need Debian's nghttp2-client"
    keylatch = start(demo, route_filters=chain(before_headers="300ms"))
    (tmp_path / "body").write_text(BODY)
    url = keylatch.url(f"/v1/chat/completions?{wishes}")
    fields = ["-H", "Authorization: Bearer sk-nghttp", "-H", "Content-Type: application/json"]
    done = subprocess.run([nghttp, "-v", "-t", "20", *fields, "-d", tmp_path / "body", url], capture_output=True, timeout=30, check=False)
    said = done.stdout
    assert done.returncode == 0, done.stderr
    assert b":status: 200" in said and b"END_STREAM" in said
    assert b"RST_STREAM" not in said and b"PROTOCOL_ERROR" not in said
    assert [word for word in WORDS if word.encode() in said] == WORDS and b"data: [DONE]" in said
    assert frames(keylatch) >= 2
    none_open(keylatch)


# Caddy as a front proxy.


@pytest.fixture
def caddy(tmp_path):
    """Starts Caddy in front of a Keylatch; returns its port."""
    running = []

    def begin(keylatch, transport=""):
        program = shutil.which("caddy")
        assert program, "the tests need Debian's caddy"
        folder = tmp_path / f"caddy{len(running)}"
        folder.mkdir()
        port = free_port()
        (folder / "Caddyfile").write_text(f"""{{
	admin off
	auto_https off
}}
http://127.0.0.1:{port} {{
	bind 127.0.0.1
	reverse_proxy 127.0.0.1:{keylatch.port} {{
		flush_interval -1
		{transport}
	}}
}}
""")
        env = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen([program, "run", "--config", folder / "Caddyfile"], cwd=folder, env=env, stdout=log, stderr=log)
        running.append(process)

        def listens():
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True

        wait_for(listens, "caddy listens", 20)
        return port

    yield begin
    for process in running:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


CLAIMS = ("x-forwarded-for", "x-real-ip", "forwarded", "cf-connecting-ip", "true-client-ip", "x-client-ip")


def test_the_address_through_caddy(start, caddy, echo_upstream):
    keylatch = start(echo_upstream, trusted="{networks: [127.0.0.1]}", route_filters="      - key_binding: {}")
    port = caddy(keylatch)

    def seen(source, *fields):
        forged = [part for field in fields for part in ("-H", field)]
        command = ["curl", "-sS", "--noproxy", "*", "--max-time", "10", "--interface", source, "-H", "Authorization: Bearer sk-hops"]
        done = subprocess.run([*command, *forged, f"http://127.0.0.1:{port}/v1/x"], capture_output=True, timeout=20, check=True)
        answer = json.loads(done.stdout)
        return answer if "error" in answer else [(name, value) for name, value in answer["headers"] if name in CLAIMS]

    truth = [("x-forwarded-for", "127.0.0.5"), ("x-real-ip", "127.0.0.5")]
    assert sorted(seen("127.0.0.5")) == truth
    for forged in (
        ["X-Forwarded-For: 192.0.2.1"],
        ["X-Forwarded-For: 127.0.0.1"],
        ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"],
        ["CF-Connecting-IP: 192.0.2.1"],
        ["CF-Connecting-IP: 192.0.2.1", "X-Forwarded-For: 173.245.48.1"],
        ["Forwarded: for=192.0.2.1;proto=https"],
        ["X-Real-IP: 192.0.2.1", "True-Client-IP: 192.0.2.1", "X-Client-IP: 192.0.2.1"],
        ["Connection: x-forwarded-for, x-real-ip, close"],
        ["x_forwarded_for: 192.0.2.1", "x_real_ip: 192.0.2.1"],
    ):
        assert sorted(seen("127.0.0.5", *forged)) == truth, forged
    # So the key is bound to the address of the client, not of Caddy.
    assert seen("127.0.0.6")["error"]["code"] == "key_not_allowed_here"
    forged = ["X-Forwarded-For: 127.0.0.5", "CF-Connecting-IP: 127.0.0.5", "Forwarded: for=127.0.0.5"]
    assert seen("127.0.0.6", *forged)["error"]["code"] == "key_not_allowed_here"
    line = wait_for(lambda: [line for line in keylatch.access_log() if line["status"] == 403][1:], "the lines of both")[0]
    assert (line["client"], line["client_source"], line["peer"]) == ("127.0.0.6", "x-forwarded-for", "127.0.0.1")


@pytest.mark.parametrize("transport", ["", "transport http {\n\t\t\tversions h2c\n\t\t}"], ids=["http1", "h2c"])
def test_caddy_does_not_buffer_frames(start, caddy, transport):
    """The upstream continues only after the client has received a frame, so no proxy on the way
    buffers frames."""
    saw_frame, went_on = threading.Event(), []

    def answer(request, send):
        send(STREAM_HEAD + chunk(b"data: first\n\n"))
        went_on.append(saw_frame.wait(10))
        send(chunk(b"data: second\n\n") + chunk(b""))
        return True

    with Scripted(answer) as upstream:
        keylatch = start(upstream, trusted="{networks: [127.0.0.1]}", route_filters=chain())
        url = f"http://127.0.0.1:{caddy(keylatch, transport)}/v1/chat/completions"
        with subprocess.Popen([*CURL, "-d", BODY, url], stdout=subprocess.PIPE) as curl:
            lines = []
            for line in curl.stdout:
                lines.append(line)
                if line == FRAME:
                    saw_frame.set()
        assert curl.returncode == 0 and went_on == [True]
        assert [line for line in lines if line not in (FRAME, b"\n")] == [b"data: first\n", b"data: second\n"]
        assert lines[0] == b"data: first\n" and FRAME in lines
        none_open(keylatch)


# Unusual and faulty clients.


class Http2:
    """One HTTP/2 connection with manual control."""

    def __init__(self, port, window=65_535):
        self.socket = raw.connect(port)
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.http2.local_settings = h2.settings.Settings(client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.http2.initiate_connection()
        self.flush()

    def flush(self):
        self.socket.sendall(self.http2.data_to_send())

    def send_request(self, path, *fields, body=b""):
        """Sends a request; returns its stream id."""
        stream = self.http2.get_next_available_stream_id()
        head = [(":method", "POST" if body else "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", path), *fields]
        self.http2.send_headers(stream, head, end_stream=not body)
        if body:
            self.http2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def read_all(self, streams, enough=None):
        """The bodies of these streams, up to their end or until one contains `enough`."""
        bodies, ended = dict.fromkeys(streams, b""), set()
        while ended != set(streams):
            data = self.socket.recv(65536)
            assert data, "the connection ended"
            for event in self.http2.receive_data(data):
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated), event
                if isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)
            self.flush()
            if enough and any(enough in body for body in bodies.values()):
                break
        return list(bodies.values())

    def read(self, stream, enough=None):
        return self.read_all([stream], enough)[0]

    def close(self):
        self.socket.close()


@pytest.mark.parametrize("upstream_does", ["talks", "is silent"])
@pytest.mark.parametrize("client_does", ["http1 close", "http2 close", "http2 reset", "curl killed"])
def test_a_client_that_leaves_cancels_the_upstream_request(start, client_does, upstream_does):
    left = threading.Event()

    def answer(request, send):
        if not request["target"].startswith("/v1/stream"):
            return echo(request, send)
        send(STREAM_HEAD + chunk(b"data: first\n\n"))
        if upstream_does == "talks":
            while True:
                send(chunk(b"data: more\n\n"))
                time.sleep(0.02)
        # A silent upstream notices the end of its connection when it reads.
        connection = send.__self__
        if connection.recv(1) == b"":
            left.set()
        return False

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain("5s"))
        gone = upstream.closed_by_peer if upstream_does == "talks" else left
        then = None
        if client_does == "http1 close":
            client = raw.connect(keylatch.port)
            client.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-l\r\n\r\n")
            file = client.makefile("rb")
            assert raw.read_head(file)[0] == 200 and file.readline() and file.readline() == b"data: first\n"

            def leave():
                file.close()
                client.close()
        elif client_does == "curl killed":
            curl = subprocess.Popen([*CURL, "--http2-prior-knowledge", keylatch.url("/v1/stream")], stdout=subprocess.PIPE)
            assert curl.stdout.readline() == b"data: first\n"

            def leave():
                curl.send_signal(signal.SIGKILL)
                curl.wait()
                curl.stdout.close()
        else:
            client = Http2(keylatch.port)
            stream = client.send_request("/v1/stream", ("authorization", "Bearer sk-l"))
            client.read(stream, enough=b"first")

            def leave():
                if client_does == "http2 close":
                    client.close()
                else:
                    client.http2.reset_stream(stream, 8)
                    client.flush()

            then = client if client_does == "http2 reset" else None
        wait_for(lambda: keylatch.metrics()[OPEN] == 1, "the stream is open", 2)
        assert not gone.is_set()
        leave()
        assert gone.wait(1), "the upstream's request is cancelled within a second"
        none_open(keylatch)
        line = wait_for(keylatch.access_log, "access line")[0]
        assert line["status"] == 200 and line["path"] == "/v1/stream"
        if then:
            plain = then.read(then.send_request("/v1/x", ("authorization", "Bearer sk-l")))
            assert json.loads(plain)["target"] == "/v1/x", "the other streams of the connection continue"
            then.close()


def test_a_client_that_leaves_before_the_upstream_has_answered(start):
    left = threading.Event()

    def answer(request, send):
        if send.__self__.recv(1) == b"":
            left.set()
        return False

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain(before_headers="300ms"))
        client = raw.connect(keylatch.port)
        client.sendall(b"POST /v1/stream HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nAuthorization: Bearer sk-l\r\nAccept: text/event-stream\r\n\r\n")
        file = client.makefile("rb")
        assert raw.read_head(file)[0] == 200 and int(file.readline(), 16) == len(FRAME) + 1, "the client has the header and a frame"
        file.close()
        client.close()
        assert left.wait(1)
        none_open(keylatch)


@pytest.mark.parametrize("wait", ["0s", "500ms"])
def test_a_connection_is_reused_after_a_stream(start, demo, wait):
    keylatch = start(demo, route_filters=chain(before_headers="300ms"))

    def head(path, body):
        fields = f"Host: h\r\nAuthorization: Bearer sk-r\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"POST {path} HTTP/1.1\r\n{fields}\r\n{body}".encode()

    with raw.connect(keylatch.port) as connection, connection.makefile("rb") as file:
        for number in range(2):
            connection.sendall(head(f"/v1/chat/completions?pause=500ms&wait={wait}", BODY))
            status, fields = raw.read_head(file)
            body, whole = raw.read_body(file, fields)
            assert (status, whole) == (200, True) and dialects(body) == WORDS and body.count(FRAME) >= 1
            connection.sendall(head(f"/v1/echo?n={number}", "{}"))
            status, fields = raw.read_head(file)
            body, whole = raw.read_body(file, fields)
            assert (status, whole, json.loads(body)["target"]) == (200, True, f"/v1/echo?n={number}")
    none_open(keylatch)


@pytest.mark.parametrize("more", [{}, {"before_headers": "300ms"}], ids=["at once", "after our header"])
def test_a_get_is_retried_when_the_upstream_closes_a_reused_connection(start, more):
    """A server may close a connection between two requests; an idempotent request is then sent
    again (RFC 9110, section 9.2.2)."""

    def answer(request, send):
        if len(upstream.requests) == 2:
            time.sleep(0.5 if more else 0)
            return False
        send(STREAM_HEAD + chunk(b"data: %d\n\n" % len(upstream.requests)) + chunk(b""))
        return True

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain(**more))
        for expected in (b"data: 1\n\n", b"data: 3\n\n"):
            answer = raw.request(keylatch.port, "/v1/stream", headers=[raw.key("sk-g"), ("Accept", "text/event-stream")])
            assert (answer.status, answer.body.replace(FRAME + b"\n", b"")) == (200, expected)
            # The line follows the release of the upstream's connection for reuse.
            wait_for(keylatch.access_log, "the access line")


def test_streams_side_by_side_on_one_http2_connection(start, demo):
    keylatch = start(demo, route_filters=chain("100ms"))
    client = Http2(keylatch.port)
    fields = [("authorization", "Bearer sk-par"), ("content-type", "application/json")]
    streams = [client.send_request(f"/v1/chat/completions?pause={200 + 50 * n}ms", *fields, body=BODY.encode()) for n in range(8)]
    bodies = client.read_all(streams)
    client.close()
    assert [dialects(body) for body in bodies] == [WORDS] * 8
    assert sum(body.count(FRAME) for body in bodies) == frames(keylatch) >= 8
    none_open(keylatch)


SILENCE = None
ODD = {
    "crlf cut in two": [b"id: 1\r\ndata: a\r\n\r", SILENCE, b"\ndata: b\r", SILENCE, b"\n\r", SILENCE, b"\nid: 2\r\ndata: c\r\n\r\n"],
    "crlf cut inside an event": [b"event: e\r", SILENCE, b"\ndata: a\r", SILENCE, b"\ndata: b\r\n", SILENCE, b"\r\n"],
    "a bare cr": [b"data: a\r", SILENCE, b"\r", SILENCE, b"data: b\r\r", SILENCE, b"data: c\r\r"],
    "cr and then an lf of its own": [b"data: a\r", SILENCE, b"\n\n", SILENCE, b"data: b\n\r", SILENCE, b"\n\ndata: c\n\n"],
    "a mark at the start": [b"\xef\xbb\xbf", SILENCE, b"data: a\n\n", SILENCE, b"data: b\n\n"],
    "a mark in pieces": [b"\xef", SILENCE, b"\xbb", SILENCE, b"\xbfdata: a\n\n", SILENCE, b"id: 1\ndata: b\n\n"],
    "a mark after a silence": [SILENCE, b"\xef\xbb\xbfdata: a\n\n", SILENCE, b"data: b\n\n"],
    "a mark in pieces after a silence": [SILENCE, b"\xef", SILENCE, b"\xbb", SILENCE, b"\xbfdata: a\n\n"],
    "half a mark after a silence": [SILENCE, b"\xef\xbb", SILENCE, b"\n\ndata: a\n\n"],
    "ids": [b"id: 1\ndata: a\n\n", SILENCE, b"data: b\n\n", SILENCE, b"id\ndata: c\n\n", SILENCE, b"id: 4\n", SILENCE, b"data: d\n\n"],
    "an id without data": [b"data: a\n\n", SILENCE, b"id: 9\n\n", SILENCE, b"data: b\n\nevent: x\n", SILENCE, b"\ndata: c\n\n"],
    "inside a line": [b"da", SILENCE, b"ta: hal", SILENCE, b"f\n", SILENCE, b"data: more\n", SILENCE, b"\n"],
    "fields and comments": [b"event: x\nretry: 5\n: hello\n", SILENCE, b"data: 1\n", SILENCE, b":\ndata\ndata:2\nwhat\n\ndata\n\n"],
    "an end inside an event": [b"data: a\n\ndata: b\n", SILENCE],
    "an end inside a line": [b"data: a\n\n", SILENCE, b"data: b"],
    "letters of many bytes": ["data: grü".encode()[:-1], SILENCE, "ü\n\n".encode()[1:], SILENCE, "data: \u2028\u0085\n\n".encode()],
}


def by_the_standard(body):
    """The events by WHATWG HTML, section 9.2: (event, data, last id, retry)."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    events, kind, data, last, retry = [], "", [], "", None
    for line in text.split("\n")[:-1]:
        if not line:
            if data:
                events.append((kind or "message", "\n".join(data), last, retry))
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last = value
        elif name == "retry" and value.isdecimal():
            retry = int(value)
    return events


def by_httpx_sse(pieces):
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=iter(pieces))
    return [(event.event, event.data, event.id, event.retry) for event in httpx_sse.EventSource(response).iter_sse()]


def test_unusual_event_streams_are_unchanged(start):
    def answer(request, send):
        name = request["target"].rpartition("/")[2].replace("-", " ")
        send(STREAM_HEAD)
        for piece in ODD[name]:
            if piece is SILENCE:
                time.sleep(0.25)
            else:
                send(chunk(piece))
        send(chunk(b""))
        return False

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain("100ms"))

        def fetch(port, name, gather):
            fields = {"Authorization": "Bearer sk-odd"}
            url = f"http://127.0.0.1:{port}/v1/{name.replace(' ', '-')}"
            with httpx.stream("GET", url, headers=fields, trust_env=False, timeout=20) as response:
                gather[name, port] = list(response.iter_raw())

        seen = {}
        threads = [threading.Thread(target=fetch, args=(port, name, seen)) for name in ODD for port in (upstream.port, keylatch.port)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        wrong, sent = [], 0
        for name in ODD:
            direct, through = seen[name, upstream.port], seen[name, keylatch.port]
            sent += b"".join(through).count(b": keep-alive")
            assert FRAME in b"".join(through), f"{name}: frames were sent"
            if by_the_standard(b"".join(direct)) != by_the_standard(b"".join(through)):
                wrong.append((name, "by the standard", direct, through))
            # httpx-sse does not strip a byte-order mark; after a frame, Keylatch removes it, as the
            # standard requires of readers.
            dropped = b"".join(direct).startswith(b"\xef\xbb\xbf") and not b"".join(through).startswith(b"\xef\xbb\xbf")
            if not dropped and by_httpx_sse(direct) != by_httpx_sse(through):
                wrong.append((name, "httpx-sse", direct, through))
        assert wrong == []
        assert sent == frames(keylatch)
        none_open(keylatch)


@pytest.mark.parametrize("version", ["http1", "http2"])
def test_a_client_that_does_not_read_is_closed(start, version):
    """64 MiB for a client that reads nothing: the upstream request is cancelled, and memory does
    not grow."""
    piece = chunk(b"data: " + b"x" * 65_000 + b"\n\n")
    sent, ended = [0], []

    def answer(request, send):
        send(STREAM_HEAD)
        try:
            for _ in range(1008):
                send(piece)
                sent[0] += len(piece)
            send(chunk(b""))
        finally:
            ended.append(time.monotonic())
        return False

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain(write_timeout="1s"))
        raw.request(keylatch.port, "/elsewhere")
        before, most = keylatch.memory_kib(), 0
        began = time.monotonic()
        if version == "http1":
            client = raw.connect(keylatch.port)
            client.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-s\r\n\r\n")
            close = client.close
        else:
            http2 = Http2(keylatch.port)
            http2.send_request("/v1/stream", ("authorization", "Bearer sk-s"))
            close = http2.close
        try:
            while time.monotonic() < began + 6 and not ended:
                most = max(most, keylatch.memory_kib())
                time.sleep(0.05)
            assert ended, f"not closed after six seconds; {sent[0]} bytes sent"
            assert upstream.closed_by_peer.wait(1), "closed before the whole body was sent"
            assert ended[0] - began >= 0.9, "closed only after write_timeout"
            # Buffers of the connection, far below the 64 MiB of the body.
            assert most - before < 20 * 1024, f"memory grew by {most - before} KiB"
            none_open(keylatch)
        finally:
            close()


@pytest.mark.parametrize(("terms", "least"), [({"write_timeout": "1s"}, 1.2), ({"max_age": "1s"}, 0.9)], ids=["write_timeout", "max_age"])
def test_a_frame_larger_than_the_window_blocks_nothing(start, terms, least):
    """The client's window has room for the first event and half a frame; the upstream is silent."""
    ended = []

    def answer(request, send):
        send(STREAM_HEAD + chunk(b"data: first\n\n"))
        send.__self__.recv(1)
        ended.append(time.monotonic())
        return False

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain(**terms))
        client = Http2(keylatch.port, window=20)
        try:
            began = time.monotonic()
            client.send_request("/v1/stream", ("authorization", "Bearer sk-w"))
            wait_for(lambda: ended, "the upstream's request ends", 3)
            assert least <= ended[0] - began <= 2.5
        finally:
            client.close()
        none_open(keylatch)


def test_a_client_that_reads_slowly_is_not_closed(start):
    """The client never pauses for `write_timeout`, and gets the whole body."""
    piece = b"data: " + b"x" * 65_000 + b"\n\n"

    def answer(request, send):
        send(STREAM_HEAD)
        for _ in range(256):
            send(chunk(piece))
        send(chunk(b""))
        return False

    with Scripted(answer) as upstream:
        keylatch = start(upstream, route_filters=chain(write_timeout="1s"))
        client = raw.connect(keylatch.port)
        client.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-s\r\n\r\n")
        with client, client.makefile("rb") as file:
            status, fields = raw.read_head(file)
            body = []
            while size := int(file.readline(), 16):
                body.append(file.read(size))
                file.readline()
                time.sleep(0.01)
            assert status == 200 and b"".join(body).replace(FRAME + b"\n", b"") == piece * 256
        none_open(keylatch)
