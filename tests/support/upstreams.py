"""Scripted upstreams: a test writes each answer byte by byte.

They read requests leniently; `strict.py` is the strict upstream."""

import json
import socket
import ssl
import threading
import time

from .listener import Listener


class Scripted(Listener):
    """Calls `answer(request, send)` for each request; `send` writes bytes to the client. A request
    has method, target, headers, body.

    The connection is kept if `answer` returns True. Parsing is lenient, so that a test sees what
    arrived."""

    def __init__(self, answer, tls=None, listener=None):
        self.answer = answer
        self.context = None
        if tls:
            self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.context.load_cert_chain(tls.cert, tls.key)
        self.requests = []
        self.closed_by_peer = threading.Event()
        super().__init__(listener=listener)

    def serve(self, connection):
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context:
            try:
                connection = self.context.wrap_socket(connection, server_side=True)
            except OSError:
                self.closed_by_peer.set()
                return
        file = connection.makefile("rb")
        try:
            while True:
                request = read_request(file)
                if request is None:
                    return
                self.requests.append(request)
                if not self.answer(request, connection.sendall):
                    return
        except (OSError, ValueError):
            self.closed_by_peer.set()
        finally:
            connection.close()


def read_request(file):
    line = file.readline()
    if not line:
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers = []
    while (line := file.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").rstrip("\r\n").partition(":")
        headers.append((name.lower(), value.strip()))
    fields = dict(headers)
    body = b""
    if "content-length" in fields:
        body = file.read(int(fields["content-length"]))
    elif fields.get("transfer-encoding", "").lower() == "chunked":
        while size := int(file.readline().split(b";")[0], 16):
            body += file.read(size)
            file.readline()
        file.readline()
    return {"method": method, "target": target, "headers": headers, "body": body}


def plain(status="200 OK", body=b"ok", headers=()):
    """A complete response with a `Content-Length`."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def unending(request, send):
    """Answers after 0.3 s, as a model would; a stream goes on until the client leaves."""
    if "stream" not in request["target"]:
        time.sleep(0.3)
        send(plain())
        return True
    send(STREAM_HEAD)
    while True:
        send(chunk(b"data: x\n\n"))
        time.sleep(0.1)


def chunk(data):
    """One chunk of a chunked body; an empty chunk ends the body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def echo(request, send):
    """Answers with the request itself, as JSON."""
    body = json.dumps({**request, "body": request["body"].decode("latin-1")}).encode()
    send(plain(body=body, headers=["Content-Type: application/json"]))
    return True


def events(request, send, count=5):
    """A stream of `count` events."""
    send(STREAM_HEAD)
    for n in range(count):
        send(chunk(b"data: %d\n\n" % n))
    send(chunk(b""))
    return True


class ClosesReused(Listener):
    """Answers the first request of its first connection, and closes that connection while the next
    one arrives, after `bytes_read` of it. `serve_again(request, connection, file)` serves every later
    connection."""

    def __init__(self, serve_again, bytes_read=1):
        self.serve_again, self.bytes_read, self.connections = serve_again, bytes_read, 0
        super().__init__()

    def serve(self, connection):
        with connection, connection.makefile("rb") as file:
            request = read_request(file)
            if request is None:  # a probe
                return
            self.connections += 1
            if self.connections == 1:
                connection.sendall(plain())
                file.read(self.bytes_read)
                return
            self.serve_again(request, connection, file)
