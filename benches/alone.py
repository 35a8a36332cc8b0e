"""Helpers of the benchmarks of Keylatch: a configured process, processor times of several processes
measured in turns, and the time of single requests."""

import argparse
import contextlib
import http.client
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import run

SQLITE = "{sqlite: {path: bench.db}}"
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
{filters}"""


class Keylatch:
    def __init__(self, folder, upstream, filters, storage=SQLITE, redis="", secrets="{}", workers=1, pinned=True):
        self.folder, self.port, self.admin = pathlib.Path(tempfile.mkdtemp(dir=folder)), run.free_port(), run.free_port()
        path = self.folder / "keylatch.yaml"
        values = dict(port=self.port, admin=self.admin, upstream=upstream, storage=storage, redis=redis, secrets=secrets, workers=workers)
        path.write_text(CONFIG.format(**values, filters=filters))
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


def in_turns(proxies, rounds, folder):
    """The processor time of a POST through each proxy, in µs, for every round. Stops the
    proxies."""
    times = {name: [] for name in proxies}
    try:
        for proxy in proxies.values():
            run.load(proxy.port, "POST", 1, folder, "full")
        for _ in range(rounds):
            for name, proxy in proxies.items():
                before = run.cpu_s(proxy.process.pid)
                answered = run.load(proxy.port, "POST", 3, folder, "full")
                times[name].append((run.cpu_s(proxy.process.pid) - before) / answered * 1e6)
    finally:
        for proxy in proxies.values():
            proxy.stop()
    return times


def show_turns(title, compared, times, rounds, compare):
    """Prints a table. `compare` computes a figure from the time of a proxy and that of the first
    one in the same round."""
    base = next(iter(times.values()))
    print(f"\n### {title} (µs, median of {rounds} rounds; in brackets min–max)\n\n| | µs | {compared} |\n| --- | --- | --- |")
    for name, each in times.items():
        print(f"| {name} | {statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f}) | {compare(zip(each, base))} |", flush=True)


def ask_each(port, keys):
    """The time of each request in ms, one after the other on one connection."""
    connection, times = http.client.HTTPConnection("127.0.0.1", port), []
    for key in keys:
        began = time.perf_counter()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        times.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"a request got status {answer.status}")
    connection.close()
    return times


def show_added(title, base, rows):
    """Prints the times of several series of requests, and their difference to the series `base`."""
    print(f"\n### {title}\n\n| | p50 | p99 | p50 added |\n| --- | --- | --- | --- |")
    least = statistics.median(rows[base])
    for name, times in rows.items():
        times.sort()
        print(f"| {name} | {statistics.median(times):.3f} | {times[len(times) * 99 // 100]:.3f} | {statistics.median(times) - least:+.3f} |", flush=True)


def measure(description, benches):
    """Reads the arguments, starts the upstream, and calls `benches` with the rounds, the port, a
    folder and an exit stack."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream, process = run.upstream_nginx(folder)
        stack.callback(process.terminate)
        benches(options.rounds, upstream, folder, stack)
