"""Live settings: changes at run time on every replica, and resets to the file."""

import json
import time

import pytest
from support.admin import ENV, signed_in
from support.keylatch import wait_for
from support.stores import FREE, SECRET, send_request, storage
from test_alerts import alerts, receiver, refuse, webhook

KEY = "sk-settings-abcdefgh"


def listed(replica):
    said = replica.command("settings", "list", "--json")
    assert said.returncode == 0, said.stderr
    return {row["name"]: row for row in map(json.loads, said.stdout.splitlines())}


def test_maintenance_on_every_replica_at_once(replicas, database):
    two = replicas(2)
    for replica in two:
        assert send_request(replica, KEY).status == 200
    for value, status in (("on", 503), ("off", 200), ("true", 503)):
        assert two[0].command("settings", "set", "maintenance", value).returncode == 0
        began = time.monotonic()
        for replica in two:
            wait_for(lambda: send_request(replica, KEY).status == status, f"maintenance is {value}", 3)  # noqa: B023
        assert time.monotonic() - began < 3, "the notification applies the change, not the poll every 5 s"
    refused = send_request(two[1], KEY)
    assert refused.header("retry-after") == "30" and json.loads(refused.body)["error"]["code"] == "maintenance"
    assert two[1].health()[1]["maintenance"] is True and two[1].health("ready")[0] == 200
    # During a store outage the last known settings apply.
    database.kill()
    try:
        assert {send_request(two[0], KEY).status for _ in range(3)} == {503}
    finally:
        database.start()
    wait_for(lambda: two[0].command("settings", "revert", "maintenance").returncode == 0, "the setting is reset", 10)
    for replica in two:
        wait_for(lambda: send_request(replica, KEY).status == 200, "maintenance is off", 10)  # noqa: B023
    # A change by SQL takes effect, and an invalid value is ignored.
    database.psql("INSERT INTO settings (name, value, changed_by) VALUES ('maintenance', 'true', 'sql'), ('retention.audit', '\"soon\"', 'sql'), ('no.such', '1', 'sql')")
    wait_for(lambda: send_request(two[1], KEY).status == 503, "the change by SQL takes effect", 3)
    wait_for(lambda: "a stored setting is invalid" in two[1].stderr.read_text(), "log line")
    assert listed(two[0])["retention.audit"]["origin"] == "default"


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_sources_and_authors_of_settings(start, echo_upstream, kind, request):
    store = storage(request.getfixturevalue("database")) if kind == "postgres" else "{sqlite: {path: t.db}}"
    replica = start(echo_upstream, route_filters=FREE, storage=store, secrets=SECRET, more="retention: {audit: 30days}")
    before = listed(replica)
    assert (before["retention.audit"]["value"], before["retention.audit"]["origin"]) == ("30days", "file")
    assert (before["retention.intercepts"]["value"], before["retention.intercepts"]["origin"]) == ("90days", "default")
    assert before["maintenance"]["value"] is False and before["alerts.intercepts.count"]["value"] == 20
    for name, value in (("retention.audit", "60days"), ("alerts.intercepts.count", "5"), ("maintenance", "on")):
        said = replica.command("settings", "set", name, value)
        assert said.returncode == 0 and said.stderr == "", said.stderr
    wait_for(lambda: send_request(replica, KEY).status == 503, "maintenance is on", 2)
    after = listed(replica)
    assert (after["retention.audit"]["value"], after["retention.audit"]["origin"], after["retention.audit"]["file"]) == ("60days", "live", "30days")
    assert after["alerts.intercepts.count"]["value"] == 5 and after["maintenance"]["changed_by"].startswith("command:")
    assert "retention.audit" in replica.command("settings", "list").stdout
    for name, value, says in (
        ("maintenance", "maybe", "neither `true` nor `false`"),
        ("retention.audit", "1s", "not a duration between 30days and"),
        ("alerts.intercepts.count", "0", "between 1 and 1000000"),
        ("listeners", "x", "is not a live setting; known settings: `maintenance`"),
    ):
        said = replica.command("settings", "set", name, value)
        assert said.returncode == 1 and says in said.stderr, said.stderr
    assert replica.command("settings", "revert", "maintenance").returncode == 0
    wait_for(lambda: send_request(replica, KEY).status == 200, "maintenance is off", 2)
    # A reset is idempotent.
    assert replica.command("settings", "revert", "maintenance").returncode == 0
    audit = [json.loads(line) for line in replica.command("audit", "--action", "setting", "--json").stdout.splitlines()]
    changes = [(entry["action"], entry["target"], entry["before"], entry["after"]) for entry in reversed(audit)]
    assert changes == [
        ("setting.set", "retention.audit", None, "60days"),
        ("setting.set", "alerts.intercepts.count", None, 5),
        ("setting.set", "maintenance", None, True),
        ("setting.reverted", "maintenance", True, None),
    ]


def test_a_lowered_alert_threshold_takes_effect_at_once(start, echo_upstream):
    with receiver() as server:
        section = alerts(webhook("ops", server.port), count=1000)
        replica = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db, flush_every: 100ms}}", more=section)
        assert send_request(replica, "sk-alerted-0001-abcdefgh").status == 200
        refuse(replica, 6)
        assert replica.command("settings", "set", "alerts.intercepts.count", "3").returncode == 0
        refuse(replica, 6)
        wait_for(lambda: server.requests, "the alert is sent", 5)


def test_the_memory_store_has_no_live_settings(start, echo_upstream):
    said = start(echo_upstream).command("settings", "set", "maintenance", "on")
    assert said.returncode == 1 and "storage is memory" in said.stderr


def test_a_filter_in_shadow_on_every_replica_and_over_a_restart(replicas):
    two = replicas(2)
    assert send_request(two[0], KEY).status == 200
    status = lambda replica: send_request(replica, KEY, "127.0.0.2").status  # noqa: E731
    assert [status(replica) for replica in two] == [403, 403]
    # A live change does not load the changed file.
    two[1].path.write_text(two[1].path.read_text().replace("/v1/*", "/v2/*"))
    began = time.monotonic()
    assert two[0].command("settings", "set", "shadow.key_binding", "on").returncode == 0
    for replica in two:
        wait_for(lambda: status(replica) == 200, "the limit is in shadow mode", 3)  # noqa: B023
    # Below the 5 s of a poll: the notification applies the change.
    assert time.monotonic() - began < 3
    assert any('filter="key_binding"' in name and 'outcome="shadow"' in name for name in two[0].metrics())
    shown = listed(two[0])["shadow.key_binding"]
    assert (shown["value"], shown["origin"], shown["file"]) == (True, "live", False)
    two[0].stop()
    two[0].start()
    assert status(two[0]) == 200, "the setting applies from the start"
    # A reload keeps the setting.
    assert two[0].command("reload").returncode == 0 and status(two[0]) == 200
    assert two[0].command("settings", "revert", "shadow.key_binding").returncode == 0
    for replica in two:
        wait_for(lambda: status(replica) == 403, "the limit is enforced again", 3)  # noqa: B023


def test_unknown_keys_during_a_store_outage(replicas, database):
    (replica,) = replicas(1)
    assert send_request(replica, KEY).status == 200
    assert replica.command("settings", "set", "key_binding.on_store_failure", "open").returncode == 0
    wait_for(lambda: "live settings of filters are in force" in replica.stderr.read_text(), "the setting takes effect", 5)
    database.kill()
    try:
        wait_for(lambda: send_request(replica, "sk-never-seen-abcdefgh").status == 200, "unknown keys are admitted", 15)
        assert send_request(replica, KEY, "127.0.0.2").status == 403, "known keys are still judged"
    finally:
        database.start()
    wait_for(lambda: replica.command("settings", "revert", "key_binding.on_store_failure").returncode == 0, "the setting is reset", 10)
    said = replica.command("settings", "set", "key_binding.on_store_failure", "ajar")
    assert said.returncode == 1 and "is not one of closed, open" in said.stderr


def test_the_log_level(start, echo_upstream):
    replica = start(echo_upstream, storage="{sqlite: {path: t.db}}", more="log: {level: error}")
    assert " INFO " not in replica.stderr.read_text()
    assert replica.command("settings", "set", "log.level", "info").returncode == 0
    wait_for(lambda: "the log level has changed" in replica.stderr.read_text(), "the log level changes", 6)
    assert replica.command("reload").returncode == 0
    wait_for(lambda: " INFO " in replica.stderr.read_text(), "the log has INFO lines")
    assert listed(replica)["log.level"]["file"] == "error"
    assert replica.command("settings", "revert", "log.level").returncode == 0


def test_webhook_settings(start, echo_upstream):
    with receiver() as ops, receiver() as oncall, receiver() as last:
        storage = "{sqlite: {path: t.db, flush_every: 50ms}}"
        replica = start(echo_upstream, route_filters=FREE, storage=storage, more=alerts(webhook("ops", ops.port), count=3), env=ENV)
        admin = signed_in(replica)
        assert (listed(replica)["alerts.webhook.url"]["value"], listed(replica)["alerts.webhook.url"]["kind"]) == ("ops", {"secret": {"url": True}})
        # A private address needs the option for it, and of a batch with an invalid combination
        # nothing is stored.
        url = f"http://127.0.0.1:{oncall.port}/hunter2"
        problem = admin.put("/settings", {"values": {"alerts.webhook.url": url, "alerts.webhook.format": "slack"}}, 422).json()
        assert problem["field"] == "values.alerts.webhook.url" and "allow_private" in problem["detail"]
        assert listed(replica)["alerts.webhook.format"]["origin"] == "default"
        values = {"alerts.webhook.url": url, "alerts.webhook.allow_private": True, "alerts.webhook.secret": "whsec_c2VjcmV0"}
        problem = admin.put("/settings", {"values": {**values, "alerts.webhook.format": "slack"}}, 422).json()
        assert problem["field"] == "values.alerts.webhook.secret" and "is not signed" in problem["detail"]
        shown = {row["name"]: row for row in admin.put("/settings", {"values": values}).json()["items"]}
        assert (shown["alerts.webhook.url"]["value"], shown["alerts.webhook.url"]["file"]) == ("http://127.0.0.1/…", "ops")
        assert shown["alerts.webhook.secret"]["value"] == "••••••••"
        assert admin.post("/alerts/test").json()["items"] == [{"webhook": "live setting", "error": None}]
        assert "webhook-signature" in dict(oncall.requests[0]["headers"])
        send_request(replica, KEY)
        refuse(replica, 4, KEY)
        wait_for(lambda: len(oncall.requests) == 2, "the new webhook gets the alert")
        assert not ops.requests
        # By command, from standard input: another URL, and a reset to the file's.
        said = replica.command("settings", "set", "alerts.webhook.url", "-", stdin=f"http://127.0.0.1:{last.port}/\n")
        assert said.returncode == 0, said.stderr
        wait_for(lambda: admin.post("/alerts/test") and last.requests, "the last webhook gets the alert")
        assert "not an address" not in said.stderr and replica.command("settings", "set", "alerts.webhook.url", "ftp://x").returncode == 1
        for name in values:
            assert replica.command("settings", "revert", name).returncode == 0
        wait_for(lambda: [row["webhook"] for row in admin.post("/alerts/test").json()["items"]] == ["ops"], "the webhook of the file")
        # Secrets are stored and logged nowhere in clear text.
        told = json.dumps(admin.get("/audit?limit=100").json()) + json.dumps(listed(replica))
        replica.stop()
        told += replica.stderr.read_text() + replica.stdout.read_text()
        kept = b"".join(path.read_bytes() for path in replica.folder.glob("t.db*"))
        assert "hunter2" not in told and b"hunter2" not in kept and "c2VjcmV0" not in told and b"c2VjcmV0" not in kept


def test_conflicting_edits(replicas):
    one, two = replicas(2, env=ENV)
    here, there = signed_in(one), signed_in(two)
    looked = here.get("/settings")
    version = looked.json()["version"]
    assert looked.headers["etag"] == f'"{version}"'
    both = {"retention.audit": "60days", "alerts.intercepts.count": 7}
    changed = there.put("/settings", {"values": both}, headers={"if-match": f'"{version}"'}).json()
    assert changed["version"] == version + 1
    problem = here.put("/settings", {"values": {"retention.audit": "90days"}}, 412, headers={"if-match": f'"{version}"'}).json()
    assert "changed meanwhile" in problem["detail"]
    here.call("DELETE", "/settings/retention.audit", status=412, headers={"if-match": f'"{version}"'})
    # A batch is atomic: one invalid value rejects all.
    here.put("/settings", {"values": {"retention.audit": "90days", "maintenance": "soon"}}, 422)
    assert {row["name"]: row["value"] for row in here.get("/settings").json()["items"]}["retention.audit"] == "60days"
    here.call("DELETE", "/settings/retention.audit", status=200, headers={"if-match": f'"{version + 1}"'})
    assert here.get("/settings").json()["version"] == version + 2
