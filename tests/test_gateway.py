"""The filter chain from outside: address, key, bearer, limits, headers, errors, logs."""

import concurrent.futures
import contextlib
import json
import sqlite3
import threading

from support import raw
from support.keylatch import DEFAULT, free_port, wait_for
from support.upstreams import Scripted, plain

BINDING = "      - key_binding: {}"


def test_a_key_is_bound_to_the_address_of_its_first_use(start, echo_upstream):
    keylatch = start(echo_upstream, route_filters=BINDING, storage="{sqlite: {path: t.db, flush_every: 100ms}}")
    assert raw.request(keylatch.port, headers=[raw.key("sk-first")], source="127.0.0.1").status == 200
    other = raw.request(keylatch.port, headers=[raw.key("sk-first")], source="127.0.0.2")
    assert other.status == 403
    error = json.loads(other.body)["error"]
    assert (error["code"], error["type"], error["param"]) == ("key_not_allowed_here", "permission_error", None)
    assert error["request_id"] == other.header("x-request-id")
    assert b"127.0.0" not in other.body, "the refusal does not reveal the bound address"
    assert raw.request(keylatch.port, headers=[raw.key("sk-first")], source="127.0.0.1").status == 200
    assert raw.request(keylatch.port, headers=[raw.key("sk-second")], source="127.0.0.2").status == 200
    # The binding survives a restart, and the intercept is recorded.
    keylatch.stop()
    database = sqlite3.connect(keylatch.folder / "t.db")
    assert database.execute("SELECT client, path, count FROM intercepts").fetchall() == [("127.0.0.2", "/v1/x", 1)]
    assert database.execute("SELECT count(*) FROM bindings").fetchone() == (2,)
    keylatch.start()
    assert raw.request(keylatch.port, headers=[raw.key("sk-first")], source="127.0.0.2").status == 403
    # Rules set in the database take effect: `all`, a list, a ban.
    for change, expected in [("rule = 'all'", 200), ("rule = 'multiple', networks = '127.0.0.1/32,127.0.0.2/32'", 200), ("banned = 1, rule = 'all'", 403)]:
        keylatch.stop()
        database.execute(f"UPDATE bindings SET {change}, version = version + 1 WHERE hint != ''")
        database.commit()
        keylatch.start()
        assert raw.request(keylatch.port, headers=[raw.key("sk-first")], source="127.0.0.2").status == expected, change


def test_one_of_a_hundred_concurrent_first_uses_binds(start, echo_upstream):
    keylatch = start(echo_upstream, route_filters=BINDING, storage="{sqlite: {path: t.db}}")
    sources = [f"127.0.1.{n}" for n in range(1, 101)]
    for round_number in range(3):
        headers = [raw.key(f"sk-raced-{round_number}")]
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            statuses = list(pool.map(lambda source: raw.request(keylatch.port, headers=headers, source=source).status, sources))
        assert sorted(statuses) == [200] + [403] * 99
        winner = sources[statuses.index(200)]
        assert raw.request(keylatch.port, headers=headers, source=winner).status == 200


def test_missing_and_duplicate_credentials(start, echo_upstream):
    keylatch = start(echo_upstream, route_filters=BINDING)
    missing = raw.request(keylatch.port)
    assert (missing.status, missing.header("www-authenticate")) == (401, "Bearer")
    two = raw.request(keylatch.port, headers=[raw.key("sk-a"), ("x-api-key", "sk-b")])
    assert (two.status, json.loads(two.body)["error"]["code"]) == (400, "malformed_api_key")
    assert raw.request(keylatch.port, headers=[("x-api-key", "sk-a")]).status == 200
    assert raw.request(keylatch.port, "/v1/x?key=sk-b", headers=[("x-api-key", "sk-a")]).status == 400
    assert raw.request(keylatch.port, "/v1/x?key=sk-a", headers=[("x-api-key", "sk-a")]).status == 200
    assert raw.request(keylatch.port, "/v1/x?key=sk-a").status == 401
    assert raw.request(keylatch.port, headers=[("x-goog-api-key", "sk-a")], source="127.0.0.9").status == 403, "the same key in two fields is one key"


def test_only_trusted_proxies_set_the_client_address(start, echo_upstream):
    keylatch = start(echo_upstream, trusted="{networks: [127.0.0.1]}")

    def seen(source, *headers):
        answer = json.loads(raw.request(keylatch.port, headers=headers, source=source).body)
        return [value for name, value in answer["headers"] if name in ("x-forwarded-for", "x-real-ip", "forwarded", "cf-connecting-ip", "true-client-ip")]

    forged = [("X-Forwarded-For", "192.0.2.1"), ("X-Real-IP", "192.0.2.1"), ("Forwarded", "for=192.0.2.1"), ("CF-Connecting-IP", "192.0.2.1"), ("True-Client-IP", "192.0.2.1")]
    assert seen("127.0.0.2", *forged) == ["127.0.0.2", "127.0.0.2"]
    assert seen("127.0.0.1", *forged) == ["192.0.2.1", "192.0.2.1"]
    assert seen("127.0.0.1", ("X-Forwarded-For", "192.0.2.1, 203.0.113.9")) == ["203.0.113.9", "203.0.113.9"]
    # A request that lists such a field in `Connection`, to have it removed on the way, is refused.
    nominating = [("X-Forwarded-For", "203.0.113.9"), ("Connection", "close, x-forwarded-for")]
    assert raw.request(keylatch.port, headers=nominating).status == 400
    # An access line is written after its response, so the lines may be out of order.
    last = wait_for(lambda: [line for line in keylatch.access_log() if line["client"] == "203.0.113.9"], "access line")[0]
    assert (last["client_source"], last["peer"]) == ("x-forwarded-for", "127.0.0.1")


def test_limits_count_exactly_and_report_it(start, echo_upstream):
    limit = "      - rate_limit: {per: key, limit: 60/min, burst: 5, and: [{name: all, per: route, limit: 7/h}]}"
    keylatch = start(echo_upstream, route_filters=limit)
    answers = [raw.request(keylatch.port, headers=[raw.key("sk-a")]) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    assert answers[0].header("ratelimit-policy") == '"key";q=60;w=60, "all";q=7;w=3600'
    assert answers[0].header("ratelimit") == '"key";r=4;t=1, "all";r=6;t=515'
    refused = answers[5]
    assert refused.header("retry-after") == "1" and refused.header("ratelimit").startswith('"key";r=0;')
    assert json.loads(refused.body)["error"]["code"] == "rate_limit_exceeded"
    # `t` is the time until quota returns, at most Retry-After.
    slow = start(echo_upstream, route_filters="      - rate_limit: {per: key, limit: 2/h}")
    first, second, third = (raw.request(slow.port, headers=[raw.key("sk-a")]) for _ in range(3))
    assert first.header("ratelimit") == '"key";r=1;t=1800' and second.header("ratelimit").startswith('"key";r=0;t=1')
    assert third.header("ratelimit") == f'"key";r=0;t={third.header("retry-after")}' and 1790 <= int(third.header("retry-after")) <= 1800
    # The refused request used nothing of the other limit: two of seven are left.
    assert [raw.request(keylatch.port, headers=[raw.key("sk-b")]).status for _ in range(3)] == [200, 200, 429]
    decisions = 'keylatch_filter_decisions_total{filter="rate_limit",outcome="refused",reason="limit"}'
    wait_for(lambda: keylatch.metrics()[decisions] == 2, "both refusals are counted: that comes after the answer")


def test_shadow_mode_counts_and_admits(start, echo_upstream):
    shadow = "      - rate_limit: {per: key, limit: 1/h}\n        shadow: true\n      - bearer: {accept: [{static: {tokens: [{name: x, sha256: '%s'}]}}]}\n        shadow: true" % ("0" * 64)
    keylatch = start(echo_upstream, route_filters=shadow)
    answers = [raw.request(keylatch.port, headers=[raw.key("sk-a")]) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert answers[0].header("ratelimit") == ""
    line = wait_for(lambda: keylatch.access_log()[2:], "three lines")[0]
    assert line["shadow"] == ["rate_limit:limit", "bearer:unknown_token"]
    assert keylatch.metrics()['keylatch_filter_decisions_total{filter="rate_limit",outcome="shadow",reason="limit"}'] == 2


def test_bearer_errors_follow_the_standard(start, echo_upstream):
    token = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    keylatch = start(echo_upstream, route_filters=f"      - bearer: {{accept: [{{static: {{tokens: [{{name: ci, sha256: {token}}}]}}}}]}}")
    assert raw.request(keylatch.port, headers=[raw.key("secret")]).status == 200
    assert wait_for(lambda: keylatch.access_log(), "a line")[0]["subject"] == "ci"
    assert raw.request(keylatch.port).header("www-authenticate") == 'Bearer realm="api"'
    wrong = raw.request(keylatch.port, headers=[raw.key("other")])
    assert (wrong.status, 'error="invalid_token"' in wrong.header("www-authenticate")) == (401, True)
    assert raw.request(keylatch.port, headers=[raw.key("secret"), raw.key("other")]).status == 400


def test_the_providers_key_replaces_the_clients(start, echo_upstream):
    filters = """      - key_binding: {}
      - headers:
          request: {set: {Authorization: "Bearer ${PROVIDER}"}, remove: [x-secret], add: {x-added: "1"}}
          response: {set: {x-served-by: edge}, remove: [server]}"""
    keylatch = start(echo_upstream, route_filters=filters, env={"PROVIDER": "sk-provider"})
    answer = raw.request(keylatch.port, headers=[raw.key("sk-client"), ("X-Secret", "1")])
    fields = dict(map(tuple, json.loads(answer.body)["headers"]))
    assert fields["authorization"] == "Bearer sk-provider" and fields["x-added"] == "1" and "x-secret" not in fields
    assert answer.header("x-served-by") == "edge"


def test_header_values_are_text_in_any_yaml_form(start, echo_upstream, tmp_path):
    tokens = {"a": "123456", "b": "12345678901234567890123456", "c": "1.50", "d": "true", "e": "0123", "f": "-7"}
    values = {**{f"X-{name}": f"${{TOKEN_{name}}}" for name in tokens}, "X-Plain": "42", "X-File": f"file:{tmp_path}/token"}
    headers = "      - headers:\n          request:\n            set:\n" + "".join(f"              {name}: {value}\n" for name, value in values.items())
    (tmp_path / "token").write_text("\ufeffsecret-of-a-file\r\n")
    environment = {f"TOKEN_{name}": value for name, value in tokens.items()}
    keylatch = start(echo_upstream, route_filters=headers, env=environment)
    fields = dict(map(tuple, json.loads(raw.request(keylatch.port).body)["headers"]))
    assert {name: fields[f"x-{name}"] for name in tokens} == tokens
    assert fields["x-plain"] == "42" and fields["x-file"] == "secret-of-a-file"


def test_request_ids(start, echo_upstream):
    keylatch = start(echo_upstream)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = raw.request(keylatch.port, headers=[("X-Request-Id", "abc-123"), ("traceparent", trace)])
    fields = dict(map(tuple, json.loads(answer.body)["headers"]))
    assert answer.header("x-request-id") == fields["x-request-id"] == "abc-123" and fields["traceparent"] == trace
    line = wait_for(keylatch.access_log, "a line")[0]
    assert (line["request_id"], line["trace_id"]) == ("abc-123", "4bf92f3577b34da6a3ce929d0e0e4736")
    made = raw.request(keylatch.port, headers=[("X-Request-Id", 'a"b'), ("traceparent", "nonsense")])
    assert len(made.header("x-request-id")) == 36 and "traceparent" not in dict(map(tuple, json.loads(made.body)["headers"]))


def test_no_key_is_logged_or_stored(start, echo_upstream):
    filters = BINDING + "\n      - bearer: {accept: [well_formed]}\n      - rate_limit: {per: key, limit: 3/h}"
    keylatch = start(echo_upstream, route_filters=filters, storage="{sqlite: {path: t.db, flush_every: 50ms}}", env={"KEYLATCH_LOG": "debug"})
    keys = [f"sk-verysecret{n:04}-abcdefgh" for n in range(5)]
    for key in keys:
        for source in ("127.0.0.1", "127.0.0.2"):
            for headers in ([raw.key(key)], [("x-api-key", key)], [raw.key(key), ("x-api-key", key + "x")], [("Authorization", f"Bearer  {key} {key}")]):
                raw.request(keylatch.port, f"/v1/x?key={key}", headers=headers, source=source)
        # A framing error closes the connection, so a reset may lose the answer.
        with contextlib.suppress(ConnectionError):
            raw.request(keylatch.port, f"/v1/x?api_key={key}", headers=[raw.key(key), ("Content-Length", "x")])
        with raw.connect(keylatch.port) as broken:
            broken.sendall(f"GET /v1/ HTTP/1.1\r\nAuthorization: Bearer {key}\r\nBad Header: {key}\r\n\r\n".encode())
            broken.recv(1000)
    shown = "\n".join(f"{name} {value}" for name, value in keylatch.metrics().items()) + json.dumps(keylatch.health())
    keylatch.stop()
    written = shown.encode() + b"".join(path.read_bytes() for path in keylatch.folder.rglob("*") if path.is_file() and path != keylatch.path)
    assert b"abcdefgh"[-4:] in written, "the hint is logged"
    for key in keys:
        assert key.encode() not in written and key.encode().hex().encode() not in written


def test_errors_of_unreachable_and_broken_upstreams(start, tmp_path):
    keylatch = start(free_port())
    answer = raw.request(keylatch.port)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_unreachable")
    with Scripted(lambda request, send: False) as silent:
        answer = raw.request(start(silent).port)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_error")
    assert raw.request(keylatch.port, "/elsewhere").status == 404


def test_bodies_that_are_too_large_or_too_slow(start, echo_upstream):
    keylatch = start(echo_upstream, limits="{body_bytes: 1KiB, body_timeout: 300ms}")
    assert raw.request(keylatch.port, method="POST", body=b"x" * 1024).status == 200
    assert raw.request(keylatch.port, method="POST", body=b"x" * 1025).status == 413
    with raw.connect(keylatch.port) as chunked:
        chunked.sendall(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n" + b"1\r\nx\r\n0\r\n\r\n")
        assert raw.read_head(chunked.makefile("rb"))[0] == 413
    with raw.connect(keylatch.port) as slow:
        slow.sendall(b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nx")
        assert raw.read_head(slow.makefile("rb"))[0] == 408


def test_failover_to_other_servers(start, tmp_path):
    with Scripted(lambda request, send: send(plain(body=b"a")) or True) as a, Scripted(lambda request, send: send(plain(body=b"b")) or True) as b:
        template = DEFAULT.replace('servers: [{{address: "127.0.0.1:{upstream}"}}]', 'servers: [{{address: "127.0.0.1:{upstream}"}}, {{address: "127.0.0.1:%d"}}, {{address: "localhost:%d", weight: 2}}]' % (free_port(), b.port))
        keylatch = start(a, config=template)
        bodies = [raw.request(keylatch.port, method="POST", body=b"x").body for _ in range(30)]
        assert set(bodies) == {b"a", b"b"}, "no request fails because one server refuses connections"
        a.close()


def test_the_flood_guard_runs_first(start, echo_upstream):
    keylatch = start(echo_upstream, filters="  - flood_guard: {limit: 20/10s}", route_filters=BINDING)
    statuses = [raw.request(keylatch.port, source="127.0.0.7").status for _ in range(40)]
    assert statuses == [401] * 20 + [429] * 20
    assert raw.request(keylatch.port, source="127.0.0.8").status == 401


def test_pipelined_requests_are_each_answered_in_order(start, echo_upstream):
    keylatch = start(echo_upstream)
    with raw.connect(keylatch.port) as connection:
        connection.sendall(b"GET /elsewhere HTTP/1.1\r\nHost: h\r\n\r\nPOST /v1/a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhiGET /v1/b HTTP/1.1\r\nHost: h\r\n\r\n")
        file = connection.makefile("rb")
        answers = []
        for _ in range(3):
            status, headers = raw.read_head(file)
            body, _ = raw.read_body(file, headers)
            answers.append((status, json.loads(body).get("target"), json.loads(body).get("body")))
        assert answers == [(404, None, None), (200, "/v1/a", "hi"), (200, "/v1/b", "")]


def test_no_spelling_of_a_credential_bypasses_a_binding(start, echo_upstream):
    """A field that the upstream could read as the key is judged, or does not reach it."""
    keylatch = start(echo_upstream, route_filters="      - key_binding: {from: [authorization, x-api-key]}")
    assert raw.request(keylatch.port, headers=[raw.key("sk-victim")]).status == 200
    thief = ("x-api-key", "sk-thief")
    for fields in (
        [("Authorization", "sk-victim")],
        [("Authorization", "sk-victim"), thief],
        [("Authorization", "Bearer\tsk-victim"), thief],
        [("Authorization", "bearer  sk-victim")],
        [("Authorization", "sk-victim"), raw.key("sk-thief")],
        [("Authorization", "Basic sk-victim"), thief],
        [thief, ("x-api-key", "sk-victim")],
    ):
        assert raw.request(keylatch.port, headers=fields, source="127.0.0.2").status in (400, 403), fields
    answer = raw.request(keylatch.port, headers=[thief, ("api-key", "sk-victim"), ("x-goog-api-key", "sk-victim")], source="127.0.0.2")
    assert answer.status == 200 and b"sk-victim" not in answer.body


def test_global_filters_run_without_a_route(start, echo_upstream):
    keylatch = start(echo_upstream, filters="  - flood_guard: {limit: 5/10s}")
    answers = [raw.request(keylatch.port, "/elsewhere") for _ in range(8)]
    assert [answer.status for answer in answers] == [404] * 5 + [429] * 3
    assert len(answers[0].header("x-request-id")) == 36


def test_an_upgrade_that_is_not_granted_ends_the_connection(start, echo_upstream):
    keylatch = start(echo_upstream)
    with raw.connect(keylatch.port) as connection:
        file = connection.makefile("rb")
        connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        status, headers = raw.read_head(file)
        raw.read_body(file, headers)
        assert status == 200 and file.read() == b""


def test_a_client_that_leaves_after_sending_surplus_data(start):
    over = threading.Event()
    with Scripted(lambda request, send: over.wait(6) and False) as upstream:
        keylatch = start(upstream)
        with raw.connect(keylatch.port) as connection:
            connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n" + b"x" * 40_000)
            wait_for(lambda: upstream.requests, "the request arrived")
        # The upstream is still silent, so only the departure of the client can end the request.
        wait_for(lambda: keylatch.metrics()["keylatch_connections"] == 0, "the connection is over", 3)
        over.set()


def test_a_silent_upstream_exceeds_first_byte(start):
    over = threading.Event()
    upstream = Scripted(lambda request, send: over.wait(10) and False)
    keylatch = start(upstream, route_filters="      - sse_keepalive: {first_byte: 500ms}")
    answer = raw.request(keylatch.port, headers=[("Accept", "text/event-stream")], timeout=5)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (504, "upstream_timeout")
    over.set()


def test_the_access_log_names_what_refused(start, echo_upstream):
    keylatch = start(echo_upstream, limits="{body_bytes: 1KiB}", storage="{sqlite: {path: t.db}}")
    for status, values in ((404, {"path": "/else"}), (400, {"path": "/v1/a%2Fb"}), (413, {"method": "POST", "body": b"x" * 2000})):
        assert raw.request(keylatch.port, **values).status == status
    assert keylatch.command("settings", "set", "maintenance", "on").returncode == 0
    wait_for(lambda: raw.request(keylatch.port).status == 503, "maintenance mode is on")
    refused = {"no_route": "no_route", "gate": "path_encoded_slash", "body_limit": "body_bytes", "maintenance": "maintenance"}

    def logged():
        return {line["answered_by"]: line["reason"] for line in keylatch.access_log() if "answered_by" in line}

    wait_for(lambda: logged() == refused, "each refusal under its own name")
