"""Bindings in PostgreSQL and SQLite: commands, races between replicas, and store outages."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import threading
import time

import pytest
from support import raw
from support.certificates import Certificates
from support.keylatch import BINARY, Keylatch, free_port, wait_for
from support.load import background_load
from support.postgres import Postgres
from support.relay import Relay
from support.stores import FREE, SECRET, send_request, key_id, storage
from support.upstreams import Scripted, chunk, plain


def test_one_of_200_first_uses_over_three_replicas_binds(replicas):
    three = replicas(limits="{connections_per_peer: 1000}")
    sources = [f"127.0.{n // 100 + 1}.{n % 100 + 1}" for n in range(200)]
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        for round_number in range(50):
            key = f"sk-raced-{round_number:04}-abcdefgh"
            asked = [(three[n % 3], source) for n, source in enumerate(sources)]
            statuses = list(pool.map(lambda one: send_request(one[0], key, one[1], timeout=30).status, asked))
            assert sorted(statuses) == [200] + [403] * 199, round_number
            winner = sources[statuses.index(200)]
            assert [send_request(replica, key, winner).status for replica in three] == [200] * 3
            loser = sources[statuses.index(403)]
            assert [send_request(replica, key, loser).status for replica in three] == [403] * 3


def test_changes_take_effect_on_every_replica_under_load(replicas, database):
    three = replicas()
    keys = [f"sk-changed-{n:04}-abcdefgh" for n in range(12)]
    for key in keys:
        assert [send_request(replica, key).status for replica in three] == [200] * 3
    shown = three[0].command("bindings", "list", "--json", "--limit", "1000")
    assert shown.returncode == 0, shown.stderr
    ids = [json.loads(line)["key_id"] for line in shown.stdout.splitlines()]
    assert len(ids) == len(keys)

    def load(stop, replica):
        while not stop.is_set():
            for key in keys:
                send_request(replica, key)

    with background_load(load, [(replica,) for replica in three * 2]):
        for number, one in enumerate(ids):
            # Changes made by SQL take effect as those made by a command do.
            change = ["banned = true", "networks = '{10.0.0.0/8}'"][number % 2]
            database.psql(f"UPDATE bindings SET {change} WHERE key_id = '\\x{one}'")
            for replica in three:
                def refused():
                    listed = [send_request(replica, key).status for key in keys]
                    return listed.count(403) == number + 1
                # By its notification: without one it takes up to 30 s.
                wait_for(refused, "the change takes effect", 20)


def test_the_commands_for_bindings(replicas, database, start, echo_upstream):
    sqlite = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db}}")
    for replica in (*replicas(1), sqlite):
        run = lambda *arguments: replica.command("bindings", *arguments)  # noqa: E731
        assert send_request(replica, "sk-operated-0001-abcdefgh").status == 200
        short = key_id(replica, "sk-operated-0001-abcdefgh")
        listed = run("list").stdout
        assert short in listed and "sk-…efgh" in listed and "127.0.0.1/32" in listed
        row = json.loads(run("show", short).stdout)
        assert (row["rule"], row["made_by"], row["networks"]) == ("single", "first_use", ["127.0.0.1/32"])
        assert json.loads(run("ban", short).stdout)["banned"] is True
        wait_for(lambda: send_request(replica, "sk-operated-0001-abcdefgh").status == 403, "the ban takes effect", 3)
        assert run("list", "--banned").stdout.count("\n") == 2
        assert json.loads(run("unban", short).stdout)["banned"] is False
        changed = run("set", short, "--network", "127.0.0.2", "--network", "127.0.1.0/24", "--note", "home", "--label", "team-a")
        assert json.loads(changed.stdout)["rule"] == "multiple", changed.stderr
        wait_for(lambda: send_request(replica, "sk-operated-0001-abcdefgh", "127.0.1.9").status == 200, "the change takes effect", 3)
        assert send_request(replica, "sk-operated-0001-abcdefgh").status == 403
        assert run("list", "--label", "team-a", "--address", "127.0.1.77").stdout.count("\n") == 2
        assert run("list", "--address", "127.0.2.1").stdout == ""
        assert run("unbind", short).returncode == 0
        wait_for(lambda: send_request(replica, "sk-operated-0001-abcdefgh", "127.0.0.3").status == 200, "the key is bound again", 3)

        # The audit log shows actor, action, address, and the values before and after.
        audited = [json.loads(line) for line in run("audit", "--json").stdout.splitlines()]
        assert [line["action"] for line in audited] == ["binding.removed", *["binding.changed"] * 3]
        assert audited[-1]["before"]["banned"] is False and audited[-1]["after"]["banned"] is True
        assert audited[1]["after"]["networks"] == ["127.0.0.2/32", "127.0.1.0/24"] and audited[0]["after"] is None
        assert all(line["actor"].startswith("command:") and line["origin"] and line["target"] == row["key_id"] for line in audited)
        assert run("audit", row["key_id"], "--limit", "2").stdout.count("binding.") == 2
        with pytest.raises(AssertionError, match="only added to"):
            database.psql("INSERT INTO audit (actor, origin, action, target) VALUES ('a', '', '', '')", "UPDATE audit SET actor = 'b'")
        assert "banned=true" in run("audit", short).stdout.splitlines()[-1]

        # Export and import.
        exported = {form: run("export", "--format", form).stdout for form in ("jsonl", "csv")}
        for form, text in exported.items():
            text = text.replace(json.loads(exported["jsonl"])["created"], "2025-03-01T12:00:00Z")
            (replica.folder / f"saved.{form}").write_text(text)
            assert run("unbind", short).returncode == 0
            imported = run("import", str(replica.folder / f"saved.{form}"))
            assert imported.stdout == "1 bindings imported\n", imported.stderr
            shown = json.loads(run("show", short).stdout)
            assert shown["networks"] == ["127.0.0.3/32"] and shown["created"] == "2025-03-01T12:00:00Z" < shown["last_used"]
        (replica.folder / "keys.csv").write_text("key,networks,labels\nsk-imported-0001-abcdefgh,127.0.0.4 127.0.0.5,new\n")
        assert run("import", str(replica.folder / "keys.csv")).returncode == 0
        assert send_request(replica, "sk-imported-0001-abcdefgh", "127.0.0.5").status == 200
        assert send_request(replica, "sk-imported-0001-abcdefgh", "127.0.0.6").status == 403
        assert "sk-imported" not in run("export").stdout

        # A key that leaked before its first use.
        unused = replica.command("bindings", "ban", "-", stdin="sk-unused-0001-abcdefgh")
        assert "was not bound" in unused.stderr and json.loads(unused.stdout)["banned"] is True
        assert send_request(replica, "sk-unused-0001-abcdefgh").status == 403
        assert run("unbind", json.loads(unused.stdout)["key_id"]).returncode == 0
        wait_for(lambda: send_request(replica, "sk-unused-0001-abcdefgh").status == 200, "the key is bound", 3)

        for arguments, says in [
            (("show", "zz"), "not a key id"),
            (("show", "ffffffffffff"), "no binding has a key id that begins with"),
            (("set", short, "--rule", "all", "--network", "10.0.0.1"), "takes no network"),
            (("set", "f" * 64, "--note", "x"), "is not bound"),
            (("set", short, "--network", "everywhere"), "neither an address"),
            (("set", short, "--label", "a b"), "is not a label"),
        ]:
            failed = run(*arguments)
            assert failed.returncode != 0 and says in failed.stderr, failed.stderr
        (replica.folder / "bad.jsonl").write_text('{"key_id": "12", "networks": ["10.0.0.1"]}\n{"key": "k"}\nnonsense\n')
        bad = run("import", str(replica.folder / "bad.jsonl"))
        (replica.folder / "headless.csv").write_text("sk-secret-0001-abcdefgh,127.0.0.1\nsk-secret-0002-abcdefgh,127.0.0.1\n")
        headless = run("import", "headless.csv")
        assert headless.returncode == 1 and "the first line must be the header" in headless.stderr and "sk-secret" not in headless.stderr
        assert bad.returncode == 1 and all(f"bad.jsonl:{line}:" in bad.stderr for line in (1, 2, 3)) and "nothing was imported" in bad.stderr


def test_keys_refused_by_the_upstream_are_not_bound(start, database):
    def answer(request, send):
        send(plain("401 Unauthorized", b"{}") if "sk-bad" in str(request) else plain())
        return True

    with Scripted(answer) as upstream:
        for kind in (storage(database), "{sqlite: {path: t.db, flush_every: 100ms}}"):
            replica = start(upstream, route_filters="      - key_binding: {new_keys_per_client: 30/h}", secrets=SECRET, storage=kind)
            listed = lambda: replica.command("bindings", "list", "--json").stdout.splitlines()  # noqa: E731
            assert send_request(replica, "sk-good-0001-abcdefgh").status == 200
            wait_for(lambda: [json.loads(line)["confirmed"] for line in listed()] == [True], "the upstream's word is written")
            for n in range(20):
                assert send_request(replica, f"sk-bad-{n:04}-abcdefgh").status == 401
            wait_for(lambda: len(listed()) == 1, "made-up keys are gone")
            # The limit of new keys per client does not count known keys.
            answers = [send_request(replica, f"sk-bad-{n:04}-abcdefgh") for n in range(20, 40)]
            refused = [answer for answer in answers if answer.status == 429]
            assert len(refused) == 11 and int(refused[0].header("retry-after")) > 60
            assert send_request(replica, "sk-good-0001-abcdefgh").status == 200
            assert send_request(replica, "sk-bad-9999-abcdefgh", "127.0.0.9").status == 401, "another client has its own limit"


def test_all_spellings_of_a_key_are_one_key(start, echo_upstream):
    replica = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db}}", secrets="{key_form: new_api}")
    stolen = "sk-AAAAbbbbCCCCddddEEEE"
    assert send_request(replica, stolen).status == 200
    for spelt in (stolen, stolen[3:], stolen + "-7", stolen[3:] + "-7-x"):
        assert send_request(replica, spelt, "127.0.0.2").status == 403, spelt
        assert send_request(replica, spelt).status == 200, spelt
    for headers in (
        [("Sec-WebSocket-Protocol", f"realtime, openai-insecure-api-key.{stolen}")],
        [("mj-api-secret", stolen)],
        [("X-Api-Key", stolen[3:])],
    ):
        assert raw.request(replica.port, headers=headers, source="127.0.0.2").status == 403, headers
        # A request with two keys must not be judged by one and served by the other.
        assert send_request(replica, "sk-mine-abcdefgh", "127.0.0.2", headers=headers).status == 400, headers
    own = start(echo_upstream, route_filters="      - key_binding: {from: [authorization]}")
    answer = send_request(own, "sk-mine-abcdefgh", headers=[("Sec-WebSocket-Protocol", f"realtime, openai-insecure-api-key.{stolen}"), ("mj-api-secret", stolen)])
    assert answer.status == 200 and stolen not in answer.body.decode(), "fields that are not read do not reach the upstream"
    # A database works with one form of key ids.
    replica.stop()
    replica.write(secrets="{}")
    with pytest.raises(AssertionError, match="another secrets.key_hmac or secrets.key_form"):
        replica.start()


@pytest.mark.parametrize("before_headers", ["", ", before_headers: 100ms"])
def test_an_early_stream_header_does_not_confirm_a_key(start, database, before_headers):
    def slow(request, send):
        time.sleep(0.3)
        send(plain("401 Unauthorized", b"{}"))
        return True

    policy = f"      - key_binding: {{}}\n      - sse_keepalive: {{interval: 15s{before_headers}}}"
    with Scripted(slow) as upstream:
        replica = start(upstream, route_filters=policy, secrets=SECRET, storage=storage(database))
        for n in range(5):
            send_request(replica, f"sk-made-up-{n}-abcdefgh", headers=[("Accept", "text/event-stream")], method="POST", body=b"{}")
        wait_for(lambda: replica.command("bindings", "list").stdout == "", "no made-up key stays bound")


def test_a_ban_just_before_a_database_outage_holds(replicas, database):
    """Also with `on_store_failure: open`: a changed row must be read again, and while it cannot be
    read the key is refused."""
    policy = "      - key_binding: {new_keys_per_client: 1000000/s, on_store_failure: open}"
    (replica,) = replicas(1, route_filters=policy)
    assert send_request(replica, "sk-banned-1-abcdefgh").status == 200
    database.psql("UPDATE bindings SET banned = true")
    # Time for the notification: a request that showed its arrival would itself read the change.
    time.sleep(0.3)
    database.kill()
    try:
        answers = {send_request(replica, "sk-banned-1-abcdefgh", source).status for source in ("127.0.0.1", "127.0.0.2") for _ in range(3)}
        assert 200 not in answers, answers
        assert send_request(replica, "sk-unknown-abcdefgh").status == 200
    finally:
        database.start()


def test_streams_of_banned_keys_end_after_a_database_outage(start, database):
    """The key was banned while this replica had no connection to the database."""
    def silent(request, send):
        send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"data: one\n\n"))
        released.wait(30)
        return False

    released = threading.Event()
    with Scripted(silent) as upstream, Relay(database.port) as relay:
        via = storage(database).replace(str(database.port), str(relay.port))
        replica = start(upstream, route_filters=FREE + "\n      - sse_keepalive: {interval: 60s}", secrets=SECRET, storage=via)
        command = ["curl", "-sN", replica.url("/v1/x"), "-H", "Authorization: Bearer sk-cut-off-1-abcdefgh"]
        stream = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert stream.stdout.read(1) == b"d"
            relay.away(True)
            # Until the circuit breaker is open.
            for n in range(8):
                send_request(replica, f"sk-meanwhile-{n}-abcdefgh", timeout=20)
            database.psql("UPDATE bindings SET banned = true")
            assert stream.poll() is None
            relay.away(False)
            assert b"key_not_allowed_here" in stream.communicate(timeout=10)[0]
        finally:
            released.set()
            stream.kill()


def test_enrolment_of_known_keys_only_or_until_a_date(start, database, echo_upstream):
    for enrol, expected in [("known_only", 403), ('{window: {until: "2020-01-01T00:00:00Z"}}', 403), ('{window: {until: "2999-01-01T00:00:00Z"}}', 200)]:
        replica = start(echo_upstream, route_filters=f"      - key_binding: {{enrol: {enrol}}}", secrets=SECRET, storage=storage(database))
        assert send_request(replica, f"sk-unknown-{expected}").status == expected, enrol
        (replica.folder / "keys.jsonl").write_text('{"key": "sk-known-abcdefghijkl", "networks": ["127.0.0.1"]}')
        assert replica.command("bindings", "import", "keys.jsonl").returncode == 0
        assert send_request(replica, "sk-known-abcdefghijkl").status == 200


def test_a_roaming_network_stays_in_use_across_a_restart(start, echo_upstream):
    """A request that finds its row in the database and not in a cache records the use of its network too."""
    roaming = "      - key_binding: {confirm: immediate, rule: {roaming: {networks_max: 2, window: 1h}}}"
    replica = start(echo_upstream, route_filters=roaming, storage="{sqlite: {path: t.db}}")
    assert send_request(replica, "sk-roaming-restart").status == 200
    replica.stop()
    database = replica.folder / "t.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        long_ago = int((time.time() - 1800) * 1000)
        assert connection.execute("UPDATE bindings SET seen_ms = ?", (str(long_ago),)).rowcount == 1
        connection.commit()
    replica.start()
    assert send_request(replica, "sk-roaming-restart").status == 200

    def seen_ms():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return int(connection.execute("SELECT seen_ms FROM bindings").fetchone()[0])

    wait_for(lambda: seen_ms() > long_ago, "the use is recorded")


def test_concurrent_first_uses_fill_a_roaming_binding(start, echo_upstream):
    """Of 16 concurrent addresses as many are admitted as the rule allows: a request that loses the
    first use may add the second network."""
    roaming = "      - key_binding: {new_keys_per_client: 1000000/s, rule: {roaming: {networks_max: 3, window: 1h}}}"
    replica = start(echo_upstream, route_filters=roaming, storage="{sqlite: {path: t.db}}")
    sources = [f"127.0.7.{n}" for n in range(1, 17)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for number in range(40):
            key = f"sk-roaming-race-{number:04}"
            statuses = list(pool.map(lambda source: send_request(replica, key, source).status, sources))
            assert sorted(statuses) == [200] * 3 + [403] * 13, key



def test_clients_that_move_between_networks(replicas, start, echo_upstream):
    roaming = "      - key_binding: {rule: {roaming: {networks_max: 2, window: 1h}}}"
    sqlite = start(echo_upstream, route_filters=roaming, storage="{sqlite: {path: t.db}}")
    one, two = replicas(2, route_filters=roaming)
    for here, there in ((one, two), (sqlite, sqlite)):
        used = [send_request(replica, "sk-moving-0001-abcdefgh", f"127.0.0.{n}").status for n in (1, 2, 3, 1, 2) for replica in (here, there)]
        assert used == [200, 200, 200, 200, 403, 403, 200, 200, 200, 200]
        row = json.loads(here.command("bindings", "list", "--json").stdout)
        assert (row["rule"], row["networks_max"], row["window"]) == ("roaming", 2, "1h")
        assert row["networks"] == ["127.0.0.1/32", "127.0.0.2/32"]
        exported = here.command("bindings", "export", "--format", "csv").stdout
        (here.folder / "moved.csv").write_text(exported.replace("127.0.0.2/32", "127.0.0.4/32"))
        assert here.command("bindings", "import", "moved.csv").returncode == 0
        wait_for(lambda: send_request(there, "sk-moving-0001-abcdefgh", "127.0.0.2").status == 403, "the change takes effect", 3)  # noqa: B023
        assert send_request(there, "sk-moving-0001-abcdefgh", "127.0.0.4").status == 200


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_database_outage_and_recovery(replicas, database, how):
    policy = "      - key_binding: {new_keys_per_client: 1000000/s, on_store_failure: %s}"
    closed, opened = replicas(1, route_filters=policy % "closed") + replicas(1, route_filters=policy % "open")
    for replica in (closed, opened):
        assert send_request(replica, "sk-known-0001-abcdefgh").status == 200
        assert send_request(replica, "sk-known-0001-abcdefgh", "127.0.0.2").status == 403
    wrong, slow = [], []

    def load(stop, number):
        while not stop.is_set():
            for source, expected in (("127.0.0.1", {200}), ("127.0.0.2", {403})):
                began = time.monotonic()
                status = send_request(closed, "sk-known-0001-abcdefgh", source).status
                slow.append(time.monotonic() - began)
                if status not in expected:
                    wrong.append((source, status))
            began = time.monotonic()
            status = send_request(closed, f"sk-new-{number}-{time.monotonic_ns()}", "127.0.0.3").status
            slow.append(time.monotonic() - began)
            if status not in (200, 503):
                wrong.append(("new", status))

    with background_load(load, [(number,) for number in range(8)]):
        wait_for(lambda: len(slow) > 100, "load on a working store")
        database.kill() if how == "kill" else database.pause()
        wait_for(lambda: send_request(closed, f"sk-new-{time.monotonic_ns()}").status == 503, "unknown keys are refused")
        answer = send_request(closed, "sk-new-while-away")
        assert answer.status == 503 and answer.header("retry-after") == "1"
        assert send_request(opened, "sk-new-while-away").status == 200
        marked = lambda: [line for line in opened.access_log() if line.get("let_through") == ["key_binding"]]
        assert wait_for(marked, "the access line is written")[-1]["status"] == 200
        assert send_request(opened, "sk-known-0001-abcdefgh", "127.0.0.2").status == 403, "`open` admits no address that a known binding excludes"
        wait_for(lambda: closed.health("ready")[0] == 503, "readiness shows the outage")
        wait_for(lambda: closed.metrics()["keylatch_store_away"] == 1, "the metric shows the outage")
        # Load during the outage, for longer than a refusal may reuse a row that was read, 1 s.
        time.sleep(2)
        database.start() if how == "kill" else database.resume()
        wait_for(lambda: send_request(closed, f"sk-new-{time.monotonic_ns()}").status == 200, "new keys are bound again")
        wait_for(lambda: closed.health("ready")[0] == 200, "readiness shows the recovery")
    assert not wrong, wrong[:10]
    # A request waits at most twice the time limit of a statement, 1 s. The rest is room for a busy
    # machine; a request that waits for the store to come back takes longer.
    assert max(slow) < 8, max(slow)


def test_dead_database_connections(start, echo_upstream, database):
    """A failover, or a firewall that drops its state, leaves connections open but without data."""
    with Relay(database.port) as relay:
        via = storage(database).replace(str(database.port), str(relay.port))
        replica = start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=via)
        other = start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=storage(database))
        for number in range(8):
            assert send_request(replica, f"sk-frozen-{number:04}-abcdefgh").status == 200
            relay.freeze()
            wait_for(lambda: send_request(replica, f"sk-after-{time.monotonic_ns()}").status == 200, "requests succeed again", 8)
        assert send_request(replica, "sk-frozen-0000-abcdefgh").status == 200
        relay.freeze()
        # Notifications lost with the connection are made up for when the listener detects its dead
        # connection.
        row = [json.loads(line) for line in other.command("bindings", "list", "--json", "--limit", "1000").stdout.splitlines()]
        frozen = other.command("bindings", "ban", "-", stdin="sk-frozen-0000-abcdefgh")
        assert frozen.returncode == 0 and len(row) > 8, frozen.stderr
        wait_for(lambda: send_request(replica, "sk-frozen-0000-abcdefgh").status == 403, "the ban takes effect", 15)
        wait_for(lambda: replica.health("ready")[0] == 200, "the replica is ready")


def test_an_operator_waits_for_the_lock_of_a_vanished_replica(replicas, database):
    """Its transaction ends after five times `timeout`."""
    (one,) = replicas(1)
    assert send_request(one, "sk-locked-0001-abcdefgh").status == 200
    held = "BEGIN; SELECT 1 FROM bindings FOR UPDATE; SELECT pg_sleep(3); COMMIT"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        holder = pool.submit(database.psql, held)
        wait_for(lambda: database.psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3)%' AND wait_event = 'PgSleep'") == "1", "the lock is held")
        banned = one.command("bindings", "ban", "-", stdin="sk-locked-0001-abcdefgh")
        assert banned.returncode == 0, banned.stderr
        holder.result()
    assert send_request(one, "sk-locked-0001-abcdefgh").status == 403


def test_write_behind_is_flushed_at_a_stop(replicas, database):
    one, other = replicas(2, more=", replica: edge")
    for n in range(50):
        assert send_request(one, "sk-counted-0001-abcdefgh").status == 200
        assert send_request(one, "sk-counted-0001-abcdefgh", "127.0.0.2").status == 403
    one.stop()
    counted = "SELECT sum(count), count(*) <= 2, min(replica), min(array_to_string(networks, ',')) FROM intercepts"
    assert database.psql(counted) == "50|t|edge|127.0.0.1/32"
    assert database.psql("SELECT count(*) FROM bindings WHERE last_used_at > created_at AND confirmed") == "1"


@pytest.mark.parametrize("http", [["--http1.1"], ["--http2-prior-knowledge"]])
def test_streams_of_a_key_that_is_banned_end_on_every_replica(start, database, http):
    def silent(request, send):
        send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"data: one\n\n"))
        released.wait(20)
        return False

    released = threading.Event()
    policy = "      - key_binding: {on_ban: %s}\n      - sse_keepalive: {interval: 60s%s}"
    values = {"secrets": SECRET, "storage": storage(database)}
    with Scripted(silent) as upstream:
        cut = [start(upstream, route_filters=policy % ("cut", early), **values) for early in ("", ", before_headers: 200ms")]
        finish = start(upstream, route_filters=policy % ("finish", ""), **values)
        streams = []
        try:
            for key in ("sk-cut-0001-abcdefgh", "sk-other-01-abcdefgh"):
                for replica in (*cut, finish):
                    command = ["curl", "-sN", *http, "-d", "", replica.url("/v1/x"), "-H", f"Authorization: Bearer {key}", "-H", "Accept: text/event-stream"]
                    streams.append(subprocess.Popen(command, stdout=subprocess.PIPE))
                    assert streams[-1].stdout.read(1) == b"d"
            wait_for(lambda: all(replica.metrics()["keylatch_open_streams"] == 2 for replica in cut), "the streams are open")
            for change, number in (("ban", 0), ("unbind", 1)):
                key = ("sk-cut-0001-abcdefgh", "sk-other-01-abcdefgh")[number]
                done = cut[0].command("bindings", change, "-", stdin=key)
                assert done.returncode == 0, done.stderr
                began = time.monotonic()
                mine = streams[3 * number : 3 * number + 3]
                for stream in mine[:2]:
                    assert b"key_not_allowed_here" in stream.communicate(timeout=5)[0]
                    assert stream.returncode == 0
                assert time.monotonic() - began < 3, "the notification ends the stream, not a later revalidation"
                assert mine[2].poll() is None, "`on_ban: finish` lets the stream finish"
                assert all(stream.poll() is None for stream in streams[3 * number + 3 :]), "streams of the other key continue"
            assert [replica.metrics()["keylatch_binding_streams_cut_total"] for replica in cut] == [2, 2]
        finally:
            released.set()
            for stream in streams:
                stream.kill()


def test_a_secret_is_rotated(replicas, database, tmp_path):
    (old,) = replicas(1)
    for key in ("sk-rotated-0001-abcdefgh", "sk-rotated-0002-abcdefgh"):
        assert send_request(old, key).status == 200
    old.stop()
    (tmp_path / "old").write_text("0123456789abcdef0123456789abcdef\n")
    fresh = "{key_hmac: ffffffffffffffffffffffffffffffff, previous: [file:%s]}" % (tmp_path / "old")
    new, other = replicas(2, secrets=fresh)
    assert [send_request(replica, "sk-rotated-0001-abcdefgh", "127.0.0.2").status for replica in (new, other)] == [403] * 2
    assert [send_request(replica, "sk-rotated-0001-abcdefgh").status for replica in (new, other)] == [200] * 2
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        asked = [(replica, source) for replica in (new, other) for source in ("127.0.0.1", "127.0.0.2") * 10]
        statuses = list(pool.map(lambda one: send_request(one[0], "sk-rotated-0002-abcdefgh", one[1]).status, asked))
    assert statuses == [200, 403] * 20
    assert send_request(new, "sk-fresh-00001-abcdefgh").status == 200
    assert database.psql("SELECT count(*) FROM bindings") == "3"
    short = key_id(new, "sk-rotated-0001-abcdefgh")
    other.stop()
    other.write(secrets="{key_hmac: ffffffffffffffffffffffffffffffff}")
    other.start()
    assert send_request(other, "sk-rotated-0001-abcdefgh", "127.0.0.2").status == 403
    assert new.command("bindings", "list").stdout.count("\n") == 4 and short
    with pytest.raises(AssertionError, match="another secrets.key_hmac"):
        replicas(1)
    assert "another secrets.key_hmac" in old.command("bindings", "list").stderr


def test_the_next_secret_is_created_and_replaces_the_first(start, echo_upstream):
    replica = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db}}")
    assert send_request(replica, "sk-rotated-1-abcdefgh").status == 200
    said = replica.command("secret", "rotate")
    assert said.returncode == 0, said.stderr
    made = replica.folder / "t.db.secret.next"
    assert made.stat().st_mode & 0o777 == 0o600 and len(made.read_text()) == 64 and made.read_text() not in said.stdout
    again = replica.command("secret", "rotate")
    assert again.returncode == 1 and "a rotation was begun" in again.stderr
    replica.stop()
    # The steps that the command prints.
    key, previous = re.search(r"key_hmac: (\S+)", said.stdout)[1], re.search(r"previous: (\[.*\])", said.stdout)[1]
    replica.write(secrets=f"{{key_hmac: {key}, previous: {previous}}}")
    replica.start()
    assert send_request(replica, "sk-rotated-1-abcdefgh", "127.0.0.2").status == 403 and send_request(replica, "sk-rotated-1-abcdefgh").status == 200
    # With a configured secret file, the next secret is created beside it.
    assert replica.command("secret", "rotate").returncode == 0 and (replica.folder / "t.db.secret.next.next").exists()


def test_postgres_over_tls_is_verified(start, echo_upstream, tmp_path):
    tls, other, elsewhere = Certificates(tmp_path / "a"), Certificates(tmp_path / "b"), Certificates(tmp_path / "c", name="DNS:db.example")
    for certificates, ca, mode, fine in (
        (tls, tls.ca, "verify_full", True),
        (tls, other.ca, "verify_full", False),
        (elsewhere, elsewhere.ca, "verify_full", False),
        (elsewhere, elsewhere.ca, "verify_ca", True),
        (tls, other.ca, "verify_ca", False),
    ):
        server = Postgres()
        home = pathlib.Path(server.home.name)
        for source in (certificates.cert, certificates.key):
            shutil.copy(source, home)
            if os.geteuid() == 0:
                shutil.chown(home / source.name, "postgres")
        (home / "key.pem").chmod(0o600)
        server.start("-c", "ssl=on", "-c", f"ssl_cert_file={home}/cert.pem", "-c", f"ssl_key_file={home}/key.pem")
        with contextlib.ExitStack() as stack:
            stack.push(server.__exit__)
            store = storage(server, f", tls: {mode}, ca_file: {ca}")
            if fine:
                replica = start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=store)
                assert send_request(replica, "sk-over-tls-abcdefgh").status == 200
                assert server.psql("SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'keylatch'") in ("t", "")
            else:
                with pytest.raises(AssertionError, match="certificate|TLS|tls"):
                    start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=store)


def test_commands_find_keys_under_the_previous_secret(replicas, database):
    old, new = "{key_hmac: 0123456789abcdef0123456789abcdef}", "{key_hmac: fedcba9876543210fedcba9876543210, previous: [0123456789abcdef0123456789abcdef]}"
    (replica,) = replicas(1, secrets=old)
    for key in ("sk-leaked-01-abcdefgh", "sk-banned-01-abcdefgh"):
        assert send_request(replica, key).status == 200
    assert replica.command("bindings", "ban", "-", stdin="sk-banned-01-abcdefgh").returncode == 0
    replica.stop()
    replica.write(secrets=new)
    replica.start()
    # Neither key was used since the rotation.
    assert replica.command("bindings", "ban", "-", stdin="sk-leaked-01-abcdefgh").returncode == 0
    assert replica.command("bindings", "set", "-", "--network", "127.0.0.9", stdin="sk-banned-01-abcdefgh").returncode == 0
    assert send_request(replica, "sk-leaked-01-abcdefgh").status == 403
    assert send_request(replica, "sk-banned-01-abcdefgh", "127.0.0.9").status == 403, "a ban under the old key id holds"
    assert database.psql("SELECT count(*) FROM bindings") == "2"


def test_commands_create_no_sqlite_database(start, echo_upstream, tmp_path):
    replica = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db}}")
    assert send_request(replica, "sk-here-0001-abcdefgh").status == 200
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keylatch.yaml").write_text(replica.path.read_text())
    said = subprocess.run([BINARY, "bindings", "list", "-c", "keylatch.yaml"], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert said.returncode == 1 and "the database t.db does not exist" in said.stderr and [each.name for each in elsewhere.iterdir()] == ["keylatch.yaml"]
    # A command with the next secret does not change the key ids of the running process.
    secret = (replica.folder / "t.db.secret").read_text()
    running = replica.path.read_text()
    replica.write(secrets=f"{{key_hmac: fedcba9876543210fedcba9876543210, previous: [{secret}]}}")
    assert replica.command("bindings", "list").returncode == 0
    replica.stop()
    replica.path.write_text(running)
    replica.start()
    assert send_request(replica, "sk-here-0001-abcdefgh").status == 200
    too_many = ["--rule", "roaming", "--networks-max", "1", "--window", "1h", "--network", "10.0.0.1", "--network", "10.0.0.2"]
    said = replica.command("bindings", "set", "-", *too_many, stdin="sk-here-0001-abcdefgh")
    assert said.returncode == 1 and "exceed networks_max, 1" in said.stderr
    said = replica.command("bindings", "list", "--limit", "1")
    assert said.returncode == 0 and said.stderr == ""
    assert send_request(replica, "sk-here-0002-abcdefgh").status == 200
    said = replica.command("bindings", "list", "--limit", "1")
    assert said.returncode == 0 and "rows are listed" in said.stderr and len(said.stdout.splitlines()) == 2


def test_failed_starts_say_what_to_do(start, database, echo_upstream, server, monkeypatch):
    def says(text, **values):
        with pytest.raises(AssertionError) as failed:
            start(echo_upstream, **{"secrets": SECRET, "storage": storage(database), **values})
        assert re.search(text, str(failed.value)), str(failed.value)
        assert "hunter2" not in str(failed.value)

    start(echo_upstream, secrets=SECRET, storage=storage(database)).stop()
    says("another secrets.key_hmac", secrets="{key_hmac: ffffffffffffffffffffffffffffffff}")
    says("secrets.key_hmac is required", secrets="{}")
    at = f"127.0.0.1:{server.port}"
    says("the database does not exist; create it", storage=f'{{postgres: {{url: "postgres://keylatch@{at}/nowhere"}}}}')
    says("refuses the user or the password", storage=f'{{postgres: {{url: "postgres://absent:hunter2@{at}/postgres"}}}}')
    says("no server answered within", storage=f'{{postgres: {{url: "postgres://keylatch@127.0.0.1:{free_port()}/x", connect_timeout: 1s}}}}')
    says("has an unknown parameter", storage=f'{{postgres: {{url: "postgres://keylatch@{at}/postgres?sslmode=disable&pasword=hunter2"}}}}')
    says("a port that is not a number", storage='{postgres: {url: "postgres://a:hunter2@b@c:d/"}}')
    says("must begin with", storage='{postgres: {url: "mysql://hunter2"}}')
    says("TLS", storage=f'{{postgres: {{url: "postgres://keylatch@{at}/postgres", tls: verify_full}}}}')
    database.psql("INSERT INTO _sqlx_migrations VALUES (9999, 'newer', now(), true, '', 0)")
    says("the schema is newer than this program")
    database.psql("DELETE FROM _sqlx_migrations WHERE version = 9999")
    database.psql("ALTER DATABASE postgres SET default_transaction_read_only = on")
    try:
        # Known bindings can be read; only new keys cannot be bound.
        with monkeypatch.context() as patched:
            patched.setattr(Keylatch, "_listens", lambda self: self.health("live")[0] == 200)
            replica = start(echo_upstream, secrets=SECRET, storage=storage(database), route_filters=FREE)
        assert send_request(replica, "sk-new").status == 503 and replica.health("ready")[0] == 503
        replica.stop()
        assert "read-only transaction" in replica.stdout.read_text()
        server.psql("SET default_transaction_read_only = off", "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        says("the server is read-only")
    finally:
        server.psql("SET default_transaction_read_only = off", "ALTER DATABASE postgres RESET default_transaction_read_only")
