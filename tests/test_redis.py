"""Redis in front of PostgreSQL: the shared cache of bindings, outages, TLS, ACLs, Sentinel and
cluster."""

import json
import time

import pytest
from support.certificates import Certificates
from support.keylatch import free_port, wait_for
from support.load import background_load
from support.redis import Redis
from support.stores import send_request

SHARED = 'keylatch_binding_cache_requests_total{result="shared"}'


def section(url, more=""):
    return f'redis: {{url: "{url}"{more}}}'


@pytest.fixture
def redis():
    with Redis() as server:
        yield server


def remembered(redis, key_count=1):
    """Waits until Redis contains this many rows."""
    return wait_for(lambda: len([text for text in redis.entries().values() if not text.endswith("-")]) == key_count, "the rows are in Redis")


def settle(replicas):
    """A replica learns the clock of Redis with its first read, and trusts rows written at least a
    second after it."""
    for replica in replicas:
        send_request(replica, "sk-unknown-yet")
    # The margin is a second of time by design.
    time.sleep(1.1)


def test_replicas_share_rows_through_redis(replicas, redis, database):
    one, two, three = replicas(3, sections=section(redis.url))
    settle((one, two, three))
    assert send_request(one, "sk-shared-0001-abcdefgh").status == 200
    remembered(redis, 2)
    before = two.metrics()[SHARED]
    assert send_request(two, "sk-shared-0001-abcdefgh").status == 200
    assert two.metrics()[SHARED] == before + 1
    # A refusal needs a read of the database.
    assert send_request(three, "sk-shared-0001-abcdefgh", "127.0.0.2").status == 403
    # Redis contains no key, and nothing from which a key can be derived.
    for name, text in redis.entries().items():
        assert name.startswith("keylatch:binding:") and "sk-" not in text, text
    for change, status in (("ban", 403), ("unban", 200)):
        assert one.command("bindings", change, "-", stdin="sk-shared-0001-abcdefgh").returncode == 0
        for replica in (one, two, three):
            wait_for(lambda: send_request(replica, "sk-shared-0001-abcdefgh").status == status, "the change takes effect", 1)  # noqa: B023
    # During a database outage, a replica that never saw the key finds it in Redis.
    fresh = replicas(1, sections=section(redis.url))[0]
    settle((fresh,))
    database.kill()
    try:
        wait_for(lambda: send_request(fresh, "sk-never-seen-abcdefgh").status == 503, "the database is unreachable")
        assert send_request(fresh, "sk-shared-0001-abcdefgh").status == 200
        assert send_request(fresh, "sk-shared-0001-abcdefgh", "127.0.0.2").status == 403
    finally:
        database.start()


def test_a_refusal_needs_a_read_of_the_database(replicas, redis, database):
    one, two = replicas(2, sections=section(redis.url))
    settle((one, two))
    assert send_request(one, "sk-hearsay-1-abcdefgh").status == 200
    remembered(redis, 2)
    for name, text in redis.entries().items():
        if "127.0.0.1" in text:
            redis.cli("SET", name, text.replace("127.0.0.1", "10.1.2.3"))
    assert send_request(two, "sk-hearsay-1-abcdefgh").status == 200, "the database was asked"


def test_changes_under_load_take_effect_on_every_replica(replicas, redis, database):
    """Cache fills race changes: a row read before a change must not be stored after it."""
    three = replicas(3, sections=section(redis.url), more=", cache_max: 16")
    settle(three)
    keys = [f"sk-raced-{n:04}-abcdefgh" for n in range(60)]
    for key in keys:
        assert send_request(three[0], key).status == 200
    ids = [json.loads(line)["key_id"] for line in three[0].command("bindings", "list", "--json", "--limit", "100").stdout.splitlines()]

    def load(stop, replica):
        while not stop.is_set():
            for key in keys:
                send_request(replica, key)
                # Leaves the processors time for the replicas.
                time.sleep(0.005)

    with background_load(load, [(replica,) for replica in three * 2]):
        for number, one in enumerate(ids[:20], 1):
            database.psql(f"UPDATE bindings SET banned = true WHERE key_id = '\\x{one}'")
            for replica in three:
                # By its notification: without one it takes up to 30 s.
                wait_for(lambda: [send_request(replica, key).status for key in keys].count(403) == number, "the ban takes effect", 20)  # noqa: B023
        # Shows an absence: within this second no cache fill brings an old row back.
        time.sleep(1)
        for replica in three:
            assert [send_request(replica, key).status for key in keys].count(403) == 20
    assert sum(replica.metrics()[SHARED] for replica in three) > 100


@pytest.mark.parametrize("how", ["kill", "pause"])
@pytest.mark.parametrize("both", [False, True], ids=["redis", "both"])
def test_a_redis_outage_and_recovery(replicas, redis, database, how, both):
    (replica,) = replicas(1, sections=section(redis.url), more=", cache_max: 16")
    keys = [f"sk-known-{n:04}-abcdefgh" for n in range(8)]
    for key in keys:
        assert send_request(replica, key).status == 200
        assert send_request(replica, key, "127.0.0.2").status == 403
    wrong, slow = [], []
    new = {200, 503} if both else {200}

    def load(stop, number):
        while not stop.is_set():
            for key, source, expected in ((keys[number], "127.0.0.1", {200}), (keys[number], "127.0.0.2", {403}), (None, "127.0.0.3", new)):
                began = time.monotonic()
                status = send_request(replica, key or f"sk-new-{number}-{time.monotonic_ns()}", source).status
                slow.append(time.monotonic() - began)
                if status not in expected:
                    wrong.append((key, source, status))

    with background_load(load, [(number,) for number in range(8)]):
        wait_for(lambda: len(slow) > 100, "load on a working store")
        for server in [redis, database][: 1 + both]:
            getattr(server, how)()
        wait_for(lambda: replica.metrics()["keylatch_redis_away"] == 1, "the metric shows the outage", 15)
        # Load during the outage, for longer than a refusal may reuse a row that was read, 1 s.
        time.sleep(2)
        assert replica.health("ready")[0] == (503 if both else 200), "readiness does not depend on Redis"
        assert replica.health()[1]["redis"]["ok"] is False
        for server in [database, redis][1 - both :]:
            server.start() if how == "kill" else server.resume()
        wait_for(lambda: replica.metrics()["keylatch_redis_away"] == 0, "Redis is back")
        wait_for(lambda: send_request(replica, f"sk-new-{time.monotonic_ns()}").status == 200, "new keys are bound again")
    # New keys may evict known ones from a cache of 16: with both stores away these get 503, and
    # never 200 from another address.
    wrong = [one for one in wrong if not (both and one[2] == 503)]
    assert not wrong, wrong[:10]
    # A request waits for one time limit, at most 1 s, of each store that is away. The rest is room for a busy machine.
    assert max(slow) < 8, max(slow)


def test_a_start_without_redis_and_with_an_untrusted_one(replicas, tmp_path):
    absent = free_port()
    (replica,) = replicas(1, sections=section(f"redis://127.0.0.1:{absent}"))
    assert send_request(replica, "sk-without-abcdefgh").status == 200
    assert replica.metrics()["keylatch_redis_away"] == 1
    with Redis(password="hunter2hunter2", tls=Certificates(tmp_path / "tls")) as server:
        ca = f", ca_file: {tmp_path}/tls/ca.pem"
        (replica,) = replicas(1, sections=section(server.url, ca))
        assert replica.metrics()["keylatch_redis_away"] == 0
        Certificates(tmp_path / "other")
        # Nothing is sent to a server before its certificate is verified.
        (replica,) = replicas(1, sections=section(server.url, f", ca_file: {tmp_path}/other/ca.pem"))
        assert replica.metrics()["keylatch_redis_away"] == 1
        (replica,) = replicas(1, sections=section(server.url.replace("127.0.0.1", "localhost"), ca))
        assert replica.metrics()["keylatch_redis_away"] == 1, "the certificate is for another name"
        for wrong, says in [
            (section(server.url.replace("hunter2hunter2", "swordfish"), ca), "the server refuses the user"),
            (section(f"{server.url}/0#insecure", ca), "always verified"),
            (section("http://swordfish@x", ca), "redis.url must be"),
            (section(server.url, ", ca_file: nowhere.pem"), "nowhere.pem"),
        ]:
            with pytest.raises(AssertionError) as failed:
                replicas(1, sections=wrong)
            assert says in str(failed.value) and "swordfish" not in str(failed.value), str(failed.value)


def test_a_redis_user_with_minimal_rights(replicas):
    rights = "user edge on >hunter2hunter2 ~keylatch:* -@all +get +set +time +eval +evalsha +script|load +ping"
    with Redis(rights) as server:
        one, two = replicas(2, sections=section(f"redis://edge:hunter2hunter2@127.0.0.1:{server.port}"))
        settle((one, two))
        assert send_request(one, "sk-shared-0001-abcdefgh").status == 200
        remembered(server, 2)
        assert send_request(two, "sk-shared-0001-abcdefgh").status == 200
        assert two.metrics()[SHARED] >= 1


def test_the_master_named_by_sentinel(replicas):
    with Redis() as master, Redis(f"replicaof 127.0.0.1 {master.port}") as other:
        watch = f"sentinel monitor main 127.0.0.1 {master.port} 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000"
        with Redis(watch, sentinel=True) as sentinel:
            wait_for(lambda: "role:slave" in other.cli("INFO", "replication"), "the replica follows", 20)
            wait_for(lambda: other.cli("INFO", "replication").count("master_link_status:up"), "the replica follows", 20)
            wait_for(lambda: sentinel.cli("SENTINEL", "replicas", "main"), "the sentinel knows", 20)
            (replica,) = replicas(1, sections=section("redis://main", f', sentinels: ["redis://127.0.0.1:{free_port()}", "{sentinel.url}"]'))
            wait_for(lambda: replica.metrics()["keylatch_redis_away"] == 0, "redis is there")
            settle((replica,))
            assert send_request(replica, "sk-shared-0001-abcdefgh").status == 200
            remembered(master, 2)
            master.kill()
            wait_for(lambda: "role:master" in other.cli("INFO", "replication", check=False), "the replica is promoted", 30)
            before = len(other.entries())
            used = lambda: send_request(replica, f"sk-later-{time.monotonic_ns()}").status == 200 and len(other.entries()) > before  # noqa: E731
            wait_for(used, "the new master caches new keys")


def test_a_cluster(replicas):
    settings = ("cluster-enabled yes", "cluster-node-timeout 2000")
    with Redis(*settings) as one, Redis(*settings) as two, Redis(*settings) as three:
        nodes = [f"127.0.0.1:{node.port}" for node in (one, two, three)]
        one.create_cluster(two, three)
        a, b = replicas(2, sections=section(f"redis://127.0.0.1:{free_port()}", f", cluster: {json.dumps(nodes[:2])}"))
        settle((a, b))
        keys = [f"sk-spread-{n:04}-abcdefgh" for n in range(30)]
        for key in keys:
            assert send_request(a, key).status == 200
        wait_for(lambda: sum(len(node.entries()) for node in (one, two, three)) >= 30, "the rows are in Redis")
        assert all(node.entries() for node in (one, two, three))
        assert [send_request(b, key).status for key in keys] == [200] * 30
        assert b.metrics()[SHARED] >= 29
        # An outage of one node affects only its own slots.
        three.kill()
        answers = [send_request(b, f"sk-after-{n:04}-abcdefgh").status for n in range(10)] + [send_request(b, key).status for key in keys]
        assert answers == [200] * 40
