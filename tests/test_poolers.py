"""PostgreSQL behind PgBouncer and Odyssey: no change is lost, and limitations are reported."""

import concurrent.futures
import json
import subprocess
import threading
import time

import pytest
from support.keylatch import wait_for
from support.odyssey import PROGRAM, Odyssey
from support.pgbouncer import PgBouncer
from support.postgres import Postgres
from support.stores import FREE, SECRET, send_request

HEARD = "keylatch_store_notifications"
IGNORED = {"ignore_startup_parameters": "extra_float_digits,options"}


@pytest.fixture
def serving(start, echo_upstream, database):
    def begin(where, more="", **values):
        storage = f'{{postgres: {{url: "{where}", flush_every: 100ms{more}}}}}'
        return start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=storage, **values)

    return begin


def findings(replica):
    found = [json.loads(line) for line in replica.command("doctor", "--json").stdout.splitlines()]
    return [one for one in found if one["place"].startswith("storage.postgres")]


def all_bound(replica, prefix):
    """Forty first uses, eight at a time; asserts that each is bound."""
    keys = [f"sk-{prefix}-{n:04}-abcdefgh" for n in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda key: send_request(replica, key).status, keys)) == [200] * 40
        assert list(pool.map(lambda key: send_request(replica, key, "127.0.0.2").status, keys)) == [403] * 40
    return keys


def assert_changes_are_heard(one, two, key):
    """A ban through `one` takes effect in `two` long before a cached binding expires."""
    wait_for(lambda: two.metrics()[HEARD] == 1, "notifications arrive", 15)
    assert send_request(two, key).status == 200
    assert one.command("bindings", "ban", "-", stdin=key).returncode == 0
    wait_for(lambda: send_request(two, key).status == 403, "the ban takes effect", 3)


@pytest.mark.parametrize("settings", [{}, IGNORED], ids=["as installed", "parameters ignored"])
def test_session_mode(serving, database, settings):
    with PgBouncer(database, "session", **settings) as pooler:
        one, two = serving(pooler.url), serving(pooler.url)
        keys = all_bound(one, "session")
        assert_changes_are_heard(one, two, keys[0])
        assert not [one for one in findings(two) if "listen_url" in one["place"]]


@pytest.mark.parametrize("settings", [{}, IGNORED], ids=["as installed", "parameters ignored"])
def test_transaction_mode_works_and_is_reported(serving, database, settings):
    with PgBouncer(database, "transaction", default_pool_size=3, **settings) as pooler:
        replica = serving(pooler.url)
        keys = all_bound(replica, "transaction")
        wait_for(lambda: replica.metrics()[HEARD] == 0, "the metric shows missing notifications", 15)
        wait_for(lambda: "a pooler in transaction mode does not deliver them" in replica.stderr.read_text(), "a warning", 15)
        assert replica.health()[1]["store"]["notifications"] is False
        assert replica.health("ready")[0] == 200
        for change in ("ban", "unban", "ban"):
            done = replica.command("bindings", change, "-", stdin=keys[0])
            assert done.returncode == 0, done.stderr
        assert database.psql("SELECT count(*) FROM bindings WHERE banned") == "1"
        found = [one for one in findings(replica) if one["place"] == "storage.postgres.listen_url"]
        assert found and found[0]["level"] == "warn" and "transaction mode" in found[0]["what"], found
        # No session state is left on the shared server connections.
        assert database.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"


def test_transaction_mode_with_a_direct_connection_for_notifications(serving, database):
    with PgBouncer(database, "transaction", default_pool_size=3) as pooler:
        direct = f', listen_url: "{database.url}"'
        one, two = serving(pooler.url, direct), serving(pooler.url, direct)
        keys = all_bound(one, "direct")
        assert_changes_are_heard(one, two, keys[0])
        assert "take up to 30 s" not in two.stderr.read_text()
        assert not [one for one in findings(two) if "listen_url" in one["place"]]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_an_exhausted_pooler_fails_commands_in_time(serving, database, mode):
    with PgBouncer(database, mode, default_pool_size=1) as pooler:
        if mode == "transaction":
            serving(pooler.url)
        replica = serving(database.url)
        replica.write(storage=f'{{postgres: {{url: "{pooler.url}", timeout: 500ms, connect_timeout: 3s}}}}')
        hold = ["psql", "-X", "-q", pooler.url]
        holder = subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        try:
            holder.stdin.write("BEGIN; SELECT 'held';\n")
            holder.stdin.flush()
            while "held" not in holder.stdout.readline():
                pass
            for command in (("bindings", "list"), ("audit",), ("bindings", "ban", "0123456789ab")):
                began = time.monotonic()
                done = replica.command(*command)
                # A few attempts with connect_timeout (3 s) each; without a limit the command would
                # wait for the transaction.
                assert done.returncode != 0 and time.monotonic() - began < 15, (command, done.stdout, done.stderr)
                assert "storage.postgres" in done.stderr, done.stderr
        finally:
            holder.kill()
            holder.wait()


def test_a_start_waits_for_the_server_behind_the_pooler(start, echo_upstream):
    with Postgres() as server, PgBouncer(server, "transaction", server_login_retry=1) as pooler:
        server.kill()
        again = threading.Timer(3, server.start)
        again.start()
        storage = f'{{postgres: {{url: "{pooler.url}", connect_timeout: 15s}}}}'
        try:
            replica = start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=storage)
        finally:
            again.join()
        assert "no connection yet; trying again" in replica.stderr.read_text()
        assert send_request(replica, "sk-late-0001-abcdefgh").status == 200


# Odyssey parses start-up parameters, and may share sessions without keeping their prepared statements.
ODYSSEYS = {
    "session": ("session", {}),
    "transaction": ("transaction", {"pool_size": 3}),
    "transaction-unprepared": ("transaction", {"pool_size": 3, "pool_reserve_prepared_statement": "no"}),
}


@pytest.mark.skipif(not PROGRAM, reason="this system has no package of Odyssey (`odyssey`)")
@pytest.mark.parametrize(("mode", "settings"), ODYSSEYS.values(), ids=ODYSSEYS)
def test_odyssey(serving, database, mode, settings):
    with Odyssey(database, mode, **settings) as pooler:
        direct = f', listen_url: "{database.url}"' if mode == "transaction" else ""
        one, two = serving(pooler.url, direct), serving(pooler.url, direct)
        keys = all_bound(one, "odyssey")
        assert_changes_are_heard(one, two, keys[0])
        assert not [one for one in findings(two) if "listen_url" in one["place"]]
        assert database.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"
