"""Rules, recipes, and small filters, as clients see them."""

import hashlib
import json
import os
import re
import subprocess
import time

import openai
import pytest
from support import raw
from support.keylatch import BINARY, ROOT, wait_for
from support.stores import send_request
from support.upstreams import Scripted, chunk, plain

RULES = "      - rules:\n"
CLOUDFLARE = "{networks: [loopback], behind_cloudflare: [loopback]}"


def rule(name, condition, action):
    return f"          - {{name: {name}, if: {json.dumps(condition)}, {action}}}\n"


def test_actions_of_rules(start, echo_upstream):
    rules = (
        RULES
        + rule("ping", "request.path == '/v1/ping'", "allow: {}")
        + rule("app", "!request.user_agent.startsWith('app/')", 'deny: {status: 451, message: "Use the application."}')
        + rule("big", "request.size > 10", "tag: big")
        + rule("quiet", "'big' in tags", "deny: {}, shadow: true")
        + rule("images", "request.path.startsWith('/v1/images')", "limit: images")
        + "      - rate_limit: {per: client, limit: 100/min, and: [{name: images, per: client, limit: 2/h, chosen: true}]}\n"
    )
    replica = start(echo_upstream, route_filters=rules)
    app = [("User-Agent", "app/1")]
    assert raw.request(replica.port, "/v1/ping").status == 200
    refused = raw.request(replica.port, "/v1/x")
    assert refused.status == 451 and json.loads(refused.body)["error"]["message"] == "Use the application."
    assert "ratelimit" not in dict(refused.headers), "later actions do not run after a refusal"
    assert raw.request(replica.port, "/v1/x", "POST", app, b"x" * 20).status == 200
    images = [raw.request(replica.port, "/v1/images/a", headers=app) for _ in range(3)]
    assert [answer.status for answer in images] == [200, 200, 429]
    assert '"images";q=2' in images[0].header("ratelimit-policy")
    other = raw.request(replica.port, "/v1/x", headers=app)
    assert other.status == 200 and "images" not in other.header("ratelimit-policy")
    lines = wait_for(lambda: [line for line in replica.access_log() if "tags" in line], "the line is written")
    assert lines[0]["tags"] == ["big"]
    metrics = replica.metrics()
    counted = {(name, outcome): metrics.get(f'keylatch_rules_total{{outcome="{outcome}",rule="{name}"}}') for name, outcome in
               (("ping", "allow"), ("app", "deny"), ("big", "tag"), ("quiet", "shadow"), ("images", "limit"))}
    assert counted == {("ping", "allow"): 1, ("app", "deny"): 1, ("big", "tag"): 1, ("quiet", "shadow"): 1, ("images", "limit"): 3}


def test_no_spelling_of_a_path_bypasses_a_rule(start, echo_upstream):
    replica = start(echo_upstream, route_filters=RULES + rule("admin", "request.path.startsWith('/v1/admin')", "deny: {}"))
    for target in ("/v1/admin", "/v1/./admin/x", "/v1//admin", "/v1/%61dmin", "/v1/x/../admin", "//v1/admin", "/v1/x/%2e%2e/admin", "/v1/admin/?x", "/v1/%61%64min#"):
        answer = raw.request(replica.port, target)
        assert answer.status in (400, 403), f"{target}: {answer.status}"
    assert not echo_upstream.requests


def test_no_unneeded_percent_encoding_bypasses_a_rule(start, echo_upstream):
    rules = RULES + rule("generate", "request.path.endsWith(':generate')", "deny: {}") + rule("agent", "request.user_agent.contains('sqlmap')", "deny: {}")
    rules += rule("host", "request.host == 'admin.example.com'", "deny: {}") + rule("model", "request.params.model == 'bad'", "deny: {}")
    replica = start(echo_upstream, route_filters=rules)
    for target, headers in (
        ("/v1/m:generate", []), ("/v1/m%3Agenerate", []), ("/v1/m%3agenerat%65", []),
        ("/v1/x", [("User-Agent", "ok"), ("User-Agent", "sqlmap/1")]), ("/v1/x", [("User-Agent", "sqlmap/1 \xff")]),
        ("/v1/x?model=bad", []), ("/v1/x?model=good&model=bad", []), ("/v1/x?m%6fdel=b%61d", []),
    ):
        assert raw.request(replica.port, target, headers=headers).status == 403, (target, headers)
    for host in ("admin.example.com", "ADMIN.example.com.", "admin.example.com.:80"):
        with raw.connect(replica.port) as connection:
            connection.sendall(f"GET /v1/x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert raw.read_head(connection.makefile("rb"))[0] == 403, host
    spelled = "/v1/a%21%24%26%27%28%29%2A%2B%2C%3D%40b"
    assert raw.request(replica.port, spelled).status == 200
    assert echo_upstream.requests[-1]["target"] == spelled, "the matched path and the forwarded path decode to the same"


def test_rules_see_results_of_earlier_filters(start, echo_upstream):
    rules = (
        "      - key_binding: {confirm: immediate}\n" + RULES
        + rule("bound", "binding.present && binding.rule == 'single' && binding.networks == null || !key.present", "deny: {}")
        + rule("mine", "binding.networks.exists(n, n == client.network) && key.id.size() == 12 && route == 'api'", "tag: mine")
    ).replace("binding.networks == null", "binding.networks.size() != 1")
    replica = start(echo_upstream, route_filters=rules)
    assert send_request(replica, "sk-rules-abcdefgh").status == 200
    wait_for(lambda: [line for line in replica.access_log() if line.get("tags") == ["mine"]], "access line with the tag")


def test_rules_see_the_labels_of_a_binding(start, echo_upstream):
    rules = "      - key_binding: {confirm: immediate}\n" + RULES + rule("trial", "'trial' in binding.labels", "deny: {message: this key is for trials}")
    replica = start(echo_upstream, storage="{sqlite: {path: t.db}}", route_filters=rules)
    key = "sk-labels-abcdefgh"
    assert send_request(replica, key).status == 200
    for labels, status in ((["trial", "team-a"], 403), (["team-a"], 200)):
        done = replica.command("bindings", "set", *(f"--label={label}" for label in labels), "-", stdin=key)
        assert done.returncode == 0, done.stderr
        wait_for(lambda status=status: send_request(replica, key).status == status, f"{labels}: {status}")


def recipe(name):
    """The filters of the route in a shipped recipe."""
    text = (ROOT / "config" / "recipes" / f"{name}.yaml").read_text()
    return text[text.index("    filters:\n", text.index("routes:")) + len("    filters:\n"):]


def cloudflare(*headers, address="203.0.113.7"):
    return [("CF-Connecting-IP", address), *headers]


@pytest.fixture
def cooked(start, echo_upstream):
    return lambda name: start(echo_upstream, route_filters=recipe(name), trusted=CLOUDFLARE)


KEY = raw.key("sk-recipe-abcdefgh")


def test_recipe_desktop_app(cooked):
    replica = cooked("desktop-app")
    answers = [raw.request(replica.port, headers=[KEY, ("User-Agent", agent)]).status for agent in ("my-desktop-app/2.10", "curl/8", "my-desktop-app", "x my-desktop-app/2.1")]
    assert answers == [200, 403, 403, 403] and raw.request(replica.port, headers=[KEY]).status == 403


def test_recipe_bearer_required(cooked):
    replica = cooked("bearer-required")
    assert raw.request(replica.port).status == 401 and raw.request(replica.port, headers=[KEY]).status == 200
    assert raw.request(replica.port, headers=[("Authorization", "Basic eDp5")]).status == 400


def test_recipe_probes(cooked):
    replica = cooked("probes")
    for target in (
        "/v1/files?name=../../etc/passwd", "/v1/x?f=%2e%2e%2fx", "/v1/x?f=%252e%252e%252fx", "/v1/x?f=..%5cx", "/v1/x?f=..%255cx", "/v1/x?f=%u002e%u002e/",
        "/v1/.env", "/v1/.git/config", "/v1/x?next=/.ENV", "/v1/x?q=eval(1)", "/v1/x?q=EVAL%20(1)", "/v1/x?q=%65val%28", "/v1/x?q=%2565val%2528", "/v1/x?q=%3Cscript%3E",
        "/v1/x?q=${jndi:ldap://x}".replace("$", "%24").replace("{", "%7B"), "/v1/x?q=1+UNION+SELECT+2", "/v1/x?q=a%00b", "/v1/.ht%61ccess",
        "/v1/x?f=.env", "/v1/x?f=%2egit/config", "/v1/x?.env", "/v1/x?f=(../x", "/v1/x?f=|../x".replace("|", "%7c"), "/v1/x?f=%09../x", "/v1/x?f=..&y", "/v1/x?f=..%22", "/v1/x?f=..%0a",
        "/v1/x?f=%25252525252525252525252525252525252e./", "/v1/x?f=%U002e%u002E/x&z=%uzz", "/v1/x?f=%c0%ae%c0%ae/", "/v1/x?f=%ef%bc%8e%uff0e/", "/v1/x?q=eval/**/(1)",
    ):
        answer = raw.request(replica.port, target, headers=[KEY])
        assert answer.status in (400, 404), f"{target}: {answer.status}"
    for target in ("/v1/models", "/v1/files?name=a..b", "/v1/x?q=1...2", "/v1/x?q=evaluate", "/v1/x?q=environment&y=.envelope", "/v1/x?q=union+square", "/v1/repos/a.git-x", "/v1/x?q=so...+then", "/v1/files/report.v2..final", "/v1/x?t=100%25"):
        assert raw.request(replica.port, target, headers=[KEY]).status == 200, target


def test_recipe_countries(cooked):
    replica = cooked("countries")
    for headers, status in (
        (cloudflare(("CF-IPCountry", "DE")), 200),
        (cloudflare(("CF-IPCountry", "BR")), 451),
        (cloudflare(), 451),
        (cloudflare(("CF-IPCountry", "DE"), ("CF-IPCountry", "BR")), 451),
        # Not through Cloudflare.
        ([("CF-IPCountry", "DE")], 451),
    ):
        assert raw.request(replica.port, headers=[KEY, *headers]).status == status, headers


def test_recipe_per_address(cooked):
    replica = cooked("per-address")
    statuses = [raw.request(replica.port, headers=[KEY, *cloudflare()]).status for _ in range(23)]
    assert statuses.count(429) >= 2 and statuses[:20] == [200] * 20
    assert raw.request(replica.port, headers=[raw.key("sk-other-abcdefgh"), *cloudflare(address="203.0.113.8")]).status == 200


def test_recipe_per_address_and_key(cooked):
    replica = cooked("per-address-and-key")
    answers = [raw.request(replica.port, headers=[KEY, *cloudflare()]) for _ in range(64)]
    assert answers[59].status == 200 and answers[-1].status == 429 and 290 <= int(answers[-1].header("retry-after")) <= 300
    assert raw.request(replica.port, headers=[raw.key("sk-other-abcdefgh"), *cloudflare()]).status == 200


PROVIDERS = ["anthropic", "azure", "gemini", "ollama", "openai", "vllm"]


def test_every_recipe_has_commands_to_try_it(tmp_path):
    for path in sorted((ROOT / "config" / "recipes").glob("*.yaml")):
        command = re.search(r"^#   keylatch (explain .*)$", path.read_text().replace(" \\\n#     ", " "), re.M)
        # Provider recipes read the key of the provider and the hash of a client token from the
        # environment.
        env = os.environ | {name: "value" for name in re.findall(r"\$\{(\w+_API_KEY)\}", path.read_text())}
        env["TOKEN_SHA256"] = hashlib.sha256(b"TOKEN").hexdigest()
        said = subprocess.run(f"{BINARY} {command[1]}", shell=True, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        source = "peer" if path.stem in PROVIDERS else "cf-connecting-ip"
        assert said.returncode == 0 and f"client    203.0.113.7, from {source}" in said.stdout, said.stderr + said.stdout
        expected = {"bearer-required": "outcome   401", "countries": "deny, 451", "desktop-app": "deny, 403", "probes": "rule `traversal`: deny, 400",
                    "per-address": "limit `burst`: 20/10s, for client=203.0.113.7; cost 1, 19 left", "per-address-and-key": "queries a store"}
        assert expected.get(path.stem, "outcome   goes upstream") in said.stdout, said.stdout
        assert path.stem in expected or path.stem in PROVIDERS


def test_costs_by_expression(start, echo_upstream):
    cost = """'request.path.startsWith("/v1/images") ? 5 : (request.path == "/v1/free" ? 0 : 1)'"""
    replica = start(echo_upstream, route_filters=f"      - rate_limit: {{per: client, limit: 10/h, cost: {cost}}}")
    left = lambda path: re.search(r"r=(\d+)", raw.request(replica.port, path).header("ratelimit") or "r=0")
    assert [int(left(path)[1]) for path in ("/v1/images/a", "/v1/x", "/v1/x")] == [5, 4, 3]
    assert raw.request(replica.port, "/v1/free").header("ratelimit") == ""
    assert raw.request(replica.port, "/v1/images/b").status == 429 and raw.request(replica.port, "/v1/x").status == 200


def test_the_sdk_backs_off(start):
    def completion(request, send):
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}]}
        send(plain(body=json.dumps(body).encode(), headers=["Content-Type: application/json"]))
        return True

    with Scripted(completion) as upstream:
        replica = start(upstream, route_filters="      - rate_limit: {per: key, limit: 1/2s, burst: 1, openai_fields: true}")
        client = openai.OpenAI(base_url=replica.url("/v1"), api_key="sk-sdk-abcdefghijkl", max_retries=3)
        say = lambda: client.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "hi"}])
        begun = time.monotonic()
        first, second = say(), say()
        # The SDK was refused once, waited for Retry-After, and succeeded.
        # The limit allows a request every 2 s; the SDK adds jitter.
        assert 1.0 < time.monotonic() - begun < 6 and second.parse().choices[0].message.content == "hi"
        assert first.headers["x-ratelimit-limit-requests"] == "1" and first.headers["x-ratelimit-remaining-requests"] == "0"
        refused = wait_for(lambda: [line for line in replica.access_log() if line["status"] == 429], "access line of the refusal")
        assert len(refused) == 1
        with pytest.raises(openai.RateLimitError) as error:
            client.with_options(max_retries=0).chat.completions.create(model="m", messages=[])
        assert error.value.code == "rate_limit_exceeded" and error.value.type == "rate_limit_error"


def test_requests_for_other_hosts(start, echo_upstream):
    replica = start(echo_upstream, filters="  - allowed_hosts: {hosts: [api.example.com, localhost]}")
    assert raw.request(replica.port).status == 200
    head = b"GET /v1/x HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    with raw.connect(replica.port) as connection:
        connection.sendall(head)
        assert raw.read_head(connection.makefile("rb"))[0] == 421


def test_cors_for_other_origins(start):
    def own(request, send):
        send(plain(headers=["Access-Control-Allow-Origin: *", "Vary: Accept", "Server: nginx"]))
        return True

    cors = "  - cors: {origins: ['https://app.example.com'], credentials: true}\n  - security_headers: {hsts: {max_age: 1days}}"
    with Scripted(own) as upstream:
        replica = start(upstream, filters=cors, route_filters="      - key_binding: {}")
        app = ("Origin", "https://app.example.com")
        asks = [("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization")]
        preflight = raw.request(replica.port, method="OPTIONS", headers=[app, *asks])
        assert (preflight.status, preflight.body) == (204, b"") and "content-length" not in dict(preflight.headers)
        assert preflight.header("access-control-allow-origin") == app[1] and preflight.header("access-control-allow-methods") == "GET, POST"
        assert preflight.header("access-control-allow-credentials") == "true" and preflight.header("access-control-max-age") == "600"
        assert not upstream.requests, "a preflight carries no key and needs none"
        stranger = raw.request(replica.port, method="OPTIONS", headers=[("Origin", "https://evil.example"), *asks])
        assert stranger.status == 204 and "access-control-allow-origin" not in dict(stranger.headers) and stranger.header("access-control-allow-methods") == ""
        answer = raw.request(replica.port, headers=[app, KEY])
        assert answer.header("access-control-allow-origin") == app[1] and answer.header("vary") == "Accept, Origin"
        assert "x-request-id" in answer.header("access-control-expose-headers")
        assert raw.request(replica.port, headers=[("Origin", "https://evil.example"), KEY]).header("access-control-allow-origin") == ""
        # The page can also read a refusal by Keylatch.
        refused = raw.request(replica.port, headers=[app])
        assert refused.status == 401 and refused.header("access-control-allow-origin") == app[1]
        # The same for a refusal before routing, and one of the gate.
        for path, status in [("/none", 404), ("/v1/%2e%2e/x%00", 400)]:
            refused = raw.request(replica.port, path, headers=[app])
            assert refused.status == status and refused.header("access-control-allow-origin") == app[1], (path, refused.status)
            assert refused.header("vary") == "Origin" and "access-control-allow-origin" not in dict(raw.request(replica.port, path).headers)
        assert answer.header("server") == "" and answer.header("x-frame-options") == "DENY" and answer.header("strict-transport-security") == "max-age=86400"
        metrics = replica.metrics()
        assert metrics['keylatch_filter_decisions_total{filter="cors",outcome="answered",reason="preflight"}'] == 2


def test_preflight_answers(start, echo_upstream):
    replica = start(echo_upstream, filters="  - cors: {origins: ['*'], echo_headers: true}")
    fields = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count,x-stainless-runtime"
    asks = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")]
    preflight = raw.request(replica.port, method="OPTIONS", headers=[*asks, ("Access-Control-Request-Headers", fields)])
    assert preflight.header("access-control-allow-headers") == fields and preflight.header("access-control-allow-origin") == "*"
    assert "Access-Control-Request-Headers" in preflight.header("vary")
    assert raw.request(replica.port, method="OPTIONS", headers=asks).header("access-control-allow-headers") == ""
    strange = raw.request(replica.port, method="OPTIONS", headers=[*asks, ("Access-Control-Request-Headers", "a b")])
    assert strange.status == 204 and strange.header("access-control-allow-headers") == ""


def test_oversized_bodies(start, echo_upstream):
    replica = start(echo_upstream, route_filters="      - body_limit: {bytes: 1KiB}")
    assert raw.request(replica.port, method="POST", body=b"x" * 1024).status == 200
    refused = raw.request(replica.port, method="POST", body=b"x" * 1025)
    assert refused.status == 413 and json.loads(refused.body)["error"]["code"] == "body_too_large"
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw.connect(replica.port) as connection:
        connection.sendall(head + chunk(b"x" * 600) + chunk(b"x" * 600) + chunk(b""))
        status, headers = raw.read_head(connection.makefile("rb"))
    assert status == 413
    with raw.connect(replica.port) as connection:
        connection.sendall(head + chunk(b"x" * 600) + chunk(b"x" * 424) + chunk(b""))
        assert raw.read_head(connection.makefile("rb"))[0] == 200


def test_explain_shows_the_verdict_of_each_filter(start, echo_upstream):
    replica = start(echo_upstream, route_filters=(
        RULES + rule("probe", "request.decoded.contains('../')", "deny: {}") + rule("heavy", "request.path.startsWith('/v1/images')", "limit: images")
        + rule("odd", "identity.claims.level > 'x'", "deny: {}, shadow: true")
        + "      - rate_limit: {per: client, limit: 7/min, and: [{name: images, per: client, limit: 2/h, chosen: true, cost: 'request.size > 0 ? 1 : 2'}]}\n"
        + "      - body_limit: {bytes: 10}\n      - bearer: {accept: [well_formed]}"
    ))
    explain = lambda path, *more: replica.command("explain", "--peer", "127.0.0.1", "--path", path, *more).stdout
    said = explain("/v1/images/a?f=../", "-H", "Content-Length: 11")
    for line in ("rule `probe`: deny, 403", "answers with 403, rule; rule `probe`", "limit `client`: 7/1m, for client=127.0.0.1; cost 1, 6 left",
                 "body_limit: answers with 413, announced", "bearer: answers with 401, missing_token", "outcome   403"):
        assert line in said, said
    said = explain("/v1/images/a", "-H", "Authorization: Bearer abc")
    for line in ("rule `probe`: false", "rule `heavy`: limit, `images`", "limit `images`: 2/1h, for client=127.0.0.1; cost 2, 0 left", "bearer: passes", "outcome   goes upstream"):
        assert line in said, said
    assert not echo_upstream.requests
