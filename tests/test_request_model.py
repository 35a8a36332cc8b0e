"""`request.model`: bodies that are read ahead are judged as a server would read them, and reach the
upstream unchanged."""

import gzip
import json
import socket
import threading

import httpx
import pytest
from support.keylatch import wait_for
from support.listener import Listener
from support.raw import connect, read_body, read_head
from support.upstreams import STREAM_HEAD, ClosesReused, Scripted, chunk, plain

DENIED = "      - rules: [{name: dear, if: \"request.model in ['gpt-dear', 'gemini-dear']\", deny: {}}]\n"
JSON = {"Content-Type": "application/json"}
PAD = "x" * 3000


@pytest.fixture
def judged(start, echo_upstream):
    return start(echo_upstream, route_filters=DENIED)


def form(*parts):
    body = "".join(f'--b0\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n' for name, more, value in parts)
    return (body + "--b0--\r\n").encode()


FORM = {"Content-Type": "multipart/form-data; boundary=b0"}
# Name: header fields, body, status.
BODIES = {
    "first": (JSON, json.dumps({"model": "gpt-dear", "messages": [PAD]}), 403),
    "last": (JSON, json.dumps({"messages": [{"content": PAD}], "model": "gpt-dear"}), 403),
    "other": (JSON, json.dumps({"messages": [{"content": PAD}], "model": "gpt-cheap"}), 200),
    "decoys": (JSON, json.dumps({"metadata": {"model": "gpt-dear"}, "messages": ['"model": "gpt-dear"', ["model", "gpt-dear"]], "model": "gpt-cheap"}), 200),
    "escaped_key": (JSON, '{"mod\\u0065l": "gpt-dear"}', 403),
    "escaped_value": (JSON, '{"model": "gpt\\u002ddear"}', 403),
    "other_case": (JSON, '{"Model": "gpt-dear"}', 403),
    "byte_order_mark": (JSON, "\ufeff" + '{"model": "gpt-dear"}', 403),
    "utf_16": (JSON, '{"model": "gpt-dear"}'.encode("utf-16"), 403),
    "utf_16_without_mark": (JSON, '{"model": "gpt-dear"}'.encode("utf-16-le"), 403),
    "same_twice": (JSON, '{"model": "gpt-cheap", "model": "gpt-cheap"}', 200),
    "twice": (JSON, '{"model": "gpt-cheap", "model": "gpt-dear"}', 400),
    "twice_by_case": (JSON, '{"model": "gpt-cheap", "MODEL": "gpt-dear"}', 400),
    "large_numbers": (JSON, '{"seed": 123456789012345678901234567890e999, "model": "gpt-dear"}', 403),
    "no_model": (JSON, '{"input": "x"}', 200),
    "no_text": (JSON, '{"model": ["gpt-cheap"]}', 403),
    "unfinished": (JSON, '{"input": "x"', 403),
    "empty": (JSON, "", 200),
    "no_json": (JSON, "model=gpt-dear", 403),
    "any_type": ({"Content-Type": "text/plain"}, '{"model": "gpt-dear"}', 403),
    "compressed": ({**JSON, "Content-Encoding": "gzip"}, gzip.compress(b'{"model": "gpt-cheap"}'), 403),
    "form": (FORM, form(("file", '; filename="a.wav"', PAD), ("model", "", "gpt-dear")), 403),
    "form_other": (FORM, form(("model", "", "whisper-1"), ("file", '; filename="model"', PAD)), 200),
    "form_twice": (FORM, form(("model", "", "whisper-1"), ("model", "", "gpt-dear")), 400),
    "form_extended": (FORM, b"--b0\r\nContent-Disposition: form-data; name*=utf-8''model\r\n\r\ngpt-dear\r\n--b0--\r\n", 403),
    "form_two_names": (FORM, b'--b0\r\nContent-Disposition: form-data; name="x"\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-dear\r\n--b0--\r\n', 403),
    "form_after_json": (FORM, b'{"model":"gpt-dear"}\r\n' + form(("model", "", "gpt-cheap")), 403),
    "json_by_curl": ({"Content-Type": "application/x-www-form-urlencoded"}, '{"model":"gpt-dear","prompt":"x"}', 403),
    "url_encoded": ({"Content-Type": "application/x-www-form-urlencoded"}, "a=1&mod%65l=gpt-dear", 403),
}


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_the_model_is_what_a_server_would_read(judged, echo_upstream, http2):
    with httpx.Client(http1=not http2, http2=http2, trust_env=False) as client:
        for name, (headers, body, status) in BODIES.items():
            content = body if isinstance(body, bytes) else body.encode()
            for framing in (content, iter([content[:7], content[7:]])):
                seen = len(echo_upstream.requests)
                answer = client.post(judged.url("/v1/chat/completions"), content=framing, headers=headers)
                assert answer.status_code == status, f"{name}: {answer.text}"
                if status == 200:
                    assert echo_upstream.requests[-1]["body"] == content, name
                else:
                    assert len(echo_upstream.requests) == seen, name
                    code = {400: "two_models", 403: "denied_by_rule"}[status]
                    assert answer.json()["error"]["code"] == code, name
    # A refused request counts the bytes that were read.
    lines = wait_for(lambda: len(judged.access_log()) == 2 * len(BODIES) and judged.access_log(), "all lines")
    last = 2 * list(BODIES).index("last")
    assert [line["bytes_in"] for line in lines[last:last + 2]] == [len(BODIES["last"][1])] * 2


def test_the_model_of_a_path_and_of_requests_without_a_body(judged):
    for method, path, status in [
        ("POST", "/v1/models/gemini-dear:generateContent", 403),
        ("POST", "/v1/models/gemini-cheap:generateContent", 200),
        ("POST", "/v1/openai/deployments/gpt-dear/chat/completions", 403),
        ("POST", "/v1/engines/gpt-dear/embeddings", 403),
        ("GET", "/v1/models", 200),
        ("DELETE", "/v1/files/a", 200),
    ]:
        assert httpx.request(method, judged.url(path)).status_code == status, path
    # An engine is a default for the body's model.
    assert httpx.post(judged.url("/v1/engines/gpt-cheap/embeddings"), json={"model": "gpt-dear"}).status_code == 400
    assert httpx.post(judged.url("/v1/x?model=gpt-dear"), data={"a": "1"}).status_code == 403
    # Elsewhere the path decides, and the body is not read.
    assert httpx.post(judged.url("/v1/models/gemini-cheap:generateContent"), json={"model": "gpt-dear"}).status_code == 200


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
@pytest.mark.parametrize("size", [1_000, 60_000, 70_000, 1_000_000, 8_000_000])
def test_a_body_of_any_size_reaches_the_upstream_unchanged(start, echo_upstream, size, http2):
    keylatch = start(echo_upstream, route_filters=DENIED, limits="{read_ahead_bytes: 16MiB}")
    text = "".join(chr(33 + n % 90) for n in range(10_000)).replace('"', "").replace("\\", "") * (size // 9_000 + 1)
    with httpx.Client(http1=not http2, http2=http2, trust_env=False, timeout=60) as client:
        for body in ({"model": "gpt-cheap", "messages": text[:size]}, {"messages": text[:size], "model": "gpt-cheap"}):
            content = json.dumps(body).encode()
            for framing in (content, (content[at:at + 30_000] for at in range(0, len(content), 30_000))):
                answer = client.post(keylatch.url("/v1/x"), content=framing, headers=JSON)
                assert answer.status_code == 200 and echo_upstream.requests[-1]["body"] == content


def test_another_model_late_in_a_body_never_reaches_the_upstream_whole(judged, echo_upstream):
    """The body is forwarded once its first model is known, and read on while it is."""
    body = json.dumps({"model": "gpt-cheap", "messages": "x" * 2_000_000})[:-1] + ', "model": "gpt-dear"}'
    answer = httpx.post(judged.url("/v1/x"), content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "two_models")
    assert all(b"gpt-dear" not in seen["body"] for seen in echo_upstream.requests)
    line = wait_for(judged.access_log, "a line")[0]
    assert (line["answered_by"], line["reason"]) == ("proxy", "two_models")


def test_shadow_mode_refuses_no_body_with_two_models(start, echo_upstream):
    whole = "      - rules: [{name: dear, if: \"request.model == 'gpt-dear'\", deny: {}}]\n        shadow: true\n"
    one = "      - rules: [{name: dear, if: \"request.model == 'gpt-dear'\", deny: {}, shadow: true}]\n"
    for filters in (whole, one):
        keylatch = start(echo_upstream, route_filters=filters)
        for body in ('{"model":"gpt-cheap","model":"gpt-dear"}', '{"model":"gpt-cheap","x":"' + "x" * 200_000 + '","model":"gpt-dear"}'):
            assert httpx.post(keylatch.url("/v1/x"), content=body, headers=JSON).status_code == 200
        keylatch.stop()


def test_a_model_beyond_the_bound_is_unknown(start, echo_upstream):
    rules = "      - rules: [{name: tagged, if: \"request.model == 'gpt-dear'\", tag: dear}]\n"
    for filters, status in ((DENIED, 403), (rules, 200)):
        keylatch = start(echo_upstream, route_filters=filters, limits="{read_ahead_bytes: 4KiB}")
        body = json.dumps({"messages": "x" * 200_000, "model": "gpt-cheap"}).encode()
        assert httpx.post(keylatch.url("/v1/x"), content=body, headers=JSON).status_code == status
        assert keylatch.metrics()[f'keylatch_rules_total{{outcome="error",rule="{"dear" if status == 403 else "tagged"}"}}'] == 1
        keylatch.stop()
    assert echo_upstream.requests[-1]["body"] == body


def test_a_body_that_was_read_ahead_is_sent_again(start):
    """The server closes a pooled connection while the body is on its way."""
    bodies = []

    def answer(request, connection, file):
        bodies.append(request["body"])
        connection.sendall(plain())

    with ClosesReused(answer, bytes_read=20_000) as upstream:
        keylatch = start(upstream, route_filters=DENIED)
        body = json.dumps({"messages": "x" * 50_000, "model": "gpt-cheap"}).encode()
        assert httpx.get(keylatch.url("/v1/x")).status_code == 200
        wait_for(keylatch.access_log, "the connection is in the pool")
        assert httpx.put(keylatch.url("/v1/x"), content=body, headers=JSON).status_code == 200
        assert bodies == [body] and upstream.connections == 2


def test_a_client_that_waits_for_100_continue_is_asked_once(judged, echo_upstream):
    body = b'{"model": "gpt-cheap"}'
    with connect(judged.port) as connection, connection.makefile("rb") as file:
        connection.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert read_head(file)[0] == 100
        connection.sendall(body)
        status, headers = read_head(file)
        assert status == 200 and read_body(file, headers)[1]
        assert "expect" not in dict(echo_upstream.requests[0]["headers"])
        connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_head(file)[0] == 200, "the connection stays usable"


@pytest.mark.parametrize("ending", ["pause", "leave"])
def test_a_client_that_stops_in_the_part_that_is_read_ahead(start, echo_upstream, ending):
    keylatch = start(echo_upstream, route_filters=DENIED, limits="{body_timeout: 300ms}")
    with connect(keylatch.port) as connection, connection.makefile("rb") as file:
        connection.sendall(b'POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"messages": ')
        if ending == "pause":
            assert read_head(file)[0] == 408
        else:
            wait_for(lambda: keylatch.metrics()["keylatch_connections"] == 1, "the connection is accepted")
            connection.shutdown(socket.SHUT_WR)
    line = wait_for(keylatch.access_log, "a line")[0]
    assert line["status"] == (408 if ending == "pause" else 0), line
    assert not echo_upstream.requests


def test_streams_begin_early_for_a_body_that_was_read_ahead(start):
    released = threading.Event()

    def late(request, send):
        assert released.wait(20)
        send(STREAM_HEAD + chunk(b"data: done\n\n") + chunk(b""))
        return True

    with Scripted(late) as upstream:
        keylatch = start(upstream, route_filters=DENIED + "      - sse_keepalive: {interval: 200ms, before_headers: 100ms}\n")
        body = {"messages": PAD, "model": "gpt-cheap", "stream": True}
        with httpx.stream("POST", keylatch.url("/v1/chat/completions"), json=body, timeout=20) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            assert next(lines).startswith(":")
            released.set()
            assert "data: done" in list(lines)
        assert json.loads(upstream.requests[0]["body"]) == body


def test_the_route_without_such_a_rule_reads_nothing_ahead(start):
    """The upstream sees the beginning of a body before its end was sent."""
    arrived = threading.Event()

    class First(Listener):
        def serve(self, connection):
            with connection:
                data = b""
                while b'{"mess' not in data:
                    if not (more := connection.recv(65536)):
                        return
                    data += more
                arrived.set()
                connection.sendall(plain())

    with First() as upstream:
        keylatch = start(upstream, route_filters="      - rules: [{name: a, if: \"request.path == '/x'\", deny: {}}]\n")
        with connect(keylatch.port) as connection:
            connection.sendall(b'POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"messages": ')
            assert arrived.wait(10)


def test_explain_takes_a_model(judged):
    upgrade = ["-H", "Upgrade: websocket", "-H", "Connection: upgrade", "--path", "/v1/realtime?model=gpt-dear"]
    assert "outcome   403" in judged.command("explain", "--peer", "127.0.0.1", *upgrade).stdout
    for more, said in ((["--model", "gpt-dear"], "403"), (["--model", "gpt-cheap"], "goes upstream"), ([], "403")):
        explained = judged.command("explain", "--peer", "127.0.0.1", "--method", "POST", "--path", "/v1/x", *more)
        assert explained.returncode == 0 and f"outcome   {said}" in explained.stdout, explained.stdout
    assert "no body was given" in explained.stdout
