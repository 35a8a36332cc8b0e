"""Streams: memory of an idle one, the time of a chunk, and the punctuality of comment frames."""

import contextlib
import selectors
import socket
import threading
import time
import urllib.request

import harness
import results
from harness import KEY, at_share
from proxies import CHAIN, Keylatch, Nginx, Pingora, programs


class StreamUpstream:
    """An upstream that opens a stream for every request, and sends chunks on command."""

    HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=8192)
        self.port = self.listener.getsockname()[1]
        self.open = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        selector = selectors.DefaultSelector()
        self.listener.setblocking(False)
        selector.register(self.listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                data = b""
                with contextlib.suppress(OSError):
                    data = key.fileobj.recv(65536)
                if data:
                    # Before the answer, after which a client may ask for a chunk.
                    self.open.append(key.fileobj)
                    key.fileobj.sendall(self.HEAD + b"9\r\ndata: x\n\n\r\n")
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


def open_streams(port, count):
    clients = []
    request = f"GET /v1/stream HTTP/1.1\r\nHost: h\r\nAuthorization: {KEY}\r\nAccept: text/event-stream\r\n\r\n".encode()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), 20)
        client.sendall(request)
        clients.append(client)
    for client in clients:
        client.settimeout(20)
        got = b""
        while b"x\n\n" not in got:
            piece = client.recv(4096)
            if not piece:
                raise SystemExit(f"a stream was refused: {got!r}")
            got += piece
    return clients


def stream_kib(proxy, count):
    """The memory of an idle stream."""
    for client in open_streams(proxy.port, 50):
        client.close()
    time.sleep(1)
    before = harness.memory_kib(proxy.process.pid)
    clients = open_streams(proxy.port, count)
    time.sleep(2)
    after = harness.memory_kib(proxy.process.pid)
    for client in clients:
        client.close()
    return (after - before) / count


def chunk_ms(proxy, upstream, chunks):
    """The time from the upstream's write to the client's read, one chunk at a time."""
    times = []
    (client,) = open_streams(proxy.port, 1)
    client.settimeout(5)
    event = b"data: 0123456789\n\n"
    for _ in range(chunks):
        began = time.perf_counter()
        upstream.open[-1].sendall(b"%x\r\n%s\r\n" % (len(event), event))
        got = b""
        while b"\n\n" not in got:
            got += client.recv(4096)
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(0.002)
    client.close()
    return times


def frames_ms(bench, count, interval_s=5):
    """How long after its due time a comment frame arrives. Returns the times and the frames sent."""
    upstream, late = StreamUpstream(), []
    proxy = Keylatch(bench, CHAIN % f"{interval_s}s", upstream=upstream.port)
    try:
        selector = selectors.DefaultSelector()
        for client in open_streams(proxy.port, count):
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, [None])
        end = time.monotonic() + 4 * interval_s + 2
        while time.monotonic() < end:
            for key, _ in selector.select(0.5):
                now = time.monotonic()
                if b": keep-alive" in key.fileobj.recv(4096):
                    if key.data[0] is not None:
                        late.append((now - key.data[0] - interval_s) * 1000)
                    key.data[0] = now
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{proxy.admin}/metrics").read().decode()
    finally:
        proxy.stop()
    return late, next(line.split()[1] for line in metrics.splitlines() if line.startswith("keylatch_stream_frames_total"))


def tables(bench):
    count, chunks = (2000, 1000) if bench.quick else (4000, 2000)
    quiet = CHAIN % "600s"
    kinds = {"pingora": ("Pingora, bare", Pingora), "keylatch": ("Keylatch", lambda bench, upstream: Keylatch(bench, quiet, upstream=upstream)), "nginx": ("nginx", Nginx)}
    rows = []
    for program, (name, kind) in kinds.items():
        if program not in programs():
            continue
        upstream = StreamUpstream()
        proxy = kind(bench, upstream=upstream.port)
        try:
            each_kib = stream_kib(proxy, count)
            times = chunk_ms(proxy, upstream, chunks)
        finally:
            proxy.stop()
        rows.append([name, results.one(each_kib), results.one(at_share(times, 0.5)), results.one(at_share(times, 0.99))])
    yield "streams", results.table(f"Streams: memory of each of {count:,} idle ones, and the time of a chunk", ["proxy", "KiB a stream", "chunk, p50 ms", "p99 ms"], rows)
    late, sent = frames_ms(bench, count)
    row = [f"{count:,}", f"{int(float(sent)):,}", *(results.one(at_share(late, share)) for share in (0.5, 0.99, 1))]
    yield "frames", results.table("Comment frames, one each 5 s: ms after the due time", ["streams", "frames", "p50", "p99", "latest"], [row])
