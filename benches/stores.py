"""The cost of the stores: processor time of a known key, first uses a second, the time that Redis and
PostgreSQL add for keys outside the process cache, and a database with many bindings.

Starts its own PostgreSQL and Redis, and throws them away.
"""

import contextlib
import hashlib
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request

import harness
import results
from harness import ROOT, ask_each, at_share, lua
from proxies import QUICKSTART, SECRET, SQLITE, Keylatch

sys.path.insert(0, str(ROOT / "tests"))

from support.postgres import Postgres  # noqa: E402
from support.redis import Redis  # noqa: E402

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
KNOWN_KEY = f"""wrk.headers['Authorization'] = '{harness.KEY}'
function done(s, l) io.write(string.format('RESULT %.3f\\n', l:percentile(99) / 1e3)) end
"""


def said(out):
    return next(line.split()[1:] for line in out.splitlines() if line.startswith("RESULT"))


def known(bench, kinds):
    """The processor time of a POST with a known key, on the whole chain."""
    proxies = {name: Keylatch(bench, storage=storage, redis=redis, secrets=SECRET if "postgres" in storage else "{}") for name, (storage, redis) in kinds.items()}
    times = harness.interleave(bench, proxies, lambda proxy: {"cpu": harness.cpu_us(bench, proxy)})
    rows = [[name, results.figure(each["cpu"]), results.difference(each["cpu"], times["memory"]["cpu"])] for name, each in times.items()]
    return results.table("Processor time of a POST with a known key (µs)", ["store", "µs", "beside memory"], rows)


def first_uses(bench, kinds):
    script, rows = lua(bench.folder, "new", NEW_KEYS), []
    for name, (storage, redis) in kinds.items():
        replica = Keylatch(bench, storage=storage, redis=redis, secrets=SECRET, workers=0, cores=harness.BOTH_CORES)
        try:
            command = ["wrk", "-t1", "-c64", f"-d{2 * bench.seconds}s", "-s", script, f"http://127.0.0.1:{replica.port}"]
            rate, bad, p99 = said(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout)
            if bad != "0":
                raise SystemExit(f"{bad} first uses failed")
            rows.append([name, results.one(float(rate)), results.one(float(p99))])
        finally:
            replica.stop()
    return results.table("First uses, 64 at a time, with everything on the same cores", ["store", "a second", "p99, ms"], rows)


def misses(bench, plain, shared):
    """The time of a request with a key outside the process cache, by the store that has it."""
    warm, asking, without = (Keylatch(bench, storage=storage, redis=redis, secrets=SECRET) for storage, redis in (shared, shared, plain))
    keys = [f"sk-bench-{n:05}-abcdefgh" for n in range(1000 if bench.quick else 3000)]
    try:
        # The first read tells a replica from which time on it may trust rows in Redis.
        for replica in (warm, asking):
            ask_each(replica.port, ["sk-unknown-abcdefgh"])
        time.sleep(1.2)
        ask_each(warm.port, keys)
        time.sleep(1)
        times = {"PostgreSQL": ask_each(without.port, keys), "Redis": ask_each(asking.port, keys), "the process": ask_each(asking.port, keys)}
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{asking.admin}/metrics").read().decode()
        answered = int(float(next(line.split()[-1] for line in metrics.splitlines() if 'result="shared"' in line)))
    finally:
        for replica in (warm, asking, without):
            replica.stop()
    if answered < len(keys) * 9 // 10:
        raise SystemExit(f"Redis answered only {answered} of {len(keys)} requests")
    return added("Time of a request by the store that knows its key (ms)", "known to", "the process", times)


def added(title, first, base, series):
    """A table of times of single requests, beside the series `base`."""
    least = statistics.median(series[base])
    rows = [[name, results.one(statistics.median(times)), results.one(at_share(times, 0.99)), {**results.one(statistics.median(times) - least), "signed": True}] for name, times in series.items()]
    return results.table(title, [first, "p50", "p99", "p50 added"], rows)


def many(bench, postgres, plain):
    rows, size = [], 100_000 if bench.quick else 1_000_000
    fill = f"""INSERT INTO bindings (key_id, hint, rule, networks, version, made_by, created_at, last_used_at)
        SELECT sha256((i::text || 'x')::bytea), 'sk-…', 'single', ARRAY['10.0.0.1'::inet]::cidr[], i, 'first_use', now(), now() FROM generate_series(1, {size}) i"""
    script = lua(bench.folder, "known", KNOWN_KEY)
    for name, storage in (("PostgreSQL", plain[0]), ("SQLite", SQLITE)):
        for filled in (0, size):
            if name == "PostgreSQL":
                postgres.psql("TRUNCATE bindings", *([fill, "ANALYZE bindings"] if filled else []), timeout=600)
            replica = Keylatch(bench, QUICKSTART, storage, secrets=SECRET)
            try:
                if name == "SQLite" and filled:
                    replica.stop()
                    fill_sqlite(replica.folder / "bench.db", filled)
                    replica.begin()
                cold = ask_each(replica.port, [f"sk-cold-{n:04}-abcdefgh" for n in range(1000)])
                replica.load(1, bench.folder)
                p99 = float(said(harness.wrk(replica.port, bench.seconds, 16, script, "/v1/models"))[0])
                memory = harness.memory_kib(replica.process.pid) / 1024
                rows.append([name, f"{filled:,}", results.one(p99), results.one(statistics.median(cold)), results.one(memory)])
            finally:
                replica.stop()
    return results.table("Bindings in the database", ["store", "bindings", "p99 of a known key at full load, ms", "p50 of a first use, ms", "memory, MiB"], rows)


def fill_sqlite(path, rows):
    """Adds bindings of other keys to a stopped process's database."""
    values = {"hint": "sk-…", "rule": "single", "networks": "10.0.0.1/32", "made_by": "first_use", "confirmed": 1, "banned": 0, "note": "", "labels": "", "seen_ms": ""}
    now_ms = int(time.time() * 1000)
    with contextlib.closing(sqlite3.connect(path)) as database:
        names = [column[1] for column in database.execute("PRAGMA table_info(bindings)")]

        def binding_row(n):
            known = {**values, "key_id": hashlib.sha256(b"%dx" % n).digest(), "version": n, "created_ms": now_ms, "last_used_ms": now_ms}
            return [known.get(name) for name in names]

        database.executemany(f"INSERT INTO bindings ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", map(binding_row, range(rows)))
        database.commit()


def tables(bench):
    postgres = Postgres()
    with contextlib.ExitStack() as stack:
        stack.push(postgres)
        postgres.start("-c", "fsync=on", "-c", "synchronous_commit=on")
        redis = stack.enter_context(Redis())
        plain = (f'{{postgres: {{url: "{postgres.url}"}}}}', "")
        shared = (plain[0], f'redis: {{url: "{redis.url}"}}')
        kinds = {"memory": ("memory", ""), "SQLite": (SQLITE, ""), "PostgreSQL": plain, "PostgreSQL and Redis": shared}
        yield "stores-known", known(bench, kinds)
        yield "stores-first-uses", first_uses(bench, {name: kind for name, kind in kinds.items() if name != "memory"})
        postgres.psql("TRUNCATE bindings")
        redis.cli("FLUSHALL")
        yield "stores-misses", misses(bench, plain, shared)
        yield "stores-many", many(bench, postgres, plain)
