"""The log on standard error: a slow or missing reader loses log lines and delays no request."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess

import pytest
from support import raw
from support.keylatch import BINARY, DEFAULT, Keylatch, wait_for

LOST = "keylatch_log_lost_total"
# The listener requires a PROXY header: a connection without one is refused, and logged at level
# debug.
CONFIG = DEFAULT.replace("    limits: {limits}", "    limits: {limits}\n    proxy_protocol: [127.0.0.1]") + "log: {{level: debug}}\n"
PROXY = b"PROXY TCP4 127.0.0.1 127.0.0.1 50000 80\r\n"


@pytest.fixture
def piped(tmp_path, echo_upstream):
    """A Keylatch with the smallest pipe as its standard error, and the read end of the pipe."""
    keylatch = Keylatch(tmp_path, echo_upstream.port, config=CONFIG)
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with open(keylatch.stdout, "ab") as out:
        keylatch.process = subprocess.Popen([BINARY, "run", "-c", keylatch.path], cwd=tmp_path, stdout=out, stderr=write, env=keylatch.env)
    os.close(write)
    try:
        wait_for(lambda: keylatch.process.poll() is not None or keylatch.health("ready")[0] == 200, "keylatch is ready", 20)
        assert keylatch.process.poll() is None, os.read(read, 4096)
        yield keylatch, read
    finally:
        with contextlib.suppress(OSError):
            os.close(read)
        keylatch.stop(signal.SIGKILL)


def refused(keylatch, count):
    """Opens connections that are refused, each with a log line."""
    for _ in range(count):
        with raw.connect(keylatch.port) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""


def test_requests_are_answered_while_standard_error_is_not_read(piped):
    keylatch, _ = piped
    with raw.connect(keylatch.port) as connection, connection.makefile("rb") as file:
        connection.sendall(PROXY)
        for number in range(2000):
            if number % 20 == 0:
                refused(keylatch, 1)
            connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
            status, fields = raw.read_head(file)
            assert (status, raw.read_body(file, fields)[1]) == (200, True)
    assert keylatch.metrics()[LOST] == 0, "the lines are queued"
    keylatch.process.send_signal(signal.SIGTERM)
    assert keylatch.process.wait(10) == 0, "the stop does not wait for the reader"


def test_a_late_reader_gets_the_queued_lines(piped):
    keylatch, read = piped
    refused(keylatch, 100)
    keylatch.process.send_signal(signal.SIGTERM)
    with open(read, "rb", closefd=False) as file:
        lines = file.read().decode().splitlines()
    assert sum("connection refused" in line for line in lines) == 100
    assert lines[-1].endswith("ended"), "the last line is written before the process exits"
    assert keylatch.process.wait(10) == 0


def test_lost_lines_are_counted(piped):
    keylatch, read = piped
    os.close(read)
    refused(keylatch, 10)
    wait_for(lambda: keylatch.metrics()[LOST] >= 10, "the lines are counted")
    assert keylatch.health("ready")[0] == 200


def test_errors_of_the_start_are_written(tmp_path):
    """Errors before and after the start of the log."""

    def run(config):
        path = tmp_path / "keylatch.yaml"
        path.write_text(config)
        return subprocess.run([BINARY, "run", "-c", path], capture_output=True, text=True, timeout=20, check=False)

    done = run("listeners: nonsense\n")
    assert done.returncode == 1 and "listeners" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        values = dict(port=port, admin=0, upstream=1, filters="", route_filters="      []", limits="{}", trusted="{}", storage="memory", secrets="{}", more="")
        done = run(DEFAULT.format(**values))
    assert done.returncode == 1 and f"127.0.0.1:{port}" in done.stderr
