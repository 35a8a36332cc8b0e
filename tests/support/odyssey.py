"""An Odyssey (a connection pooler) in front of a PostgreSQL server."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from .keylatch import free_port, wait_for
from .standby import AS_POSTGRES

PROGRAM = os.environ.get("ODYSSEY") or shutil.which("odyssey")


class Odyssey:
    """`settings` are options of its one rule, such as `pool_size`."""

    def __init__(self, server, mode, **settings):
        self.home = tempfile.TemporaryDirectory(prefix="keylatch-odyssey-", ignore_cleanup_errors=True)
        self.folder, self.port, self.process = pathlib.Path(self.home.name), free_port(), None
        settings = {"storage": '"server"', "pool": f'"{mode}"', "authentication": '"none"', **settings}
        rule = "\n".join(f"{name} {value}" for name, value in settings.items())
        (self.folder / "odyssey.conf").write_text(
            f"""daemonize no
locks_dir "{self.folder}"
unix_socket_dir "{self.folder}"
unix_socket_mode "0644"
log_file "{self.folder}/log"
log_format "%t %l (%c) %m\\n"
log_to_stdout no
workers 2
listen {{ host "127.0.0.1" port {self.port} tls "disable" }}
storage "server" {{ type "remote" host "127.0.0.1" port {server.port} tls "disable" }}
database default {{ user default {{
{rule}
}} }}
"""
        )
        self.folder.chmod(0o755)
        if AS_POSTGRES:
            for path in (self.folder, self.folder / "odyssey.conf"):
                shutil.chown(path, "postgres", "postgres")

    @property
    def url(self):
        return f"postgres://keylatch@127.0.0.1:{self.port}/postgres"

    def answers(self):
        done = subprocess.run(["psql", "-X", "-A", "-t", "-q", self.url, "-c", "SELECT 1"], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() == "1"

    def __enter__(self):
        with open(self.folder / "out", "ab") as out:
            self.process = subprocess.Popen([*AS_POSTGRES, PROGRAM, self.folder / "odyssey.conf"], stdout=out, stderr=out)
        wait_for(lambda: self.process.poll() is not None or self.answers(), "odyssey answers", 20)
        assert self.process.poll() is None, (self.folder / "out").read_text()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.home.cleanup()
