"""What the tests' connection poolers have in common."""

import pathlib
import subprocess
import tempfile

from .keylatch import free_port, wait_for


class Pooler:
    """A pooler on a free port, in a folder of its own. A subclass writes the configuration, and sets
    `arguments` to the command that starts it."""

    def __init__(self, name):
        self.home = tempfile.TemporaryDirectory(prefix=f"keylatch-{name}-", ignore_cleanup_errors=True)
        self.folder, self.port, self.process = pathlib.Path(self.home.name), free_port(), None

    @property
    def url(self):
        return f"postgres://keylatch@127.0.0.1:{self.port}/postgres"

    def answers(self):
        done = subprocess.run(["psql", "-X", "-A", "-t", "-q", self.url, "-c", "SELECT 1"], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() == "1"

    def __enter__(self):
        with open(self.folder / "out", "ab") as out:
            self.process = subprocess.Popen(self.arguments, stdout=out, stderr=out)
        wait_for(lambda: self.process.poll() is not None or self.answers(), f"{type(self).__name__} answers", 20)
        assert self.process.poll() is None, (self.folder / "out").read_text()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.home.cleanup()
