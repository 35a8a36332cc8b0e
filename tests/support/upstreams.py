"""Upstreams that do exactly as a test says: one thread a connection, nothing hidden."""

import json
import socket
import ssl
import threading
import time


class Scripted:
    """Answers each request with what `answer(request)` writes. A request has method, target, headers, body.

    `answer(request, send)` gets a function that sends bytes to the client. The connection is kept if it returns
    True. Requests are parsed leniently on purpose: what arrives is what the test wants to see."""

    def __init__(self, answer, tls=None, listener=None):
        self.answer = answer
        self.context = None
        if tls:
            self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.context.load_cert_chain(tls.cert, tls.key)
        self.requests = []
        self.closed_by_peer = threading.Event()
        self.listener = listener or socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = None if self.listener.family == socket.AF_UNIX else self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
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

    def close(self):
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


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
    """A whole response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def unending(request, send):
    """Answers after a moment, as models do; a stream goes on for as long as somebody reads."""
    if "stream" not in request["target"]:
        time.sleep(0.3)
        send(plain())
        return True
    send(STREAM_HEAD)
    while True:
        send(chunk(b"data: x\n\n"))
        time.sleep(0.1)


def chunk(data):
    """One chunk; an empty one ends the body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def echo(request, send):
    """Answers with what arrived."""
    body = json.dumps({**request, "body": request["body"].decode("latin-1")}).encode()
    send(plain(body=body, headers=["Content-Type: application/json"]))
    return True


def events(request, send, count=5):
    """A short stream."""
    send(STREAM_HEAD)
    for n in range(count):
        send(chunk(b"data: %d\n\n" % n))
    send(chunk(b""))
    return True
