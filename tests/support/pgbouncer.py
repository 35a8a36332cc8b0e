"""A PgBouncer in front of a PostgreSQL server."""

import os
import shutil

from .pooler import Pooler
from .standby import AS_POSTGRES


class PgBouncer(Pooler):
    def __init__(self, server, mode, **settings):
        super().__init__("pgbouncer")
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
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        self.arguments = [*AS_POSTGRES, program, "-q", self.folder / "pgbouncer.ini"]
