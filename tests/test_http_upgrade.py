"""Requests to upgrade to another protocol, at the level of bytes: how the upstream may answer, and
what becomes of the connections."""

import contextlib
import ssl
import threading

import httpx
import pytest
from websockets.sync.client import connect as websocket
from websockets.sync.server import serve as serve_websockets

from support.authority import Authority
from support.keylatch import DEFAULT, wait_for
from support.listener import Listener
from support.raw import connect, read_body, read_head
from support.upstreams import ClosesReused, Scripted, chunk, plain, read_request

ASKED = b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def echo_bytes(file, send):
    while data := file.read1(65536):
        send(data)
    return False


def upgraded(keylatch):
    """A connection after the 101."""
    connection = connect(keylatch.port)
    connection.sendall(ASKED)
    file = connection.makefile("rb")
    status, _ = read_head(file)
    assert status == 101
    return connection, file


class Hasty(Listener):
    """Answers with 101 before the request has arrived, as an upstream on a fast network may seem
    to do."""

    def serve(self, connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as file:
            connection.sendall(SWITCH)
            read_request(file)
            echo_bytes(file, connection.sendall)


def test_a_switch_that_is_read_before_the_end_of_the_request(start):
    with Hasty() as upstream:
        keylatch = start(upstream)
        for n in range(40):
            connection, file = upgraded(keylatch)
            with connection, file:
                # A tunnel that ends too early ends at once.
                connection.settimeout(0.02)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(10)
                connection.sendall(b"hello")
                assert connection.recv(5) == b"hello", n


ANSWERS = {
    "length": plain("426 Upgrade Required", b"no", ["Upgrade: websocket"]),
    "chunked": b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"no") + chunk(b""),
    "accepted": plain(body=b"no"),
    "stream": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"no") + chunk(b""),
    "after_early_hints": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + plain("400 Bad Request", b"no"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_without_a_switch_passes_whole(start, answer):
    def refuse(request, send):
        send(ANSWERS[answer])
        return True

    with Scripted(refuse) as upstream:
        keylatch = start(upstream)
        with connect(keylatch.port) as connection, connection.makefile("rb") as file:
            connection.sendall(ASKED)
            status, headers = read_head(file)
            while status == 103:
                status, headers = read_head(file)
            assert read_body(file, headers) == (b"no", True)
        assert "error" not in wait_for(keylatch.access_log, "a line")[0]
        fields = dict(upstream.requests[0]["headers"])
        assert fields["upgrade"] == "websocket"
        assert not {"content-length", "transfer-encoding"} & fields.keys()


def test_an_upgrade_is_repeated_on_a_new_connection(start):
    """The upstream closes a pooled connection while the request is on its way."""
    requests = []

    def switch(request, connection, file):
        requests.append(request)
        connection.sendall(SWITCH)
        echo_bytes(file, connection.sendall)

    with ClosesReused(switch) as upstream:
        keylatch = start(upstream)
        assert httpx.get(keylatch.url("/v1/x")).status_code == 200
        wait_for(lambda: keylatch.access_log(), "the connection is in the pool")
        connection, file = upgraded(keylatch)
        with connection, file:
            connection.sendall(b"hello")
            assert file.read(5) == b"hello"
        assert upstream.connections == 2
        assert not {"content-length", "transfer-encoding"} & dict(requests[0]["headers"]).keys()


def test_a_client_that_leaves_before_the_switch(start):
    arrived, left = threading.Event(), threading.Event()

    class Silent(Listener):
        def serve(self, connection):
            with connection, connection.makefile("rb") as file:
                if read_request(file) is None:  # a probe
                    return
                arrived.set()
                assert file.read(1) == b""
                left.set()

    with Silent() as upstream:
        keylatch = start(upstream)
        with connect(keylatch.port) as connection:
            connection.sendall(ASKED)
            assert arrived.wait(10)
        assert left.wait(10)
        line = wait_for(keylatch.access_log, "a line")[0]
        assert line["status"] == 0 and "ConnectionClosed" in line["error"], line


def test_either_side_ends_an_upgraded_connection(start):
    ended = threading.Event()

    class Echo(Listener):
        def serve(self, connection):
            with connection, connection.makefile("rb") as file:
                if read_request(file) is None:  # a probe
                    return
                connection.sendall(SWITCH)
                while data := file.read1(65536):
                    connection.sendall(data)
                    if data == b"bye":
                        return
                ended.set()

    with Echo() as upstream:
        keylatch = start(upstream)
        connection, file = upgraded(keylatch)
        with connection, file:
            connection.sendall(b"bye")
            assert file.read() == b"bye"
        connection, file = upgraded(keylatch)
        with connection, file:
            connection.sendall(b"hello")
            assert file.read(5) == b"hello"
            assert not ended.is_set()
        assert ended.wait(10)
        lines = wait_for(lambda: len(keylatch.access_log()) == 2 and keylatch.access_log(), "two lines")
        assert [(line["status"], line["bytes_in"], line["bytes_out"], line.get("error")) for line in lines] == [(101, 3, 3, None), (101, 5, 5, None)]


def test_a_websocket_to_a_server_that_prefers_http2(start, tmp_path):
    """HTTP/2 has no upgrade, so it is not offered for such a request."""
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("model", "model.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.cert, issued.key)
    context.set_alpn_protocols(["h2", "http/1.1"])

    def echo(connection):
        for message in connection:
            connection.send(message)

    with serve_websockets(echo, "127.0.0.1", 0, ssl=context, ping_interval=None) as server:
        server.port = server.socket.getsockname()[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tls = f'    servers: [{{{{address: "127.0.0.1:{server.port}"}}}}]\n    tls: {{{{ca_file: {authority.ca}, server_name: model.test}}}}'
        keylatch = start(server, config=DEFAULT.replace('    servers: [{{address: "127.0.0.1:{upstream}"}}]', tls))
        with websocket(f"ws://127.0.0.1:{keylatch.port}/v1/realtime", ping_interval=None) as connection:
            connection.send("hello")
            assert connection.recv(10) == "hello"
