"""Measures the cost of access checks: a cached JWT, ten rules and a limit on the whole chain,
compared with a bare Pingora; the time that a limit shared through Redis adds; and, by `cargo
bench`, the first verification of a JWT.

Prints Markdown tables. Needs wrk, nginx, Redis; starts its own and throws them away.

    python3 benches/access.py [--rounds 5]
"""

import base64
import hashlib
import hmac
import json
import statistics
import subprocess
import sys
import time

import run
from alone import Keylatch, ask_each, in_turns, measure, show_added, show_turns

sys.path.insert(0, str(run.ROOT / "tests"))

from support.redis import Redis  # noqa: E402

SECRET = "0123456789abcdef0123456789abcdef"
JWT = f"      - bearer: {{accept: [{{jwt: {{issuer: https://id.example, audiences: [api], algorithms: [HS256], key: {{secret: {SECRET}}}}}}}]}}\n"
FORM = "      - bearer: {accept: [well_formed]}\n"
BINDING = "      - key_binding: {}\n"
LIMIT = "      - rate_limit: {per: key, limit: 1000000/s%s}\n"
STREAMS = "      - sse_keepalive: {}\n"
# The rules of the recipes, and a few more.
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
    """A token signed with HS256."""
    part = lambda value: base64.urlsafe_b64encode(value).rstrip(b"=").decode()
    usual = {"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": int(time.time()) + 36_000, "scope": "chat images", "team": "core", "level": 7}
    message = f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps({**usual, **claims}).encode())}"
    return f"{message}.{part(hmac.new(SECRET.encode(), message.encode(), hashlib.sha256).digest())}"


def bench_chain(rounds, upstream, folder):
    run.KEY = f"Bearer {token()}"
    chains = {
        "well-formed bearer, no rules": FORM + BINDING + LIMIT % "" + STREAMS,
        "cached JWT, no rules": JWT + BINDING + LIMIT % "" + STREAMS,
        "cached JWT, ten rules": JWT + BINDING + RULES + LIMIT % "" + STREAMS,
    }
    proxies = {"bare Pingora": run.Proxy("Pingora", upstream, folder)}
    proxies.update((name, Keylatch(folder, upstream, filters)) for name, filters in chains.items())
    times = in_turns(proxies, rounds, folder)
    show_turns("Processor time of a POST through the whole chain", "to bare Pingora", times, rounds, lambda pairs: f"{statistics.median(a / b for a, b in pairs):.2f}")


def bench_shared(redis, upstream, folder):
    shared = {name: Keylatch(folder, upstream, FORM + filters, redis=f'redis: {{url: "{redis.url}"}}' if "shared" in filters else "") for name, filters in
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
    show_added("Time of a request by where it is counted, one after the other (ms)", "no limit, 1 keys", rows)


def benches(rounds, upstream, folder, stack):
    redis = stack.enter_context(Redis())
    bench_chain(rounds, upstream, folder)
    bench_shared(redis, upstream, folder)


if __name__ == "__main__":
    measure(__doc__, benches)
    subprocess.run(["cargo", "bench", "--locked", "--quiet", "--bench", "bearer"], cwd=run.ROOT, check=True)
