"""The cost of access checks: a cached JWT, ten rules, and a limit on the whole chain beside a bare
Pingora; and the time that a limit shared through Redis adds.
"""

import base64
import hashlib
import hmac
import json
import sys
import time

import harness
import results
from harness import ROOT, ask_each
from proxies import Keylatch, Pingora
from stores import added

sys.path.insert(0, str(ROOT / "tests"))

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
    part = lambda value: base64.urlsafe_b64encode(value).rstrip(b"=").decode()  # noqa: E731
    usual = {"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": int(time.time()) + 36_000, "scope": "chat images", "team": "core", "level": 7}
    message = f"{part(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{part(json.dumps({**usual, **claims}).encode())}"
    return f"{message}.{part(hmac.new(SECRET.encode(), message.encode(), hashlib.sha256).digest())}"


def chain(bench):
    chains = {
        "well-formed bearer, binding, limit": FORM + BINDING + LIMIT % "" + STREAMS,
        "cached JWT, binding, limit": JWT + BINDING + LIMIT % "" + STREAMS,
        "cached JWT, binding, ten rules, limit": JWT + BINDING + RULES + LIMIT % "" + STREAMS,
    }
    proxies = {"Pingora, bare": Pingora(bench), **{name: Keylatch(bench, filters) for name, filters in chains.items()}}
    for proxy in proxies.values():
        proxy.headers = {"Authorization": f"Bearer {token()}"}
    times = harness.interleave(bench, proxies, lambda proxy: {"cpu": harness.cpu_us(bench, proxy)})
    base = times["Pingora, bare"]["cpu"]
    rows = [[name, results.figure(each["cpu"]), results.ratio(each["cpu"], base)] for name, each in times.items()]
    return results.table("Processor time of a POST through access checks (µs)", ["chain", "µs", "to bare Pingora"], rows)


def limits(bench):
    one, many = ["sk-bench-abcdefgh"] * (1000 if bench.quick else 3000), [f"sk-bench-{n:05}-abcdefgh" for n in range(2000 if bench.quick else 10_000)]
    with Redis() as redis:
        section = f'redis: {{url: "{redis.url}"}}'
        replicas = {"no limit": Keylatch(bench, FORM + STREAMS), "local": Keylatch(bench, FORM + LIMIT % "" + STREAMS), "shared": Keylatch(bench, FORM + LIMIT % ", scope: shared" + STREAMS, redis=section)}
        series = {}
        try:
            for replica in replicas.values():
                ask_each(replica.port, one[:200])
            for name, keys in (("no limit", one), ("local", one), ("shared", one), ("shared", many)):
                series[f"{name}, {len(set(keys)):,} keys" if len(set(keys)) > 1 else f"{name}, one key"] = ask_each(replicas[name].port, keys)
        finally:
            for replica in replicas.values():
                replica.stop()
    return added("Time of a request by the scope of its limit (ms)", "limit", "no limit, one key", series)


def tables(bench):
    yield "access", chain(bench)
    yield "limits", limits(bench)
