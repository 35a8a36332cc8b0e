"""Upgrades and reloads under load: 500 streams and 500 requests a second, half of them on new
connections. Prints the number of refused, truncated and failed requests, which should be zero, and
the times of requests around an upgrade.

    cargo build --release --locked && python3 benches/upgrade.py
"""

import argparse
import asyncio
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import support.keylatch as harness  # noqa: E402

harness.BINARY = harness.ROOT / "target" / "release" / "keylatch"


async def upstream(seconds):
    """An upstream that streams one event a second, and answers other requests at once."""

    async def serve(reader, writer):
        try:
            while line := await reader.readline():
                while await reader.readline() not in (b"\r\n", b""):
                    pass
                if b"stream" not in line:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                for n in range(seconds):
                    event = b"data: %d\n\n" % n
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(1)
                writer.write(b"0\r\n\r\n")
        except (ConnectionError, asyncio.CancelledError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
    return server, server.sockets[0].getsockname()[1]


class Clients:
    def __init__(self, port, seconds):
        self.port, self.seconds = port, seconds
        self.failed, self.whole, self.times, self.over = [], 0, [], False

    async def stream(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: h\r\n\r\n")
        text = b""
        while not text.endswith(b"0\r\n\r\n"):
            piece = await reader.read(65536)
            if not piece:
                raise RuntimeError("a stream was truncated")
            text += piece
        if b"data: %d\n\n" % (self.seconds - 1) not in text:
            raise RuntimeError("a stream was incomplete")
        self.whole += 1
        writer.close()

    async def requests(self, keep, pause):
        reader = writer = None
        while not self.over:
            since = time.perf_counter()
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.split(b"\r\n")[0].decode())
            took = time.perf_counter() - since
            self.times.append((time.monotonic(), took))
            if not keep or b"connection: close" in head.lower():
                writer.close()
                writer = None
            await asyncio.sleep(max(0, pause - took))

    async def guard(self, work):
        try:
            await work
        except Exception as error:  # noqa: BLE001 — whatever it is, it is a failure
            self.failed.append(repr(error))


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * q))] * 1000 if values else float("nan")


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--upgrades", type=int, default=1)
    asked = parser.parse_args()
    server, port = await upstream(asked.seconds)
    with tempfile.TemporaryDirectory() as folder:
        keylatch = harness.Keylatch(folder, port, route_filters="      - sse_keepalive: {}", storage="{sqlite: {path: keylatch.db}}")
        await asyncio.to_thread(keylatch.start)
        clients = Clients(keylatch.port, asked.seconds)
        streams = [asyncio.create_task(clients.guard(clients.stream())) for _ in range(asked.streams)]
        await asyncio.sleep(2)
        pause, workers = 0.1, asked.rate // 10
        busy = [asyncio.create_task(clients.guard(clients.requests(n % 2 == 0, pause))) for n in range(workers)]
        await asyncio.sleep(2)
        at = []
        for n in range(asked.reloads):
            assert (await asyncio.to_thread(keylatch.command, "reload")).returncode == 0
            if n % (asked.reloads // asked.upgrades or 1) == asked.reloads // asked.upgrades // 2:
                since = time.monotonic()
                await asyncio.to_thread(keylatch.upgrade)
                at.append((since, time.monotonic()))
            await asyncio.sleep(0.5)
        await asyncio.gather(*streams)
        clients.over = True
        await asyncio.gather(*busy)
        around = [took for when, took in clients.times if any(a - 1 <= when <= b + 2 for a, b in at)]
        apart = [took for when, took in clients.times if not any(a - 1 <= when <= b + 2 for a, b in at)]
        print(f"{asked.reloads} reloads and {asked.upgrades} upgrades ({', '.join(f'{b - a:.1f} s' for a, b in at)})")
        print(f"streams: {clients.whole} of {asked.streams} whole; requests: {len(clients.times)}, of which failed: {len(clients.failed)}")
        print(f"a request took, around an upgrade: p50 {quantile(around, 0.5):.1f} ms, p99 {quantile(around, 0.99):.1f} ms; else {quantile(apart, 0.5):.1f} and {quantile(apart, 0.99):.1f}")
        for failure in sorted(set(clients.failed)):
            print(f"  {clients.failed.count(failure)} × {failure}")
        await asyncio.to_thread(keylatch.stop)
    server.close()
    return 1 if clients.failed else 0


sys.exit(asyncio.run(main()))
