"""State of all replicas by the API and by commands: open streams, and subjects near a limit."""

import json
import os
import signal
import subprocess
import threading
import time

from support import raw
from support.admin import ENV, signed_in
from support.keylatch import BINARY, wait_for
from support.redis import Redis
from support.stores import FREE, SECRET, send_request, storage
from support.upstreams import STREAM_HEAD, Scripted, chunk

SQLITE = "{sqlite: {path: t.db}}"
KEY = "sk-everywhere-01-abcdwxyz"


def limit(text):
    return f"      - rate_limit: {{{text}}}"


def limits(admin):
    return admin.get("/limits").json()


def test_subjects_near_a_limit_and_resets(start, echo_upstream):
    more = limit("per: key, limit: 10/h, block_for: 30m, and: [{name: monthly, per: [client, key], limit: 20/month, window: calendar}, {name: quiet, per: client, limit: 1/h, shadow: true}]")
    replica = start(echo_upstream, route_filters=more, storage=SQLITE, env=ENV)
    admin = signed_in(replica)
    operator, viewer = admin.create_account("op", "operator"), admin.create_account("vi", "viewer")
    assert limits(admin) == {"items": [], "complete": True, "silent": []}
    for _ in range(7):
        assert send_request(replica, KEY).status == 200
    assert [row["limit"] for row in limits(viewer)["items"]] == ["quiet"], "7 of 10 is below the threshold"
    send_request(replica, KEY)
    near = next(row for row in limits(admin)["items"] if row["limit"] == "key")
    assert (near["used"], near["most"], near["over"], near["retry_in_s"], near["can_give_back"]) == (8, 10, False, 0, True)
    assert near["key_id"] and near["client"] is None and near["place"] == "routes.api.rate_limit[0]" and near["replica"]
    assert 2800 < near["full_in_s"] <= 2880
    statuses = [send_request(replica, KEY).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    rows = {row["limit"]: row for row in limits(admin)["items"]}
    assert rows["key"]["over"] and 1700 < rows["key"]["retry_in_s"] <= 1800, "the block is listed"
    assert rows["quiet"]["over"] and rows["quiet"]["shadow"]
    assert "monthly" not in rows, "refused requests use nothing of the limit"
    assert KEY not in json.dumps(rows)
    which = {name: rows["key"][name] for name in ("limit", "place", "subject")}
    viewer.post("/limits/reset", which, 403)
    operator.post("/limits/reset", which, 204)
    assert [send_request(replica, KEY).status for _ in range(6)] == [200] * 6
    monthly = next(row for row in limits(admin)["items"] if row["limit"] == "monthly")
    assert (monthly["used"], monthly["most"], monthly["client"]) == (16, 20, "127.0.0.1") and monthly["key_id"]
    operator.post("/limits/reset", {**which, "subject": "key=absent"}, 404)
    assert operator.post("/limits/reset", {**which, "more": 1}, 422).json()["field"] == "more"
    entry = admin.get("/audit", params={"action": "limit"}).json()["items"]
    assert [(line["action"], line["actor"], line["target"]) for line in entry] == [("limit.given_back", "op", which["subject"])]
    # The same with commands.
    said = replica.command("limits", "list", "--json")
    assert {json.loads(line)["limit"] for line in said.stdout.splitlines()} == {"monthly", "quiet"}, said.stderr
    assert "16/20" in replica.command("limits", "list").stdout
    said = replica.command("limits", "give-back", monthly["subject"], "--limit", "monthly")
    assert said.returncode == 0 and "monthly" in said.stdout, said.stderr
    assert [row["limit"] for row in limits(admin)["items"]] == ["quiet"]
    said = replica.command("limits", "give-back", "key=absent")
    assert said.returncode == 1 and "near or over no limit" in said.stderr
    assert admin.get("/audit", params={"action": "limit"}).json()["items"][0]["actor"].startswith("command:")


def test_open_requests_are_listed_and_cannot_be_reset(start):
    over = threading.Event()

    def silent(_, send):
        send(STREAM_HEAD + chunk(b"data: 1\n\n"))
        over.wait(30)

    with Scripted(silent) as upstream:
        replica = start(upstream, route_filters="      - concurrency_limit: {per: client, most: 2}", storage=SQLITE, env=ENV)
        admin = signed_in(replica)
        streams = [stream(replica, KEY) for _ in range(2)]
        row = limits(admin)["items"][0]
        assert (row["used"], row["most"], row["over"], row["client"], row["can_give_back"]) == (2, 2, False, "127.0.0.1", False)
        assert send_request(replica, KEY).status == 429
        row = limits(admin)["items"][0]
        assert (row["used"], row["over"], row["retry_in_s"]) == (2, True, 0)
        admin.post("/limits/reset", {name: row[name] for name in ("limit", "place", "subject")}, 404)
        over.set()
        for connection, _ in streams:
            connection.close()
        wait_for(lambda: limits(admin)["items"] == [], "streams and recent refusals are gone", 15)


def stream(replica, key, source="127.0.0.1"):
    connection = raw.connect(replica.port, source=source)
    connection.sendall(f"GET /v1/slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nAccept: text/event-stream\r\n\r\n".encode())
    file = connection.makefile("rb")
    assert raw.read_head(file)[0] == 200
    return connection, file


def test_limits_over_replicas(replicas, database):
    with Redis() as redis:
        more = limit("name: together, per: key, limit: 10/h, scope: shared, and: [{name: all, per: route, limit: 100000/h}]") + "\n" + limit("name: alone, per: key, limit: 5/h")
        one, two = replicas(2, env=ENV, route_filters=more, sections=f'redis: {{url: "{redis.url}"}}')
        admin, other = signed_in(one), signed_in(two)
        wait_for(lambda: admin.get("/dashboard").json()["now"]["replicas"] == 2, "both replicas are listed", 15)
        assert [send_request(replica, KEY).status for replica in (one, two) * 5] == [200] * 10
        assert send_request(one, KEY).status == 429
        for asked in (admin, other):
            said = limits(asked)
            rows = [(row["limit"], row["used"], row["over"], row["replica"] is None) for row in said["items"]]
            assert rows == [("together", 10, True, True), ("alone", 5, False, False), ("alone", 5, False, False)], rows
            assert said["silent"] == []
        # A reset on any replica resets all of them.
        for row in limits(other)["items"][:2]:
            other.post("/limits/reset", {name: row[name] for name in ("limit", "place", "subject")}, 204)
        assert limits(admin)["items"] == []
        assert [send_request(replica, KEY).status for replica in (one, two) * 5] == [200] * 10
        assert redis.cli("EVAL", "return #redis.call('KEYS', 'keylatch:limit:*together*')", "0").strip() == "1"
        # A replica that does not answer is named, after a short time-out.
        os.kill(two.process.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            said = limits(admin)
            # The stopped replica costs one time-out; the rest is room for a busy machine.
            assert len(said["silent"]) == 1 and time.monotonic() - begun < 6
            assert {row["limit"] for row in said["items"]} == {"together", "alone"}
        finally:
            os.kill(two.process.pid, signal.SIGCONT)
        assert limits(admin)["silent"] == []
        assert int(database.psql("SELECT (SELECT count(*) FROM questions) + (SELECT count(*) FROM answers)")) == 0, "no request or answer is left in the database"


def test_streams_over_replicas(start, database):
    over = threading.Event()

    def silent(_, send):
        send(STREAM_HEAD + chunk(b"data: 1\n\n"))
        over.wait(60)

    with Scripted(silent) as upstream:
        more = FREE + "\n      - sse_keepalive: {interval: 1s}"
        one, two = (start(upstream, route_filters=more, secrets=SECRET, storage=storage(database), env=ENV) for _ in range(2))
        admin = signed_in(one)
        wait_for(lambda: admin.get("/dashboard").json()["now"]["replicas"] == 2, "both replicas are listed", 15)
        opened = [stream((one, two)[n % 2], KEY) for n in range(7)]
        listed = wait_for(lambda: (got := admin.get("/streams").json())["total"] == 7 and got, "all are open")
        assert listed["silent"] == [] and len({row["replica"] for row in listed["items"]}) == 2
        paged, cursor = [], None
        while True:
            page = admin.get("/streams", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
            paged += page["items"]
            cursor = page["next"]
            if not cursor:
                break
        names = lambda rows: [(row["replica"], row["id"]) for row in rows]  # noqa: E731
        assert names(paged) == names(listed["items"]) and len(set(names(paged))) == 7
        assert [row["started_at"] for row in paged] == sorted(row["started_at"] for row in paged)
        # A stream on the other replica is cancelled from this one.
        theirs = next(row for row in listed["items"] if row["replica"] != listed["items"][0]["replica"])
        here = signed_in(one).get("/streams").json()["items"][0]
        ended = admin.call("DELETE", f"/streams/{theirs['id']}", status=200, params={"replica": theirs["replica"]}).json()
        assert (ended["replica"], ended["id"]) == (theirs["replica"], theirs["id"])
        wait_for(lambda: admin.get("/streams").json()["total"] == 6, "the stream has ended")
        admin.call("DELETE", f"/streams/{theirs['id']}", status=404, params={"replica": theirs["replica"]})
        admin.call("DELETE", "/streams/1", status=404, params={"replica": "absent"})
        assert admin.call("DELETE", f"/streams/{here['id']}", status=422).json()["field"] == "replica"
        assert "name the stream's replica" in two.command("streams", "end", str(here["id"])).stderr
        rows = [json.loads(line) for line in two.command("streams", "list", "--json").stdout.splitlines()]
        assert len(rows) == 6 and names(rows)[0] == names([here])[0]
        said = two.command("streams", "end", str(here["id"]), "--replica", here["replica"], "--json")
        assert json.loads(said.stdout)["id"] == here["id"], said.stderr
        wait_for(lambda: admin.get("/streams").json()["total"] == 5, "the second stream has ended")
        assert len(two.command("streams", "list").stdout.splitlines()) == 6
        over.set()
        for connection, _ in opened:
            connection.close()


def test_status_and_intercepts_by_command(start, echo_upstream):
    replica = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db, flush_every: 50ms}}", env=ENV)
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.3"):
        send_request(replica, KEY, source)
    rows = wait_for(lambda: (lines := replica.command("intercepts", "list", "--json").stdout.splitlines()) and len(lines) == 2 and (rows := [json.loads(line) for line in lines]) and sum(row["count"] for row in rows) == 3 and rows, "they are written")
    assert {(row["client"], row["count"], row["reason"]) for row in rows} == {("127.0.0.2", 1, "elsewhere"), ("127.0.0.3", 2, "elsewhere")}
    assert "127.0.0.3" in replica.command("intercepts", "list", "--client", "127.0.0.3").stdout
    assert replica.command("intercepts", "list", "--reason", "banned").stdout == ""
    top = replica.command("intercepts", "top", "--by", "client").stdout.splitlines()
    assert len(top) == 3 and "127.0.0.3" in top[1]
    said = replica.command("intercepts", "list", "--since", "yesterday")
    assert said.returncode != 0 and "write a date such as 2026-11-29" in said.stderr
    board = wait_for(lambda: (got := json.loads(replica.command("status", "--json").stdout))["requests"] == 4 and got, "the requests are counted", 15)
    assert board["intercepts"] == 3
    shown = replica.command("status").stdout
    assert "4 requests, 3 intercepts" in shown and "store       answers" in shown and "127.0.0.3" in shown
    assert "range" in replica.command("status", "--range", "2h").stderr
    # Other operations of the API, too.
    said = replica.command("api", "GET", "/bindings?limit=1")
    row = json.loads(said.stdout)["items"][0]
    said = replica.command("api", "PATCH", f"/bindings/{row['key_id']}", "--data", "-", "--version", str(row["version"]), stdin='{"labels": ["a"]}')
    assert json.loads(said.stdout)["labels"] == ["a"], said.stderr
    said = replica.command("api", "PATCH", f"/bindings/{row['key_id']}", "--data", '{"labels": ["b"]}', "--version", str(row["version"]))
    assert said.returncode == 1 and "changed meanwhile" in said.stderr
    assert "networks" in replica.command("api", "GET", "bindings/export?format=csv").stdout
    assert "not valid JSON" in replica.command("api", "POST", "/bindings/ban", "--data", "{").stderr
    # The header field that names the user of a command is ignored by the TCP listener.
    assert raw.request(replica.admin, "/admin/api/bindings", headers=[("keylatch-actor", "root")]).status == 401
    replica.stop()
    said = replica.command("status")
    assert said.returncode == 1 and "no process that runs" in said.stderr


def test_permissions_of_the_local_socket(start, echo_upstream):
    replica = start(echo_upstream, storage=SQLITE, env=ENV)
    sockets = list(replica.runtime.iterdir())
    assert {path.suffix for path in sockets} == {".api", ".sock", f".{replica.process.pid}"} and all(path.stat().st_mode & 0o777 == 0o600 for path in sockets)
    replica.stop()
    assert not any(path.exists() for path in sockets)


def test_a_restarted_replica_is_listed_at_once(start, echo_upstream):
    """A replica that restarts is not reported as missing, and the list of replicas is not empty."""
    replica = start(echo_upstream, storage=SQLITE, env=ENV)
    for _ in range(2):
        wait_for(lambda: replica.command("status").stdout.count("replica ") == 1, "the replica is listed", 4)
        replica.stop()
        replica.start()


def test_changed_limits_and_elapsed_windows(start, echo_upstream):
    with Redis() as redis:
        section = f'redis: {{url: "{redis.url}"}}'
        per = lambda rest: limit("per: route, limit: 1000000/h, scope: shared") + "\n" + limit(f"per: key, {rest}")  # noqa: E731
        replica = start(echo_upstream, route_filters=per("limit: 2/h"), storage=SQLITE, more=section, env=ENV)
        admin = signed_in(replica)

        def changed(rest):
            replica.write(route_filters=per(rest))
            replica.command("reload")

        def give_back():
            row = limits(admin)["items"][0]
            admin.post("/limits/reset", {name: row[name] for name in ("limit", "place", "subject")}, 204)

        assert [send_request(replica, KEY).status for _ in range(3)] == [200, 200, 429]
        # A larger limit: usage is reported against the new limit, and counts continue.
        changed("limit: 10/h")
        assert limits(admin)["items"] == []
        assert [send_request(replica, KEY).status for _ in range(6)] == [200] * 6
        assert [(row["used"], row["most"], row["over"]) for row in limits(admin)["items"]] == [(8, 10, False)]
        # Other counter tables, shared counters and windows: the reset applies to the active
        # counters.
        for rest, passes in (("limit: 3/h, entries_max: 2000", 3), ("limit: 3/h, scope: shared", 3), ("limit: 3/day, window: calendar, scope: shared", 3), ("limit: 2/2s, scope: shared, name: short", 2)):
            changed(rest)
            statuses = [send_request(replica, KEY).status for _ in range(passes + 1)]
            assert statuses == [200] * passes + [429], rest
            give_back()
            assert send_request(replica, KEY).status == 200, rest
        # Recovered quota is reported.
        send_request(replica, KEY)
        assert limits(admin)["items"]
        wait_for(lambda: limits(admin)["items"] == [], "the quota has recovered", 5)
        # A request with a high cost is refused before the limit is used up.
        changed("limit: 10/h, cost: 6, name: dear")
        assert [send_request(replica, KEY).status for _ in range(2)] == [200, 429]
        assert [(row["used"], row["over"]) for row in limits(admin)["items"]] == [(6, True)]
        # In shadow mode nothing is refused; afterwards it is.
        admin.put("/settings", {"values": {"shadow.rate_limit": True}})
        wait_for(lambda: send_request(replica, KEY).status == 200 and limits(admin)["items"][0]["shadow"], "shadow mode is on")
        admin.put("/settings", {"values": {"shadow.rate_limit": None}})
        wait_for(lambda: send_request(replica, KEY).status == 429 and not limits(admin)["items"][0]["shadow"], "shadow mode is off")


def test_many_subjects_do_not_hide_a_busy_one(start, echo_upstream):
    replica = start(echo_upstream, route_filters=limit("per: key, limit: 1/day"), storage=SQLITE, env=ENV)
    admin = signed_in(replica)
    for n in range(1300):
        send_request(replica, f"sk-invented-{n:06}-abcdefgh")
        if n % 100 == 0:
            send_request(replica, KEY)
    said = limits(admin)
    assert said["complete"] is False and len(said["items"]) == 1000
    mine = [row for row in said["items"] if row["over"]]
    assert len(mine) == 1
    admin.post("/limits/reset", {name: mine[0][name] for name in ("limit", "place", "subject")}, 204)
    assert send_request(replica, KEY).status == 200


def test_during_a_database_outage_local_state_is_shown_and_unaudited_changes_are_refused(start, database):
    over = threading.Event()

    def silent(_, send):
        send(STREAM_HEAD + chunk(b"data: 1\n\n"))
        over.wait(60)

    with Scripted(silent) as upstream:
        replica = start(upstream, route_filters=FREE + "\n" + limit("per: client, limit: 2/h"), secrets=SECRET, storage=storage(database), env=ENV)
        admin = signed_in(replica)
        streams = [stream(replica, KEY) for _ in range(2)]
        # Streams without a stream filter are listed and cancelled too.
        listed = wait_for(lambda: (got := admin.get("/streams").json())["total"] == 2 and got["items"], "both streams are open")
        which = {name: limits(admin)["items"][0][name] for name in ("limit", "place", "subject")}
        database.kill()
        try:
            said = admin.get("/streams").json()
            assert [row["id"] for row in said["items"]] == [row["id"] for row in listed] and said["silent"] == ["other replicas"]
            assert limits(admin)["items"][0]["used"] == 2
            assert admin.call("DELETE", f"/streams/{listed[0]['id']}", status=None, params={"replica": listed[0]["replica"]}).status_code in (403, 503)
            said = replica.command("streams", "end", str(listed[0]["id"]), "--replica", listed[0]["replica"])
            assert said.returncode == 1
            assert replica.command("limits", "give-back", which["subject"]).returncode == 1
            assert len(replica.command("streams", "list").stdout.splitlines()) == 3, "the stream continues"
            assert send_request(replica, KEY).status == 429, "the limit was not reset"
        finally:
            database.start()
        wait_for(lambda: replica.command("streams", "end", str(listed[0]["id"]), "--replica", listed[0]["replica"]).returncode == 0, "the stream is cancelled", 20)
        body = raw.read_body(streams[0][1], [("transfer-encoding", "chunked")])[0]
        assert b"data: 1\n\n" in body and b"ended by an operator" in body and b"stream_ended" in body
        over.set()
        for connection, _ in streams:
            connection.close()


def test_output_to_a_closed_pipe(start, echo_upstream):
    replica = start(echo_upstream, storage=SQLITE, env={**ENV, "USER": "another\nelse"})
    for arguments in ("status", "limits list", "streams list", "intercepts list"):
        said = subprocess.run(["bash", "-c", f"set -o pipefail; {BINARY} {arguments} -c {replica.path} | true"], env=replica.env, capture_output=True, text=True, check=False, timeout=30)
        assert "panicked" not in said.stderr and said.returncode in (0, 141), said.stderr
