"""The moment of a hand-over, and what may go wrong in it."""

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
    """A Keylatch whose program can be replaced; it, and where its program is."""
    program = tmp_path / "keylatch"
    shutil.copy(BINARY, program)
    monkeypatch.setattr("support.keylatch.BINARY", program)
    keylatch = start(upstream, storage=SQLITE)
    monkeypatch.undo()
    return keylatch, program


def replace(program, text):
    """As package managers do: the running program keeps its own."""
    fresh = program.with_suffix(".new")
    fresh.write_bytes(text)
    fresh.chmod(0o755)
    fresh.rename(program)


def test_whoever_comes_at_that_very_moment_is_served(start, upstream):
    """Nothing else is open, so that the old process could end at once."""
    keylatch = start(upstream, storage=SQLITE)
    said = []

    def ask(connection):
        with connection:
            connection.settimeout(20)
            try:
                connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
                said.append(read_head(connection.makefile("rb"))[0])
            except (OSError, TypeError) as error:
                said.append(repr(error))

    # Its port is open before it is ready.
    assert request(keylatch.port).status == 200
    for turn in range(20):
        place = next(path for path in keylatch.runtime.iterdir() if path.suffix == ".sock")
        before = place.stat().st_ino
        threads = []

        def burst():
            while place.stat().st_ino == before:
                pass
            # From here on it is a matter of a few milliseconds until the old process takes no more connections.
            end = time.monotonic() + turn * 0.001
            while time.monotonic() < end:
                pass
            for _ in range(12):
                threads.append(threading.Thread(target=ask, args=(connect(keylatch.port),)))
                threads[-1].start()

        watching = threading.Thread(target=burst)
        watching.start()
        old = keylatch.upgrade()
        watching.join()
        [thread.join() for thread in threads]
        wait_for(lambda: old.poll() is not None, "the old process ends", 15)
    assert said == [200] * 240


def test_a_program_that_hangs_holds_nothing_up(own_program):
    keylatch, program = own_program
    pid_file = program.with_suffix(".pid")
    replace(program, f"#!/bin/sh\necho $$ >{pid_file}\nexec sleep 60\n".encode())
    first = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "a new process is started" in keylatch.stderr.read_text(), "it is under way")
    second = keylatch.command("upgrade")
    assert second.returncode == 1 and "under way already" in second.stderr
    assert request(keylatch.port).status == 200
    since = time.monotonic()
    keylatch.process.send_signal(signal.SIGTERM)
    assert keylatch.process.wait(15) == 0 and time.monotonic() - since < 5
    assert first.wait(10) == 1 and "told to stop meanwhile" in first.stderr.read()
    hung = Successor(int(pid_file.read_text()))
    try:
        wait_for(lambda: hung.poll() is not None, "the hanging program is ended")
    finally:
        if hung.poll() is None:
            hung.kill()


def test_a_stop_in_the_middle_leaves_nobody_behind(own_program, tmp_path):
    """The new process is held up once it has been started; the old one is told to stop meanwhile."""
    keylatch, program = own_program
    held_up = f"(sleep 2; exec {BINARY} run --config {keylatch.path} --successor serve)"
    replace(program, f'#!/bin/sh\nexec 3<&0\n{held_up} <&3 &\n'.encode())
    asked = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "a new process is started" in keylatch.stderr.read_text(), "the upgrade is under way")
    # The start of the new program is held up for 2 s; the stop must come within them.
    time.sleep(0.3)
    keylatch.process.send_signal(signal.SIGTERM)
    assert keylatch.process.wait(15) == 0
    assert asked.wait(10) == 1 and "told to stop" in asked.stderr.read()
    wait_for(lambda: not subprocess.run(["pgrep", "-f", str(keylatch.path)], capture_output=True).stdout, "no process is left", 15)
    assert not list(keylatch.runtime.iterdir()), "nor a socket"
    with pytest.raises(ConnectionRefusedError):
        connect(keylatch.port)


def test_a_reload_meanwhile_is_not_lost(start, upstream):
    """The new process has read its configuration, and the old one is held up before it hands over its sockets: it writes what it
    has counted, and somebody else is writing."""
    keylatch = start(upstream, storage=SQLITE)
    assert request(keylatch.port).status == 200
    with contextlib.closing(sqlite3.connect(keylatch.folder / "keylatch.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asked = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: "a new process is started" in keylatch.stderr.read_text(), "the upgrade is under way")
        # Time for the new process to read its configuration; nothing outside shows that it has.
        time.sleep(1)
        keylatch.path.write_text(keylatch.path.read_text().replace("/v1/*", "/v2/*"))
        assert keylatch.command("reload").returncode == 0
        assert "has taken the place" not in keylatch.stderr.read_text()
        other.execute("COMMIT")
    said, wrong = asked.communicate(timeout=30)
    assert asked.returncode == 0, wrong
    old, keylatch.process = keylatch.process, Successor(int(said.split()[1]))
    keylatch.before.append(old)
    wait_for(lambda: request(keylatch.port, "/v2/x").status == 200 and request(keylatch.port, "/v1/x").status == 404, "what was reloaded is in force")
    assert keylatch.stderr.read_text().count("keylatch.yaml is in force") == 2


holds_up = pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="it is Linux that tells whether a process is stopped")


def since(keylatch):
    """What was logged since the last upgrade was asked for."""
    return keylatch.stderr.read_text().rpartition("a new process is started")[2]


def held_up(keylatch, in_place=False):
    """Asks for an upgrade, and stops the new process where it has the sockets: where commands find the old one still, or `in_place`,
    where they find the new one and the old one waits for it. The upgrade, and the new process's number."""
    known = set(keylatch.runtime.iterdir())
    asked = subprocess.Popen([BINARY, "upgrade", "-c", keylatch.path], env=keylatch.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    place = keylatch.runtime / next(path.name for path in keylatch.runtime.iterdir() if path.suffix == ".sock")
    before, end = place.stat().st_ino, time.monotonic() + 20
    while not (fresh := [path for path in keylatch.runtime.glob("*.sock.*") if path not in known and path.suffix != ".new"]):
        assert time.monotonic() < end, "it begins"
    pid = int(fresh[0].suffix[1:])
    while in_place and place.stat().st_ino == before:
        assert time.monotonic() < end, "it takes the place"
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T", "it is stopped")
    if (place.stat().st_ino == before) != in_place and asked.poll() is None and "has taken the place" not in since(keylatch):
        return asked, pid
    # It was faster.
    os.kill(pid, signal.SIGCONT)
    assert asked.wait(30) == 0
    keylatch.before.append(keylatch.process)
    keylatch.process = Successor(pid)
    return held_up(keylatch, in_place)


@holds_up
def test_a_reload_after_the_sockets_are_handed_over_is_not_lost(start, upstream):
    keylatch = start(upstream, storage=SQLITE)
    asked, pid = held_up(keylatch)
    keylatch.path.write_text(keylatch.path.read_text().replace("/v1/*", "/v2/*"))
    assert keylatch.command("reload").returncode == 0
    os.kill(pid, signal.SIGCONT)
    assert asked.wait(30) == 0, asked.stderr.read()
    keylatch.before.append(keylatch.process)
    keylatch.process = Successor(pid)
    # Before anybody is told that it serves: the old configuration is nobody's any more.
    assert [request(keylatch.port, path).status for path in ("/v2/x", "/v1/x")] == [200, 404]


@holds_up
def test_one_that_crashes_before_it_has_said_that_it_serves_leaves_the_old_one_as_it_was(start, upstream):
    keylatch = start(upstream, storage=SQLITE)
    asked, pid = held_up(keylatch, in_place=True)
    os.kill(pid, signal.SIGKILL)
    assert asked.wait(20) == 1 and "this one goes on" in asked.stderr.read()
    for command in ("reload", "status"):
        said = keylatch.command(command)
        assert said.returncode == 0, said.stderr
    assert request(keylatch.port).status == 200
    keylatch.stop()
    keylatch.start()
    assert {path.suffix for path in keylatch.runtime.iterdir()} == {".api", ".sock", f".{keylatch.process.pid}"}, "what it has left is swept"


@holds_up
def test_a_stop_after_the_sockets_are_handed_over_waits_until_it_is_seen(start, upstream):
    """Whoever balances load has readiness_delay to look elsewhere, and the old process is the only one that serves."""
    keylatch = start(upstream, storage=SQLITE)
    keylatch.path.write_text(keylatch.path.read_text().replace("drain: 5s", "drain: 5s, readiness_delay: 2s"))
    keylatch.stop()
    keylatch.start()
    asked, pid = held_up(keylatch)
    keylatch.process.send_signal(signal.SIGTERM)
    assert asked.wait(10) == 1 and "told to stop" in asked.stderr.read()
    assert keylatch.health("ready")[1] == {"status": "stopping"}
    assert request(keylatch.port).status == 200
    assert keylatch.process.wait(15) == 0
    wait_for(lambda: Successor(pid).poll() is not None, "nobody is left")


@holds_up
def test_whoever_is_stopped_right_after_it_lets_nobody_into_its_admin_listener(start, upstream):
    """A store that takes its time holds up what is said of the hand-over, and not the hand-over."""
    keylatch = start(upstream, storage=SQLITE, route_filters="      - sse_keepalive: {}")
    with connect(keylatch.port) as connection, contextlib.closing(sqlite3.connect(keylatch.folder / "keylatch.db", isolation_level=None)) as other:
        begin_stream(connection)
        asked, pid = held_up(keylatch)
        other.execute("BEGIN IMMEDIATE")
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: "has taken the place" in keylatch.stderr.read_text(), "it has taken the place")
        old = keylatch.process
        old.send_signal(signal.SIGTERM)
        # Time for the old process to handle the signal; nothing outside shows that it has.
        time.sleep(0.2)
        assert {keylatch.health("ready")[0] for _ in range(40)} == {200}, "that of the new one"
        assert old.poll() is None, "its stream goes on"
        other.execute("COMMIT")
    keylatch.before.append(old)
    keylatch.process = Successor(pid)
    assert asked.wait(20) == 0


def test_what_is_cut_at_the_end_of_its_time_is_told(start, upstream):
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


def test_the_link_by_which_it_was_started_is_followed_anew(start, upstream, tmp_path, monkeypatch):
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


def is_not_replaced(keylatch, command):
    """Started like this, it refuses, and serves on."""
    process = subprocess.Popen(command, cwd=keylatch.folder, env=keylatch.env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: keylatch.health("ready")[0] == 200, "it serves")
        done = keylatch.command("upgrade")
        assert done.returncode == 1 and "start another container" in done.stderr
        assert request(keylatch.port).status == 200
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode != 0, reason="no namespaces here")
def test_the_first_process_of_a_container_is_not_replaced(start, upstream, tmp_path):
    keylatch = start(upstream, storage=SQLITE)
    keylatch.stop()
    is_not_replaced(keylatch, ["unshare", "--pid", "--fork", "--kill-child", BINARY, "run", "-c", keylatch.path])


@pytest.mark.skipif(subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode != 0, reason="no namespaces here")
def test_whoever_a_containers_first_process_waits_for_is_not_replaced(start, upstream, tmp_path):
    """`docker run --init` and what is like it end with the process that they have started."""
    keylatch = start(upstream, storage=SQLITE)
    keylatch.stop()
    # A shell by its name does what it does.
    shutil.copy("/bin/sh", init := tmp_path / "tini")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", init, "-c", f"{BINARY} run -c {keylatch.path} & wait"]
    is_not_replaced(keylatch, command)
