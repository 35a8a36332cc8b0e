"""Notifications to the service manager, and the shipped systemd units."""

import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

from support.keylatch import ROOT, wait_for
from support.raw import begin_stream, connect, assert_stopping_error, request
from support.upstreams import Scripted, unending

UNITS = ROOT / "systemd"


class Manager:
    """The notification socket of a service manager."""

    def __init__(self, path):
        self.path, self.heard = path, []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def lines(self):
        while True:
            try:
                self.heard += self.socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return self.heard

    def wait_for_line(self, text, seconds=10):
        wait_for(lambda: any(line.startswith(text) for line in self.lines()), f"{text} among {self.heard}", seconds)


@pytest.fixture
def manager(tmp_path):
    return Manager(tmp_path / "notify")


def test_status_notifications(start, echo_upstream, manager):
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "4000000"}
    keylatch = start(echo_upstream, storage="{sqlite: {path: keylatch.db}}", env=env)
    manager.wait_for_line("READY=1")
    manager.wait_for_line("WATCHDOG=1")
    with connect(keylatch.port):
        manager.wait_for_line("STATUS=serves: ")
    assert request(keylatch.port).status == 200
    old = keylatch.upgrade()
    manager.wait_for_line(f"MAINPID={keylatch.process.pid}")
    wait_for(lambda: old.poll() is not None, "the old process exits")
    manager.heard.clear()
    manager.wait_for_line("WATCHDOG=1")
    keylatch.stop()
    manager.wait_for_line("STOPPING=1")
    manager.wait_for_line("EXTEND_TIMEOUT_USEC=25000000")  # `drain`, and what is written after it


@pytest.mark.parametrize("crashes", [True, False])
def test_an_old_process_does_not_delay_a_restart(start, manager, crashes):
    """If the main process crashes, the manager stops all other processes of the unit, and waits for
    them before a restart."""
    with Scripted(unending) as upstream:
        values = dict(storage="{sqlite: {path: keylatch.db}}", route_filters="      - sse_keepalive: {}", env={"NOTIFY_SOCKET": str(manager.path)})
        keylatch = start(upstream, **values)
        keylatch.path.write_text(keylatch.path.read_text().replace("drain: 5s", "drain: 4s"))
        keylatch.stop()
        keylatch.start()
        with connect(keylatch.port) as connection:
            begin_stream(connection)
            old = keylatch.upgrade()
            manager.lines().clear()
            manager.wait_for_line("STATUS=serves")
            assert not any("drains" in line for line in manager.lines()), "only the main process sends notifications"
            if crashes:
                keylatch.process.kill()
                # All threads of the process have ended.
                wait_for(lambda: "no process that runs" in keylatch.command("reload").stderr, "no process is running")
            began = time.monotonic()
            old.send_signal(signal.SIGTERM)
            assert_stopping_error(connection)
            # After a crash the old process skips its drain of 4 s; otherwise it waits for it.
            assert old.wait(10) == 0 and (time.monotonic() - began < 3) == crashes


def test_blocked_threads_stop_the_watchdog(start, echo_upstream, manager):
    """A stopped process sends no watchdog message, so the manager would restart it."""
    keylatch = start(echo_upstream, env={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "4000000"})
    manager.wait_for_line("WATCHDOG=1")
    keylatch.process.send_signal(signal.SIGSTOP)
    try:
        manager.lines().clear()
        # Shows an absence, over more than one interval of watchdog messages.
        time.sleep(4)
        assert not manager.lines(), "no watchdog message within the manager's time limit"
    finally:
        keylatch.process.send_signal(signal.SIGCONT)
    manager.wait_for_line("WATCHDOG=1")


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")


@needs_systemd
def test_the_units_are_valid_and_sandboxed(tmp_path):
    other, firewall = tmp_path / "keylatch-cloudflare.service", tmp_path / "keylatch-firewall.service"
    names = ("keylatch-cloudflare.service", "keylatch-cloudflare.timer", "keylatch-firewall.service", "keylatch-firewall.path")
    for name in names:
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/bin/keylatch", "/bin/true"))
    unit = tmp_path / "keylatch.service"
    # The program of the unit exists only after installation.
    unit.write_text((UNITS / "keylatch.service").read_text().replace("/usr/bin/keylatch", "/bin/true"))
    run = lambda *words: subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)  # noqa: E731
    verified = run("verify", str(unit), *(str(tmp_path / name) for name in names))
    ours = [line for line in verified.stderr.splitlines() if "keylatch" in line]
    assert not ours, ours
    # The firewall unit runs as root, and may change packet filters.
    for each, most in ((unit, 1.5), (other, 1.5), (firewall, 4.5)):
        scored = run("security", "--offline=yes", "--no-pager", str(each)).stdout
        score = float(re.search(rf"exposure level for {each.name}: ([\d.]+)", scored)[1])
        assert score <= most, scored
