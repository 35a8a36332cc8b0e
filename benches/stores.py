"""Measures what the stores cost Keylatch, in one run: processor time of a known key beside the in-memory store, first
uses a second, and the time that Redis and PostgreSQL add where the process does not know a key.

Prints Markdown tables. Needs wrk, nginx, PostgreSQL, Redis; starts its own and throws them away.

    python3 benches/stores.py [--rounds 5]
"""

import argparse
import contextlib
import hashlib
import http.client
import os
import pathlib
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

import run

sys.path.insert(0, str(run.ROOT / "tests"))

from support.postgres import Postgres  # noqa: E402
from support.redis import Redis  # noqa: E402

SECRET = "{key_hmac: 0123456789abcdef0123456789abcdef}"
CONFIG = """
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: {storage}
{redis}
secrets: {secrets}
workers: {workers}
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
filters: [client_ip: {{}}, request_id: {{}}, flood_guard: {{limit: 10000000/s}}]
routes:
  - name: api
    upstream: model
    filters:
      - bearer: {{accept: [well_formed]}}
      - key_binding: {{new_keys_per_client: 1000000000/s}}
      - rate_limit: {{per: key, limit: 1000000/s}}
      - sse_keepalive: {{}}
"""
NEW_KEYS = """
local n = 0
function init() math.randomseed(os.time()); salt = math.random(1e9) end
function request()
  n = n + 1
  wrk.headers["Authorization"] = "Bearer sk-new-" .. salt .. "-" .. n .. "-abcdefgh"
  return wrk.format("POST", "/v1/chat/completions", nil, "{}")
end
function done(s, l) io.write(string.format("RESULT %.0f %d %.1f\\n", s.requests / s.duration * 1e6, s.errors.status, l:percentile(99) / 1e3)) end
"""


class Keylatch:
    def __init__(self, folder, upstream, storage, redis="", secrets=SECRET, workers=1, pinned=True):
        self.folder, self.port, self.admin = pathlib.Path(tempfile.mkdtemp(dir=folder)), run.free_port(), run.free_port()
        path = self.folder / "keylatch.yaml"
        values = dict(port=self.port, admin=self.admin, upstream=upstream, storage=storage, redis=redis, secrets=secrets, workers=workers)
        path.write_text(CONFIG.format(**values))
        self.path, self.pinned = path, pinned
        self.begin()

    def begin(self):
        arguments, env = [run.RELEASE / "keylatch", "run", "-c", self.path], {**os.environ, "KEYLATCH_RUNTIME_DIR": str(self.folder)}
        if self.pinned:
            self.process = run.spawn(arguments, run.PROXY_CORE, self.folder, env=env)
        else:
            log = open(self.folder / "log", "ab")
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=self.folder, env=env)
        run.wait_listen(self.port, self.process)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def bench_known(kinds, rounds, upstream, folder):
    """The processor time of a POST with a known key, on the whole chain."""
    replicas = {name: Keylatch(folder, upstream, *kind) for name, kind in kinds.items()}
    times = {name: [] for name in kinds}
    try:
        for replica in replicas.values():
            run.load(replica.port, "POST", 1, folder, "full")
        for _ in range(rounds):
            for name, replica in replicas.items():
                before = run.cpu_s(replica.process.pid)
                answered = run.load(replica.port, "POST", 3, folder, "full")
                times[name].append((run.cpu_s(replica.process.pid) - before) / answered * 1e6)
    finally:
        for replica in replicas.values():
            replica.stop()
    print(f"\n### Processor time of a POST with a known key (µs, median of {rounds} rounds; in brackets min–max)\n")
    print("| store | whole chain | beside memory |\n| --- | --- | --- |")
    for name, each in times.items():
        more = statistics.median(a - b for a, b in zip(each, times["memory"]))
        print(f"| {name} | {statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f}) | {more:+.1f} |", flush=True)


def bench_first_uses(kinds, upstream, folder):
    script = folder / "new.lua"
    script.write_text(NEW_KEYS)
    print("\n### First uses, 64 at a time, with everything on the same cores\n\n| store | a second | p99, ms |\n| --- | --- | --- |")
    for name, kind in kinds.items():
        replica = Keylatch(folder, upstream, *kind, workers=0, pinned=False)
        try:
            command = ["wrk", "-t1", "-c64", "-d8s", "-s", script, f"http://127.0.0.1:{replica.port}"]
            said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
            rate, bad, p99 = next(line.split()[1:] for line in said.splitlines() if line.startswith("RESULT"))
            if bad != "0":
                raise SystemExit(f"{bad} first uses failed")
            print(f"| {name} | {rate} | {p99} |", flush=True)
        finally:
            replica.stop()


def ask_each(port, keys):
    """The time of each request, one after the other on one connection, in ms."""
    connection, times = http.client.HTTPConnection("127.0.0.1", port), []
    for key in keys:
        began = time.perf_counter()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        times.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"a request was answered with {answer.status}")
    connection.close()
    return times


def bench_misses(postgres, redis, upstream, folder):
    """What a request takes whose key the process does not know, by who does."""
    storage, section = f'{{postgres: {{url: "{postgres.url}"}}}}', f'redis: {{url: "{redis.url}"}}'
    warm = Keylatch(folder, upstream, storage, section)
    asking = Keylatch(folder, upstream, storage, section)
    without = Keylatch(folder, upstream, storage)
    keys = [f"sk-bench-{n:05}-abcdefgh" for n in range(3000)]
    try:
        # The first look tells a replica since when it may believe.
        for replica in (warm, asking):
            ask_each(replica.port, ["sk-unknown-abcdefgh"])
        time.sleep(1.2)
        ask_each(warm.port, keys)
        time.sleep(1)
        rows = {"PostgreSQL": ask_each(without.port, keys), "Redis": ask_each(asking.port, keys), "the process": ask_each(asking.port, keys)}
        shared = run.urllib.request.urlopen(f"http://127.0.0.1:{asking.admin}/metrics").read().decode()
        answered = next(line.split()[-1] for line in shared.splitlines() if 'result="shared"' in line)
    finally:
        for replica in (warm, asking, without):
            replica.stop()
    print(f"\n### Time of a request by who knows its key, one after the other (ms; Redis answered {answered})\n")
    print("| known to | p50 | p99 | p50 added |\n| --- | --- | --- | --- |")
    base = statistics.median(rows["the process"])
    for name, times in rows.items():
        times.sort()
        print(f"| {name} | {statistics.median(times):.3f} | {times[len(times) * 99 // 100]:.3f} | {statistics.median(times) - base:+.3f} |", flush=True)


def bench_many(postgres, upstream, folder, rows=1_000_000):
    """A known key, and keys that only the database knows, beside so many other bindings; and what the process then takes."""
    print(f"\n### With {rows:,} bindings in the database\n")
    print("| store | bindings | p50, ms | p99 of a known key, ms | a second | p50 of a cold key, ms | process, MiB |\n| --- | --- | --- | --- | --- | --- | --- |")
    made = "(i::text || 'x')::bytea"
    fill = f"""INSERT INTO bindings (key_id, hint, rule, networks, version, made_by, created_at, last_used_at)
        SELECT sha256({made}), 'sk-…', 'single', ARRAY['10.0.0.1'::inet]::cidr[], i, 'first_use', now(), now() FROM generate_series(1, {rows}) i"""
    for store in ("PostgreSQL", "SQLite"):
        for filled in (False, True):
            kind = f'{{postgres: {{url: "{postgres.url}"}}}}' if store == "PostgreSQL" else "{sqlite: {path: bench.db}}"
            if store == "PostgreSQL":
                postgres.psql("TRUNCATE bindings", *([fill, "ANALYZE bindings"] if filled else []), timeout=600)
            replica = Keylatch(folder, upstream, kind)
            try:
                if store == "SQLite" and filled:
                    replica.stop()
                    fill_sqlite(replica.folder / "bench.db", rows)
                    replica.begin()
                cold = ask_each(replica.port, [f"sk-cold-{n:04}-abcdefgh" for n in range(1000)])
                run.load(replica.port, "POST", 1, folder, "full")
                script = folder / "known.lua"
                script.write_text(f"wrk.headers['Authorization'] = '{run.KEY}'\nfunction done(s, l) io.write(string.format('RESULT %.3f %.3f %.0f\\n', l:percentile(50) / 1e3, l:percentile(99) / 1e3, s.requests / s.duration * 1e6)) end\n")
                command = ["taskset", "-c", str(run.LOAD_CORE), "wrk", "-t1", "-c16", "-d5s", "--latency", "-s", script, f"http://127.0.0.1:{replica.port}/v1/models"]
                said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
                p50, p99, rate = next(line.split()[1:] for line in said.splitlines() if line.startswith("RESULT"))
                memory = run.rss_kib(replica.process.pid) / 1024
                print(f"| {store} | {rows if filled else 0:,} | {p50} | {p99} | {rate} | {statistics.median(cold):.3f} | {memory:.0f} |", flush=True)
            finally:
                replica.stop()


def fill_sqlite(path, rows):
    with contextlib.closing(sqlite3.connect(path)) as database:
        names = [row[1] for row in database.execute("PRAGMA table_info(bindings)")]
        values = {"hint": "sk-…", "rule": "single", "networks": "10.0.0.1/32", "made_by": "first_use", "confirmed": 1, "banned": 0, "note": "", "labels": "", "seen_ms": ""}
        now_ms = int(time.time() * 1000)
        def row(n):
            known = {**values, "key_id": hashlib.sha256(b"%dx" % n).digest(), "version": n, "created_ms": now_ms, "last_used_ms": now_ms}
            return [known.get(name) for name in names]
        database.executemany(f"INSERT INTO bindings ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", map(row, range(rows)))
        database.commit()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream, process = run.upstream_nginx(folder)
        stack.callback(process.terminate)
        postgres = Postgres()
        stack.push(postgres)
        postgres.start("-c", "fsync=on", "-c", "synchronous_commit=on")
        redis = stack.enter_context(Redis())
        stored = f'{{postgres: {{url: "{postgres.url}"}}}}'
        kinds = {
            "memory": ("memory", "", "{}"),
            "SQLite": ("{sqlite: {path: bench.db}}", "", "{}"),
            "PostgreSQL": (stored,),
            "PostgreSQL and Redis": (stored, f'redis: {{url: "{redis.url}"}}'),
        }
        bench_known(kinds, options.rounds, upstream, folder)
        bench_first_uses({name: kinds[name] for name in ("SQLite", "PostgreSQL", "PostgreSQL and Redis")}, upstream, folder)
        postgres.psql("TRUNCATE bindings")
        redis.cli("FLUSHALL")
        bench_misses(postgres, redis, upstream, folder)
        bench_many(postgres, upstream, folder)


if __name__ == "__main__":
    main()
