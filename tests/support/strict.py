"""A strict HTTP/1.1 upstream: it records as an error everything that a proxy must not forward."""

import dataclasses
import socket
import threading
import time

import h11

from support.listener import Listener

HEAD_MAX = 256 * 1024


@dataclasses.dataclass
class ReceivedRequest:
    """A request as it arrived. `whole` is True once its body is complete."""

    method: str
    target: str
    headers: list
    body: bytes = b""
    whole: bool = False

    def all(self, name):
        """All values of a field, by its lower-case name."""
        return [value for key, value in self.headers if key == name]

    def brief(self):
        return self.method, self.target, self.body


def faults(seen, raw_head):
    """The defects of a request that h11 accepts."""
    wrong = []
    names = [name for name, _ in seen.headers]
    lengths, codings = seen.all("content-length"), seen.all("transfer-encoding")
    if len(seen.all("host")) != 1:
        wrong.append(f"Host {len(seen.all('host'))} times")
    wrong += [f"underscore in {name}" for name in names if "_" in name]
    if len(lengths) + len(codings) > 1:
        wrong.append(f"more than one framing: {lengths} {codings}")
    if codings and codings != ["chunked"]:
        wrong.append(f"coding {codings}")
    if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
        wrong.append(f"length {lengths}")
    path = seen.target.partition("?")[0]
    if not path.startswith("/") or any(part in path for part in ("//", "\\", "#")) or {".", ".."} & set(path.split("/")):
        wrong.append(f"target {seen.target!r}")
    if not all(0x20 < ord(char) < 0x7F for char in seen.target):
        wrong.append(f"target {seen.target!r}")
    lines = raw_head.split(b"\n")
    if any(not line.endswith(b"\r") for line in lines[:-1]) or any(b"\r" in line[:-1] or b"\0" in line for line in lines):
        wrong.append(f"line ends: {raw_head!r}")
    if any(line[:1] in (b" ", b"\t") for line in lines):
        wrong.append(f"folded: {raw_head!r}")
    return wrong


class Strict(Listener):
    """Parses with h11, answers complete requests with 200, and records requests and errors.

    `requests` lists the requests in the order of their headers, complete or not. `errors` lists
    what h11 refuses, what `faults` finds, and bytes left over at the end of a connection."""

    def __init__(self):
        self.requests, self.errors, self.open = [], [], 0
        self.lock = threading.Lock()
        super().__init__()

    def serve(self, sock):
        with self.lock:
            self.open += 1
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection(sock, h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX))
        except OSError:
            pass
        finally:
            sock.close()
            with self.lock:
                self.open -= 1

    def _connection(self, sock, parser):
        """Reads the requests of one connection."""
        raw, seen, ended = b"", None, False
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                # A truncated request is correct: the proxy closes the upstream connection of a
                # malformed upload.
                if not (ended and seen):
                    self.errors.append(f"{error}: {raw!r}")
                return
            if event is h11.NEED_DATA:
                if ended:
                    if not seen:
                        self.errors.append(f"left over at the end of the connection: {raw!r}")
                    return
                if parser.they_are_waiting_for_100_continue:
                    sock.sendall(parser.send(h11.InformationalResponse(status_code=100, headers=[])))
                try:
                    data = sock.recv(65536)
                except ConnectionResetError:
                    data = b""
                ended = not data
                raw += data if len(raw) < 2 * HEAD_MAX else b""
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
                seen = ReceivedRequest(event.method.decode("latin-1"), event.target.decode("latin-1"), headers)
                self.requests.append(seen)
                self.errors += [f"{fault} in {seen}" for fault in faults(seen, raw.partition(b"\r\n\r\n")[0])]
            elif isinstance(event, h11.Data):
                seen.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                seen.whole = True
                if event.headers:
                    self.errors.append(f"trailers in {seen}: {list(event.headers)}")
                if "slow" in seen.target:
                    time.sleep(0.4)
                self._answer(sock, parser, seen)
                if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
                    return
                trailing, closed = parser.trailing_data
                if trailing:
                    self.errors.append(f"after {seen}: {trailing!r}")
                if closed:
                    return
                parser.start_next_cycle()
                raw, seen = b"", None
            elif isinstance(event, h11.ConnectionClosed):
                return

    @staticmethod
    def _answer(sock, parser, seen):
        fields = [("Content-Length", "2"), ("Content-Type", "text/plain")]
        answer = parser.send(h11.Response(status_code=200, headers=fields))
        if seen.method != "HEAD":
            answer += parser.send(h11.Data(data=b"ok"))
        sock.sendall(answer + parser.send(h11.EndOfMessage()))
