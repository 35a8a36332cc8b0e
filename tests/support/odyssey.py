"""An Odyssey (a connection pooler) in front of a PostgreSQL server."""

import os
import shutil

from .pooler import Pooler
from .standby import AS_POSTGRES

PROGRAM = os.environ.get("ODYSSEY") or shutil.which("odyssey")


class Odyssey(Pooler):
    """`settings` are options of its one rule, such as `pool_size`."""

    def __init__(self, server, mode, **settings):
        super().__init__("odyssey")
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
        self.arguments = [*AS_POSTGRES, PROGRAM, self.folder / "odyssey.conf"]
