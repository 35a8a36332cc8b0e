"""Runs the built binary with a generated configuration in its own folder."""

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("KEYLATCH_BINARY", ROOT / "target" / "debug" / "keylatch"))


_given = set()
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def free_port(below=32000):
    """A free port, never the same twice, and below the system's range for outgoing connections, so
    that a server that restarts finds it free. Parallel test workers draw from separate ranges.
    Another process may still take the port first; the caller then fails."""
    while True:
        port = random.randrange(11000 + _worker, below, _workers)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def wait_for(condition, what, seconds=10.0):
    """Waits until the condition is true, and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


DEFAULT = """
listeners:
  - address: 127.0.0.1:{port}
    limits: {limits}
admin: {{address: "127.0.0.1:{admin}"}}
trusted_proxies: {trusted}
storage: {storage}
secrets: {secrets}
{more}
shutdown: {{drain: 5s}}
upstreams:
  - name: model
    servers: [{{address: "127.0.0.1:{upstream}"}}]
filters:
  - client_ip: {{}}
  - request_id: {{}}
{filters}
routes:
  - name: api
    match: {{paths: ["/v1/*"]}}
    upstream: model
    filters:
{route_filters}
"""


class Successor:
    """The process that took over from one that the test started. It is not a child of the test, so
    it is followed by its id."""

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        try:
            # A process that has ended stays as a zombie until its parent reads its status.
            state = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return 0 if state == "Z" else None

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds=15):
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("keylatch", seconds)
            time.sleep(0.02)
        return 0


class Keylatch:
    """A Keylatch process, stopped at the end of a `with` block. `stdout` and `stderr` are the files
    of its logs."""

    def __init__(self, folder, upstream, filters="", route_filters="      []", limits="{}", trusted="{}", storage="memory", secrets="{}", more="", config=None, env=None, wrapper=(), patience=20):
        self.folder = pathlib.Path(folder)
        self.port, self.admin = free_port(), free_port()
        self.values = dict(
            port=self.port, admin=self.admin, upstream=upstream, filters=filters, route_filters=route_filters,
            limits=limits, trusted=trusted, storage=storage, secrets=secrets, more=more,
        )
        self.path = self.folder / "keylatch.yaml"
        self.template, self.wrapper, self.patience = config or DEFAULT, wrapper, patience
        self.write()
        # A socket path has at most 104 bytes on macOS, and pytest's folders have long names.
        self.short = tempfile.TemporaryDirectory(prefix="kl-", dir="/tmp", ignore_cleanup_errors=True)
        self.runtime = pathlib.Path(self.short.name) / "run"
        self.env = {**os.environ, "KEYLATCH_RUNTIME_DIR": str(self.runtime), **(env or {})}
        self.stdout, self.stderr = self.folder / "stdout", self.folder / "stderr"
        self.process, self.before = None, []

    def write(self, **changes):
        """Writes the configuration with these values changed."""
        self.values.update(changes)
        self.path.write_text(self.template.format(**self.values))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        out, err = open(self.stdout, "ab"), open(self.stderr, "ab")
        self.process = subprocess.Popen([*self.wrapper, BINARY, "run", "-c", self.path], cwd=self.folder, stdout=out, stderr=err, env=self.env)
        try:
            wait_for(lambda: self.process.poll() is not None or self._listens(), "keylatch listens", self.patience)
        finally:
            if self.process.poll() is not None:
                raise AssertionError(f"keylatch ended: {self.stderr.read_text()}")

    def upgrade(self):
        """Upgrades: a new process takes over. Returns the old process, which finishes its open
        requests."""
        before = self.process
        done = self.command("upgrade")
        assert done.returncode == 0, done.stderr + self.stderr.read_text()
        self.process = Successor(int(done.stdout.split()[1]))
        self.before.append(before)
        return before

    def _listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return self.health("ready")[0] == 200
        except OSError:
            return False

    def stop(self, how=signal.SIGTERM, seconds=15):
        for before in self.before:
            before.kill()
            before.wait(seconds)
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("keylatch did not stop") from None

    def command(self, *arguments, stdin=""):
        """Runs a subcommand with this configuration."""
        return subprocess.run(
            [BINARY, *arguments, "-c", self.path], cwd=self.folder, capture_output=True, text=True, env=self.env, timeout=60, check=False, input=stdin
        )

    def health(self, which=""):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/health/{which}".rstrip("/"), timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (ConnectionError, urllib.error.URLError):
            return 0, {}

    def metrics(self):
        """The metrics, as a map from series to value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def access_log(self):
        """The access log so far, as parsed lines."""
        return [json.loads(line) for line in self.stdout.read_text().splitlines() if line.startswith("{")]

    def url(self, path=""):
        return f"http://127.0.0.1:{self.port}{path}"

    def memory_kib(self):
        """The resident memory of the process, in KiB."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")
