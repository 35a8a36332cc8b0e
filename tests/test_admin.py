"""The admin API: bindings, intercepts, settings, audit, configuration, streams and events."""

import csv
import io
import json
import pathlib
import re
import subprocess
import sys
import threading
import time

import httpx_sse
import pytest
from support import raw
from support.admin import ENV, PASSWORD, Admin, signed_in
from support.keylatch import wait_for
from support.stores import FREE, SECRET, send_request, storage
from support.upstreams import STREAM_HEAD, Scripted, chunk

KEY = "sk-admin-0001-abcdwxyz"
SQLITE = "{sqlite: {path: t.db, flush_every: 50ms}}"


@pytest.fixture(params=["postgres", "sqlite", "memory"])
def replica(request, start, echo_upstream):
    store = {"sqlite": SQLITE, "memory": "memory"}.get(request.param) or storage(request.getfixturevalue("database"))
    return start(echo_upstream, route_filters=FREE, storage=store, secrets=SECRET, env=ENV)


def test_find_a_refused_key_allow_its_address_and_ban_it(replica):
    admin = signed_in(replica)
    assert send_request(replica, KEY).status == 200
    assert send_request(replica, KEY, "127.0.0.2").status == 403
    wait_for(lambda: admin.get("/logs").json()["items"], "the intercept is written")
    found = admin.post("/bindings/look-up", {"key": KEY}).json()
    binding = found["binding"]
    assert binding["hint"].endswith("wxyz") and binding["networks"] == ["127.0.0.1/32"] and binding["rule"] == "single"
    assert admin.post("/bindings/look-up", {"key": "sk-unknown-00-abcdefgh"}).json()["binding"] is None
    intercept = admin.get("/logs", params={"key_id": binding["key_id"]}).json()["items"][0]
    assert (intercept["client"], intercept["reason"], intercept["networks"], intercept["count"]) == ("127.0.0.2", "elsewhere", ["127.0.0.1/32"], 1)
    one = admin.get(f"/bindings/{binding['key_id'][:12]}")
    assert one.json() == binding and one.headers["etag"] == f'"{binding["version"]}"'
    allowed = admin.post("/bindings/allow", {"key_id": binding["key_id"], "ip": "127.0.0.2"}, headers={"if-match": one.headers["etag"]}).json()
    assert allowed["rule"] == "multiple" and allowed["networks"] == ["127.0.0.1/32", "127.0.0.2/32"] and allowed["made_by"] == "first_use"
    wait_for(lambda: send_request(replica, KEY, "127.0.0.2").status == 200, "the added address is admitted", 3)
    admin.post("/bindings/allow", {"key_id": binding["key_id"], "ip": "127.0.0.2"}, 409)
    # A request with an outdated version gets a conflict.
    stale = admin.post("/bindings/ban", {"key": KEY}, 412, headers={"if-match": one.headers["etag"]}).json()
    assert stale["type"] == "urn:keylatch:stale"
    banned = admin.post("/bindings/ban", {"key": KEY}).json()
    assert banned["banned"] and banned["was_bound"]
    wait_for(lambda: send_request(replica, KEY).status == 403, "the banned key is refused", 3)
    assert admin.post("/bindings/unban", {"key_id": binding["key_id"]}).json()["banned"] is False
    wait_for(lambda: send_request(replica, KEY).status == 200, "the unbanned key is admitted", 3)
    moved = admin.put("/bindings/ip", {"key_id": binding["key_id"], "ip": "127.0.0.3"}).json()
    assert moved["networks"] == ["127.0.0.3/32"] and moved["rule"] == "single"
    wait_for(lambda: send_request(replica, KEY).status == 403, "the moved binding refuses the old address", 3)
    edited = admin.call("PATCH", f"/bindings/{binding['key_id']}", {"rule": "all", "note": "Ann's", "labels": ["team-a"]}, 200).json()
    assert (edited["rule"], edited["networks"], edited["note"], edited["labels"]) == ("all", [], "Ann's", ["team-a"])
    roaming = admin.call("PATCH", f"/bindings/{binding['key_id']}", {"networks_max": 2, "window": "24h"}, 200).json()
    assert (roaming["rule"], roaming["networks_max"], roaming["window"], roaming["note"]) == ("roaming", 2, "1day", "Ann's")
    assert admin.post("/bindings/unbind", {"key": KEY}).json()["key_id"] == binding["key_id"]
    admin.post("/bindings/unbind", {"key": KEY}, 404)
    admin.get(f"/bindings/{binding['key_id']}", 404)
    wait_for(lambda: send_request(replica, KEY, "127.0.0.4").status == 200, "the next use binds the key again")
    timeline = admin.get(f"/bindings/{binding['key_id']}/timeline").json()
    done = [change["action"] for change in timeline["changes"]]
    assert done == ["binding.removed", *["binding.changed"] * 6] and timeline["changes"][-1]["after"]["networks"] == ["127.0.0.1/32", "127.0.0.2/32"]
    assert {change["actor"] for change in timeline["changes"]} == {"admin"} and "127.0.0.2" in {each["client"] for each in timeline["intercepts"]}
    # A key without a binding.
    unknown = admin.post("/bindings/ban", {"key": "sk-leaked-01-abcdefgh"}).json()
    assert unknown["banned"] and not unknown["was_bound"] and unknown["made_by"] == "admin"
    assert send_request(replica, "sk-leaked-01-abcdefgh").status == 403
    made = admin.call("PATCH", f"/bindings/{'ab' * 32}", {"networks": ["10.0.0.0/8", "2001:db8::1"]}, 200).json()
    assert made["rule"] == "multiple" and made["networks"] == ["10.0.0.0/8", "2001:db8::1/128"]
    told = replica.stderr.read_text() + replica.stdout.read_text()
    assert KEY not in told and "sk-leaked-01" not in told


def test_invalid_requests_name_the_field(replica):
    admin = signed_in(replica)
    assert send_request(replica, KEY).status == 200
    key_id = admin.post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    for method, path, body, field, says in (
        ("POST", "/bindings/ban", {}, "key_id", "exactly one of `key_id` and `key`"),
        ("POST", "/bindings/ban", {"key_id": key_id, "key": KEY}, "key_id", "exactly one of `key_id` and `key`"),
        ("POST", "/bindings/unbind", {"key_id": "xyz"}, "key_id", "not a key id"),
        ("POST", "/bindings/look-up", {"key": "with space"}, "key", "visible ASCII"),
        ("POST", "/bindings/look-up", {"key": 5}, "key", "must be a string"),
        ("PUT", "/bindings/ip", {"key_id": key_id, "ip": "localhost"}, "ip", "neither an address"),
        ("PATCH", f"/bindings/{key_id}", {"networks": ["10.0.0.0/33"]}, "networks", "neither an address"),
        ("PATCH", f"/bindings/{key_id}", {"rule": "single", "networks": ["10.0.0.1", "10.0.0.2"]}, "networks", "exactly one"),
        ("PATCH", f"/bindings/{key_id}", {"rule": "some"}, "rule", "unknown variant"),
        ("PATCH", f"/bindings/{key_id}", {"rule": "roaming"}, "rule", "requires networks_max"),
        ("PATCH", f"/bindings/{key_id}", {"labels": ["with space"]}, "labels", "not a label"),
        ("PATCH", f"/bindings/{key_id}", {"labels": ["x"] * 33}, "labels", "at most 32"),
        ("PATCH", f"/bindings/{key_id}", {"note": "x" * 1001}, "note", "at most 1000"),
        ("PUT", "/settings", {"values": {"retention.audit": "1m"}}, "values.retention.audit", "between 30days and"),
        ("PUT", "/settings", {"values": {"retention.archive_after": "1m"}}, "values.retention.archive_after", "between 1day and"),
        ("POST", "/accounts", {"name": "first_use", "role": "viewer", "password": "first-horse-battery"}, "name", "is reserved"),
        ("POST", "/accounts", {"name": "..", "role": "viewer", "password": "first-horse-battery"}, "name", "begins with"),
        ("PATCH", f"/bindings/{key_id}", {"window": "24h"}, "window", "given together"),
        ("PATCH", f"/bindings/{key_id}", {"no_such": 1}, "no_such", "unknown field"),
        ("PUT", "/settings", {"values": {"maintenance": "maybe"}}, "values.maintenance", "neither true nor false"),
        ("PUT", "/settings", {"values": {"no.such": 1}}, "values.no.such", "is not a live setting"),
        ("GET", "/bindings?limit=0", None, "limit", "1 to 1000"),
        ("GET", "/bindings?network=x", None, "network", "neither an address"),
        ("GET", "/bindings?cursor=x", None, "cursor", "invalid cursor"),
        ("GET", "/bindings?hint=abc", None, "hint", "at least 4"),
        ("GET", "/bindings?key_id=abc", None, "key_id", "not a key id"),
        ("GET", "/logs?since=yesterday", None, "since", "a time such as"),
        ("POST", "/bindings/bulk", {"action": "ban", "filter": {}}, "filter", "at least one"),
        ("POST", "/bindings/bulk", {"action": "label", "filter": {"banned": True}}, "labels", "requires labels"),
    ):
        problem = admin.call(method, path, body, 422).json()
        assert problem["field"] == field and says in problem["detail"], problem
    for content, status in (("{", 400), ("{} x", 400), ("", 400), ("[]", 422)):
        answer = admin.call("POST", "/bindings/ban", status=status, content=content, headers={"content-type": "application/json"})
        assert answer.headers["content-type"] == "application/problem+json"
    assert admin.call("POST", "/bindings/ban", status=413, content=b'{"key": "' + b"x" * (1 << 17), headers={"content-type": "application/json"})
    admin.call("DELETE", "/bindings", status=405)
    # No database stores NUL characters.
    admin.get("/audit?actor=%00", 400)
    admin.get("/bindings/%00", 404)
    admin.post("/bindings/look-up", {"key": "a\0b"}, 400)
    assert Admin(replica).post("/login", {"username": "a\0b", "password": PASSWORD}, 400)
    assert admin.get("/bindings?no_such=1", 422).json()["field"] == "no_such"
    for etag in ("5", '"x"', 'W/"5"'):
        admin.post("/bindings/ban", {"key": KEY}, 412, headers={"if-match": etag})
    assert admin.get(f"/bindings/{key_id}").json()["banned"] is False


def test_pages_bulk_changes_and_exports(replica):
    admin = signed_in(replica)
    keys = [f"sk-listed-{n:04}-abcdefgh" for n in range(25)]
    for n, key in enumerate(keys):
        assert send_request(replica, key, f"127.0.1.{n % 5}").status == 200
    first = admin.get("/bindings", params={"limit": 10, "sort": "-created_at"}).json()
    assert len(first["items"]) == 10 and first["total"] == 25
    second = admin.get("/bindings", params={"limit": 10, "sort": "-created_at", "cursor": first["next"]}).json()
    third = admin.get("/bindings", params={"limit": 10, "sort": "-created_at", "cursor": second["next"]}).json()
    ids = [row["key_id"] for page in (first, second, third) for row in page["items"]]
    assert len(set(ids)) == 25 and third["next"] is None and second["total"] is None
    network = admin.get("/bindings", params={"network": "127.0.1.3"}).json()["items"]
    assert len(network) == 5 and {row["networks"][0] for row in network} == {"127.0.1.3/32"}
    assert len(admin.get("/bindings", params={"network": "127.0.1.0/24", "rule": "single", "limit": 100}).json()["items"]) == 25
    # A dry run lists the changes; the second call makes exactly these.
    what = {"action": "label", "filter": {"network": "127.0.1.3"}, "labels": ["shared"]}
    would = admin.post("/bindings/bulk", {**what, "dry_run": True}).json()
    assert (would["matched"], would["changed"], would["dry_run"], len(would["sample"])) == (5, 0, True, 5)
    admin.post("/bindings/bulk", {**what, "expected": 4}, 409)
    admin.call("PATCH", f"/bindings/{network[0]['key_id']}", {"labels": ["another"]}, 200)
    assert "changed meanwhile" in admin.post("/bindings/bulk", {**what, "expected": 5, "digest": would["digest"]}, 409).json()["detail"]
    would = admin.post("/bindings/bulk", {**what, "dry_run": True}).json()
    assert admin.post("/bindings/bulk", {**what, "expected": 5, "digest": would["digest"]}).json()["changed"] == 5
    assert len(admin.get("/bindings", params={"label": "shared"}).json()["items"]) == 5
    ban = {"action": "ban", "filter": {"label": "shared"}}
    assert admin.post("/bindings/bulk", ban).json()["changed"] == 5 and admin.post("/bindings/bulk", ban).json()["changed"] == 0
    wait_for(lambda: send_request(replica, keys[3], "127.0.1.3").status == 403, "the banned key is refused", 3)
    assert admin.post("/bindings/bulk", {"action": "unbind", "filter": {"banned": True}}).json()["changed"] == 5
    lines = admin.get("/bindings/export").text.splitlines()
    assert len(lines) == 20 and json.loads(lines[0])["rule"] == "single"
    rows = list(csv.DictReader(io.StringIO(admin.get("/bindings/export", params={"format": "csv"}).text)))
    assert len(rows) == 20 and rows[0]["networks"].endswith("/32")
    actions = [entry["action"] for entry in admin.get("/audit", params={"action": "binding", "limit": 100}).json()["items"]]
    assert actions == ["binding.removed"] * 5 + ["binding.changed"] * 11


def test_intercepts_by_every_filter(replica):
    admin = signed_in(replica)
    for key, times in ((KEY, 3), ("sk-admin-0002-abcdefgh", 2)):
        assert send_request(replica, key).status == 200
        for n in range(times):
            assert send_request(replica, key, f"127.0.2.{n}", headers=[("User-Agent", '=cmd|"x"')], path=f"/v1/{n}").status == 403
    wait_for(lambda: len(admin.get("/logs").json()["items"]) == 5, "the intercepts are written")
    key_id = admin.post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    count = lambda **params: len(admin.get("/logs", params=params).json()["items"])  # noqa: E731
    assert (count(key_id=key_id), count(key_id=key_id[:12]), count(client="127.0.2.1"), count(client="127.0.2.0/24")) == (3, 3, 2, 5)
    assert (count(path="/v1/2"), count(method="POST"), count(route="api"), count(reason="banned"), count(reason="elsewhere")) == (1, 0, 5, 0, 5)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
    assert (count(since="2026-01-01T00:00:00Z"), count(until="2026-01-01T00:00:00Z"), count(since=now)) == (5, 0, 0)
    paged = admin.get("/logs", params={"limit": 4}).json()
    assert len(admin.get("/logs", params={"limit": 4, "cursor": paged["next"]}).json()["items"]) == 1
    groups = admin.get("/logs/groups").json()
    assert groups["complete"] and [(row["what"], row["count"], row["others"]) for row in groups["items"]][0] == (key_id, 3, 3)
    clients = {row["what"]: row["count"] for row in admin.get("/logs/groups", params={"by": "client"}).json()["items"]}
    assert clients == {"127.0.2.0": 2, "127.0.2.1": 2, "127.0.2.2": 1}
    rows = list(csv.DictReader(io.StringIO(admin.get("/logs/export", params={"format": "csv", "client": "127.0.2.2"}).text)))
    assert len(rows) == 1 and rows[0]["user_agent"] == '\'=cmd|"x"', "no spreadsheet reads the field as a formula"
    disposition = admin.get("/logs/export").headers["content-disposition"]
    assert disposition == 'attachment; filename="intercepts.jsonl"'


def test_settings_on_every_replica_at_once(replicas):
    two = replicas(2, env=ENV, more="", sections="retention: {audit: 30days}")
    admin, other = signed_in(two[0]), signed_in(two[1])
    assert send_request(two[1], KEY).status == 200
    # Without the notification, replicas poll every 5 s.
    changed = admin.put("/settings", {"values": {"maintenance": True, "retention.audit": "60days"}}).json()
    wait_for(lambda: send_request(two[1], KEY).status == 503, "maintenance is on", 3)
    by_name = {row["name"]: row for row in changed["items"]}
    assert (by_name["maintenance"]["value"], by_name["maintenance"]["origin"], by_name["maintenance"]["changed_by"]) == (True, "live", "admin")
    assert (by_name["retention.audit"]["value"], by_name["retention.audit"]["file"]) == ("60days", "30days")
    # A batch changes all settings or none.
    admin.put("/settings", {"values": {"maintenance": False, "retention.audit": "1s"}}, 422)
    assert send_request(two[1], KEY).status == 503
    after = {row["name"]: row for row in other.call("DELETE", "/settings/retention.audit", status=200).json()["items"]}
    assert (after["retention.audit"]["value"], after["retention.audit"]["origin"]) == ("30days", "file")
    admin.put("/settings", {"values": {"maintenance": None}})
    wait_for(lambda: send_request(two[1], KEY).status == 200, "maintenance is off", 2)
    other.call("DELETE", "/settings/no.such", status=404)
    entries = admin.get("/audit", params={"target": "maintenance"}).json()["items"]
    assert [(entry["action"], entry["before"], entry["after"]) for entry in entries] == [("setting.reverted", True, None), ("setting.set", None, True)]
    lines = [json.loads(line) for line in admin.get("/audit/export", params={"action": "setting"}).text.splitlines()]
    assert len(lines) == 4 and all(line["actor"] == "admin" for line in lines)


def test_the_active_configuration_and_a_check_of_another(start, echo_upstream):
    env = {**ENV, "UPSTREAM_TOKEN": "hunter2-upstream"}
    filters = '  - headers: {request: {set: {Authorization: "Bearer ${UPSTREAM_TOKEN}"}}}'
    own = '      - headers: {request: {set: {X-Provider: "${UPSTREAM_TOKEN}-of-the-route"}}}'
    replica = start(echo_upstream, storage=SQLITE, secrets=SECRET, filters=filters, route_filters=own, env=env)
    admin = signed_in(replica)
    shown = admin.get("/config").json()
    assert shown["generation"] == 1 and shown["last_reload"]["ok"] and "hunter2" not in shown["yaml"] and "0123456789abcdef" not in shown["yaml"]
    assert "key_hmac: ••••" in shown["yaml"] and "X-Provider: ••••" in shown["yaml"]
    text = replica.path.read_text()
    assert admin.post("/config/check", {"yaml": text}).json() == {"ok": True, "mistakes": []}
    wrong = text.replace("upstream: model", "upstream: ${UPSTREAM_TOKEN}").replace("client_ip", "client_pi")
    mistakes = admin.post("/config/check", {"yaml": wrong}).json()["mistakes"]
    assert [(mistake["place"], mistake["line"] > 5) for mistake in mistakes] == [("filters[0]", True), ("routes[0].upstream", True)]
    assert "did you mean `client_ip`" in mistakes[0]["message"] and "hunter2" not in str(mistakes)
    replica.path.write_text(wrong)
    assert admin.post("/config/check", {}).json()["ok"] is False
    refused = admin.post("/config/reload", status=409).json()
    assert refused["title"] == "Configuration rejected" and "did you mean `client_ip`" in refused["detail"]
    after = admin.get("/config").json()
    assert after["generation"] == 1 and after["last_reload"]["ok"] is False and after["last_reload"]["mistakes"][0]["line"] == mistakes[0]["line"]
    replica.path.write_text(text)
    assert "is in force" in admin.post("/config/reload").json()["message"]
    after = admin.get("/config").json()
    assert after["generation"] == 2 and after["last_reload"] == {**after["last_reload"], "ok": True, "mistakes": []}
    # The contents of files on the machine are not shown either.
    spying = text.replace("trusted_proxies: {}", "trusted_proxies: {cloudflare_file: /etc/passwd}")
    assert "root" not in str(admin.post("/config/check", {"yaml": spying}).json()["mistakes"])


def test_password_reset_by_command(start, echo_upstream):
    replica = start(echo_upstream, storage=SQLITE, env=ENV)
    admin = signed_in(replica)
    said = replica.command("admin", "reset-password")
    assert said.returncode == 0 and "must be changed" in said.stderr, said.stderr
    admin.get("/bindings", 401)
    again = Admin(replica)
    assert again.sign_in(password=said.stdout.strip()).json()["must_change_password"]
    assert replica.command("admin", "reset-password", "admin", "--stdin", stdin="third-horse-battery\n").returncode == 0
    again = Admin(replica)
    again.sign_in(password="third-horse-battery")
    again.put("/account/password", {"current": "third-horse-battery", "password": "fourth-horse-battery"}, 204)
    trace = [(entry["action"], entry["actor"].split(":")[0]) for entry in again.get("/audit", params={"action": "account"}).json()["items"]]
    reset = [("account.unlocked", "command"), ("account.password_set", "command")]
    assert trace == [("account.password_set", "admin"), *reset, *reset, ("account.made", "first start")]
    made = replica.command("admin", "make", "ops", "--role", "operator")
    assert made.returncode == 0
    Admin(replica).sign_in("ops", made.stdout.strip())
    rows = [json.loads(line) for line in replica.command("admin", "list", "--json").stdout.splitlines()]
    assert [(row["name"], row["role"]) for row in rows] == [("admin", "admin"), ("ops", "operator")]
    for arguments, says in ((("remove", "admin"), "another admin first"), (("reset-password", "absent"), "there is no account"), (("unlock", "absent"), "there is no account")):
        said = replica.command("admin", *arguments)
        assert said.returncode == 1 and says in said.stderr
    assert replica.command("admin", "remove", "ops").returncode == 0
    assert raw.request(replica.admin, "/admin/api/openapi.json").status == 200


def stream_of(replica, key, **more):
    """A raw connection with an open stream, after its header was read."""
    connection = raw.connect(replica.port, **more)
    connection.sendall(f"GET /v1/slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nAccept: text/event-stream\r\n\r\n".encode())
    file = connection.makefile("rb")
    assert raw.read_head(file)[0] == 200
    return connection, file


def test_open_streams_are_listed_and_cancelled(start):
    over = threading.Event()

    def silent(_, send):
        send(STREAM_HEAD + chunk(b"data: 1\n\n"))
        over.wait(30)

    with Scripted(silent) as upstream:
        more = FREE + "\n      - sse_keepalive: {interval: 1s}"
        replica = start(upstream, route_filters=more, storage=SQLITE, env=ENV)
        admin = signed_in(replica)
        operator = admin.create_account("op", "operator")
        one, first = stream_of(replica, KEY)
        two, second = stream_of(replica, "sk-admin-0002-abcdefgh", source="127.0.0.2")
        wait_for(lambda: admin.get("/streams").json()["total"] == 2, "both streams are open")
        streams = admin.get("/streams").json()["items"]
        assert [(row["client"], row["route"], row["path"], row["hint"][-4:]) for row in streams] == [("127.0.0.1", "api", "/v1/slow", "wxyz"), ("127.0.0.2", "api", "/v1/slow", "efgh")]
        page = admin.get("/streams", params={"limit": 1}).json()
        assert admin.get("/streams", params={"limit": 1, "cursor": page["next"]}).json()["items"][0]["client"] == "127.0.0.2"
        ended = operator.call("DELETE", f"/streams/{streams[1]['id']}", status=200).json()
        assert ended["client"] == "127.0.0.2"
        body = raw.read_body(second, [("transfer-encoding", "chunked")])[0]
        assert b"data: 1\n\n" in body
        wait_for(lambda: admin.get("/streams").json()["total"] == 1, "the stream has ended")
        operator.call("DELETE", f"/streams/{streams[1]['id']}", status=404)
        entry = admin.get("/audit", params={"action": "stream"}).json()["items"][0]
        assert (entry["action"], entry["actor"], entry["before"]["client"]) == ("stream.ended", "op", "127.0.0.2")
        # The other stream continues.
        assert admin.get("/streams").json()["items"][0]["id"] == streams[0]["id"]
        for connection in (one, two):
            connection.close()
        over.set()
        wait_for(lambda: admin.get("/streams").json()["items"] == [], "ended streams are removed")


def test_the_dashboard_sums_replicas_and_survives_a_restart(replicas):
    two = replicas(2, env=ENV)
    admin = signed_in(two[0])
    for n in range(20):
        assert send_request(two[n % 2], KEY).status == 200
    for n in range(6):
        assert send_request(two[n % 2], KEY, "127.0.0.2").status == 403
    assert send_request(two[0], KEY, path="/nowhere").status == 404
    board = wait_for(lambda: (got := admin.get("/dashboard").json())["requests"] == 27 and len(got["replicas"]) == 2 and got, "both replicas have reported", 15)
    assert board["intercepts"] == 6 and board["now"]["replicas"] == 2 and board["step_s"] == 60 and len(board["points"]) == 60
    assert sum(point["requests"].get("2xx", 0) for point in board["points"]) == 20 and sum(point["intercepts"] for point in board["points"]) == 6
    assert [(row["filter"], row["count"]) for row in board["decisions"]][0] == ("key_binding", 6)
    assert [(row["requests"], row["hint"][-4:]) for row in board["busiest_keys"]] == [(26, KEY[-4:])]
    assert [(row["what"], row["requests"]) for row in board["busiest_clients"]] == [("127.0.0.1", 21), ("127.0.0.2", 6)]
    assert board["top_keys"][0]["count"] == 6 and board["top_clients"][0]["what"] == "127.0.0.2" and 0 < board["first_byte"]["p50"] < 1
    assert board["health"]["store_error"] is None and board["health"]["status"] == "ok"
    assert board["health"]["upstreams"] == [{"name": "model", "status": "ok", "servers": 1, "well": 1}]
    assert [replica["current"] for replica in board["replicas"]].count(True) == 1 and all(not replica["gone"] for replica in board["replicas"])
    # Counts survive a restart, and new requests add to them.
    two[0].stop()
    two[0].start()
    for _ in range(3):
        assert send_request(two[0], KEY).status == 200
    admin = signed_in(two[0])
    wait_for(lambda: admin.get("/dashboard").json()["requests"] == 30, "the dashboard adds the new requests", 15)
    for of, points in (("6h", 72), ("24h", 96), ("7d", 168), ("30d", 120)):
        told = lambda of=of: (got := admin.get("/dashboard", params={"range": of}).json())["requests"] == sum(row["requests"] for row in got["busiest_clients"]) == 30 and got  # noqa: E731
        assert len(wait_for(told, of)["points"]) == points, of
    admin.get("/dashboard?range=1y", 422)


def test_events_are_streamed(start, echo_upstream):
    replica = start(echo_upstream, route_filters=FREE, storage=SQLITE, env=ENV)
    admin = signed_in(replica)
    assert send_request(replica, KEY).status == 200
    with admin.client.stream("GET", "/events", headers={"authorization": f"Bearer {admin.token}"}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/event-stream"
        events = httpx_sse.EventSource(answer).iter_sse()
        first = next(events)
        assert first.event == "now" and json.loads(first.data)["maintenance"] is False
        assert send_request(replica, KEY, "127.0.0.2").status == 403
        refused = next(event for event in events if event.event == "intercepts")
        assert [row["client"] for row in json.loads(refused.data)] == ["127.0.0.2"]
        # The event stream ends with the session.
        admin.post("/logout", status=204)
        assert len(list(events)) <= 2
    admin.get("/events", 401)


def test_every_answer_matches_the_openapi_document(start, echo_upstream):
    """schemathesis sends valid and invalid requests to every operation of the OpenAPI document."""
    replica = start(echo_upstream, route_filters=FREE, storage=SQLITE, env=ENV)
    admin = signed_in(replica)
    assert send_request(replica, KEY).status == 200 and send_request(replica, KEY, "127.0.0.2").status == 403
    program = pathlib.Path(sys.executable).parent / "schemathesis"
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    # Left out: the event stream does not end, and signing out ends the session of the run.
    left_out = [argument for path in ("events", "login", "logout") for argument in ("--exclude-path", f"/admin/api/{path}")]
    said = subprocess.run(
        [program, "run", f"http://127.0.0.1:{replica.admin}/admin/api/openapi.json", "-H", f"Authorization: Bearer {admin.token}", *left_out,
         "--checks", checks, "--max-examples", "20", "--phases", "examples,coverage,fuzzing", "--seed", "1", "--generation-database", "none", "--no-color"],
        cwd=replica.folder, capture_output=True, text=True, timeout=240, check=False,
    )
    assert said.returncode == 0, said.stdout[-6000:]
    assert int(re.search(r"Tested: (\d+)", said.stdout)[1]) > 45, said.stdout[-2000:]
    assert replica.health("ready")[0] == 200 and "panicked" not in replica.stderr.read_text()
