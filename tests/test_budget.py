"""Budgets in money and tokens: no number of parallel requests, on any number of replicas, passes one."""

import concurrent.futures
import json
import threading

import httpx
import pytest
from support.keylatch import free_port, wait_for
from support.redis import Redis
from support.stores import SECRET, storage
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain

PRICES = "prices: {models: [{model: 'gpt-*', input: 0, output: 1000}]}"
TOKENS = 40


def answer(request, send):
    """Uses as many output tokens as the request allows, at most TOKENS."""
    asked = json.loads(request["body"])
    used = min(asked.get("max_tokens", TOKENS), TOKENS)
    usage = {"prompt_tokens": 5, "completion_tokens": used, "total_tokens": used + 5}
    body = {"model": asked["model"], "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    send(plain(body=json.dumps(body).encode(), headers=["Content-Type: application/json"]))
    return True


@pytest.fixture
def model():
    with Scripted(answer) as upstream:
        yield upstream


@pytest.fixture
def redis():
    with Redis() as server:
        yield server


def chain(budget, usage=""):
    return f"      - usage: {{{usage}}}\n      - budget: {{{budget}}}"


def ask(keylatch, key="sk-budget-0001", model="gpt-x", max_tokens=TOKENS, path="/v1/chat/completions", **more):
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": max_tokens, **more}
    return httpx.post(f"http://127.0.0.1:{keylatch.port}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=20)


def test_a_budget_ends_and_says_when_it_renews(start, model):
    keylatch = start(model, route_filters=chain("per: key, amount: 0.1 USD, period: month"), more=PRICES)
    assert [ask(keylatch).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(keylatch)
    error = refused.json()["error"]
    assert error["code"] == "insufficient_quota" and "the rest of the budget" in error["message"].lower(), error
    assert int(refused.headers["retry-after"]) > 0 and refused.headers["x-should-retry"] == "false"
    assert ask(keylatch, max_tokens=20).status_code == 200, "a smaller request fits"
    assert "is spent. It renews at" in ask(keylatch, max_tokens=1).json()["error"]["message"]
    assert ask(keylatch, key="sk-budget-0002").status_code == 200, "another key has its own"
    assert ask(keylatch, model="other").json()["error"]["code"] == "model_without_price"
    line = [line for line in keylatch.access_log() if line.get("reason") == "spent"][-1]
    assert line["detail"] == "budget `routes.api.key-month`: 0.10 USD spent and 0.00 USD reserved of 0.10 USD, 0.001 USD needed", line
    used = next(line for line in keylatch.access_log() if line.get("usage_source") == "reported")
    assert (used["model"], used["input_tokens"], used["output_tokens"], used["cost"], used["currency"]) == ("gpt-x", 5, 40, 0.04, "USD")


def test_what_was_spent_survives_a_restart(start, model):
    keylatch = start(model, route_filters=chain("per: key, amount: 100 output tokens, period: month"), storage="{sqlite: {path: k.db}}")
    assert [ask(keylatch).status_code for _ in range(3)] == [200, 200, 429]
    keylatch.stop()
    keylatch.start()
    assert ask(keylatch).status_code == 429
    assert ask(keylatch, max_tokens=20).status_code == 200


def test_a_client_that_leaves_has_spent_what_it_got(start):
    gone = threading.Event()

    def stream(request, send):
        send(STREAM_HEAD)
        for _ in range(10):
            send(chunk(b'data: {"choices":[{"delta":{"content":"12345678"}}]}\n\n'))
        gone.wait(20)
        return False

    with Scripted(stream) as upstream:
        keylatch = start(upstream, route_filters=chain("per: key, amount: 1000 output tokens, period: month, unreported: estimate"))
        with httpx.stream("POST", f"http://127.0.0.1:{keylatch.port}/v1/chat/completions", json={"model": "gpt-x", "stream": True, "max_tokens": 900},
                          headers={"Authorization": "Bearer sk-budget-0001"}) as response:
            received, pieces = b"", response.iter_raw()
            while received.count(b"12345678") < 10:
                received += next(pieces)
            assert ask(keylatch, max_tokens=200).status_code == 429, "900 are reserved"
        gone.set()
        # 80 characters are 20 tokens.
        settled = "budget `routes.api.key-month`: 20 output tokens spent and 0 output tokens reserved"

        def is_settled():
            assert ask(keylatch, max_tokens=981).status_code == 429
            return any(line.get("detail", "").startswith(settled) for line in keylatch.access_log())

        wait_for(is_settled, "the stream is settled")
        line = next(line for line in keylatch.access_log() if line.get("usage_source") == "estimated")
        assert line["output_tokens"] == 20 and line["first_token_ms"] >= 0


def budget_of(name="shared"):
    return f"name: {name}, per: key, amount: 2 USD, period: month, scope: shared"


def redis_section(redis):
    return f'redis: {{url: "{redis.url}", timeout: 2s}}'


def spent(redis, database=None):
    names = [name for name in redis.cli("KEYS", "keylatch:budget:*").splitlines() if name]
    return sum(int(redis.cli("HGET", name, "s")) for name in names)


def test_parallel_requests_over_three_replicas_never_pass_a_budget(start, model, redis, database):
    """1,000 requests of one key, of which 50 fit."""
    values = {"route_filters": chain(budget_of()), "more": f"{PRICES}\n{redis_section(redis)}", "secrets": SECRET, "storage": storage(database)}
    three = [start(model, **values) for _ in range(3)]
    clients = [httpx.Client(base_url=f"http://127.0.0.1:{keylatch.port}", headers={"Authorization": "Bearer sk-budget-0001"}, timeout=30) for keylatch in three]
    body = {"model": "gpt-x", "messages": [], "max_tokens": TOKENS}
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(lambda n: clients[n % 3].post("/v1/chat/completions", json=body).status_code, range(1000)))
    # A reservation that is not settled yet may refuse a request that would fit, so the end is asked for.
    wait_for(lambda: clients[0].post("/v1/chat/completions", json=body).status_code == 429 and spent(redis) >= 2_000_000, "the budget is spent", 20)
    assert set(statuses) == {200, 429} and len(model.requests) == 50, (len(model.requests), spent(redis))
    assert spent(redis) == 2_000_000
    total = "SELECT coalesce(sum(spent), 0) FROM budget_ledger"
    wait_for(lambda: database.psql(total) == "2000000", "the database has all of it", 20)
    # Redis loses everything: the database knows.
    redis.cli("FLUSHALL")
    assert clients[1].post("/v1/chat/completions", json={**body, "max_tokens": 1}).status_code == 429


@pytest.mark.parametrize("policy, status", [("deny", 503), ("allow", 200), ("local", 429)])
def test_redis_is_killed_in_the_middle(start, model, redis, policy, status):
    budget = f"per: key, amount: 0.1 USD, period: month, scope: shared, on_store_failure: {policy}"
    keylatch = start(model, route_filters=chain(budget), more=f'{PRICES}\nredis: {{url: "{redis.url}", timeout: 500ms}}')
    assert [ask(keylatch).status_code for _ in range(2)] == [200, 200]
    redis.kill()
    assert ask(keylatch).status_code == status
    assert keylatch.metrics()['keylatch_budget_store_failures_total{outcome="%s"}' % policy] >= 1


def test_what_was_spent_while_redis_was_away_counts_when_it_is_back(start, model, redis):
    budget = "per: key, amount: 0.2 USD, period: month, scope: shared, on_store_failure: local"
    keylatch = start(model, route_filters=chain(budget), more=f'{PRICES}\nredis: {{url: "{redis.url}", timeout: 500ms}}')
    assert ask(keylatch).status_code == 200
    wait_for(lambda: spent(redis) == 40_000, "the first request is settled")
    redis.pause()
    try:
        assert [ask(keylatch).status_code for _ in range(2)] == [200, 200]
    finally:
        redis.resume()
    wait_for(lambda: spent(redis) == 120_000, "the settlements arrive", 20)
    names = redis.cli("KEYS", "keylatch:budget:*").splitlines()
    wait_for(lambda: redis.cli("HGET", names[0], "r") in ("", "0"), "no reservation stays")


def test_a_killed_replica_blocks_its_reservation_only(start, redis):
    """The rest of the budget is there for others at once, the reservation when it expires."""
    hold = threading.Event()

    def slow(request, send):
        hold.wait(20)
        return False

    with Scripted(slow) as upstream, Scripted(answer) as quick:
        values = {"route_filters": chain("name: b, per: key, amount: 100 output tokens, period: month, scope: shared"), "more": redis_section(redis), "secrets": SECRET}
        one, other = start(upstream, **values), start(quick, **values)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = pool.submit(lambda: ask(one, max_tokens=60))
            wait_for(lambda: upstream.requests, "the request is open")
            one.process.kill()
            hold.set()
            assert ask(other, max_tokens=41).status_code == 429
            assert ask(other, max_tokens=40).status_code == 200
            with pytest.raises(httpx.HTTPError):
                asked.result().raise_for_status()
        open_until = [name for name in redis.cli("KEYS", "keylatch:budget-open:*").splitlines() if name]
        assert len(open_until) == 1 and redis.cli("ZCARD", open_until[0]) == "1"
        redis.cli("ZADD", open_until[0], "1", redis.cli("ZRANGE", open_until[0], "0", "0"))
        assert ask(other, max_tokens=60).status_code == 200, "expired"


def test_alerts_at_shares_of_a_budget(start, model):
    received = []

    def hook(request, send):
        received.append(json.loads(request["body"]))
        send(plain())
        return True

    with Scripted(hook) as webhook:
        alerts = f'alerts: {{webhooks: [{{name: ops, url: "http://127.0.0.1:{webhook.port}/", allow_private: true}}]}}\nusage: {{flush_every: 1s}}'
        keylatch = start(model, route_filters=chain("name: monthly, per: key, amount: 100 output tokens, period: month, alert_at: [30, 80, 100]"), more=alerts)
        assert ask(keylatch).status_code == 200
        wait_for(lambda: len(received) == 1, "the first share is alerted of")
        assert ask(keylatch).status_code == 200
        assert ask(keylatch, max_tokens=20).status_code == 200
        wait_for(lambda: len(received) >= 2 and received[-1]["data"]["percent"] == 100, "the last share is alerted of")
    first = received[0]
    assert (first["type"], first["data"]["budget"], first["data"]["percent"], first["data"]["spent"], first["data"]["amount"]) == ("budget.share_reached", "monthly", 30, 40, 100)
    assert first["data"]["subject"].startswith("key=") and "sk-budget" not in json.dumps(received)
    assert len({event["data"]["percent"] for event in received}) == len(received), "each share once"


def test_shadow_mode_counts_and_refuses_nothing(start, model):
    filters = "      - usage: {}\n      - budget: {per: key, amount: 50 output tokens, period: day}\n        shadow: true"
    keylatch = start(model, route_filters=filters)
    assert [ask(keylatch).status_code for _ in range(4)] == [200] * 4
    assert keylatch.access_log()[-1]["shadow"] == ["budget:spent"]


def test_budgets_of_a_label(start, model):
    filters = "      - key_binding: {confirm: immediate}\n" + chain("label: trial, amount: 50 output tokens, period: day")
    keylatch = start(model, route_filters=filters, storage="{sqlite: {path: k.db}}")
    keys = [f"sk-label-{n:04}-abcdefgh" for n in range(3)]
    assert [ask(keylatch, key=key).status_code for key in keys] == [200] * 3
    for key in keys[:2]:
        labelled = keylatch.command("bindings", "set", "-", "--label", "trial", stdin=key)
        assert labelled.returncode == 0, labelled.stderr
    wait_for(lambda: ask(keylatch, key=keys[0], max_tokens=51).status_code == 429, "the label is known")
    assert ask(keylatch, key=keys[0]).status_code == 200
    assert ask(keylatch, key=keys[1]).status_code == 429, "both keys share the amount"
    assert ask(keylatch, key=keys[2]).status_code == 200


PROBES = {
    "decoy": {"options": {"num_predict": 1}, "generationConfig": {"maxOutputTokens": 1}, "max_tokens": None},
    "zero": {"max_tokens": 0},
    "text": {"max_tokens": "4000"},
    "huge": {"max_tokens": 10**30},
    "choices": {"max_tokens": 500, "n": 5},
    "keys": {"max_tokens": 1, "tools": {"x" * 9000: 1}},
}


@pytest.mark.parametrize("name", PROBES)
def test_what_a_request_announces_in_odd_ways_is_reserved(start, model, name):
    keylatch = start(model, route_filters=chain("per: key, amount: 2000 tokens, period: month"))
    assert ask(keylatch, **PROBES[name]).status_code == 429


def test_other_methods_and_lists_of_prompts_count(start, model):
    keylatch = start(model, route_filters=chain("per: key, amount: 2000 tokens, period: month"))

    def send(method, body, path="/v1/completions"):
        return httpx.request(method, keylatch.url(path), json=body, headers={"Authorization": "Bearer sk-budget-0001"}, timeout=20).status_code

    assert send("POST", {"model": "gpt-x", "prompt": ["x"] * 50, "max_tokens": 100}) == 429
    assert send("POST", {"model": "gpt-x", "input": [1] * 3000}, "/v1/embeddings") == 429
    for method in ["PUT", "post", "GET"]:
        assert send(method, {"model": "gpt-x", "prompt": "x", "max_tokens": 3000}) == 429, method
    assert httpx.get(keylatch.url("/v1/models"), headers={"Authorization": "Bearer sk-budget-0001"}).status_code != 429
