"""What leaves a client's connection usable for its next request."""

import pytest
from support.listener import Listener
from support.raw import connect, read_body, read_head
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain

KEEPALIVE = "      - sse_keepalive: {interval: 5s, before_headers: 10s}\n"
AGAIN = b"GET /v1/again HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("filters", ["", KEEPALIVE], ids=["plain", "timed"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_the_upstream_asked_for(start, filters, framing):
    class Asking(Listener):
        def serve(self, connection):
            with connection, connection.makefile("rb") as file:
                while line := file.readline():
                    while (field := file.readline()) not in (b"\r\n", b""):
                        if field.lower().startswith(b"expect"):
                            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    if line.startswith(b"POST"):
                        assert b"hello" in (file.read(5) if framing == "length" else file.read(15))
                    connection.sendall(plain())

    with Asking() as upstream:
        keylatch = start(upstream, route_filters=filters)
        field, body = {"length": (b"Content-Length: 5", b"hello"), "chunked": (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")}[framing]
        with connect(keylatch.port) as connection, connection.makefile("rb") as file:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + field + b"\r\n\r\n")
            assert read_head(file)[0] == 100
            connection.sendall(body)
            status, headers = read_head(file)
            assert status == 200 and ("connection", "close") not in [(name.lower(), value) for name, value in headers]
            assert read_body(file, headers) == (b"ok", True)
            connection.sendall(AGAIN)
            assert read_head(file)[0] == 200


def test_a_stream_that_ended_with_an_error_event(start):
    """The header said that the connection stays open. A client that uses it again must not find it
    closed."""

    def cut(request, send):
        if request["method"] == "GET":
            send(plain())
            return True
        send(STREAM_HEAD + chunk(b"data: word\n\n"))
        return False

    with Scripted(cut) as upstream:
        keylatch = start(upstream, route_filters=KEEPALIVE)
        with connect(keylatch.port) as connection, connection.makefile("rb") as file:
            for _ in range(3):
                connection.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"stream":true}')
                status, headers = read_head(file)
                body, whole = read_body(file, headers)
                assert status == 200 and whole and b"upstream_error" in body, body
            connection.sendall(AGAIN)
            assert read_head(file)[0] == 200
