"""Measures the cost of the stores, in one run: processor time of a known key compared with the
in-memory store, first uses a second, and the time that Redis and PostgreSQL add for keys that are
not in the process cache.

Prints Markdown tables. Needs wrk, nginx, PostgreSQL, Redis; starts its own and throws them away.

    python3 benches/stores.py [--rounds 5]
"""

import contextlib
import hashlib
import sqlite3
import statistics
import subprocess
import sys
import time

import run
from alone import SQLITE, Keylatch, ask_each, in_turns, measure, show_added, show_turns

sys.path.insert(0, str(run.ROOT / "tests"))

from support.postgres import Postgres  # noqa: E402
from support.redis import Redis  # noqa: E402

SECRET = "{key_hmac: 0123456789abcdef0123456789abcdef}"
FILTERS = """      - bearer: {accept: [well_formed]}
      - key_binding: {new_keys_per_client: 1000000000/s}
      - rate_limit: {per: key, limit: 1000000/s}
      - sse_keepalive: {}
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


def keylatch(folder, upstream, storage, redis="", secrets=SECRET, **more):
    return Keylatch(folder, upstream, FILTERS, storage, redis, secrets, **more)


def bench_known(kinds, rounds, upstream, folder):
    """The processor time of a POST with a known key, on the whole chain."""
    times = in_turns({name: keylatch(folder, upstream, *kind) for name, kind in kinds.items()}, rounds, folder)
    show_turns("Processor time of a POST with a known key", "beside memory", times, rounds, lambda pairs: f"{statistics.median(a - b for a, b in pairs):+.1f}")


def bench_first_uses(kinds, upstream, folder):
    script = folder / "new.lua"
    script.write_text(NEW_KEYS)
    print("\n### First uses, 64 at a time, with everything on the same cores\n\n| store | a second | p99, ms |\n| --- | --- | --- |")
    for name, kind in kinds.items():
        replica = keylatch(folder, upstream, *kind, workers=0, pinned=False)
        try:
            command = ["wrk", "-t1", "-c64", "-d8s", "-s", script, f"http://127.0.0.1:{replica.port}"]
            said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
            rate, bad, p99 = next(line.split()[1:] for line in said.splitlines() if line.startswith("RESULT"))
            if bad != "0":
                raise SystemExit(f"{bad} first uses failed")
            print(f"| {name} | {rate} | {p99} |", flush=True)
        finally:
            replica.stop()


def bench_misses(postgres, redis, upstream, folder):
    """The time of a request with a key outside the process cache, by the store that has it."""
    storage, section = f'{{postgres: {{url: "{postgres.url}"}}}}', f'redis: {{url: "{redis.url}"}}'
    warm = keylatch(folder, upstream, storage, section)
    asking = keylatch(folder, upstream, storage, section)
    without = keylatch(folder, upstream, storage)
    keys = [f"sk-bench-{n:05}-abcdefgh" for n in range(3000)]
    try:
        # The first read tells a replica from which time on it may trust rows in Redis.
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
    show_added(f"Time of a request by who knows its key, one after the other (ms; Redis answered {answered})", "the process", rows)


def bench_many(postgres, upstream, folder, rows=1_000_000):
    """Times of a cached key and of keys only in the database, with `rows` other bindings; and the
    memory of the process."""
    print(f"\n### With {rows:,} bindings in the database\n")
    print("| store | bindings | p50, ms | p99 of a known key, ms | a second | p50 of a cold key, ms | process, MiB |\n| --- | --- | --- | --- | --- | --- | --- |")
    made = "(i::text || 'x')::bytea"
    fill = f"""INSERT INTO bindings (key_id, hint, rule, networks, version, made_by, created_at, last_used_at)
        SELECT sha256({made}), 'sk-…', 'single', ARRAY['10.0.0.1'::inet]::cidr[], i, 'first_use', now(), now() FROM generate_series(1, {rows}) i"""
    for store in ("PostgreSQL", "SQLite"):
        for filled in (False, True):
            kind = f'{{postgres: {{url: "{postgres.url}"}}}}' if store == "PostgreSQL" else SQLITE
            if store == "PostgreSQL":
                postgres.psql("TRUNCATE bindings", *([fill, "ANALYZE bindings"] if filled else []), timeout=600)
            replica = keylatch(folder, upstream, kind)
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
        names = [column[1] for column in database.execute("PRAGMA table_info(bindings)")]
        values = {"hint": "sk-…", "rule": "single", "networks": "10.0.0.1/32", "made_by": "first_use", "confirmed": 1, "banned": 0, "note": "", "labels": "", "seen_ms": ""}
        now_ms = int(time.time() * 1000)
        def binding_row(n):
            known = {**values, "key_id": hashlib.sha256(b"%dx" % n).digest(), "version": n, "created_ms": now_ms, "last_used_ms": now_ms}
            return [known.get(name) for name in names]
        database.executemany(f"INSERT INTO bindings ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", map(binding_row, range(rows)))
        database.commit()


def benches(rounds, upstream, folder, stack):
    postgres = Postgres()
    stack.push(postgres)
    postgres.start("-c", "fsync=on", "-c", "synchronous_commit=on")
    redis = stack.enter_context(Redis())
    stored = f'{{postgres: {{url: "{postgres.url}"}}}}'
    kinds = {
        "memory": ("memory", "", "{}"),
        "SQLite": (SQLITE, "", "{}"),
        "PostgreSQL": (stored,),
        "PostgreSQL and Redis": (stored, f'redis: {{url: "{redis.url}"}}'),
    }
    bench_known(kinds, rounds, upstream, folder)
    bench_first_uses({name: kinds[name] for name in ("SQLite", "PostgreSQL", "PostgreSQL and Redis")}, upstream, folder)
    postgres.psql("TRUNCATE bindings")
    redis.cli("FLUSHALL")
    bench_misses(postgres, redis, upstream, folder)
    bench_many(postgres, upstream, folder)


if __name__ == "__main__":
    measure(__doc__, benches)
