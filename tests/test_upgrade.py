"""Upgrades under load: a new process takes over, no request is refused, and open connections
continue."""

import asyncio
import json
import os
import shutil
import signal
import socket
import time

import httpx
import pytest

from support.keylatch import BINARY, wait_for
from support.raw import connect, read_body, read_head, request
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain

SQLITE = "{sqlite: {path: keylatch.db}}"


def slow(request, send):
    """Streams until the client leaves; other requests are answered at once."""
    if "stream" not in request["target"]:
        send(plain())
        return True
    send(STREAM_HEAD)
    for n in range(1200):
        send(chunk(b"data: %d\n\n" % n))
        if n == 60 and "short" in request["target"]:
            break
        time.sleep(0.1)
    send(chunk(b""))
    return True


@pytest.fixture
def upstream():
    with Scripted(slow) as running:
        yield running


async def read_answer(reader):
    status = int((await reader.readline()).split()[1])
    fields = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        fields[name.lower()] = value.strip()
    await reader.readexactly(int(fields.get("content-length", 0)))
    return status, fields


class Load:
    """A mix of clients: streams, keep-alive connections, and a new connection for each request."""

    def __init__(self, port, streams=40, keeping=10, fresh=10, pause=0.05):
        self.port, self.failed, self.done, self.whole, self.over = port, [], 0, 0, asyncio.Event()
        self.counts = (streams, keeping, fresh, pause)

    async def stream(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /v1/stream-short HTTP/1.1\r\nHost: h\r\n\r\n")
        text = b""
        while not text.endswith(b"0\r\n\r\n"):
            piece = await reader.read(65536)
            assert piece, f"a stream was truncated after {len(text)} bytes"
            text += piece
        assert b"data: 60\n\n" in text
        self.whole += 1
        writer.close()

    async def requests(self, keep):
        pause, reader, writer = self.counts[3], None, None
        while not self.over.is_set():
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
            status, fields = await read_answer(reader)
            assert status == 200, status
            self.done += 1
            if not keep or fields.get("connection") == "close":
                writer.close()
                writer = None
            await asyncio.sleep(pause)

    async def guard(self, work):
        try:
            await work
        except Exception as error:  # noqa: BLE001 — any error is a failure
            self.failed.append(repr(error))

    async def run(self, meanwhile):
        streams, keeping, fresh, _ = self.counts
        work = [self.requests(True) for _ in range(keeping)] + [self.requests(False) for _ in range(fresh)]
        busy = [asyncio.create_task(self.guard(each)) for each in work]
        streaming = [asyncio.create_task(self.guard(self.stream())) for _ in range(streams)]
        # Lets every client of the load begin.
        await asyncio.sleep(0.5)
        await asyncio.to_thread(meanwhile)
        await asyncio.gather(*streaming)
        self.over.set()
        await asyncio.gather(*busy)


def test_an_upgrade_under_load(start, upstream):
    keylatch = start(upstream, route_filters="      - sse_keepalive: {}", storage=SQLITE)
    load = Load(keylatch.port)
    olds = []

    def meanwhile():
        for _ in range(2):
            for _ in range(5):
                assert keylatch.command("reload").returncode == 0
            before = load.done
            olds.append(keylatch.upgrade())
            wait_for(lambda: load.done > before + 100, "requests go on")

    asyncio.run(load.run(meanwhile))
    assert not load.failed and load.whole == 40 and load.done > 200
    # Old processes exit once no connection is open; idle keep-alive connections get `Connection:
    # close`.
    [wait_for(lambda old=old: old.poll() is not None, "the old process ends") for old in olds]
    assert olds[0].poll() == 0 and "ended" in keylatch.stderr.read_text()
    assert request(keylatch.port).status == 200
    assert not os.path.exists(f"/proc/{olds[0].pid}") or olds[0].poll() == 0


def test_the_new_process_lists_and_cancels_streams_of_the_old_one(start, upstream):
    filters = """
      - sse_keepalive: {}
      - key_binding: {}
"""
    keylatch = start(upstream, route_filters=filters, storage=SQLITE)
    streams = [httpx.Client().stream("GET", f"http://127.0.0.1:{keylatch.port}/v1/stream", headers={"Authorization": f"Bearer sk-{n}"}) for n in "ab"]
    opened = [stream.__enter__() for stream in streams]
    pieces = [each.iter_text() for each in opened]
    assert ["data: 0" in next(each) for each in pieces] == [True, True]
    old = keylatch.upgrade()

    def listed():
        said = keylatch.command("streams", "list", "--json")
        return [json.loads(line) for line in said.stdout.splitlines()]

    rows = wait_for(lambda: len(listed()) == 2 and listed(), "the new process lists both streams")
    replica = rows[0]["replica"]
    assert {row["replica"] for row in rows} == {replica} and replica.endswith(f"~{old.pid}")
    assert old.poll() is None and "data: 1" in next(pieces[0]) + next(pieces[0])
    # An operator cancels one stream, and a ban of its key ends the other.
    assert "has handed over" in keylatch.command("status").stdout
    ended = keylatch.command("streams", "end", str(rows[0]["id"]), "--replica", replica)
    assert ended.returncode == 0, ended.stderr
    wait_for(lambda: len(listed()) == 1, "the stream has ended")
    key = listed()[0]["key_id"]
    assert keylatch.command("bindings", "ban", key).returncode == 0
    wait_for(lambda: old.poll() is not None, "the old process has nothing left")
    assert "stream_ended" in "".join(pieces[0]) + "".join(pieces[1])
    wait_for(lambda: keylatch.command("status").stdout.count("replica ") == 1, "one replica is left")


def test_requests_are_counted_once(start, upstream):
    keylatch = start(upstream, storage=SQLITE)

    def counted():
        said = keylatch.command("status", "--json")
        return json.loads(said.stdout)["requests"] if said.returncode == 0 else None

    for round_ in range(3):
        for _ in range(5):
            assert request(keylatch.port).status == 200
        keylatch.upgrade()
    for _ in range(5):
        assert request(keylatch.port).status == 200
    wait_for(lambda: counted() == 20, f"20 requests, not {counted()}", 15)
    # Shows an absence: within the interval of the next report, nothing is counted twice.
    time.sleep(6)
    assert counted() == 20


def test_old_processes_keep_the_sockets_of_newer_ones(start, upstream):
    """Inode numbers are reused soon. An old process must not remove the socket of a newer one
    because their numbers are equal."""
    keylatch = start(upstream, storage=SQLITE)
    olds = [keylatch.upgrade() for _ in range(8)]
    [wait_for(lambda old=old: old.poll() is not None, "the old process ends") for old in olds]
    assert {path.suffix for path in keylatch.runtime.iterdir()} == {".api", ".sock", f".{keylatch.process.pid}"}
    for command in ("status", "reload"):
        said = keylatch.command(command)
        assert said.returncode == 0, said.stderr


def test_a_new_process_that_fails_to_start_changes_nothing(start, upstream, tmp_path):
    program = tmp_path / "keylatch"
    shutil.copy(BINARY, program)
    keylatch = start(upstream, storage=SQLITE)
    keylatch.stop()
    keylatch.process = None
    import support.keylatch as harness

    known, harness.BINARY = harness.BINARY, program
    try:
        keylatch.start()
        good = keylatch.path.read_text()
        for broken, says in [
            (lambda: keylatch.path.write_text("listeners: 1"), "must be a list"),
            (lambda: keylatch.path.write_text(good.replace("keylatch.db", "no/such\0")), "keylatch.yaml"),
            (lambda: replace(program, b"#!/bin/sh\nexit 3\n"), "it exited at once"),
            (lambda: replace(program, b"#!/bin/sh\n(sleep 0.2) &\n"), "ended before it was ready"),
            (lambda: program.unlink(), "could not be started"),
        ]:
            broken()
            harness.BINARY = known
            done = keylatch.command("upgrade")
            assert done.returncode == 1 and says in done.stderr, done.stderr
            keylatch.path.write_text(good)
            assert request(keylatch.port).status == 200 and keylatch.health("ready")[0] == 200
            assert keylatch.command("status").stdout.count("~") == 0
        # The last installed program is started.
        shutil.copy(known, program)
        keylatch.upgrade()
        assert request(keylatch.port).status == 200
    finally:
        harness.BINARY = known


def replace(program, text):
    """Replaces a program as package managers do: the running process keeps the old file."""
    fresh = program.with_suffix(".new")
    fresh.write_bytes(text)
    fresh.chmod(0o755)
    fresh.rename(program)


def test_an_upgrade_with_the_memory_store_is_refused(start, upstream):
    keylatch = start(upstream)
    done = keylatch.command("upgrade")
    assert done.returncode == 1 and "storage is memory" in done.stderr
    assert request(keylatch.port).status == 200


def test_by_signal_with_another_listener_and_a_limit(start, upstream):
    """By SIGUSR2. New listeners of the file are opened beside the inherited ones, and streams end
    at `upgrade_drain`."""
    keylatch = start(upstream, route_filters="      - sse_keepalive: {}", storage=SQLITE)
    with connect(keylatch.port) as connection, socket.create_server(("127.0.0.1", 0)) as probe:
        other = probe.getsockname()[1]
        probe.close()
        connection.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"data: 0" in connection.recv(4096) + connection.recv(4096)
        text = keylatch.path.read_text().replace("drain: 5s", "drain: 5s, upgrade_drain: 1s")
        keylatch.path.write_text(text.replace("listeners:\n", f"listeners:\n  - address: 127.0.0.1:{other}\n"))
        old = keylatch.process
        # The old process uses its own configuration, so a reload sets the limit first.
        keylatch.command("reload")
        old.send_signal(signal.SIGUSR2)
        wait_for(lambda: "has taken over from process" in keylatch.stderr.read_text(), "the upgrade")
        from support.keylatch import Successor

        line = next(line for line in keylatch.stderr.read_text().splitlines() if "has taken over from process" in line)
        keylatch.process = Successor(int(line.split("process ")[1].split()[0]))
        assert request(other).status == 200 and request(keylatch.port).status == 200
        old.send_signal(signal.SIGTERM)
        wait_for(lambda: old.poll() is not None, "the old process ends at its limit", 10)
        assert request(keylatch.port).status == 200
    keylatch.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(keylatch.port)
    assert keylatch.process.poll() == 0


def test_a_keep_alive_connection_closes_with_its_next_answer(start, upstream):
    keylatch = start(upstream, storage=SQLITE)
    with connect(keylatch.port) as connection:
        file = connection.makefile("rb")

        def send_request():
            connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
            status, fields = read_head(file)
            read_body(file, fields)
            return status, dict(fields).get("connection")

        assert send_request() == (200, "keep-alive")
        old = keylatch.upgrade()
        # Shows an absence: the old process keeps its connection open.
        time.sleep(0.5)
        assert old.poll() is None, "the client may send one more request"
        assert send_request() == (200, "close")
        wait_for(lambda: old.poll() is not None, "the old process ends")
