"""Shadow mode of `key_binding`: requests that it would refuse are recorded, listed and, optionally,
alerted."""

import json
import time

import pytest
from support.admin import ENV, signed_in
from support.keylatch import wait_for
from support.stores import SECRET, send_request, storage
from support.upstreams import Scripted, plain

KEY = "sk-shadow-0001-abcdefgh"
POLICY = "      - key_binding: {new_keys_per_client: 1000000/s%s}\n        shadow: %s"


@pytest.fixture(params=["postgres", "sqlite", "memory"])
def store(request):
    if request.param == "postgres":
        return storage(request.getfixturevalue("database"), ", replica: edge-7")
    return {"sqlite": "{sqlite: {path: t.db, flush_every: 50ms}}"}.get(request.param, "memory")


def command_rows(replica, *arguments):
    done = replica.command("intercepts", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_shadow_intercepts_are_recorded_and_marked(start, echo_upstream, store):
    replica = start(echo_upstream, route_filters=POLICY % ("", "true"), storage=store, secrets=SECRET, env=ENV)
    admin = signed_in(replica)
    rows = lambda **params: admin.get("/logs", params=params).json()["items"]  # noqa: E731
    assert send_request(replica, KEY).status == 200
    assert [send_request(replica, KEY, "127.0.0.2", path="/v1/x").status for _ in range(3)] == [200] * 3
    wait_for(lambda: sum(row["count"] for row in rows()) == 3, "the shadow intercepts are written")
    assert {(row["shadow"], row["client"], row["reason"]) for row in rows()} == {(True, "127.0.0.2", "elsewhere")}
    assert replica.metrics().get("keylatch_intercepts_total", 0) == 0, "no request was refused"
    # The same client and path within the same minute, now refused: a separate row.
    replica.write(route_filters=POLICY % ("", "false"))
    assert replica.command("reload").returncode == 0
    assert send_request(replica, KEY, "127.0.0.2", path="/v1/x").status == 403
    wait_for(lambda: [row["count"] for row in rows(shadow="false")] == [1], "the intercept is written")
    assert sum(row["count"] for row in rows(shadow="true")) == 3 and sum(row["count"] for row in rows()) == 4
    assert {row["replica"] for row in rows()} == ({"edge-7"} if "postgres" in store else {""})
    assert admin.get("/logs", params={"shadow": "perhaps"}, status=None).status_code in (400, 422)
    assert [row["count"] for row in admin.get("/logs/groups", params={"shadow": "true"}).json()["items"]] == [3]
    assert sum(row["count"] for row in command_rows(replica, "list", "--shadow", "only")) == 3
    assert sum(row["count"] for row in command_rows(replica, "list", "--shadow", "without")) == 1
    assert command_rows(replica, "top", "--shadow", "only")[0]["count"] == 3
    assert "elsewhere (shadow)" in replica.command("intercepts", "list").stdout
    exported = admin.get("/logs/export", params={"shadow": "true"}).text
    assert [json.loads(line)["shadow"] for line in exported.splitlines()].count(True) == len(exported.splitlines()) > 0
    board = admin.get("/dashboard").json()
    assert board["top_clients"][0]["count"] == 1, "the dashboard counts refusals only"


def test_a_roaming_binding_in_shadow_mode_adds_networks(start, echo_upstream):
    rule = ", rule: {roaming: {networks_max: 2, window: 24h}}"
    replica = start(echo_upstream, route_filters=POLICY % (rule, "true"), storage="memory", secrets=SECRET, env=ENV)
    admin = signed_in(replica)
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        assert send_request(replica, KEY, source).status == 200
    wait_for(lambda: admin.get("/logs").json()["items"], "the intercept is written")
    assert {row["client"] for row in admin.get("/logs").json()["items"]} == {"127.0.0.3"}


@pytest.mark.parametrize("told", [False, True])
def test_alerts_include_shadow_intercepts_only_on_request(start, echo_upstream, store, told):
    with Scripted(lambda request, send: send(plain("200 OK", b"ok")) or True) as hook:
        webhook = f'{{name: ops, url: "http://127.0.0.1:{hook.port}/hook", allow_private: true}}'
        more = f"alerts: {{intercepts: {{count: 3, window: 1min{', shadow: true' if told else ''}}}, webhooks: [{webhook}]}}"
        replica = start(echo_upstream, route_filters=POLICY % ("", "true"), storage=store, secrets=SECRET, more=more)
        assert send_request(replica, KEY).status == 200
        assert [send_request(replica, KEY, "127.0.0.2").status for _ in range(4)] == [200] * 4
        if told:
            wait_for(lambda: hook.requests, "the alert is sent")
            data = json.loads(hook.requests[0]["body"])["data"]
            assert data["intercepts"] == data["shadow"] >= 3 and data["last"]["shadow"] is True
            return
        # Shows an absence, for which there is no condition to wait for.
        time.sleep(2.5)
        assert not hook.requests
        # Only refusals count: two are below the threshold, although four more intercepts were in
        # shadow mode.
        replica.write(route_filters=POLICY % ("", "false"))
        assert replica.command("reload").returncode == 0
        assert [send_request(replica, KEY, "127.0.0.2").status for _ in range(2)] == [403] * 2
        # Shows an absence, for which there is no condition to wait for.
        time.sleep(2.5)
        assert not hook.requests
        assert send_request(replica, KEY, "127.0.0.3").status == 403
        wait_for(lambda: hook.requests, "the alert is sent")
        data = json.loads(hook.requests[0]["body"])["data"]
        assert (data["intercepts"], data["shadow"], data["last"]["shadow"]) == (3, 0, False)


