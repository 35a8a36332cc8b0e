"""PostgreSQL switchovers, read-only servers and full servers, as requests, health and commands
report them."""

import itertools

import pytest
from support.keylatch import Keylatch, free_port, wait_for
from support.postgres import Postgres
from support.relay import Relay
from support.standby import Standby, switch_over
from support.stores import FREE, SECRET, send_request

NUMBERS = itertools.count()


def new_key(replica):
    """The status of a first use."""
    return send_request(replica, f"sk-failover-{next(NUMBERS):06}-abcdefgh").status


def url(*servers, parameters=""):
    hosts = ",".join(f"127.0.0.1:{getattr(server, 'port', server)}" for server in servers)
    return f"postgres://keylatch@{hosts}/postgres{parameters}"


@pytest.fixture
def serving(start, echo_upstream):
    def begin(where, more="", **values):
        storage = f'{{postgres: {{url: "{where}", flush_every: 100ms{more}}}}}'
        return start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=storage, **values)

    return begin


@pytest.fixture
def primary():
    with Postgres() as server:
        yield server


@pytest.fixture
def standby(primary):
    with Standby(primary) as server:
        wait_for(lambda: server.psql("SELECT pg_is_in_recovery()", check=False) == "t", "the standby follows", 20)
        yield server


def test_a_switchover_between_two_hosts(serving, primary, standby):
    replica = serving(url(standby, primary, parameters="?target_session_attrs=read-write"))
    assert new_key(replica) == 200
    known = "sk-failover-known-abcdefgh"
    assert send_request(replica, known).status == 200
    for one, other in ((primary, standby), (standby, primary)):
        switch_over(one, other)
        wait_for(lambda: new_key(replica) == 200, "the new primary binds new keys", 15)
        wait_for(lambda: replica.health("ready")[0] == 200, "the replica is ready", 15)
        assert other.psql("SELECT count(*) FROM bindings WHERE made_by = 'probe'") == "0"
        assert send_request(replica, known).status == 200
    assert replica.command("bindings", "ban", "-", stdin=known).returncode == 0
    wait_for(lambda: send_request(replica, known).status == 403, "the ban takes effect", 5)


def test_the_connection_for_notifications_follows_a_switchover(serving, primary, standby):
    hosts = url(standby, primary, parameters="?target_session_attrs=read-write")
    one, two = (serving(hosts, f', listen_url: "{hosts}"') for _ in range(2))
    key = "sk-failover-heard-abcdefgh"
    assert send_request(one, key).status == 200
    switch_over(primary, standby)
    wait_for(lambda: new_key(one) == 200, "the new primary binds new keys", 15)
    wait_for(lambda: two.metrics()["keylatch_store_notifications"] == 1, "notifications arrive", 30)
    assert send_request(two, key).status == 200
    assert one.command("bindings", "ban", "-", stdin=key).returncode == 0
    # Without a notification it would take up to 30 s.
    wait_for(lambda: send_request(two, key).status == 403, "the ban takes effect", 5)


def test_connections_that_stay_on_a_demoted_primary(serving, primary, standby):
    """The address now resolves to another server, and open connections stay on the old one."""
    with Relay(primary.port) as relay:
        replica = serving(url(relay))
        assert new_key(replica) == 200
        standby.promote()
        relay.target = standby.port
        primary.psql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        wait_for(lambda: new_key(replica) == 200, "the new primary binds new keys", 15)
        wait_for(lambda: replica.health("ready")[0] == 200, "the replica is ready", 15)
        assert int(standby.psql("SELECT count(*) FROM bindings")) > int(primary.psql("SELECT count(*) FROM bindings"))


def test_sessions_that_the_server_ends(serving, primary):
    replica = serving(url(primary))
    for _ in range(3):
        assert new_key(replica) == 200
        primary.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keylatch'")
        wait_for(lambda: new_key(replica) == 200, "new connections are made", 5)


def test_a_start_against_a_standby_says_so(serving, primary, standby, monkeypatch):
    known = "sk-failover-known-abcdefgh"
    assert send_request(serving(url(primary)), known).status == 200
    wait_for(lambda: standby.psql("SELECT count(*) FROM bindings WHERE confirmed") == "1", "the row is replicated", 10)
    monkeypatch.setattr(Keylatch, "_listens", lambda self: self.health("live")[0] == 200)
    replica = serving(url(standby))
    assert "the server is a standby and takes no writes" in replica.stderr.read_text()
    # Known keys can be judged; only new keys cannot be bound.
    not_ready(replica)
    assert send_request(replica, known).status == 200
    standby.promote()
    wait_for(lambda: replica.health("ready")[0] == 200, "the replica is ready", 15)
    wait_for(lambda: new_key(replica) == 200, "new keys are bound", 5)


def test_a_start_waits_for_the_first_of_several_to_be_promoted(serving, primary, standby):
    serving(url(primary)).stop()
    wait_for(lambda: standby.psql("SELECT count(*) FROM bindings", check=False) == "0", "the schema has arrived", 10)
    primary.kill()
    standby.promote()
    replica = serving(url(free_port(), primary, standby))
    assert new_key(replica) == 200


def not_ready(replica):
    wait_for(lambda: replica.health("ready")[0] == 503, "the replica is not ready", 15)
    state = replica.health()[1]
    assert state["status"] == "degraded" and state["store"]["ok"] is False, state
    assert "takes no writes" in state["store"]["error"], state
    assert replica.metrics()["keylatch_store_writable"] == 0
    assert new_key(replica) == 503
    assert replica.command("health").returncode == 3


def ready_again(replica):
    wait_for(lambda: replica.health("ready")[0] == 200, "the replica is ready again", 15)
    assert replica.metrics()["keylatch_store_writable"] == 1
    wait_for(lambda: new_key(replica) == 200, "new keys are bound", 5)
    # One log line per outage, however many requests fail.
    assert replica.stderr.read_text().count("the store takes no writes") == 1


def test_a_read_only_database(serving, primary):
    replica = serving(url(primary))
    known = "sk-failover-known-abcdefgh"
    assert send_request(replica, known).status == 200
    primary.psql("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    not_ready(replica)
    assert send_request(replica, known).status == 200
    primary.psql("SET default_transaction_read_only = off", "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
    ready_again(replica)
