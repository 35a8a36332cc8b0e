"""`keylatch explain`: by the running process with its bindings and counts, or offline by the file
alone."""


import re

import pytest
from support.admin import ENV, signed_in
from support.keylatch import wait_for
from support.stores import SECRET, send_request, key_id

KEY = "sk-explain-001-abcdefgh"
OTHER = "sk-explain-002-abcdefgh"
SQLITE = "{sqlite: {path: t.db, flush_every: 50ms}}"
CHAIN = (
    "      - client_ip: {}\n      - key_binding: {new_keys_per_client: 1000000/s}\n"
    "      - rate_limit: {per: key, limit: 5/h, name: hourly}\n      - concurrency_limit: {per: client, most: 3}\n      - flood_guard: {limit: 100/s}\n"
)


def explain(replica, key, peer="127.0.0.1", *more):
    done = replica.command("explain", "--peer", peer, "-H", f"Authorization: Bearer {key}", "--path", "/v1/models", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("secrets", [SECRET, "{}"])
def test_the_running_process_shows_the_binding_and_the_limit(start, echo_upstream, secrets):
    replica = start(echo_upstream, route_filters=CHAIN, storage=SQLITE, secrets=secrets, env=ENV)
    said = explain(replica, KEY)
    assert "not bound; this use would bind it to 127.0.0.1/32" in said and "outcome   goes upstream\n" in said, said
    assert "cost 1, 4 left" in explain(replica, KEY), "an explanation counts nothing"
    assert [send_request(replica, KEY).status for _ in range(3)] == [200] * 3
    logged = key_id(replica, KEY)
    said = explain(replica, KEY)
    assert f"key {logged} (sk-…efgh)" in said and "bound to 127.0.0.1/32 (single)" in said and f"for key={logged}" in said, said
    assert "cost 1, 1 left" in said and said == explain(replica, KEY)
    said = explain(replica, KEY, "127.0.0.2")
    assert "key_binding: answers with 403, other_network" in said and "outcome   403" in said
    assert [send_request(replica, KEY).status for _ in range(3)] == [200, 200, 429]
    said = explain(replica, KEY)
    assert re.search(r"limit `hourly`: 5/1h, .*exceeded, retry after \d+ s", said) and "outcome   429" in said, said
    # The explanation bound, counted and recorded nothing.
    explain(replica, OTHER, "127.0.0.7")
    admin = signed_in(replica)
    assert admin.post("/bindings/look-up", {"key": OTHER}).json()["binding"] is None
    assert not admin.get("/logs").json()["items"] and len(echo_upstream.requests) == 5
    assert replica.metrics().get('keylatch_rate_limit_requests_total{outcome="refused",policy="hourly"}') == 1
    banned = replica.command("bindings", "ban", logged)
    assert banned.returncode == 0, banned.stderr
    wait_for(lambda: "; banned" in explain(replica, KEY), "the ban takes effect")
    assert KEY not in replica.stderr.read_text() + replica.stdout.read_text()


def test_a_roaming_binding_is_not_changed(start, echo_upstream):
    chain = "      - key_binding: {rule: {roaming: {networks_max: 2, window: 24h}}}"
    replica = start(echo_upstream, route_filters=chain, storage=SQLITE, secrets=SECRET, env=ENV)
    assert send_request(replica, KEY).status == 200
    for _ in range(2):
        assert "127.0.0.2/32 would be added" in explain(replica, KEY, "127.0.0.2")
    assert send_request(replica, KEY, "127.0.0.3").status == 200
    assert "answers with 403" in explain(replica, KEY, "127.0.0.2")


@pytest.mark.parametrize("secrets", [SECRET, "{}"])
def test_offline_shows_the_key_id_of_the_logs(start, echo_upstream, secrets):
    replica = start(echo_upstream, route_filters=CHAIN, storage=SQLITE, secrets=secrets)
    assert send_request(replica, KEY).status == 200
    logged = key_id(replica, KEY)
    said = explain(replica, KEY, "127.0.0.1", "--offline")
    assert f"for key={logged}" in said and "cost 1, 4 left" in said and "queries a store or a service, which is skipped here" in said, said
    replica.stop()
    said = explain(replica, KEY)
    assert f"for key={logged}" in said and "no process that runs this file was found" in said


def test_offline_reports_an_unknown_secret(start, echo_upstream):
    replica = start(echo_upstream, route_filters=CHAIN)
    assert "key ids differ from those in the logs" in explain(replica, KEY, "127.0.0.1", "--offline")


def test_by_the_admin_api(start, echo_upstream):
    replica = start(echo_upstream, route_filters=CHAIN, storage=SQLITE, secrets=SECRET, env=ENV)
    admin = signed_in(replica)
    assert send_request(replica, KEY).status == 200
    question = {"peer": "127.0.0.9", "path": "/v1/x", "headers": [f"x-api-key: {KEY}"]}
    said = admin.post("/explain", question).json()
    assert said["status"] == 403 and said["client"] == "127.0.0.9" and said["key_id"].startswith(key_id(replica, KEY)) and len(said["key_id"]) == 64
    assert admin.post("/explain", {**question, "peer": "127.0.0.1"}).json()["status"] is None
    for wrong in ({"headers": [KEY]}, {"headers": [f"a\nb: {KEY}"]}, {"method": "G T"}, {"headers": ["a: b"] * 300}):
        refused = admin.post("/explain", {**question, **wrong}, 422)
        assert KEY not in refused.text
