"""The lists of the admin API with many bindings and intercepts, on PostgreSQL and SQLite: the time
until a client has the answer, for every page that the console can show.
"""

import contextlib
import hashlib
import json
import random
import sqlite3
import statistics
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import harness
import results
from harness import ROOT, at_share
from proxies import SECRET, SQLITE, Keylatch

sys.path.insert(0, str(ROOT / "tests"))

from support.postgres import Postgres  # noqa: E402

PASSWORD = "correct-horse-battery"
MINUTES = 30 * 24 * 60


def counts():
    """Counts of two other replicas: 30 days by the hour, two days by the minute."""
    counted = {"requests": {"2xx": 90000, "4xx": 4000, "5xx": 30}, "decisions": {f"filter_{n} reason_{n} refused": n for n in range(12)}, "refused": {"no_host": 3}, "first_byte": list(range(15)), "upstream_errors": 3}
    now = int(time.time() * 1000)
    for table in ("samples", "tops"):
        for step_s, steps in ((60, 2880), (3600, 720)):
            for n in range(steps):
                for replica in ("bench-a", "bench-b"):
                    if table == "tops":
                        keys = {hashlib.sha256(f"{n % 50}-{k}".encode()).hexdigest(): {"hint": "sk-…abcd", "count": 1000 - k} for k in range(20)}
                        counted = {"keys": keys, "clients": {f"10.{n % 50}.{replica[-1] == 'a'}.{k}": {"count": 900 - k} for k in range(20)}}
                    yield table, (step_s, now - now % (step_s * 1000) - n * step_s * 1000, replica, json.dumps(counted))


def fill_postgres(postgres, bindings, intercepts):
    address = "('10.' || (i / 65536) % 256 || '.' || (i / 256) % 256 || '.' || i % 256)::inet"
    postgres.psql(
        f"""INSERT INTO bindings (key_id, hint, rule, networks, banned, version, made_by, labels, created_at, last_used_at)
            SELECT sha256(i::text::bytea), 'sk-…' || right(md5(i::text), 4), 'single', ARRAY[{address}]::cidr[], i % 1000 = 0, i,
                CASE WHEN i % 50 = 0 THEN 'admin' ELSE 'first_use' END, CASE WHEN i % 100 = 0 THEN ARRAY['team-' || i % 7] ELSE '{{}}' END,
                now() - interval '1 second' * (i % 7776000), now() - interval '1 second' * ((i::bigint * 7919) % 7776000)
            FROM generate_series(1, {bindings}) i""",
        f"""INSERT INTO intercepts (minute, key_id, client, method, path, route, replica, banned, hint, networks, user_agent, count, first_at, last_at)
            SELECT date_trunc('minute', now()) - interval '1 minute' * (i % {MINUTES}), sha256(((i * 31) % {bindings})::text::bytea), {address}, 'POST',
                '/v1/chat/' || i % 13, CASE WHEN i % 1000 = 0 THEN 'rare' ELSE 'api' END, 'edge', i % 1000 = 0, 'sk-…' || right(md5(((i * 31) % {bindings})::text), 4), '{{10.0.0.1/32}}', 'bench', 1, now(), now()
            FROM generate_series(1, {intercepts}) i ON CONFLICT DO NOTHING""",
        timeout=1200,
    )
    for table in ("samples", "tops"):
        rows = [row for into, row in counts() if into == table]
        values = lambda some: ", ".join(f"({step}, {at}, '{replica}', '{counted}')" for step, at, replica, counted in some)  # noqa: E731
        inserts = [f"INSERT INTO {table} (step_s, at_ms, replica, counted) VALUES {values(rows[first : first + 20])}" for first in range(0, len(rows), 20)]
        # One argument and all arguments of a program have a size limit.
        for first in range(0, len(inserts), 10):
            postgres.psql(*inserts[first : first + 10])
    postgres.psql("ANALYZE")


def fill_sqlite(path, bindings, intercepts):
    now = int(time.time() * 1000)
    ids = [hashlib.sha256(str(i).encode()).digest() for i in range(bindings + 1)]
    hint = lambda i: "sk-…" + hashlib.md5(str(i).encode()).hexdigest()[-4:]  # noqa: E731
    address = lambda i: f"10.{i // 65536 % 256}.{i // 256 % 256}.{i % 256}"  # noqa: E731
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executemany(
            "INSERT INTO bindings (key_id, hint, rule, networks, banned, version, made_by, labels, created_ms, last_used_ms) VALUES (?, ?, 'single', ?, ?, ?, ?, ?, ?, ?)",
            (
                (ids[i], hint(i), address(i) + "/32", int(i % 1000 == 0), i, "admin" if i % 50 == 0 else "first_use", f"team-{i % 7}" if i % 100 == 0 else "", now - 1000 * (i % 7776000), now - 1000 * (i * 7919 % 7776000))
                for i in range(1, bindings + 1)
            ),
        )
        minute = now - now % 60_000
        database.executemany(
            "INSERT OR IGNORE INTO intercepts (minute_ms, key_id, client, method, path, route, banned, hint, networks, user_agent, count, first_ms, last_ms) VALUES (?, ?, ?, 'POST', ?, ?, ?, ?, '10.0.0.1/32', 'bench', 1, ?, ?)",
            (
                (minute - 60_000 * (i % MINUTES), ids[i * 31 % bindings], address(i), f"/v1/chat/{i % 13}", "rare" if i % 1000 == 0 else "api", int(i % 1000 == 0), hint(i * 31 % bindings), now, now)
                for i in range(1, intercepts + 1)
            ),
        )
        for table, row in counts():
            database.execute(f"INSERT INTO {table} (step_s, at_ms, replica, counted) VALUES (?, ?, ?, ?)", row)
        database.commit()
        database.execute("ANALYZE")
        database.commit()


def pages(bindings):
    """Every kind of page, with other values in each call."""
    pick = lambda: random.randrange(1, bindings)  # noqa: E731
    address = lambda i: f"10.{i // 65536 % 256}.{i // 256 % 256}.{i % 256}"  # noqa: E731
    since = lambda hours: time.strftime("%Y-%m-%dT%H:%M:00Z", time.gmtime(time.time() - 3600 * hours))  # noqa: E731
    yield "bindings, last used first", lambda: ("bindings", {})
    yield "bindings, oldest first", lambda: ("bindings", {"sort": "created_at"})
    yield "bindings, by key id", lambda: ("bindings", {"sort": "key_id"})
    yield "bindings, beginning of a key id", lambda: ("bindings", {"key_id": f"{random.randrange(1 << 24):06x}"})
    yield "bindings, end of a hint", lambda: ("bindings", {"hint": f"{random.randrange(1 << 16):04x}"})
    yield "bindings, an address", lambda: ("bindings", {"network": address(pick())})
    yield "bindings, a /24", lambda: ("bindings", {"network": f"10.{random.randrange(15)}.{random.randrange(256)}.0/24"})
    yield "bindings, a /16", lambda: ("bindings", {"network": f"10.{random.randrange(15)}.0.0/16"})
    yield "bindings, a label", lambda: ("bindings", {"label": f"team-{random.randrange(7)}"})
    yield "bindings, banned", lambda: ("bindings", {"banned": "true"})
    yield "bindings, rule that none has", lambda: ("bindings", {"rule": "roaming"})
    yield "bindings, made by", lambda: ("bindings", {"made_by": "admin"})
    yield "intercepts, the latest", lambda: ("logs", {})
    yield "intercepts, an hour", lambda: ("logs", {"since": since(1)})
    yield "intercepts, an address", lambda: ("logs", {"client": address(pick())})
    yield "intercepts, a /24", lambda: ("logs", {"client": f"10.{random.randrange(70)}.{random.randrange(256)}.0/24"})
    yield "intercepts, a path", lambda: ("logs", {"path": f"/v1/chat/{random.randrange(13)}"})
    yield "intercepts, a rare route", lambda: ("logs", {"route": "rare"})
    yield "intercepts, a method that none has", lambda: ("logs", {"method": "PUT"})
    yield "intercepts, by key", lambda: ("logs/groups", {"by": "key"})
    yield "intercepts, by address, a day", lambda: ("logs/groups", {"by": "client", "since": since(24)})
    yield "audit", lambda: ("audit", {})
    yield "dashboard, an hour", lambda: ("dashboard", {})
    yield "dashboard, a day", lambda: ("dashboard", {"range": "24h"})
    yield "dashboard, 30 days", lambda: ("dashboard", {"range": "30d"})


class Client:
    def __init__(self, replica):
        self.base, self.token = f"http://127.0.0.1:{replica.admin}/admin/api/", None
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.token = self.call("login", body={"username": "admin", "password": PASSWORD})["access_token"]
                return
            time.sleep(0.1)
        raise SystemExit("the first account cannot sign in")

    def call(self, path, query=None, body=None):
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {self.token}"} if self.token else {})}
        url = self.base + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def times(self, page, rounds):
        """The times of the first page and, if it exists, of the next one."""
        taken = []
        for _ in range(rounds):
            path, query = page()
            began = time.perf_counter()
            first = self.call(path, query)
            taken.append(time.perf_counter() - began)
            if first.get("next"):
                began = time.perf_counter()
                self.call(path, {**query, "cursor": first["next"]})
                taken.append(time.perf_counter() - began)
        return taken


def measure(bench, store, storage, postgres, bindings, intercepts, rounds):
    """The times of every page on one store."""
    replica = Keylatch(bench, "      - key_binding: {}\n", storage, secrets=SECRET, workers=0, cores=harness.BOTH_CORES, environment={"KEYLATCH_ADMIN_PASSWORD": PASSWORD})
    try:
        Client(replica)
        replica.stop()
        began = time.monotonic()
        if postgres:
            fill_postgres(postgres, bindings, intercepts)
        else:
            fill_sqlite(replica.folder / "bench.db", bindings, intercepts)
        replica.begin()
        client, found = Client(replica), {}
        print(f"{store}: filled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for name, page in pages(bindings):
            try:
                client.times(page, 2)
                found[name] = [1000 * taken for taken in client.times(page, rounds)]
            except urllib.error.HTTPError as error:
                print(f"{store}: {name}: {error}", file=sys.stderr)
        return found
    finally:
        replica.stop()


def tables(bench):
    bindings, intercepts, rounds = (20_000, 100_000, 10) if bench.quick else (1_000_000, 5_000_000, 50)
    with Postgres() as postgres:
        stores = {"PostgreSQL": (f'{{postgres: {{url: "{postgres.url}"}}}}', postgres), "SQLite": (SQLITE, None)}
        found = {store: measure(bench, store, *kind, bindings, intercepts, rounds) for store, kind in stores.items()}
    cells = lambda times: [results.one(statistics.median(times)), results.one(at_share(times, 0.99))] if times else [None, None]  # noqa: E731
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    rows = [[name, *(cell for each in found.values() for cell in cells(each.get(name)))] for name in names]
    head = ["page", *(f"{store} {part}" for store in found for part in ("p50", "p99"))]
    yield "lists", results.table(f"Lists with {bindings:,} bindings and {intercepts:,} intercepts (ms)", head, rows)
