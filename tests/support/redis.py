"""Redis servers for tests. They can be killed, paused and started again."""

import contextlib
import pathlib
import signal
import socket
import subprocess
import tempfile

from .keylatch import free_port, wait_for


class Redis:
    """One server; `settings` are lines of its configuration."""

    def __init__(self, *settings, password=None, tls=None, sentinel=False, program="redis-server"):
        self.home = tempfile.TemporaryDirectory(prefix="keylatch-redis-", ignore_cleanup_errors=True)
        self.folder = pathlib.Path(self.home.name)
        # Cluster nodes talk to each other on the port that is 10,000 higher.
        self.port = free_port(below=22000)
        self.password, self.tls, self.sentinel, self.program, self.process = password, tls, sentinel, program, None
        ports = f"port 0\ntls-port {self.port}" if tls else f"port {self.port}"
        lines = [ports, "bind 127.0.0.1", f"dir {self.folder}", f"logfile {self.folder}/log", *settings]
        if not sentinel:
            lines += ['save ""', "appendonly no"]
        if tls:
            lines += [f"tls-cert-file {tls.cert}", f"tls-key-file {tls.key}", f"tls-ca-cert-file {tls.ca}", "tls-auth-clients no"]
        if password:
            lines += [f"requirepass {password}"]
        (self.folder / "redis.conf").write_text("\n".join(lines) + "\n")

    @property
    def url(self):
        secret = f":{self.password}@" if self.password else ""
        return f"{'rediss' if self.tls else 'redis'}://{secret}127.0.0.1:{self.port}"

    def start(self):
        arguments = [self.program, self.folder / "redis.conf", *(["--sentinel"] if self.sentinel else [])]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: self.process.poll() is not None or self.answers(), "redis answers", 20)
        assert self.process.poll() is None, (self.folder / "log").read_text()
        return self

    def cli(self, *words, check=True):
        secret = ["-a", self.password, "--no-auth-warning"] if self.password else []
        tls = ["--tls", "--cacert", self.tls.ca] if self.tls else []
        done = subprocess.run(
            ["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *secret, *tls, *words], capture_output=True, text=True, timeout=10, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def answers(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return self.cli("PING", check=False) == "PONG"
        return False

    def entries(self):
        """All keys with their values."""
        return {name: self.cli("GET", name) for name in self.cli("KEYS", "*").split() if ":probe:" not in name}

    def create_cluster(self, *others):
        """Creates a cluster of this server and others."""
        servers = (self, *others)
        nodes = [f"127.0.0.1:{server.port}" for server in servers]
        made = subprocess.run(["redis-cli", "--cluster", "create", *nodes, "--cluster-yes"], capture_output=True, text=True, timeout=60, check=False)
        assert made.returncode == 0, made.stdout
        wait_for(lambda: all("cluster_state:ok" in server.cli("CLUSTER", "INFO") for server in servers), "the cluster is there", 20)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        self.kill()
        self.home.cleanup()
