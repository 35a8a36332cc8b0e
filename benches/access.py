"""Measures what it costs to check who may pass: a cached JWT, ten rules and a limit on the whole chain, beside a bare
Pingora; the time that a limit shared through Redis adds; and, by `cargo bench`, a JWT that is verified for the first time.

Prints Markdown tables. Needs wrk, nginx, Redis; starts its own and throws them away.

    python3 benches/access.py [--rounds 5]
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import run
from stores import ask_each

sys.path.insert(0, str(run.ROOT / "tests"))

from support.redis import Redis  # noqa: E402

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: {{sqlite: {{path: bench.db}}}}
{redis}
workers: 1
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
filters: [client_ip: {{}}, request_id: {{}}, flood_guard: {{limit: 10000000/s}}]
routes:
  - name: api
    upstream: model
    filters:
{filters}
"""
JWT = f"      - bearer: {{accept: [{{jwt: {{issuer: https://id.example, audiences: [api], algorithms: [HS256], key: {{secret: {SECRET}}}}}}}]}}\n"
FORM = "      - bearer: {accept: [well_formed]}\n"
BINDING = "      - key_binding: {}\n"
LIMIT = "      - rate_limit: {per: key, limit: 1000000/s%s}\n"
STREAMS = "      - sse_keepalive: {}\n"
# What the recipes do, and a little more.
RULES = """      - rules:
          - {name: ping, if: 'request.path == "/v1/ping"', allow: {}}
          - {name: app, if: 'request.user_agent.startsWith("curl/")', deny: {}}
          - {name: traversal, if: 'request.decoded.matches(r"(^|[/?&=:;, ])\\.\\.(/|;|$$)")', deny: {}}
          - {name: dots, if: 'request.decoded.matches(r"/\\.(env|git|svn)")', deny: {}}
          - {name: code, if: 'request.decoded.matches(r"(eval|exec|system)\\s*\\(|<script")', deny: {}}
          - {name: country, if: 'client.country in ["KP", "XX"]', deny: {}}
          - {name: network, if: 'client.address.inNetwork("203.0.113.0/24", "198.51.100.0/24")', deny: {}}
          - {name: scope, if: '!("chat" in identity.scopes)', deny: {}}
          - {name: team, if: 'identity.claims.team == "blocked" || identity.claims.level < 3', deny: {}}
          - {name: large, if: 'request.size > 10000000 && request.method == "POST"', tag: large}
"""


def token(**claims):
    """Signed with HS256."""
    part = lambda value: base64.urlsafe_b64encode(value).rstrip(b"=").decode()
    usual = {"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": int(time.time()) + 36_000, "scope": "chat images", "team": "core", "level": 7}
    message = f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps({**usual, **claims}).encode())}"
    return f"{message}.{part(hmac.new(SECRET.encode(), message.encode(), hashlib.sha256).digest())}"


class Keylatch:
    def __init__(self, folder, upstream, filters, redis=""):
        self.folder, self.port, self.admin = pathlib.Path(tempfile.mkdtemp(dir=folder)), run.free_port(), run.free_port()
        path = self.folder / "keylatch.yaml"
        path.write_text(CONFIG.format(port=self.port, admin=self.admin, upstream=upstream, filters=filters, redis=redis))
        env = {**os.environ, "KEYLATCH_RUNTIME_DIR": str(self.folder)}
        self.process = run.spawn([run.RELEASE / "keylatch", "run", "-c", path], run.PROXY_CORE, self.folder, env=env)
        run.wait_listen(self.port, self.process)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def bench_chain(rounds, upstream, folder):
    run.KEY = f"Bearer {token()}"
    chains = {
        "well-formed bearer, no rules": FORM + BINDING + LIMIT % "" + STREAMS,
        "cached JWT, no rules": JWT + BINDING + LIMIT % "" + STREAMS,
        "cached JWT, ten rules": JWT + BINDING + RULES + LIMIT % "" + STREAMS,
    }
    proxies = {"bare Pingora": run.Proxy("Pingora", upstream, folder)}
    proxies.update((name, Keylatch(folder, upstream, filters)) for name, filters in chains.items())
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
    print(f"\n### Processor time of a POST through the whole chain (µs, median of {rounds} rounds; in brackets min–max)\n")
    print("| chain | µs | to bare Pingora |\n| --- | --- | --- |")
    for name, each in times.items():
        ratio = statistics.median(a / b for a, b in zip(each, times["bare Pingora"]))
        print(f"| {name} | {statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f}) | {ratio:.2f} |", flush=True)


def bench_shared(redis, upstream, folder):
    shared = {name: Keylatch(folder, upstream, FORM + filters, f'redis: {{url: "{redis.url}"}}' if "shared" in filters else "") for name, filters in
              (("no limit", STREAMS), ("local", LIMIT % ""), ("shared", LIMIT % ", scope: shared"))}
    one, many = ["sk-bench-abcdefgh"] * 3000, [f"sk-bench-{n:05}-abcdefgh" for n in range(10_000)]
    rows = {}
    try:
        for replica in shared.values():
            ask_each(replica.port, one[:200])
        for name, keys in (("no limit", one), ("local", one), ("shared", one), ("shared", many)):
            rows[f"{name}, {len(set(keys)):,} keys"] = ask_each(shared[name].port, keys)
    finally:
        for replica in shared.values():
            replica.stop()
    print("\n### Time of a request by where it is counted, one after the other (ms)\n\n| limit | p50 | p99 | p50 added |\n| --- | --- | --- | --- |")
    base = statistics.median(rows["no limit, 1 keys"])
    for name, times in rows.items():
        times.sort()
        print(f"| {name} | {statistics.median(times):.3f} | {times[len(times) * 99 // 100]:.3f} | {statistics.median(times) - base:+.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream, process = run.upstream_nginx(folder)
        stack.callback(process.terminate)
        redis = stack.enter_context(Redis())
        bench_chain(options.rounds, upstream, folder)
        bench_shared(redis, upstream, folder)
    subprocess.run(["cargo", "bench", "--locked", "--quiet", "--bench", "bearer"], cwd=run.ROOT, check=True)


if __name__ == "__main__":
    main()
