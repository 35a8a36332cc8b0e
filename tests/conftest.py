"""Fixtures of the black-box tests."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from support.keylatch import Keylatch  # noqa: E402
from support.postgres import Postgres  # noqa: E402
from support.stores import FREE, SECRET, storage  # noqa: E402
from support.upstreams import Scripted, echo  # noqa: E402


@pytest.fixture
def echo_upstream():
    with Scripted(echo) as upstream:
        yield upstream


@pytest.fixture
def start(tmp_path):
    """Starts Keylatches that end with the test."""
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
    """Starts replicas on one database."""

    def begin(count=3, more="", sections="", **values):
        values = {"route_filters": FREE, "secrets": SECRET, "storage": storage(database, more), "more": sections, **values}
        return [start(echo_upstream, **values) for _ in range(count)]

    return begin
