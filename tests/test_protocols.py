"""WebSockets, gRPC and trailers, with real clients and servers."""

import json
import threading
import time

import grpc
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as websocket

from concurrent import futures

from support.authority import Authority
from support.keylatch import DEFAULT, wait_for
from support.upstreams import Scripted


KEY = {"Authorization": "Bearer sk-realtime"}


def test_a_websocket_passes_the_filter_chain(start, realtime):
    keylatch = start(realtime, route_filters="      - key_binding: {}\n      - body_limit: {bytes: 1KiB}\n      - rate_limit: {per: key, limit: 2/min}", limits="{body_timeout: 200ms, body_bytes: 64KiB}")
    url = f"ws://127.0.0.1:{keylatch.port}/v1/realtime?model=m"
    with websocket(url, additional_headers=KEY, ping_interval=None, max_size=None, compression=None) as connection:
        connection.send("hello")
        assert connection.recv(5) == "hello"
        # A pause is no slow body, and messages do not count towards the body limit.
        time.sleep(1)
        for message in ("ping", b"\0" * 300_000, "x" * 70_000):
            connection.send(message)
            for _ in range(10 if message == "ping" else 1):
                assert connection.recv(5) == message
    assert realtime.seen[0]["X-Forwarded-For" if "X-Forwarded-For" in realtime.seen[0] else "x-forwarded-for"] == "127.0.0.1"
    # Another address is refused, as for any request.
    with pytest.raises(InvalidStatus) as refused:
        websocket(url, additional_headers=KEY, source_address=("127.0.0.9", 0))
    assert refused.value.response.status_code == 403
    with websocket(url, additional_headers=KEY):
        pass
    with pytest.raises(InvalidStatus) as limited:
        websocket(url, additional_headers=KEY)
    assert limited.value.response.status_code == 429
    lines = wait_for(lambda: len(keylatch.access_log()) == 4 and keylatch.access_log(), "four lines")
    assert sorted(line["status"] for line in lines) == [101, 101, 403, 429]
    first = next(line for line in lines if line["status"] == 101 and line["bytes_out"] > 300_000)
    assert first["bytes_in"] > 370_000


@pytest.mark.parametrize("http2", [False, True])
def test_an_unrequested_101_is_refused(start, http2):
    """The client would read the following bytes as HTTP, and the upstream as another protocol."""

    def switch(request, send):
        send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
        return True

    with Scripted(switch) as upstream:
        keylatch = start(upstream)
        with httpx.Client(http1=not http2, http2=http2, trust_env=False) as client:
            # Without the connection option `upgrade` the field is removed, and does not reach the
            # upstream.
            for headers in ({}, {"Upgrade": "websocket"}) if not http2 else ({},):
                answer = client.get(keylatch.url("/v1/x"), headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
        assert all("upgrade" not in dict(seen["headers"]) for seen in upstream.requests)


def test_a_websocket_over_tls(start, realtime, tmp_path):
    import ssl

    authority = Authority(tmp_path / "ca")
    issued = authority.issue("first", "api.test")
    tls = json.dumps({"certificates": [{"chain_file": str(issued.cert), "key_file": str(issued.key)}]}).replace("{", "{{").replace("}", "}}")
    keylatch = start(realtime, config=DEFAULT.replace("    limits: {limits}", "    limits: {limits}\n    tls: " + tls))
    context = ssl.create_default_context(cafile=authority.ca)
    with websocket("wss://api.test/v1/realtime", address=("127.0.0.1", keylatch.port), ssl=context, ping_interval=None) as connection:
        connection.send("hello")
        assert connection.recv(5) == "hello"


def test_upgrade_idle_timeout_of_a_silent_websocket(start, realtime):
    keylatch = start(realtime, limits="{upgrade_idle_timeout: 1s}")
    with websocket(f"ws://127.0.0.1:{keylatch.port}/v1/realtime", ping_interval=None) as connection:
        for _ in range(5):
            time.sleep(0.4)
            connection.send("hello")
            assert connection.recv(5) == "hello"
        since = time.monotonic()
        with pytest.raises(ConnectionClosed):
            connection.recv(10)
        # upgrade_idle_timeout is 1 s; the lower bound allows for its coarse timer, the upper one
        # for a busy machine.
        assert 0.5 < time.monotonic() - since < 5
    wait_for(lambda: keylatch.metrics()["keylatch_connections"] == 0, "the connection is over")


@pytest.mark.parametrize("talks", ["client", "server"])
def test_a_websocket_with_one_active_side_is_not_idle(start, realtime, talks):
    keylatch = start(realtime, limits="{upgrade_idle_timeout: 1s}")
    with websocket(f"ws://127.0.0.1:{keylatch.port}/v1/realtime", ping_interval=None) as connection:
        if talks == "server":
            connection.send("talk")
            assert [connection.recv(5) for _ in range(8)] == ["talk"] * 8
        else:
            for _ in range(8):
                connection.send("quiet")
                time.sleep(0.4)
        connection.send("hello")
        assert connection.recv(5) == "hello"


class Echo(grpc.GenericRpcHandler):
    """A gRPC service with all kinds of calls, without a schema."""

    def service(self, details):
        whole = lambda data: data  # noqa: E731

        def one(request, context):
            context.set_trailing_metadata((("x-cost", "7"),))
            if request == b"fail":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much of it")
            return request * 3

        def many(request, context):
            context.set_trailing_metadata((("x-cost", "8"),))
            for n in range(5):
                yield request + b"%d" % n

        def both(requests, context):
            for request in requests:
                yield request[::-1]

        kinds = {
            "/t.Echo/One": grpc.unary_unary_rpc_method_handler(one, whole, whole),
            "/t.Echo/Many": grpc.unary_stream_rpc_method_handler(many, whole, whole),
            "/t.Echo/Both": grpc.stream_stream_rpc_method_handler(both, whole, whole),
        }
        return kinds.get(details.method)


@pytest.fixture
def rpc():
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Echo()])
    server.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield server
    server.stop(None)


def test_grpc_passes_with_its_trailers(start, rpc):
    config = DEFAULT.replace('    servers: [{{address: "127.0.0.1:{upstream}"}}]', '    servers: [{{address: "127.0.0.1:{upstream}"}}]\n    http: http2').replace('["/v1/*"]', '["/t.Echo/*"]')
    keylatch = start(rpc, config=config)
    with grpc.insecure_channel(f"127.0.0.1:{keylatch.port}") as channel:
        answer, call = channel.unary_unary("/t.Echo/One").with_call(b"abc", timeout=10)
        assert answer == b"abcabcabc" and call.code() == grpc.StatusCode.OK and ("x-cost", "7") in call.trailing_metadata()
        large, _ = channel.unary_unary("/t.Echo/One").with_call(b"x" * 1_000_000, timeout=20)
        assert len(large) == 3_000_000
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary("/t.Echo/One")(b"fail", timeout=10)
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much of it")
        assert ("x-cost", "7") in failed.value.trailing_metadata()
        stream = channel.unary_stream("/t.Echo/Many")(b"n", timeout=10)
        assert list(stream) == [b"n%d" % n for n in range(5)] and ("x-cost", "8") in stream.trailing_metadata()
        # Bidirectional streaming: each answer arrives before the next request is sent.
        asked, answered = [], threading.Semaphore(1)

        def questions():
            for n in range(5):
                assert answered.acquire(timeout=5)
                asked.append(b"a%d" % n)
                yield asked[-1]

        for n, answer in enumerate(channel.stream_stream("/t.Echo/Both")(questions(), timeout=10)):
            assert answer == asked[n][::-1]
            answered.release()
        assert len(asked) == 5
