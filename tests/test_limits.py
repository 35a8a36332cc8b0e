"""Rate and concurrency limits of one process or of all replicas, and their answers to clients."""

import concurrent.futures
import json
import threading
import time

import pytest
from support.keylatch import free_port, wait_for
from support.redis import Redis
from support.stores import send_request
from support.upstreams import STREAM_HEAD, Scripted, chunk

POLICIES = 'keylatch_rate_limit_requests_total{outcome="%s",policy="%s"}'


@pytest.fixture
def redis():
    with Redis() as server:
        yield server


def section(url, more=""):
    # A busy machine may exceed the default of 100 ms, and then each replica counts by itself.
    return f'redis: {{url: "{url}", timeout: 2s{more}}}'


def limit(text):
    return f"      - rate_limit: {{{text}}}"


def test_three_replicas_admit_what_one_would(start, echo_upstream, redis):
    shared = limit("per: key, limit: 20/h, scope: shared, and: [{name: all, per: route, limit: 100000/month}]")
    three = [start(echo_upstream, route_filters=shared, more=section(redis.url), secrets="{key_hmac: 0123456789abcdef0123456789abcdef}") for _ in range(3)]
    keys = [f"sk-shared-{n:03}-abcdefgh" for n in range(50)]
    asked = [(three[n % 3], key) for n in range(30) for key in keys]
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        statuses = list(pool.map(lambda one: (one[1], send_request(*one).status), asked))
    for key in keys:
        assert sorted(status for asked_key, status in statuses if asked_key == key) == [200] * 20 + [429] * 10
    refused = send_request(three[0], keys[0])
    assert refused.header("ratelimit-policy") == '"key";q=20;w=3600, "all";q=100000;w=2592000'
    assert refused.header("ratelimit").startswith('"key";r=0;t=') and int(refused.header("retry-after")) > 100
    # A refusal by one limit counts on no other limit, so 1,000 requests passed.
    assert int(redis.cli("EVAL", "return #redis.call('KEYS', 'keylatch:limit:*')", "0")) == 51
    passed = send_request(three[1], "sk-another-abcdefgh").header("ratelimit")
    assert '"all";r=98999' in passed, passed
    assert not any("sk-" in name + text for name, text in redis.entries().items())


def test_shared_limits_in_a_redis_cluster(start, echo_upstream):
    settings = ("cluster-enabled yes", "cluster-node-timeout 2000")
    shared = limit("per: key, limit: 5/h, scope: shared, and: [{name: all, per: route, limit: 23/h}]")
    with Redis(*settings) as one, Redis(*settings) as two, Redis(*settings) as three:
        nodes = (one, two, three)
        for node in nodes[1:]:
            one.cli("CLUSTER", "MEET", "127.0.0.1", str(node.port))
        for number, node in enumerate(nodes):
            node.cli("CLUSTER", "ADDSLOTSRANGE", str(number * 5461), str(16383 if number == 2 else number * 5461 + 5460))
        wait_for(lambda: all("cluster_state:ok" in node.cli("CLUSTER", "INFO") for node in nodes), "the cluster is there", 20)
        replica = start(echo_upstream, route_filters=shared, more=section(f"redis://127.0.0.1:{one.port}", f', cluster: ["127.0.0.1:{two.port}"]'))
        passed = [[send_request(replica, f"sk-{key}-spread-abcdefgh").status for _ in range(7)] for key in range(6)]
        # 5 for each of the first four keys, and the last three of the common limit.
        assert [each.count(200) for each in passed] == [5, 5, 5, 5, 3, 0], passed


def test_limits_during_a_redis_outage(start, echo_upstream):
    with Redis() as redis:
        policy = "per: key, limit: 3/h, scope: shared, on_store_failure: %s"
        each = {kind: start(echo_upstream, route_filters=limit(policy % kind), more=section(redis.url)) for kind in ("local", "allow", "deny")}
        for replica in each.values():
            assert send_request(replica, "sk-limited-abcdefgh").status == 200
        redis.kill()
        statuses = {kind: [send_request(replica, "sk-limited-abcdefgh").status for _ in range(5)] for kind, replica in each.items()}
        assert statuses == {"local": [200] * 3 + [429] * 2, "allow": [200] * 5, "deny": [503] * 5}
        assert each["deny"].metrics()['keylatch_rate_limit_store_failures_total{outcome="deny"}'] == 5
        redis.start()
        wait_for(lambda: send_request(each["deny"], "sk-other-abcdefgh").status == 200, "Redis is back")


def test_blocks_combinations_and_shadow_are_counted_by_policy(start, echo_upstream, redis):
    for scope in ("local", "shared"):
        replica = start(
            echo_upstream,
            route_filters=limit(
                f"name: both, per: [client, key], limit: 10/s, burst: 3, block_for: 3s, scope: {scope},"
                " and: [{name: quiet, per: client, limit: 1/h, shadow: true}], openai_fields: true"
            ),
            more=section(redis.url, f", prefix: {scope}") if scope == "shared" else "",
        )
        answers = [send_request(replica, "sk-a-abcdefghijkl") for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 3 + [429] * 2
        assert send_request(replica, "sk-b-abcdefghijkl").status == 200 and send_request(replica, "sk-a-abcdefghijkl", "127.0.0.2").status == 200
        assert answers[3].header("retry-after") == "3"
        time.sleep(1.2)
        assert send_request(replica, "sk-a-abcdefghijkl").status == 429, "a rate limit would have recovered by now, a block has not"
        wait_for(lambda: send_request(replica, "sk-a-abcdefghijkl").status == 200, "the block is over", 4)
        assert answers[0].header("x-ratelimit-limit-requests") in ("10", "1") and answers[0].header("x-ratelimit-reset-requests")
        metrics = replica.metrics()
        assert metrics[POLICIES % ("shadow", "quiet")] >= 4 and metrics[POLICIES % ("refused", "both")] >= 3


def test_calendar_quotas(start, echo_upstream, redis):
    for scope in ("local", "shared"):
        more = section(redis.url, f", prefix: {scope}") if scope == "shared" else ""
        replica = start(echo_upstream, route_filters=limit(f"per: key, limit: 5/month, window: calendar, cost: 2, scope: {scope}"), more=more)
        answers = [send_request(replica, "sk-quota-abcdefgh") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert '"key";r=1;' in answers[1].header("ratelimit")
        assert 0 < int(answers[2].header("retry-after")) <= 31 * 86_400
    assert "keylatch_rate_limit" not in json.dumps(redis.entries())


@pytest.mark.parametrize("scope", ["local", "shared"])
def test_concurrency_limit(start, redis, scope):
    def stream(request, send):
        send(STREAM_HEAD + chunk(b"data: one\n\n"))
        released.wait(30)
        send(chunk(b""))
        return False

    released = threading.Event()
    with Scripted(stream) as upstream:
        more = section(redis.url) if scope == "shared" else ""
        policy = f"      - concurrency_limit: {{per: key, most: 3, scope: {scope}}}\n      - sse_keepalive: {{}}"
        count = 2 if scope == "shared" else 1
        replicas = [start(upstream, route_filters=policy, more=more, secrets="{key_hmac: 0123456789abcdef0123456789abcdef}") for _ in range(count)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            streams = [pool.submit(send_request, replicas[n % count], "sk-parallel-abcdefgh", timeout=40) for n in range(3)]
            wait_for(lambda: sum(replica.metrics()["keylatch_open_streams"] for replica in replicas) == 3, "three streams are open")
            for replica in replicas:
                refused = send_request(replica, "sk-parallel-abcdefgh")
                assert refused.status == 429 and refused.header("retry-after") == "1"
                assert json.loads(refused.body)["error"]["code"] == "concurrency_limit_exceeded"
            other = pool.submit(send_request, replicas[0], "sk-another-abcdefgh", timeout=40)
            wait_for(lambda: sum(replica.metrics()["keylatch_open_streams"] for replica in replicas) == 4, "a stream of another key is open")
            if scope == "shared":
                assert int(redis.cli("ZCARD", redis.cli("KEYS", "keylatch:places:*").splitlines()[0])) in (1, 3)
            released.set()
            assert [stream.result().status for stream in [*streams, other]] == [200] * 4
        wait_for(lambda: send_request(replicas[0], "sk-parallel-abcdefgh").status == 200, "slots are free again")
        if scope == "shared":
            wait_for(lambda: redis.cli("KEYS", "keylatch:places:*") == "", "no counter is left in Redis")


def test_an_unused_and_a_missing_redis_section(start, echo_upstream):
    replica = start(echo_upstream)
    replica.write(more=section(f"redis://127.0.0.1:{free_port()}"))
    assert "redis: the section has no effect" in replica.command("check").stderr
    replica.write(more="", route_filters=limit("per: key, limit: 1/h, scope: shared"))
    assert "rate_limit.scope: shared counts require Redis; add the section `redis`" in replica.command("check").stderr
