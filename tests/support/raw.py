"""Raw HTTP/1.1 over sockets, from any loopback address."""

import socket
import sys


class Answer:
    def __init__(self, status, headers, body, whole):
        self.status, self.headers, self.body, self.whole = status, headers, body, whole

    def header(self, name):
        return ", ".join(value for key, value in self.headers if key == name.lower())


def connect(port, source="127.0.0.1", timeout=10):
    connection = socket.socket()
    connection.settimeout(timeout)
    if sys.platform == "linux":
        # Chooses the local port at connect time, so that ports in TIME_WAIT towards other peers can
        # be reused.
        connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    connection.bind((source, 0))
    connection.connect(("127.0.0.1", port))
    return connection


def read_head(file):
    line = file.readline()
    if not line:
        return None
    status = int(line.split()[1])
    headers = []
    while (line := file.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").rstrip("\r\n").partition(":")
        headers.append((name.lower(), value.strip()))
    return status, headers


def read_body(file, headers):
    """The body, and whether it is complete."""
    fields = dict(headers)
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            line = file.readline()
            if not line:
                return body, False
            size = int(line, 16)
            if size == 0:
                file.readline()
                return body, True
            body += file.read(size)
            file.readline()
    length = int(fields.get("content-length", 0))
    body = file.read(length)
    return body, len(body) == length


def request(port, path="/v1/x", method="GET", headers=(), body=b"", source="127.0.0.1", timeout=10):
    """Sends one request on a new connection."""
    fields = [("Host", "localhost"), *headers]
    if body:
        fields.append(("Content-Length", str(len(body))))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
    with connect(port, source, timeout) as connection:
        connection.sendall(head.encode("latin-1") + body)
        file = connection.makefile("rb")
        head = read_head(file)
        if head is None:
            return Answer(0, [], b"", False)
        status, answer_headers = head
        answer_body, whole = (b"", True) if method == "HEAD" else read_body(file, answer_headers)
        return Answer(status, answer_headers, answer_body, whole)


def key(name):
    return ("Authorization", f"Bearer {name}")


def begin_stream(connection):
    """Requests a stream, and reads its first event."""
    connection.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"data: x" in connection.recv(4096) + connection.recv(4096)


def assert_stopping_error(connection):
    """Reads a stream to its end, and asserts a final `stopping` error and a complete body."""
    text = b""
    while piece := connection.recv(4096):
        text += piece
    assert b'"code":"stopping"' in text and text.endswith(b"0\r\n\r\n"), text[-400:]
