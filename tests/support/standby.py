"""A PostgreSQL standby that can be promoted, and switchovers."""

import os
import pathlib
import shutil
import signal
import subprocess

from .keylatch import wait_for
from .postgres import Postgres

AS_POSTGRES = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []


class Standby(Postgres):
    """A standby copied from a running primary, started by a `with` block."""

    def __init__(self, primary):
        super().__init__()
        self.folder.mkdir()
        if AS_POSTGRES:
            shutil.chown(self.folder, "postgres", "postgres")
        tool = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_basebackup"))[-1]
        copy = [tool, "-D", self.folder / "data", "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        where = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "keylatch"]
        subprocess.run([*AS_POSTGRES, *copy, *where], cwd=self.folder, check=True, timeout=60)

    def promote(self):
        promote(self)


def promote(server):
    assert server.psql("SELECT pg_promote(true, 30)") == "t"


def stop_cleanly(server):
    """A fast shutdown, as in a switchover: standbys receive all writes first."""
    server.process.send_signal(signal.SIGINT)
    server.process.wait(20)


def follow(server, primary):
    """Starts a stopped server as a standby of `primary`."""
    data = server.folder / "data"
    (data / "standby.signal").touch()
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write(f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user=keylatch'\n")
    server.start()
    wait_for(lambda: server.psql("SELECT pg_is_in_recovery()", check=False) == "t", "it follows", 20)


def switch_over(primary, standby):
    """Swaps the roles of primary and standby."""
    stop_cleanly(primary)
    promote(standby)
    follow(primary, standby)
