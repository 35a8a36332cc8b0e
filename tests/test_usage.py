"""Usage: what requests used, from the answers of each API to the access log, the metrics, the admin API and commands."""

import csv
import io
import json
import signal
import threading
import time

import httpx
import pytest
from support.admin import ENV, signed_in
from support.keylatch import wait_for
from support.stores import FREE, SECRET, storage
from support.upstreams import STREAM_HEAD, Scripted, chunk, plain

SECTIONS = """
prices:
  models:
    - {model: gpt-4o, input: 2.5, cached_input: 1.25, output: 10}
    - {model: "claude-*", input: 3, cached_input: 0.3, cache_write: 3.75, output: 15}
    - {model: "gemini-*", input: 1, output: 4}
usage: {flush_every: 1s, requests: {}}
"""
USAGE = FREE + "\n      - usage: {}"
SQLITE = "{sqlite: {path: t.db, flush_every: 100ms}}"
LINES_HEAD = STREAM_HEAD.replace(b"text/event-stream", b"application/x-ndjson")
JSON = ["Content-Type: application/json"]

CHAT = {
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 40}, "completion_tokens_details": {"reasoning_tokens": 5},
    },
}
CHAT_STREAM = [
    {"choices": [{"index": 0, "delta": {"content": "Hel"}}], "usage": None},
    {"choices": [{"index": 0, "delta": {"content": "lo."}, "finish_reason": "stop"}], "usage": None},
    {"choices": [], "usage": {"prompt_tokens": 200, "completion_tokens": 10, "total_tokens": 210}},
]
MESSAGES = [
    {"type": "message_start", "message": {"model": "claude-sonnet-4", "usage": {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 1}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello."}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]
GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "Hello."}]}}],
    "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 5, "thoughtsTokenCount": 3, "totalTokenCount": 19},
    "modelVersion": "gemini-2.5-pro",
}
OLLAMA = [
    {"model": "llama3", "message": {"role": "assistant", "content": "Hi"}, "done": False},
    {"model": "llama3", "message": {"role": "assistant", "content": ""}, "done": True, "prompt_eval_count": 9, "eval_count": 4},
]


def frames(events, named=False):
    return [(f"event: {event['type']}\n" if named else "").encode() + b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]


def answer(request, send):
    """Answers as the API of the path does, with usage."""
    target, body = request["target"], request["body"]
    if "streams-on" in target:
        send(STREAM_HEAD)
        while True:
            send(chunk(frames(CHAT_STREAM[:1])[0]))
            time.sleep(0.05)
    if "generateContent" in target:
        send(plain(body=json.dumps(GEMINI).encode(), headers=JSON))
        return True
    if "missing" in target:
        send(plain("404 Not Found", b'{"error": {"message": "no such model"}}', JSON))
        return True
    if target.endswith("/messages"):
        head, pieces = STREAM_HEAD, frames(MESSAGES, named=True)
    elif target.endswith("/api/chat"):
        head, pieces = LINES_HEAD, [json.dumps(line).encode() + b"\n" for line in OLLAMA]
    elif json.loads(body).get("stream"):
        head, pieces = STREAM_HEAD, [*frames(CHAT_STREAM), b"data: [DONE]\n\n"]
    else:
        send(plain(body=json.dumps(CHAT).encode(), headers=JSON))
        return True
    send(head)
    for piece in pieces:
        time.sleep(0.02)
        send(chunk(piece))
    send(chunk(b""))
    return True


@pytest.fixture
def models():
    with Scripted(answer) as upstream:
        yield upstream


def post(replica, path, body, key="sk-usage-abcdefgh"):
    return httpx.post(replica.url(path), json=body, headers={"Authorization": f"Bearer {key}"}, timeout=20)


PROMPT = {"messages": [{"role": "user", "content": "Say hello."}]}
# Path, body, and the fields of the access log.
EACH = {
    "chat": ("/v1/chat/completions", {"model": "gpt-4o", **PROMPT}, dict(model="gpt-4o", input_tokens=100, cached_input_tokens=40, output_tokens=20, reasoning_tokens=5, cost=0.0004, currency="USD", usage_source="reported")),
    "chat stream": ("/v1/chat/completions", {"model": "gpt-4o", "stream": True, "stream_options": {"include_usage": True}, **PROMPT}, dict(model="gpt-4o", input_tokens=200, output_tokens=10, cost=0.0006, usage_source="reported")),
    "messages stream": ("/v1/messages", {"model": "claude-sonnet-4", "stream": True, "max_tokens": 100, **PROMPT}, dict(model="claude-sonnet-4", input_tokens=60, cached_input_tokens=30, cache_write_tokens=20, output_tokens=7, cost=0.000219)),
    "gemini": ("/v1/models/gemini-2.5-pro:generateContent", {"contents": [{"parts": [{"text": "Say hello."}]}]}, dict(model="gemini-2.5-pro", input_tokens=11, output_tokens=8, reasoning_tokens=3, cost=0.000043)),
    "ollama": ("/v1/api/chat", {"model": "llama3", **PROMPT}, dict(model="llama3", input_tokens=9, output_tokens=4, usage_source="reported")),
}
TOTAL_COST = "0.001262"


def send_each(replica, **more):
    for path, body, _ in EACH.values():
        assert post(replica, path, body, **more).status_code == 200


def rows(admin, path="/usage", **parameters):
    return admin.get(path, params=parameters).json()["items"]


def await_requests(admin, count, **parameters):
    """Waits until a report has this number of requests, and returns its only row."""
    def found():
        all_rows = rows(admin, **parameters)
        return all_rows and all_rows[0]["requests"] == count and all_rows[0]
    return wait_for(found, f"{count} requests are reported")


def test_each_api_is_counted_and_no_byte_is_changed(start, models):
    counted = start(models, route_filters=USAGE, more=SECTIONS)
    bare = start(models, route_filters=FREE)
    for name, (path, body, expected) in EACH.items():
        answers = [post(replica, path, body) for replica in (bare, counted)]
        assert answers[0].content == answers[1].content and answers[0].status_code == answers[1].status_code == 200, name
        fields = [[(field, value) for field, value in each.headers.items() if field not in ("date", "x-request-id")] for each in answers]
        assert fields[0] == fields[1], name
        sent = [request["body"] for request in models.requests[-2:]]
        assert sent[0] == sent[1], name
        line = wait_for(lambda: next((line for line in counted.access_log() if line["path"] == path and line["input_tokens"] == expected["input_tokens"]), None), f"the line of {name}")
        assert {field: line.get(field) for field in expected} == expected, name
        assert ("first_token_ms" in line) == (name not in ("chat", "gemini")), line
    assert "cost" not in line, "Ollama's model has no price"
    metrics = counted.metrics()
    tokens = 'keylatch_tokens_total{kind="%s",model="%s",route="api"}'
    assert metrics[tokens % ("input", "gpt-4o")] == 300 and metrics[tokens % ("cached_input", "gpt-4o")] == 40
    assert metrics[tokens % ("cache_write", "claude-sonnet-4")] == 20 and metrics[tokens % ("reasoning", "gemini-2.5-pro")] == 3
    assert metrics['keylatch_cost_total{currency="USD",model="gpt-4o",route="api"}'] == pytest.approx(0.001)
    assert metrics['keylatch_time_to_first_token_seconds_count{model="gpt-4o",route="api"}'] == 1
    assert metrics['keylatch_output_tokens_per_second_count{model="claude-sonnet-4",route="api"}'] == 1
    assert metrics['keylatch_usage_requests_total{model="llama3",route="api",source="reported"}'] == 1
    # A made-up model must not add a metric.
    post(counted, "/v1/missing", {"model": "made-up"})
    wait_for(lambda: counted.metrics().get('keylatch_usage_requests_total{model="other",route="api",source="none"}') == 1, "it is counted as other")


@pytest.fixture(params=["sqlite", "postgres"])
def counting(request, start, models):
    """A replica that counts usage, in each database."""
    where = SQLITE if request.param == "sqlite" else storage(request.getfixturevalue("database"))
    return start(models, route_filters=USAGE, more=SECTIONS, storage=where, secrets=SECRET, env=ENV)


def test_reports(counting):
    admin = signed_in(counting)
    send_each(counting)
    send_each(counting, key="sk-other-abcdefgh")
    total = await_requests(admin, 10)
    assert total["input_tokens"] == 760 and total["output_tokens"] == 98 and total["cached_input_tokens"] == 140
    assert (total["cost"], total["currency"], total["other_costs"], total["unpriced"], total["estimated"]) == ("0.002524", "USD", [], 2, 0)
    assert total["first_token_ms"] > 0 and total["tokens_per_second"] > 0 and "at" not in total and "model" not in total
    key_id = rows(admin, "/bindings", sort="-created_at")[-1]["key_id"]
    admin.call("PATCH", f"/bindings/{key_id}", {"note": "Ann", "labels": ["team-a", "lab"]}, 200)
    keys = rows(admin, group="key", sort="requests", order="asc")
    assert [row["cost"] for row in keys] == [TOTAL_COST] * 2
    ann = next(row for row in keys if row["key_id"] == key_id)
    assert (ann["note"], ann["labels"]) == ("Ann", ["team-a", "lab"]) and ann["hint"].endswith("efgh")
    assert [row["label"] for row in rows(admin, group="label")] == ["team-a", "lab"]
    by_model = rows(admin, group="model")
    assert [row["model"] for row in by_model] == ["gpt-4o", "claude-sonnet-4", "gemini-2.5-pro", "llama3"]
    assert [row["cost"] for row in by_model] == ["0.002", "0.000438", "0.000086", None]
    assert [row["model"] for row in rows(admin, group="model", sort="tokens", limit=2)] == ["gpt-4o", "claude-sonnet-4"]
    both = rows(admin, group="route,status")
    assert [(row["route"], row["status"], row["requests"]) for row in both] == [("api", "2xx", 10)]
    for filters in ({"key_id": key_id}, {"key_id": key_id[:12]}, {"label": "lab"}):
        assert rows(admin, **filters)[0]["requests"] == 5, filters
    assert rows(admin, model="gpt-4o", route="api", upstream="model")[0]["requests"] == 4
    # Steps, and pages that are the whole list together.
    today = rows(admin, step="day", time_zone="Asia/Shanghai", group="model")
    assert len(today) in (4, 8) and today[0]["at"].endswith("T16:00:00.000Z")
    first = admin.get("/usage", params={"group": "key,model", "limit": 3}).json()
    pages, cursor = first["items"], first["next"]
    while cursor:
        page = admin.get("/usage", params={"group": "key,model", "limit": 3, "cursor": cursor, "from": first["from"], "to": first["to"]}).json()
        pages, cursor = pages + page["items"], page["next"]
    assert pages == rows(admin, group="key,model") and len(pages) == 8
    assert rows(admin, **{"from": "2020-01-01", "to": "2020-02-01"}, group="key") == []
    latency = rows(admin, "/usage/latency", model="gpt-4o")
    assert latency[0]["count"] == 2 and 0 < latency[0]["p50_ms"] <= latency[0]["p95_ms"]
    assert [row["count"] for row in rows(admin, "/usage/latency", step="hour")] in ([6], [3, 3])
    logged = rows(admin, "/usage/requests", model="claude-sonnet-4", key_id=key_id)
    assert [(row["cost"], row["source"], row["streamed"], row["status"], row["cache_write_tokens"]) for row in logged] == [("0.000219", "reported", True, 200, 20)]
    assert len(rows(admin, "/usage/requests", limit=4)) == 4


def test_exports_and_commands(counting):
    admin = signed_in(counting)
    send_each(counting)
    await_requests(admin, 5)
    text = admin.get("/usage/export", params={"format": "csv", "group": "key,model", "step": "day"}).text
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["model"] for row in table] == sorted(row["model"] for row in table) and len(table) == 4
    chat = next(row for row in table if row["model"] == "gpt-4o")
    assert (chat["requests"], chat["cost"], chat["currency"], chat["hint"]) == ("2", "0.001", "USD", "sk-…efgh")
    answered = admin.get("/usage/export", params={"group": "model"})
    assert answered.headers["content-type"] == "application/x-ndjson" and "usage.jsonl" in answered.headers["content-disposition"]
    assert [json.loads(line)["model"] for line in answered.text.splitlines()] == ["gpt-4o", "claude-sonnet-4", "gemini-2.5-pro", "llama3"]
    log = admin.get("/usage/requests/export", params={"format": "csv"}).text
    assert len(list(csv.DictReader(io.StringIO(log)))) == 5
    # The same by commands.
    top = counting.command("usage", "top", "--by", "model", "--last", "7d")
    assert top.returncode == 0, top.stderr
    lines = top.stdout.splitlines()
    assert lines[0].split()[:2] == ["COST", "REQUESTS"] and lines[0].endswith("MODEL")
    assert [line.split()[-1] for line in lines[1:]] == ["gpt-4o", "claude-sonnet-4", "gemini-2.5-pro", "llama3"]
    assert lines[1].split()[:4] == ["0.001", "USD", "2", "300"]
    by_key = [json.loads(line) for line in counting.command("usage", "top", "--json").stdout.splitlines()]
    assert [(row["requests"], row["cost"]) for row in by_key] == [(5, TOTAL_COST)]
    show = counting.command("usage", "show", by_key[0]["key_id"][:12])
    assert show.returncode == 0 and show.stdout.startswith(f"Key {by_key[0]['key_id'][:12]}  sk-…efgh"), show.stdout + show.stderr
    assert "total" in show.stdout and show.stdout.count("gpt-4o") == 1
    days = [json.loads(line) for line in counting.command("usage", "show", by_key[0]["key_id"], "--json").stdout.splitlines()]
    assert sum(row["requests"] for row in days) == 5 and all(row["at"].endswith("T00:00:00.000Z") for row in days)
    exported = counting.command("usage", "export", "--group", "key,model", "--step", "day")
    assert exported.stdout == text and exported.returncode == 0, exported.stderr
    one = counting.command("usage", "export", "--from", "2h", "--format", "jsonl")
    assert json.loads(one.stdout)["requests"] == 5
    empty = counting.command("usage", "top", "--label", "none-has-it")
    assert empty.returncode == 0 and not empty.stdout and "No usage" in empty.stderr
    wrong = counting.command("usage", "export", "--from", "yesterday")
    assert wrong.returncode == 1 and "from: must be a time such as" in wrong.stderr


def test_wrong_parameters_and_a_log_that_is_off(start, models):
    replica = start(models, route_filters=USAGE, storage=SQLITE, env=ENV)
    admin = signed_in(replica)
    for parameters, field, says in [
        ({"from": "yesterday"}, "from", "24h"),
        ({"from": "2026-01-01", "to": "2025-01-01"}, "from", "before `to`"),
        ({"to": "soon"}, "to", "2026-01-31T09:00:00Z"),
        ({"step": "minute"}, "step", "`hour`"),
        ({"time_zone": "Mars/Olympus"}, "time_zone", "Asia/Shanghai"),
        ({"group": "colour"}, "group", "`model`"),
        ({"group": "key,model,route"}, "group", "one or two"),
        ({"sort": "price"}, "sort", "`cost`"),
        ({"order": "up"}, "order", "`desc`"),
        ({"key_id": "abc"}, "key_id", "hex digits"),
        ({"label": "with space"}, "label", "not a label"),
        ({"limit": 0}, "limit", "1 to 1000"),
        ({"cursor": "x"}, "cursor", "`next`"),
        ({"since": "24h"}, "since", ""),
    ]:
        problem = admin.get("/usage", None, params=parameters)
        assert problem.status_code in (400, 422) and problem.headers["content-type"] == "application/problem+json", parameters
        assert says in problem.json()["detail"] and (field == "since" or problem.json()["field"] == field), problem.text
    # A cursor of another report.
    for _ in range(2):
        post(replica, "/v1/chat/completions", {"model": "gpt-4o", **PROMPT})
    wait_for(lambda: rows(admin, group="model"), "usage is reported")
    cursor = admin.get("/usage", params={"group": "model", "limit": 1}).json()["next"]
    assert admin.get("/usage", 422, params={"group": "key", "cursor": cursor}).json()["field"] == "cursor"
    assert admin.get("/usage/latency", 422, params={"from": "2000-01-01", "step": "hour"}).json()["field"] == "step"
    assert "no key with usage" in admin.get("/usage", 404, params={"key_id": "0" * 12}).json()["detail"]
    off = admin.get("/usage/requests", 409).json()
    assert "usage.requests" in off["detail"]
    admin.get("/usage/requests/export", 409)
    replica.write(more="usage: {requests: {}}")
    assert replica.command("reload").returncode == 0
    assert rows(admin, "/usage/requests") == []


def test_a_client_that_leaves_is_estimated(start, models):
    replica = start(models, route_filters=USAGE, more=SECTIONS, storage=SQLITE, env=ENV)
    body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "x" * 400}]}
    with httpx.stream("POST", replica.url("/v1/streams-on"), json=body, headers={"Authorization": "Bearer sk-leaves-abcdefgh"}) as answered:
        lines = answered.iter_lines()
        for _ in range(10):
            next(lines)
    line = wait_for(replica.access_log, "a line")[0]
    # 400 characters are 100 tokens; each event has three characters.
    assert line["usage_source"] == "estimated" and line["input_tokens"] >= 100 and 0 < line["output_tokens"] < 100, line
    assert line["cost"] >= 0.00025
    row = await_requests(signed_in(replica), 1)
    assert row["estimated"] == 1 and row["output_tokens"] == line["output_tokens"]


def test_a_killed_replica_loses_at_most_one_flush(models, start, database):
    """Requests run on two replicas while one of them is killed: the sums never exceed what was sent."""
    values = dict(route_filters=USAGE, more=SECTIONS, storage=storage(database), secrets=SECRET, env=ENV)
    killed, other = start(models, **values), start(models, **values)
    admin = signed_in(other)
    sent, answered, ends = [], [], threading.Event()

    def requests(replica):
        with httpx.Client(headers={"Authorization": "Bearer sk-killed-abcdefgh"}) as client:
            while not ends.is_set():
                sent.append((time.monotonic(), replica))
                try:
                    answer = client.post(replica.url("/v1/chat/completions"), json={"model": "gpt-4o", **PROMPT})
                except httpx.TransportError:
                    return
                answered.append((time.monotonic(), replica, answer.status_code))
                time.sleep(0.02)

    threads = [threading.Thread(target=requests, args=(replica,)) for replica in (killed, other)]
    for thread in threads:
        thread.start()
    time.sleep(3.5)
    at = time.monotonic()
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    time.sleep(0.5)
    ends.set()
    for thread in threads:
        thread.join()
    # Answers that ended two seconds before the crash were flushed, which takes place each second.
    safe = sum(1 for when, replica, _ in answered if replica is other or when < at - 2)
    assert safe > 30 and all(status == 200 for *_, status in answered)
    wait_for(lambda: rows(admin) and safe <= rows(admin)[0]["requests"], "what was flushed is reported")
    killed.start()
    time.sleep(2.5)
    total = rows(admin)[0]
    assert safe <= total["requests"] <= len(sent), (safe, total["requests"], len(sent))
    assert total["input_tokens"] == 100 * total["requests"] and total["output_tokens"] == 20 * total["requests"]
    assert rows(admin, group="model")[0]["requests"] == total["requests"] == rows(admin, group="key")[0]["requests"]
