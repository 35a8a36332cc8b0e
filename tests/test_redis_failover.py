"""Redis failovers, full servers and missing rights: requests go on, and each failure is
reported."""

import json
import pathlib
import re
import shutil
import time

import pytest
from support.keylatch import ROOT, wait_for
from support.redis import Redis
from support.relay import Relay
from support.stores import send_request

PASSWORD = "hunter2hunter2"
LIMITS = """      - rate_limit: {per: key, limit: 3/h, scope: shared, on_store_failure: local}
      - concurrency_limit: {per: key, most: 5, scope: shared, on_store_failure: local}"""
BASIC = "+get +set +time +evalsha +script|load +ping"


def documented():
    """The ACL rights that the manual lists for all features."""
    line = re.search(r"^ACL SETUSER keylatch (.*)$", (ROOT / "docs" / "how-to" / "redis.md").read_text(), re.M)
    return f"user keylatch {line[1].replace('PASSWORD', PASSWORD)}"


def user(commands, keys="~keylatch:*"):
    return f"user keylatch on >{PASSWORD} {keys} resetchannels -@all {commands}"


def section(server, more="", database=""):
    port = getattr(server, "port", server)
    return f'redis: {{url: "redis://keylatch:{PASSWORD}@127.0.0.1:{port}{database}"{more}}}'


@pytest.fixture
def limited(start, echo_upstream):
    """Starts a replica with shared limits and an in-memory store."""
    return lambda sections: start(echo_upstream, route_filters=LIMITS, more=sections)


def errors(replica, kind):
    return replica.metrics().get(f'keylatch_redis_errors_total{{kind="{kind}"}}', 0)


def fails(replica, kind):
    """Asserts that the failure is counted, logged once, and shown in the health report."""
    send_request(replica, f"sk-fails-{time.monotonic_ns()}")
    wait_for(lambda: send_request(replica, f"sk-fails-{time.monotonic_ns()}") and errors(replica, kind) >= 1, f"{kind} is counted", 15)
    state = replica.health()[1]["redis"]
    assert state["ok"] is False and kind in state["errors"], state
    assert replica.stderr.read_text().count(f'kind="{kind}"') + replica.stderr.read_text().count(f'"kind":"{kind}"') == 1
    assert kind in replica.command("health").stdout
    assert PASSWORD not in replica.stderr.read_text()


def works(replica):
    wait_for(lambda: replica.metrics()["keylatch_redis_away"] == 0 and replica.health()[1]["redis"]["ok"], "redis works", 40)


def denied(server):
    """The refused commands, without the driver's name, which Redis 7.2 or later and Valkey can take."""
    return [entry["object"] for entry in json.loads(server.cli("--json", "ACL", "LOG")) if entry["object"] != "client|setinfo"]


def counts(server):
    return [name for name in server.entries() if ":limit:" in name]


def test_a_demoted_master_that_keeps_connections_open(limited):
    with Redis(documented()) as one, Redis(documented(), f"replicaof 127.0.0.1 {one.port}") as two, Relay(one.port) as relay:
        wait_for(lambda: "master_link_status:up" in two.cli("INFO", "replication"), "the replica follows", 20)
        replica = limited(section(relay))
        assert [send_request(replica, "sk-shared-0001-abcdefgh").status for _ in range(4)] == [200, 200, 200, 429]
        wait_for(lambda: counts(two), "the counters are replicated")
        relay.target = two.port
        two.cli("REPLICAOF", "NO", "ONE")
        one.cli("REPLICAOF", "127.0.0.1", str(two.port))
        wait_for(lambda: send_request(replica, "sk-other-0002-abcdefgh") and errors(replica, "read_only") >= 1, "READONLY is counted", 15)
        works(replica)
        # The counters were replicated, and continue on the new master.
        assert send_request(replica, "sk-shared-0001-abcdefgh").status == 429
        before = len(counts(two))
        assert send_request(replica, "sk-fresh-0003-abcdefgh").status == 200
        assert len(counts(two)) == before + 1


def test_a_server_that_stays_a_replica_counts_as_down(limited):
    with Redis(documented()) as one, Redis(documented(), f"replicaof 127.0.0.1 {one.port}") as two:
        replica = limited(section(two))
        assert replica.metrics()["keylatch_redis_away"] == 1 and errors(replica, "read_only") >= 1
        assert replica.stderr.read_text().count("the server is a replica") == 1
        two.cli("REPLICAOF", "NO", "ONE")
        works(replica)


def test_a_full_server(limited):
    with Redis(documented()) as server:
        replica = limited(section(server))
        assert send_request(replica, "sk-shared-0001-abcdefgh").status == 200
        server.cli("CONFIG", "SET", "maxmemory", "1")
        fails(replica, "memory")
        server.cli("CONFIG", "SET", "maxmemory", "0")
        works(replica)
        assert "hunter" not in replica.health()[1]


def test_a_right_that_is_revoked_and_granted_again(limited):
    with Redis(documented()) as server:
        replica = limited(section(server))
        server.cli("ACL", "SETUSER", "keylatch", "-set")
        fails(replica, "permission")
        server.cli("ACL", "SETUSER", "keylatch", "+set")
        works(replica)


def test_a_right_that_one_feature_lacks(limited):
    with Redis(user(BASIC)) as server:
        replica = limited(section(server))
        fails(replica, "permission")
        assert replica.metrics()["keylatch_redis_away"] == 0
        # A limit that needs only permitted commands is shared.
        assert counts(server)


@pytest.mark.parametrize("missing", BASIC.replace("+ping", "").split())
def test_a_start_without_a_required_right_fails(limited, missing):
    with Redis(user(BASIC.replace(missing, ""))) as server:
        with pytest.raises(AssertionError) as failed:
            limited(section(server))
        assert "the server refuses the user" in str(failed.value) and PASSWORD not in str(failed.value)


def test_a_start_with_rights_for_another_prefix_fails(limited):
    with Redis(user(BASIC, "~other:*")) as server:
        with pytest.raises(AssertionError) as failed:
            limited(section(server))
        assert "the server refuses the user" in str(failed.value)


def test_the_documented_rights_suffice(start, echo_upstream):
    with Redis(documented()) as server:
        replica = start(echo_upstream, route_filters=LIMITS, more=section(server, database="/2"))
        assert [send_request(replica, "sk-shared-0001-abcdefgh").status for _ in range(4)] == [200, 200, 200, 429]
        said = replica.command("limits", "give-back", replica.command("limits", "list", "--json").stdout.split('"subject":"')[1].split('"')[0])
        assert said.returncode == 0, said.stderr
        assert send_request(replica, "sk-shared-0001-abcdefgh").status == 200
        found = replica.command("doctor", "--json").stdout
        assert '"place":"redis"' not in found, found
        assert replica.health()[1]["redis"] == {"ok": True, "errors": []}
        assert denied(server) == []


def test_the_documented_rights_suffice_with_sentinel(limited):
    # One replica and one sentinel, so a failover takes a few seconds.
    with Redis(documented()) as one, Redis(documented(), f"replicaof 127.0.0.1 {one.port}") as two:
        wait_for(lambda: "master_link_status:up" in two.cli("INFO", "replication"), "the replica follows", 20)
        watch = f"sentinel monitor main 127.0.0.1 {one.port} 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000"
        rights = re.search(r"The user of a sentinel needs `(.*?)`", (ROOT / "docs" / "how-to" / "redis.md").read_text())[1]
        with Redis(watch, f"user watcher on >{PASSWORD} resetchannels -@all {rights}", sentinel=True) as sentinel:
            wait_for(lambda: sentinel.cli("SENTINEL", "replicas", "main"), "the sentinel knows", 20)
            replica = limited(f'redis: {{url: "redis://keylatch:{PASSWORD}@main/2", sentinels: ["redis://watcher:{PASSWORD}@127.0.0.1:{sentinel.port}"]}}')
            works(replica)
            assert [send_request(replica, "sk-shared-0001-abcdefgh").status for _ in range(4)] == [200, 200, 200, 429]
            wait_for(lambda: ":limit:" in two.cli("-n", "2", "KEYS", "*"), "the counters are replicated")
            sentinel.cli("SENTINEL", "FAILOVER", "main")
            wait_for(lambda: "role:master" in two.cli("INFO", "replication", check=False), "the replica is promoted", 30)
            wait_for(lambda: "role:slave" in one.cli("INFO", "replication", check=False), "the old master follows", 30)
            in_two = lambda: len([name for name in two.cli("-n", "2", "KEYS", "*").split() if ":limit:" in name])  # noqa: E731
            before = in_two()
            wait_for(lambda: send_request(replica, f"sk-new-{time.monotonic_ns()}") and in_two() > before, "the new master counts", 20)
            works(replica)
            assert send_request(replica, "sk-shared-0001-abcdefgh").status == 429
            assert denied(one) == denied(two) == denied(sentinel) == []


def test_the_documented_rights_suffice_in_a_cluster(limited):
    settings = ("cluster-enabled yes", "cluster-node-timeout 2000", documented())
    with Redis(*settings) as one, Redis(*settings) as two, Redis(*settings) as three:
        nodes = [f"127.0.0.1:{node.port}" for node in (one, two, three)]
        one.create_cluster(two, three)
        replica = limited(section(one, f', cluster: ["{nodes[1]}"]'))
        works(replica)
        assert [send_request(replica, "sk-shared-0001-abcdefgh").status for _ in range(4)] == [200, 200, 200, 429]
        assert replica.health()[1]["redis"] == {"ok": True, "errors": []}


@pytest.mark.skipif(not shutil.which("valkey-server"), reason="this system has no package of Valkey (`valkey-server`)")
def test_valkey(limited):
    with Redis(documented(), program="valkey-server") as server:
        replica = limited(section(server))
        assert [send_request(replica, "sk-shared-0001-abcdefgh").status for _ in range(4)] == [200, 200, 200, 429]
        assert "Valkey" in server.cli("INFO", "server") or "valkey_version" in server.cli("INFO", "server")
        server.cli("CONFIG", "SET", "maxmemory", "1")
        fails(replica, "memory")
        server.cli("CONFIG", "SET", "maxmemory", "0")
        works(replica)


@pytest.mark.parametrize("password", ["p#s?w/d", "a@b:c", "100%25", "mit ü"])
def test_passwords_with_special_characters(limited, password, tmp_path):
    secret = tmp_path / "url"
    written = password.replace("%25", "%").replace(" ", "_")
    with Redis(f"user keylatch on >{written} ~keylatch:* -@all {BASIC} +zadd +zcard +zrem +zremrangebyscore +pexpire") as server:
        secret.write_text(f"redis://keylatch:{password.replace(' ', '_')}@127.0.0.1:{server.port}/0\n")
        replica = limited(f"redis: {{url: 'file:{pathlib.Path(secret)}'}}")
        works(replica)
