"""Fixtures of the black-box tests."""

import pathlib
import sys
import threading
import time

import pytest
from websockets.sync.server import serve as serve_websockets

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from support.authority import Authority  # noqa: E402
from support.keylatch import Keylatch  # noqa: E402
from support.postgres import Postgres  # noqa: E402
from support.stores import FREE, SECRET, storage  # noqa: E402
from support.tls import tls_config  # noqa: E402
from support.upstreams import Scripted, echo  # noqa: E402


@pytest.fixture
def echo_upstream():
    with Scripted(echo) as upstream:
        yield upstream


@pytest.fixture
def start(tmp_path):
    """Starts Keylatch processes, and stops them at the end of the test."""
    running, made = [], []

    def begin(upstream, **values):
        folder = tmp_path / f"keylatch{len(made)}"
        made.append(folder)
        folder.mkdir()
        keylatch = Keylatch(folder, getattr(upstream, "port", upstream), **values)
        keylatch.start()
        running.append(keylatch)
        return keylatch

    yield begin
    for keylatch in running:
        keylatch.stop()


@pytest.fixture(scope="module")
def server():
    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def database(server):
    """An empty database."""
    server.psql("DROP SCHEMA public CASCADE")
    server.psql("CREATE SCHEMA public")
    return server


@pytest.fixture
def replicas(start, echo_upstream, database):
    """Starts replicas that share one database."""

    def begin(count=3, more="", sections="", **values):
        values = {"route_filters": FREE, "secrets": SECRET, "storage": storage(database, more), "more": sections, **values}
        return [start(echo_upstream, **values) for _ in range(count)]

    return begin


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


@pytest.fixture
def serve(start):
    """Starts a Keylatch with a TLS listener."""

    def begin(upstream, tls, **values):
        # `Keylatch.start` tests readiness by a TCP connection alone, so TLS needs nothing here.
        return start(upstream, config=tls_config(tls), **values)

    return begin


@pytest.fixture
def realtime():
    """A WebSocket server that echoes each message; `ping` ten times, `quiet` never, `talk` eight
    times over three seconds."""
    seen = []

    def answer(connection):
        seen.append(dict(connection.request.headers.raw_items()))
        for message in connection:
            for _ in range({"ping": 10, "talk": 8, "quiet": 0}.get(message, 1)):
                connection.send(message)
                time.sleep(0.4 if message == "talk" else 0)

    server = serve_websockets(answer, "127.0.0.1", 0, ping_interval=None, max_size=None)
    server.seen, server.port = seen, server.socket.getsockname()[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
