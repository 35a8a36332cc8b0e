"""A PostgreSQL server for one test or module. It can be killed, paused and started again."""

import os
import signal
import subprocess
import tempfile
import pathlib

from .keylatch import ROOT, free_port, wait_for


class Postgres:
    def __init__(self):
        # Outside pytest's folder, which the server's user cannot enter.
        self.home = tempfile.TemporaryDirectory(prefix="keylatch-pg-", ignore_cleanup_errors=True)
        os.chmod(self.home.name, 0o755)
        self.folder, self.port = pathlib.Path(self.home.name) / "pg", free_port()
        self.process = None

    @property
    def url(self):
        return f"postgres://keylatch@127.0.0.1:{self.port}/postgres"

    def start(self, *settings):
        log = open(pathlib.Path(self.home.name) / "log", "ab")
        arguments = [ROOT / "scripts" / "scratch-postgres", self.folder, str(self.port), *settings]
        self.process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: self.process.poll() is not None or self.answers(), "postgres answers", 30)
        assert self.process.poll() is None, (pathlib.Path(self.home.name) / "log").read_text()
        return self

    def psql(self, *statements, check=True, timeout=30):
        """Runs each statement as a transaction of its own; returns unaligned rows as text."""
        each = [argument for statement in statements for argument in ("-c", statement)]
        arguments = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", self.url, *each]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def answers(self):
        return self.psql("SELECT 1", check=False) == "1"

    def kill(self):
        """Ends the server as a crash does: it flushes nothing and closes no connection."""
        # A stopped server starts no further process, so the list of its children is complete.
        self.process.send_signal(signal.SIGSTOP)
        for pid in self._tree():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def _tree(self):
        """The ids of the server and its child processes."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False).stdout.split()
        return [self.process.pid, *map(int, children)]

    def pause(self):
        self.paused = self._tree()
        for pid in self.paused:
            os.kill(pid, signal.SIGSTOP)

    def resume(self):
        for pid in self.paused:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        self.home.cleanup()
