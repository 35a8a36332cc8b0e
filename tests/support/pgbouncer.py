"""A PgBouncer in front of a PostgreSQL server."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from .keylatch import free_port, wait_for
from .standby import AS_POSTGRES


class PgBouncer:
    def __init__(self, server, mode, **settings):
        self.home = tempfile.TemporaryDirectory(prefix="keylatch-pgbouncer-", ignore_cleanup_errors=True)
        self.folder, self.port, self.process = pathlib.Path(self.home.name), free_port(), None
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": self.folder / "users.txt",
            "pool_mode": mode,
            "logfile": self.folder / "log",
            **settings,
        }
        lines = ["[databases]", f"* = host=127.0.0.1 port={server.port}", "[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        (self.folder / "users.txt").write_text('"keylatch" ""\n')
        if AS_POSTGRES:
            # PgBouncer refuses to run as root.
            os.chmod(self.folder, 0o755)
            shutil.chown(self.folder, "postgres", "postgres")

    @property
    def url(self):
        return f"postgres://keylatch@127.0.0.1:{self.port}/postgres"

    def answers(self):
        done = subprocess.run(["psql", "-X", "-A", "-t", "-q", self.url, "-c", "SELECT 1"], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() == "1"

    def __enter__(self):
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        self.process = subprocess.Popen([*AS_POSTGRES, program, "-q", self.folder / "pgbouncer.ini"], stderr=subprocess.DEVNULL)
        wait_for(lambda: self.process.poll() is not None or self.answers(), "pgbouncer answers", 20)
        assert self.process.poll() is None, (self.folder / "log").read_text()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.home.cleanup()
