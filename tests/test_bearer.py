"""Bearer tokens: JWKS, introspection, external services, and the resulting identity."""

import concurrent.futures
import json
import subprocess
import time

import pytest
from support import raw
from support.certificates import Certificates
from support.issuer import Issuer, basic
from support.keylatch import BINARY, free_port, wait_for
from support.stores import send_request
from support.upstreams import Scripted, plain

JWT = "{{jwt: {{issuer: {issuer}, algorithms: [{algorithms}], key: {key}{more}}}}}"


def bearer(*modes, more=""):
    return f"      - bearer: {{accept: [{', '.join(modes)}]{more}}}"


def at(url, more=""):
    return f'{{url: "{url}", allow_private: true{more}}}'


def keys_of(issuer, algorithms="ES256", more="", refresh="{every: 10s, unknown_kid: 1s}"):
    key = f"{{jwks_url: {at(issuer.url + '/keys')}}}"
    return JWT.format(issuer=issuer.url, algorithms=algorithms, key=key, more=f", refresh: {refresh}{more}")


def seen(answer, name):
    """The value of this field at the upstream."""
    return [value for key, value in json.loads(answer.body)["headers"] if key == name]


@pytest.fixture
def issuer():
    with Issuer() as one:
        one.add("first")
        yield one


def test_keys_rotate_without_a_gap(start, echo_upstream, issuer):
    replica = start(echo_upstream, route_filters=bearer(keys_of(issuer)))
    old = issuer.token("first")
    assert send_request(replica, old).status == 200
    issuer.add("second")
    new = issuer.token("second")
    # An unknown key id triggers a fetch at once; both keys are valid.
    wait_for(lambda: send_request(replica, new).status == 200, "the second key is fetched", 3)
    assert send_request(replica, old).status == 200
    # The first key leaves the set: its cached verdicts become invalid.
    issuer.published.remove("first")
    wait_for(lambda: send_request(replica, old).status == 401, "the first key is gone", 15)
    assert send_request(replica, new).status == 200


def test_invented_key_ids_do_not_trigger_a_fetch_each(start, echo_upstream, issuer):
    replica = start(echo_upstream, route_filters=bearer(keys_of(issuer, refresh="{every: 10m, unknown_kid: 10m}")))
    assert send_request(replica, issuer.token("first")).status == 200
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        forged = [issuer.token("first", headers={"kid": f"../../{n}"}) for n in range(100)]
        assert {answer.status for answer in pool.map(lambda token: send_request(replica, token), forged)} == {401}
    # One fetch at the start, and one for all invented key ids.
    assert issuer.asked["jwks"] <= 2
    # A new key in this time waits for the next fetch.
    issuer.add("second")
    assert send_request(replica, issuer.token("second")).status == 401 and send_request(replica, issuer.token("first")).status == 200


@pytest.mark.parametrize("garbage", [("200 OK", b"<html>maintenance</html>"), ("500 Oops", b""), ("200 OK", b'{"keys":[{"kty":"?"}]}')])
def test_the_last_good_key_set_serves_during_an_outage(start, echo_upstream, issuer, garbage):
    replica = start(echo_upstream, route_filters=bearer(keys_of(issuer)))
    assert send_request(replica, issuer.token("first")).status == 200
    issuer.garbage = garbage
    issuer.add("second")
    # Triggers a fetch that fails.
    assert send_request(replica, issuer.token("second")).status == 401
    assert send_request(replica, issuer.token("first", sub="bob")).status == 200
    wait_for(lambda: "refresh failed" in replica.stderr.read_text(), "log line")
    issuer.garbage = None
    wait_for(lambda: send_request(replica, issuer.token("second")).status == 200, "the issuer is reachable again", 5)


def test_an_issuer_that_publishes_an_empty_key_set(start, echo_upstream, issuer):
    replica = start(echo_upstream, route_filters=bearer(keys_of(issuer)))
    assert send_request(replica, issuer.token("first")).status == 200
    issuer.published.clear()
    # An empty key set is a valid answer.
    wait_for(lambda: send_request(replica, issuer.token("first")).status == 401, "all tokens are refused", 15)


def test_keys_without_ids_and_a_reload_during_an_outage(start, echo_upstream, issuer):
    issuer.named = False
    terms = keys_of(issuer)
    replica = start(echo_upstream, route_filters=bearer(terms))
    assert send_request(replica, issuer.token("first", headers={"kid": None})).status == 200
    issuer.add("second")
    wait_for(lambda: send_request(replica, issuer.token("second", headers={"kid": None})).status == 200, "the second key is fetched", 15)
    assert send_request(replica, issuer.token("first", headers={"kid": None}, sub="bob")).status == 200
    issuer.garbage = ("500 Oops", b"")
    replica.write(route_filters=bearer(terms.replace("every: 10s", "every: 11s")))
    assert replica.command("reload").returncode == 0
    assert send_request(replica, issuer.token("first", headers={"kid": None}, sub="carol")).status == 200


def test_an_issuer_that_was_never_there(start, echo_upstream):
    port = free_port()
    key = f"{{jwks_url: {at(f'http://127.0.0.1:{port}/keys')}}}"
    mode = f"{{jwt: {{algorithms: [ES256], key: {key}, on_failure: %s}}}}"
    each = {kind: start(echo_upstream, route_filters=bearer(mode % kind, more=", tell_upstream: {subject: X-User}")) for kind in ("closed", "open")}
    with Issuer() as other:
        other.add("first")
        token = other.token("first")
    refused = send_request(each["closed"], token)
    assert refused.status == 503 and refused.header("retry-after") == "1"
    assert json.loads(refused.body)["error"]["code"] == "authentication_unavailable"
    passed = send_request(each["open"], token, headers=[("X-User", "root")])
    assert passed.status == 200 and seen(passed, "x-user") == [], "an unverified token gives no identity"
    assert send_request(each["open"], "not a jwt".replace(" ", "-")).status == 401, "a malformed token is refused everywhere"
    line = wait_for(lambda: [line for line in each["open"].access_log() if line["status"] == 200], "the line is written")[0]
    assert line["let_through"] == ["bearer"] and "subject" not in line
    assert each["open"].metrics()['keylatch_bearer_check_failures_total{outcome="open"}'] == 1
    assert each["closed"].metrics()['keylatch_bearer_check_failures_total{outcome="closed"}'] == 1


def test_several_issuers_with_different_requirements(start, echo_upstream, tmp_path):
    tls = Certificates(tmp_path / "tls")
    with Issuer(tls=tls) as one, Issuer() as two:
        one.add("k", "RS256")
        two.add("k", "ES256")
        discovery = f"{{discovery: {at(one.url, f', ca_file: {tls.ca}')}}}"
        modes = [
            f'{{jwt: {{issuer: "{one.url}", audiences: [api], algorithms: [RS256, ES256], key: {discovery}, typ: at+jwt, required_claims: [team]}}}}',
            keys_of(two),
        ]
        replica = start(echo_upstream, route_filters=bearer(*modes, more=", tell_upstream: {subject: X-User, scopes: X-Scopes, claims: {team: X-Team}}"))
        at_jwt = {"typ": "at+jwt"}
        good = one.token("k", headers=at_jwt, aud=["x", "api"], team="größe 7%\n", scope="chat images")
        answer = send_request(replica, good, headers=[("X-Team", "root"), ("X-User", "root")])
        assert answer.status == 200
        assert (seen(answer, "x-user"), seen(answer, "x-scopes")) == (["alice"], ["chat images"])
        assert seen(answer, "x-team") == ["gr%C3%B6%C3%9Fe 7%25%0A"]
        for wrong in (
            one.token("k", headers=at_jwt, aud="other", team="x"),
            one.token("k", headers=at_jwt, aud="api"),
            one.token("k", aud="api", team="x"),
            # Signed by one issuer, with the `iss` of the other.
            two.token("k", headers=at_jwt, aud="api", team="x", iss=one.url),
            one.token("k", iss=two.url),
            two.token("k", iss="https://elsewhere.example"),
            two.token("k", exp=int(time.time()) - 60),
            two.token("k", nbf=int(time.time()) + 60),
        ):
            assert send_request(replica, wrong).status == 401
        assert send_request(replica, two.token("k")).status == 200
        assert one.asked["discovery"] <= 2 and two.asked["discovery"] == 0


def test_a_discovery_document_of_another_issuer(start, echo_upstream):
    with Issuer() as issuer:
        issuer.add("k")
        issuer.names_itself = "https://elsewhere.example"
        mode = f'{{jwt: {{issuer: "{issuer.url}", algorithms: [ES256], key: {{discovery: {at(issuer.url)}}}}}}}'
        replica = start(echo_upstream, route_filters=bearer(mode))
        assert send_request(replica, issuer.token("k")).status == 503
        wait_for(lambda: "names another issuer" in replica.stderr.read_text(), "log line")


def introspection(issuer, more="", particulars=""):
    return f'{{introspection: {{endpoint: {at(issuer.url + "/introspect", particulars)}, client_id: key latch, client_secret: s%cret{more}}}}}'


def test_introspection_verdicts_are_cached(start, echo_upstream, issuer):
    replica = start(echo_upstream, route_filters=bearer(introspection(issuer), more=", tell_upstream: {subject: X-User}"))
    issuer.tokens["opaque-1"] = {"active": True, "sub": "carol", "scope": "chat", "exp": int(time.time()) + 3}
    issuer.delay = 0.3
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: send_request(replica, "opaque-1"), range(40)))
    assert {answer.status for answer in answers} == {200} and seen(answers[0], "x-user") == ["carol"]
    assert len(issuer.asked["introspect"]) == 1, "one introspection request for all"
    headers, form = issuer.asked["introspect"][0]
    assert headers["authorization"] == basic("key+latch", "s%25cret")
    assert form == {"token": "opaque-1", "token_type_hint": "access_token"}
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        assert {answer.status for answer in pool.map(lambda _: send_request(replica, "opaque-2"), range(40))} == {401}
    assert len(issuer.asked["introspect"]) == 2
    # A cached verdict does not outlive the token.
    wait_for(lambda: send_request(replica, "opaque-1").status == 401, "the token has expired", 5)


def test_introspection_time_outs(start, echo_upstream, issuer):
    slow = introspection(issuer, particulars=", timeout: 300ms")
    each = {kind: start(echo_upstream, route_filters=bearer(slow[:-2] + f", on_failure: {kind}}}}}")) for kind in ("closed", "open")}
    issuer.delay = 1.0
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        begun = time.monotonic()
        assert {answer.status for answer in pool.map(lambda _: send_request(each["closed"], "opaque-1"), range(30))} == {503}
        # One after the other, 30 time-outs of 300 ms would take 9 s.
        assert time.monotonic() - begun < 8, "the requests time out in parallel"
        begun = time.monotonic()
        # Each token is a cache miss: after a few failures the circuit breaker answers at once. 90
        # time-outs would take 27 s.
        assert {answer.status for answer in pool.map(lambda n: send_request(each["closed"], f"opaque-{n}"), range(90))} == {503}
        assert time.monotonic() - begun < 10
    passed = send_request(each["open"], "opaque-1")
    assert passed.status == 200
    issuer.delay, issuer.tokens = 0.0, {"opaque-7": {"active": True}}
    wait_for(lambda: send_request(each["closed"], "opaque-7").status == 200, "the service is reachable again", 8)
    for status in ("401 Unauthorized", "500 Oops", "302 Found"):
        issuer.garbage = (status, b'{"active": true}')
        assert send_request(each["closed"], f"opaque-{status[:3]}").status == 503, "only status 200 is a verdict"
    issuer.garbage = ("200 OK", b"[true]")
    assert send_request(each["closed"], "opaque-list").status == 503
    issuer.garbage = ("200 OK", b'{"active": "true"}')
    assert send_request(each["closed"], "opaque-text").status == 401


def test_no_token_opens_the_circuit_breaker_of_a_working_service(start, echo_upstream):
    def odd(request, send):
        token = dict(request["headers"])["authorization"].removeprefix("Bearer ")
        if token == "closes":
            return False
        body = b"x" * 200_000 if token == "long" else b""
        status = {"good": "200 OK", "login": "302 Found", "busy": "429 Too Many Requests", "oops": "500 Oops", "long": "401 Unauthorized"}
        send(plain(status.get(token, "401 Unauthorized"), body, ["Location: /login"]))
        return True

    with Scripted(odd) as service:
        for refusal in ("ours", "theirs"):
            endpoint = at(f"http://127.0.0.1:{service.port}/verify", ", timeout: 1s")
            terms = f"{{forward_auth: {{endpoint: {endpoint}, on_failure: open, refusal: {refusal}, cache: 0s, negative_cache: 0s}}}}"
            replica = start(echo_upstream, route_filters=bearer(terms))
            for _ in range(4):
                statuses = {token: send_request(replica, token).status for token in ("bad", "login", "long", "busy", "oops", "closes", "<script>")}
                assert 200 not in statuses.values(), statuses
                assert send_request(replica, "good").status == 200, "other tokens are not affected"
            assert statuses["login"] == (302 if refusal == "theirs" else 401)
            metrics = replica.metrics()
            assert not metrics.get('keylatch_bearer_check_failures_total{outcome="open"}')
        assert all("<" not in dict(request["headers"])["authorization"] for request in service.requests)
    # The service is down: `open` admits tokens, except those with a cached refusal.
    with Issuer() as issuer:
        issuer.add("k")
        absent = at(f"http://127.0.0.1:{free_port()}/verify")
        modes = [keys_of(issuer), f"{{forward_auth: {{endpoint: {absent}, on_failure: open}}}}"]
        replica = start(echo_upstream, route_filters=bearer(*modes))
        assert send_request(replica, "anything").status == 200
        assert send_request(replica, issuer.token("k", exp=int(time.time()) - 99)).status == 401


def test_concurrent_requests_share_one_introspection(start, echo_upstream, issuer):
    issuer.delay = 0.4
    for cache, token in (("cache: 0s", "good"), ("negative_cache: 0s", "bad"), ("cache: 0s, negative_cache: 0s", "good"), ("cache: 60s", "ended")):
        issuer.tokens = {"good": {"active": True}, "ended": {"active": True, "exp": int(time.time()) - 5}}
        issuer.asked["introspect"].clear()
        replica = start(echo_upstream, route_filters=bearer(introspection(issuer, more=f", {cache}")))
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            began = time.monotonic()
            statuses = {answer.status for answer in pool.map(lambda _: send_request(replica, token), range(20))}  # noqa: B023
            took = time.monotonic() - began
        # One after the other, 20 answers after 400 ms each would take 8 s.
        assert statuses == {200 if token == "good" else 401} and took < 5, (cache, statuses, took)
        # With caching off, each request asks the service.
        assert len(issuer.asked["introspect"]) <= 3, cache


def test_the_order_of_modes_does_not_depend_on_the_cache(start, echo_upstream, issuer):
    def judge(request, send):
        allowed = dict(request["headers"])["x-forwarded-uri"] == "/v1/a"
        send(plain("200 OK" if allowed else "403 Forbidden", headers=["X-User-Id: from-the-service"]))
        return True

    with Scripted(judge) as service:
        asks = f"{{forward_auth: {{endpoint: {at(f'http://127.0.0.1:{service.port}')}, tell: [uri], take: [x-user-id], cache: 0s, negative_cache: 0s}}}}"
        replica = start(echo_upstream, route_filters=bearer(asks, keys_of(issuer)))
        token = issuer.token("first")
        for _ in range(2):
            assert seen(send_request(replica, token, path="/v1/a"), "x-user-id") == ["from-the-service"]
            assert seen(send_request(replica, token, path="/v1/b"), "x-user-id") == []


def test_an_external_authorization_service(start, echo_upstream):
    def judge(request, send):
        fields = dict(request["headers"])
        token = fields["authorization"].removeprefix("Bearer ")
        if token == "yes":
            send(plain(headers=["X-User: dave", "X-Other: no", "X-Plan: gold"]))
        elif token == "deny":
            body = b'{"why": "not paid"}'
            send(plain("402 Payment Required", body, ["Content-Type: application/json", 'WWW-Authenticate: Bearer realm="x"']))
        elif token == "where":
            send(plain("200 OK" if fields["x-forwarded-uri"] == "/v1/models?a=b" else "403 Forbidden"))
        else:
            send(plain({"busy": "429 Too Many Requests", "broken": "502 Bad Gateway"}.get(token, "401 Unauthorized")))
        return True

    with Scripted(judge) as service:
        endpoint = at(f"http://127.0.0.1:{service.port}/verify")
        terms = "take: [X-User, X-Plan], subject: X-User, tell: [method, uri, host, client], send: [X-Tenant]"
        ours = start(echo_upstream, route_filters=bearer(f"{{forward_auth: {{endpoint: {endpoint}, {terms}}}}}"))
        theirs = start(echo_upstream, route_filters=bearer(f"{{forward_auth: {{endpoint: {endpoint}, refusal: theirs}}}}"))
        answer = send_request(ours, "yes", "127.0.0.9", headers=[("X-User", "root"), ("X-Plan", "root"), ("X-Tenant", "t1")])
        assert answer.status == 200 and (seen(answer, "x-user"), seen(answer, "x-plan"), seen(answer, "x-other")) == (["dave"], ["gold"], [])
        got = dict(service.requests[0]["headers"])
        assert (service.requests[0]["method"], service.requests[0]["target"]) == ("GET", "/verify")
        assert (got["x-forwarded-method"], got["x-forwarded-for"], got["x-tenant"]) == ("GET", "127.0.0.9", "t1")
        assert send_request(ours, "yes", "127.0.0.9", headers=[("X-Tenant", "t1")]).status == 200 and len(service.requests) == 1, "the verdict is cached"
        assert send_request(ours, "yes", "127.0.0.8", headers=[("X-Tenant", "t1")]).status == 200 and len(service.requests) == 2, "another token is another request"
        assert send_request(ours, "where", path="/v1/models?a=b").status == 200 and send_request(ours, "where").status == 403
        assert [send_request(ours, token).status for token in ("deny", "no", "busy", "broken")] == [401, 401, 503, 503]
        refused = send_request(theirs, "deny")
        assert (refused.status, refused.body, refused.header("www-authenticate")) == (402, b'{"why": "not paid"}', 'Bearer realm="x"')
        line = [line for line in ours.access_log() if line.get("subject")]
        assert line and line[0]["subject"] == "dave"


def test_modes_in_order_and_minted_tokens(start, echo_upstream, issuer):
    made = subprocess.run([BINARY, "token", "new", "--name", "ci", "--expires", "1h", "--scope", "chat"], capture_output=True, text=True, check=True)
    line, token = made.stdout.strip().removeprefix("- "), made.stderr.split()[-1]
    wrong = [subprocess.run([BINARY, "token", "new", *words], capture_output=True, text=True, check=False) for words in (("--name", ""), ("--name", "x", "--expires", "9000years"))]
    assert [said.returncode for said in wrong] == [1, 1] and "maximum is 100years" in wrong[1].stderr
    assert token.startswith("klt_") and len(token) == 47 and token not in made.stdout
    modes = [f"{{static: {{tokens: [{line}]}}}}", keys_of(issuer), introspection(issuer)]
    replica = start(echo_upstream, route_filters=bearer(*modes, more=", tell_upstream: {subject: X-User, scopes: X-Scopes}"))
    issuer.tokens["opaque"] = {"active": True, "username": "erin"}
    answers = [send_request(replica, each) for each in (token, issuer.token("first"), "opaque")]
    assert [seen(answer, "x-user") for answer in answers] == [["ci"], ["alice"], ["erin"]]
    assert seen(answers[0], "x-scopes") == ["chat"]
    # The error comes from the mode that matched best.
    expired = send_request(replica, issuer.token("first", exp=int(time.time()) - 90))
    assert expired.status == 401 and "expired" in expired.header("www-authenticate")
    everything = replica.stdout.read_text() + replica.stderr.read_text() + json.dumps(replica.metrics())
    for secret in (token, "s%cret", "opaque", issuer.token("first")[:40]):
        assert secret not in everything


def test_fields_without_exactly_one_token(start, echo_upstream, issuer):
    replica = start(echo_upstream, route_filters=bearer(keys_of(issuer)))
    good = issuer.token("first")
    forged = good[:-4] + "AAAA"
    for headers, status in (
        ([("Authorization", f"Bearer {good}")], 200),
        ([("authorization", f"bearer  {good} ")], 200),
        ([("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")], 200),
        ([("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {forged}")], 400),
        ([("Authorization", f"Bearer {forged}"), ("Authorization", f"Bearer {good}")], 400),
        ([("Authorization", f"Bearer {good}, Bearer {good}")], 400),
        ([("Authorization", f"Bearer {good} {good}")], 400),
        ([("Authorization", "Bearer")], 401),
        ([("Authorization", "Bearer ")], 401),
        # Some clients send the token without a scheme, and some services accept it.
        ([("Authorization", good)], 200),
        ([("Authorization", f"Basic {good}")], 400),
        ([("Authorization", f"Bearer {'x' * 9000}")], 400),
        ([("Authorization", f"Bearer {issuer.token('first', x='y' * 5000)}")], 200),
        ([("X-Api-Key", good)], 401),
        ([], 401),
    ):
        answer = raw.request(replica.port, headers=headers)
        assert answer.status == status, headers
        assert status == 200 or answer.header("www-authenticate").startswith("Bearer ")


def test_invalid_bearer_settings(start, echo_upstream):
    replica = start(echo_upstream)
    for mode, says in (
        ('{introspection: {endpoint: "http://a.example/x", client_id: a, client_secret: b}}', "introspection.endpoint.url: must begin with `https://`"),
        ('{introspection: {endpoint: "https://127.0.0.1/x", client_id: a, client_secret: b}}', "is not a public address"),
        ('{introspection: {endpoint: "https://a.example/x", client_id: a, client_secret: b, cache: 2h}}', "introspection.cache: must be at most 1h"),
        ('{forward_auth: {endpoint: "https://a.example/x", send: [Authorization]}}', "forward_auth.send[0]: the token is always sent"),
        ('{forward_auth: {endpoint: "https://a.example/x", send: [X-Forwarded-For]}}', "send[0]: a client can forge this field"),
        ('{forward_auth: {endpoint: "https://a.example/x", take: [Upgrade]}}', "take[0]: controls message framing"),
        ('well_formed], tell_upstream: {subject: Host}, realm: x, from: [authorization', "tell_upstream: `host` controls message framing"),
        ('well_formed], tell_upstream: {subject: X-A, scopes: x-a}, realm: x, from: [authorization', "tell_upstream: `x-a` is set twice"),
        ('well_formed], cache_max: 18446744073709551615, from: [authorization', "cache_max: must be between 1 and"),
        ('{forward_auth: {endpoint: {url: "https://a.example/x", timeout: 1h}}}', "endpoint.timeout: must be between 50ms and 1min"),
        ('{jwt: {algorithms: [ES256], key: {discovery: "https://a.example"}}}', "jwt.issuer: must be set to the URL"),
        ('{jwt: {algorithms: [ES256, HS256], key: {jwks_url: "https://a.example"}}}', "need keys of different kinds"),
        ('{jwt: {algorithms: [ES256], key: {jwks_url: "https://a.example"}, refresh: {every: 1s}}}', "refresh.every: must be at least 10s"),
    ):
        replica.write(route_filters=bearer(mode))
        said = replica.command("check")
        assert said.returncode == 1 and says in said.stderr, said.stderr
