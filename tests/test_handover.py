"""Handovers between processes: timing, and failures during a handover."""

import contextlib
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from support.keylatch import BINARY, Successor, wait_for
from support.raw import begin_stream, connect, assert_stopping_error, read_head, request
from support.upstreams import Scripted, unending

SQLITE = "{sqlite: {path: keylatch.db}}"


@pytest.fixture
def upstream():
    with Scripted(unending) as running:
        yield running


@pytest.fixture
def own_program(start, upstream, tmp_path, monkeypatch):
    """A Keylatch with a replaceable program file, and the path of that file."""
    program = tmp_path / "keylatch"
    shutil.copy(BINARY, program)
    monkeypatch.setattr("support.keylatch.BINARY", program)
    keylatch = start(upstream, storage=SQLITE)
    monkeypatch.undo()
    return keylatch, program


def replace(program, text):
    """Replaces a program as package managers do: the running process keeps the old file."""
    fresh = program.with_suffix(".new")
    fresh.write_bytes(text)
    fresh.chmod(0o755)
    fresh.rename(program)


def test_connections_during_a_handover_are_served(start, upstream):
    """No other connection is open, so the old process could stop at once."""
    keylatch = start(upstream, storage=SQLITE)
    said = []

    def send_request(connection):
        with connection:
            connection.settimeout(20)
            try:
                connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
                said.append(read_head(connection.makefile("rb"))[0])
            except (OSError, TypeError) as error:
                said.append(repr(error))

    # The port is open before the process is ready.
    assert request(keylatch.port).status == 200
    for turn in range(20):
        place = next(path for path in keylatch.runtime.iterdir() if path.suffix == ".sock")
        before = place.stat().st_ino
        threads = []

        def burst():
            while place.stat().st_ino == before:
                pass
            # A few milliseconds after this line the old process stops accepting.
            end = time.monotonic() + turn * 0.001
            while time.monotonic() < end:
                pass
            for _ in range(12):
                threads.append(threading.Thread(target=send_request, args=(connect(keylatch.port),)))
                threads[-1].start()

        watching = threading.Thread(target=burst)
        watching.start()
        old = keylatch.upgrade()
        watching.join()
        [thread.join() for thread in threads]
        wait_for(lambda: old.poll() is not None, "the old process ends", 15)
    assert said == [200] * 240


def test_a_hanging_new_program_blocks_nothing(own_program):
    keylatch, program = own_program
    pid_file = program.with_suffix(".pid")
    replace(program, f"#!/bin/sh\necho $$ >{pid_file}\nexec sleep 60\n".encode())
    first = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "starting a new process" in keylatch.stderr.read_text(), "the upgrade is under way")
    second = keylatch.command("upgrade")
    assert second.returncode == 1 and "in progress" in second.stderr
    assert request(keylatch.port).status == 200
    since = time.monotonic()
    keylatch.process.send_signal(signal.SIGTERM)
    # Well below the time that the hanging program sleeps, 60 s.
    assert keylatch.process.wait(15) == 0 and time.monotonic() - since < 5
    assert first.wait(10) == 1 and "told to stop during the upgrade" in first.stderr.read()
    hung = Successor(int(pid_file.read_text()))
    try:
        wait_for(lambda: hung.poll() is not None, "the hanging program is ended")
    finally:
        if hung.poll() is None:
            hung.kill()


def test_a_stop_during_a_handover_leaves_no_process(own_program, tmp_path):
    """The old process gets SIGTERM while the start of the new one is delayed."""
    keylatch, program = own_program
    stop_new_process = f"(sleep 2; exec {BINARY} run --config {keylatch.path} --successor serve)"
    replace(program, f'#!/bin/sh\nexec 3<&0\n{stop_new_process} <&3 &\n'.encode())
    asked = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "starting a new process" in keylatch.stderr.read_text(), "the upgrade is under way")
    # The start of the new program is held up for 2 s; the stop must come within them.
    time.sleep(0.3)
    keylatch.process.send_signal(signal.SIGTERM)
    assert keylatch.process.wait(15) == 0
    assert asked.wait(10) == 1 and "told to stop" in asked.stderr.read()
    wait_for(lambda: not subprocess.run(["pgrep", "-f", str(keylatch.path)], capture_output=True).stdout, "no process is left", 15)
    assert not list(keylatch.runtime.iterdir()), "no socket is left"
    with pytest.raises(ConnectionRefusedError):
        connect(keylatch.port)


def test_a_reload_before_the_sockets_are_handed_over_is_not_lost(start, upstream):
    """A lock on the database delays the old process before it hands over its sockets, because it
    first writes its counts. The new process has read its configuration by then."""
    keylatch = start(upstream, storage=SQLITE)
    assert request(keylatch.port).status == 200
    with contextlib.closing(sqlite3.connect(keylatch.folder / "keylatch.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asked = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: "starting a new process" in keylatch.stderr.read_text(), "the upgrade is under way")
        # Time for the new process to read its configuration; nothing outside shows that it has.
        time.sleep(1)
        keylatch.path.write_text(keylatch.path.read_text().replace("/v1/*", "/v2/*"))
        assert keylatch.command("reload").returncode == 0
        assert "has taken over from its predecessor" not in keylatch.stderr.read_text()
        other.execute("COMMIT")
    said, wrong = asked.communicate(timeout=30)
    assert asked.returncode == 0, wrong
    old, keylatch.process = keylatch.process, Successor(int(said.split()[1]))
    keylatch.before.append(old)
    wait_for(lambda: request(keylatch.port, "/v2/x").status == 200 and request(keylatch.port, "/v1/x").status == 404, "the reloaded configuration is active")
    assert keylatch.stderr.read_text().count("keylatch.yaml is in force") == 2


only_linux = pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="only Linux shows whether a process is stopped")


def log_since_upgrade(keylatch):
    """The log since the last upgrade began."""
    return keylatch.stderr.read_text().rpartition("starting a new process")[2]


def stop_new_process(keylatch, in_place=False):
    """Begins an upgrade, and stops the new process (SIGSTOP) after it has the sockets: while
    commands still reach the old one, or with `in_place` once they reach the new one. Returns the
    `upgrade` command and the id of the new process."""
    known = set(keylatch.runtime.iterdir())
    asked = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    place = keylatch.runtime / next(path.name for path in keylatch.runtime.iterdir() if path.suffix == ".sock")
    before, end = place.stat().st_ino, time.monotonic() + 20
    while not (fresh := [path for path in keylatch.runtime.glob("*.sock.*") if path not in known and path.suffix != ".new"]):
        assert time.monotonic() < end, "the handover begins"
    pid = int(fresh[0].suffix[1:])
    while in_place and place.stat().st_ino == before:
        assert time.monotonic() < end, "the new process takes over the command socket"
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T", "the new process is stopped")
    if (place.stat().st_ino == before) != in_place and asked.poll() is None and "has taken over from its predecessor" not in log_since_upgrade(keylatch):
        return asked, pid
    # The new process was faster than the signal: try again.
    os.kill(pid, signal.SIGCONT)
    assert asked.wait(30) == 0
    keylatch.before.append(keylatch.process)
    keylatch.process = Successor(pid)
    return stop_new_process(keylatch, in_place)


@only_linux
def test_a_reload_after_the_sockets_are_handed_over_is_not_lost(start, upstream):
    keylatch = start(upstream, storage=SQLITE)
    asked, pid = stop_new_process(keylatch)
    keylatch.path.write_text(keylatch.path.read_text().replace("/v1/*", "/v2/*"))
    assert keylatch.command("reload").returncode == 0
    os.kill(pid, signal.SIGCONT)
    assert asked.wait(30) == 0, asked.stderr.read()
    keylatch.before.append(keylatch.process)
    keylatch.process = Successor(pid)
    # The `upgrade` command returns only after the reloaded configuration is active.
    assert [request(keylatch.port, path).status for path in ("/v2/x", "/v1/x")] == [200, 404]


@only_linux
def test_a_new_process_that_crashes_leaves_the_old_one_serving(start, upstream):
    for _ in range(5):
        keylatch = start(upstream, storage=SQLITE)
        asked, pid = stop_new_process(keylatch, in_place=True)
        os.kill(pid, signal.SIGKILL)
        if asked.wait(20) == 1:
            break
        # It had taken over just before it was stopped.
    assert asked.returncode == 1 and "this one keeps serving" in asked.stderr.read()
    for command in ("reload", "status"):
        said = keylatch.command(command)
        assert said.returncode == 0, said.stderr
    assert request(keylatch.port).status == 200
    keylatch.stop()
    keylatch.start()
    assert {path.suffix for path in keylatch.runtime.iterdir()} == {".api", ".sock", f".{keylatch.process.pid}"}, "the files of the crashed process are removed"


@only_linux
def test_a_stop_after_the_sockets_are_handed_over_waits_for_readiness_delay(start, upstream):
    """Load balancers have readiness_delay to notice the stop, and only the old process serves in
    that time."""
    keylatch = start(upstream, storage=SQLITE)
    keylatch.path.write_text(keylatch.path.read_text().replace("drain: 5s", "drain: 5s, readiness_delay: 2s"))
    keylatch.stop()
    keylatch.start()
    asked, pid = stop_new_process(keylatch)
    keylatch.process.send_signal(signal.SIGTERM)
    assert asked.wait(10) == 1 and "told to stop" in asked.stderr.read()
    assert keylatch.health("ready")[1] == {"status": "stopping"}
    assert request(keylatch.port).status == 200
    assert keylatch.process.wait(15) == 0
    wait_for(lambda: Successor(pid).poll() is not None, "the new process exits")


@only_linux
def test_an_old_process_that_stops_closes_its_admin_listener(start, upstream):
    """A slow store delays the report of the handover, and not the handover."""
    keylatch = start(upstream, storage=SQLITE, route_filters="      - sse_keepalive: {}")
    with connect(keylatch.port) as connection, contextlib.closing(sqlite3.connect(keylatch.folder / "keylatch.db", isolation_level=None)) as other:
        begin_stream(connection)
        asked, pid = stop_new_process(keylatch)
        other.execute("BEGIN IMMEDIATE")
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: "has taken over from its predecessor" in keylatch.stderr.read_text(), "the new process has taken over")
        old = keylatch.process
        old.send_signal(signal.SIGTERM)
        # Time for the old process to handle the signal; nothing outside shows that it has.
        time.sleep(0.2)
        assert {keylatch.health("ready")[0] for _ in range(40)} == {200}, "the new process answers readiness checks"
        assert old.poll() is None, "the old process finishes its stream"
        other.execute("COMMIT")
    keylatch.before.append(old)
    keylatch.process = Successor(pid)
    assert asked.wait(20) == 0


def test_streams_cancelled_at_the_deadline_end_with_an_error(start, upstream):
    keylatch = start(upstream, storage=SQLITE, route_filters="      - sse_keepalive: {}")
    keylatch.path.write_text(keylatch.path.read_text().replace("drain: 5s", "drain: 5s, upgrade_drain: 1s"))
    keylatch.stop()
    keylatch.start()
    with connect(keylatch.port) as connection:
        begin_stream(connection)
        old = keylatch.upgrade()
        assert_stopping_error(connection)
    assert old.wait(10) == 0
    line = next(line for line in keylatch.access_log() if line["path"] == "/v1/stream")
    assert line["status"] == 200 and line["error"].endswith("Stopped")


def test_an_upgrade_follows_a_changed_symbolic_link(start, upstream, tmp_path, monkeypatch):
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        shutil.copy(BINARY, tmp_path / version / "keylatch")
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "one")
    monkeypatch.setattr("support.keylatch.BINARY", current / "keylatch")
    keylatch = start(upstream, storage=SQLITE)
    monkeypatch.undo()
    current.unlink()
    current.symlink_to(tmp_path / "two")
    keylatch.upgrade()
    assert os.readlink(f"/proc/{keylatch.process.pid}/exe") == str(tmp_path / "two" / "keylatch")


def refuses_an_upgrade(keylatch, command):
    """Asserts that a process started by this command refuses an upgrade, and serves on."""
    process = subprocess.Popen(command, cwd=keylatch.folder, env=keylatch.env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: keylatch.health("ready")[0] == 200, "the process is ready")
        done = keylatch.command("upgrade")
        assert done.returncode == 1 and "start a new container" in done.stderr
        assert request(keylatch.port).status == 200
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode != 0, reason="needs PID namespaces")
def test_process_1_of_a_container_refuses_an_upgrade(start, upstream, tmp_path):
    keylatch = start(upstream, storage=SQLITE)
    keylatch.stop()
    refuses_an_upgrade(keylatch, ["unshare", "--pid", "--fork", "--kill-child", BINARY, "run", "-c", keylatch.path])


@pytest.mark.skipif(subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode != 0, reason="needs PID namespaces")
def test_the_child_of_a_container_init_refuses_an_upgrade(start, upstream, tmp_path):
    """An init such as that of `docker run --init` exits together with the process that it
    started."""
    keylatch = start(upstream, storage=SQLITE)
    keylatch.stop()
    # A shell under the name of an init behaves the same.
    shutil.copy("/bin/sh", init := tmp_path / "tini")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", init, "-c", f"{BINARY} run -c {keylatch.path} & wait"]
    refuses_an_upgrade(keylatch, command)
