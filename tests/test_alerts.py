"""Alerts for keys that are refused too often, and their delivery to webhooks."""

import base64
import hashlib
import hmac
import json
import signal
import time
import urllib.parse

import pytest
from support.certificates import Certificates
from support.keylatch import free_port, wait_for
from support.stores import FREE, SECRET, send_request, storage
from support.upstreams import Scripted, plain

KEY = "sk-alerted-0001-abcdefgh"


def signature(secret, text):
    return base64.b64encode(hmac.new(secret, text.encode(), hashlib.sha256).digest()).decode()


def receiver(*bodies, status="200 OK", **more):
    """A webhook receiver that returns these answers in turn, and repeats the last one."""
    left = list(bodies) or [b"ok"]

    def answer(request, send):
        body = left.pop(0) if len(left) > 1 else left[0]
        send(plain(*body) if isinstance(body, tuple) else plain(status, body))
        return True

    return Scripted(answer, **more)


def alerts(*webhooks, count=5, window="1min"):
    return f"alerts: {{intercepts: {{count: {count}, window: {window}}}, webhooks: [{', '.join(webhooks)}]}}"


def webhook(name, port, more=""):
    return f'{{name: {name}, url: "http://127.0.0.1:{port}/hook", allow_private: true{more}}}'


def refuse(replica, times, key=KEY):
    for n in range(times):
        assert send_request(replica, key, f"127.0.0.{n % 3 + 2}").status == 403


@pytest.fixture(params=["postgres", "sqlite", "memory"])
def kind(request):
    return request.param


def stored(kind, request):
    if kind == "postgres":
        return storage(request.getfixturevalue("database"), ", replica: edge-7")
    return "{sqlite: {path: t.db, flush_every: 100ms}}" if kind == "sqlite" else "memory"


def test_one_alert_per_window_is_retried_until_delivered(start, echo_upstream, kind, request):
    fails = ("503 Service Unavailable", b"", ["Retry-After: 1"])
    with receiver(fails, fails, b"ok") as ops:
        values = dict(route_filters=FREE, storage=stored(kind, request), secrets=SECRET)
        replica = start(echo_upstream, more=alerts(webhook("ops", ops.port, ', secret: "whsec_c2VjcmV0"')), **values)
        assert send_request(replica, KEY).status == 200
        refuse(replica, 4)
        # Shows an absence, for which there is no condition to wait for: alerts are evaluated every
        # second.
        time.sleep(2.5)
        assert not ops.requests, "four refusals are below the threshold"
        refuse(replica, 3)
        wait_for(lambda: len(ops.requests) == 3, "deliveries are retried until accepted", 30)
        refuse(replica, 20)
        wait_for(lambda: replica.metrics()['keylatch_webhooks_total{outcome="delivered",webhook="ops"}'] == 1, "the alert is delivered")
        # Shows an absence, for which there is no condition to wait for.
        time.sleep(2)
        assert len(ops.requests) == 3, "one alert per window"
        assert replica.metrics()["keylatch_alerts_total"] == 1
        assert replica.metrics()['keylatch_webhooks_total{outcome="failed",webhook="ops"}'] == 2
        heads = [dict(each["headers"]) for each in ops.requests]
        assert len({head["webhook-id"] for head in heads}) == 1, "each attempt has the same id"
        body, head = ops.requests[-1]["body"].decode(), heads[-1]
        assert head["webhook-signature"] == "v1," + signature(b"secret", f"{head['webhook-id']}.{head['webhook-timestamp']}.{body}")
        assert abs(int(head["webhook-timestamp"]) - time.time()) < 60 and head["content-type"] == "application/json"
        event = json.loads(body)
        data = event["data"]
        assert event["type"] == "key.intercepted" and data["hint"] == "sk-…efgh" and 5 <= data["intercepts"] <= 7 and data["clients"] == 3
        assert data["last"]["networks"] == ["127.0.0.1/32"] and data["last"]["route"] == "api" and data["last"]["client"].startswith("127.0.0.")
        assert data["last"]["replica"] == ("edge-7" if kind == "postgres" else "")
        assert KEY not in body and KEY not in replica.stderr.read_text()


def test_one_of_three_replicas_sends_the_alert(replicas, database):
    with receiver() as ops:
        three = replicas(3, sections=alerts(webhook("ops", ops.port), webhook("other", ops.port), count=30))
        assert send_request(three[0], KEY).status == 200
        for replica in three:
            refuse(replica, 9)
        # Shows an absence, for which there is no condition to wait for.
        time.sleep(2)
        assert not ops.requests, "27 refusals over three replicas are below the threshold of 30"
        for replica in three:
            refuse(replica, 2)
        wait_for(lambda: len(ops.requests) == 2, "both webhooks get the alert")
        for replica in three:
            refuse(replica, 40)
        # Shows an absence, for which there is no condition to wait for.
        time.sleep(2.5)
        assert len(ops.requests) == 2
        assert sum(replica.metrics()["keylatch_alerts_total"] for replica in three) == 1
        assert database.psql("SELECT count(*) FROM outbox") == "0"


def test_a_crash_and_an_outage_lose_no_alert(replicas, database):
    port = free_port()
    one, other = replicas(2, sections=alerts(webhook("ops", port)))
    assert send_request(one, KEY).status == 200
    refuse(one, 6)
    wait_for(lambda: database.psql("SELECT attempts > 0 FROM outbox") == "t", "a failed delivery attempt")
    one.process.kill()
    one.process.wait()
    database.kill()
    database.start()
    # The lease of the killed replica expires.
    database.psql("UPDATE outbox SET due_at = now()")
    taken = []
    listener = Scripted(lambda request, send: (taken.append(request), send(plain()), True)[-1])
    try:
        other.write(more=alerts(webhook("ops", listener.port)))
        assert other.command("reload").returncode == 0
        wait_for(lambda: len(taken) == 1, "the alert arrives", 30)
        wait_for(lambda: database.psql("SELECT count(*) FROM outbox", check=False) == "0", "the outbox is empty")
    finally:
        listener.close()


def intercepts(replica):
    """The number of intercepts in the store."""
    said = replica.command("intercepts", "list", "--json")
    assert said.returncode == 0, said.stderr
    return sum(json.loads(line)["count"] for line in said.stdout.splitlines())


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_refusals_just_before_a_stop_raise_an_alert(start, echo_upstream, kind, request):
    store = storage(request.getfixturevalue("database")) if kind == "postgres" else "{sqlite: {path: t.db}}"
    for how in (signal.SIGTERM, signal.SIGKILL):
        with receiver() as server:
            store_of = store.replace("t.db", f"{how.name}.db").replace("flush_every: 100ms", "flush_every: 200ms")
            key = f"sk-{how.name.lower()}-0001-abcdefgh"
            replica = start(echo_upstream, route_filters=FREE, secrets=SECRET, storage=store_of, more=alerts(webhook("ops", server.port)))
            assert send_request(replica, key).status == 200
            before = intercepts(replica)
            refuse(replica, 9, key)
            if how == signal.SIGKILL:
                wait_for(lambda: intercepts(replica) == before + 9, "the intercepts are written, and may be unevaluated", 20)  # noqa: B023
                replica.process.kill()
                replica.process.wait()
            else:
                replica.stop(how)
            replica.start()
            wait_for(lambda: server.requests, f"alert after {how.name}", 10)  # noqa: B023
            # Shows an absence, for which there is no condition to wait for: a second alert would
            # have another id.
            time.sleep(1)
            assert len({dict(one["headers"])["webhook-id"] for one in server.requests}) == 1


def test_a_hanging_webhook_delays_no_other(start, echo_upstream):
    def hang(request, send):
        time.sleep(30)
        return False

    with receiver() as good, Scripted(hang) as bad:
        section = alerts(webhook("bad", bad.port, ", timeout: 20s"), webhook("good", good.port))
        replica = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db, flush_every: 100ms}}", more=section)
        for number in range(3):
            key = f"sk-alerted-{number:04}-abcdefgh"
            assert send_request(replica, key).status == 200
            refuse(replica, 6, key)
            wait_for(lambda: len(good.requests) == number + 1, "the other webhook gets the alert", 5)  # noqa: B023


def test_payload_formats(start, echo_upstream):
    with receiver() as slack, receiver(("204 No Content", b"")) as discord, receiver(b'{"code":19021}', b'{"code":0}') as feishu, receiver(
        b'{"errcode":0}'
    ) as dingtalk, receiver(b'{"errcode":0}') as wecom:
        hooks = [
            webhook("slack", slack.port, ", format: slack"),
            webhook("discord", discord.port, ", format: discord"),
            webhook("feishu", feishu.port, ", format: feishu, secret: s3cret"),
            webhook("dingtalk", dingtalk.port, ", format: dingtalk, secret: s3cret"),
            webhook("wecom", wecom.port, ", format: wecom"),
        ]
        replica = start(echo_upstream, route_filters=FREE, storage="{sqlite: {path: t.db, flush_every: 100ms}}", more=alerts(*hooks))
        assert send_request(replica, "sk-a-strange-one-<!b>").status == 200
        refuse(replica, 6, "sk-a-strange-one-<!b>")
        wait_for(lambda: all(each.requests for each in (slack, discord, dingtalk, wecom)) and len(feishu.requests) == 2, "all webhooks get the alert", 20)
        said = {name: json.loads(each.requests[-1]["body"]) for name, each in [("slack", slack), ("discord", discord), ("feishu", feishu), ("dingtalk", dingtalk), ("wecom", wecom)]}
        text = said["wecom"]["text"]["content"]
        assert said["wecom"]["msgtype"] == "text" and "was refused 6 times within 1 min, from 3 addresses, last from 127.0.0." in text and "bound to 127.0.0.1/32" in text
        assert "<" not in said["slack"]["text"] and "sk-…&lt;!b&gt;" in said["slack"]["text"]
        assert said["discord"]["allowed_mentions"] == {"parse": []} and said["discord"]["content"] == text
        assert "<" not in said["feishu"]["content"]["text"] and said["feishu"]["msg_type"] == "text"
        stamp = said["feishu"]["timestamp"]
        assert said["feishu"]["sign"] == signature(f"{stamp}\ns3cret".encode(), "")
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(dingtalk.requests[-1]["target"]).query))
        assert query["sign"] == signature(b"s3cret", f"{query['timestamp']}\ns3cret")
        assert abs(int(query["timestamp"]) / 1000 - time.time()) < 60
        # The command that tests a webhook.
        tested = replica.command("alerts", "test")
        assert tested.returncode == 0 and tested.stdout.splitlines() == [f"{name}: accepted" for name in ("slack", "discord", "feishu", "dingtalk", "wecom")]
        replica.write(more=alerts(webhook("gone", free_port()), webhook("slack", slack.port, ", format: slack")))
        failed = replica.command("alerts", "test")
        assert failed.returncode == 1 and "gone: " in failed.stdout and "slack: accepted" in failed.stdout and "/hook" not in failed.stdout
        replica.write(more="")
        assert "no webhook is configured" in replica.command("alerts", "test").stderr


def test_forbidden_webhook_targets(start, echo_upstream, tmp_path):
    replica = start(echo_upstream)
    inside = receiver()
    for url, says in [
        ("http://hooks.example.com/s3cret", "must begin with `https://`"),
        (f"https://127.0.0.1:{inside.port}/s3cret", "not a public address"),
        ("https://[::ffff:169.254.169.254]/s3cret", "not a public address"),
        ("https://2130706433/s3cret", "not a public address"),
        ("s3cret", "must be a URL"),
    ]:
        replica.write(more=f'alerts: {{webhooks: [{{name: ops, url: "{url}"}}]}}')
        for command in ("check", "reload"):
            refused = replica.command(command)
            assert refused.returncode == 1 and says in refused.stderr and "alerts.webhooks[0].url" in refused.stderr, refused.stderr
            assert "s3cret" not in refused.stderr
    # Redirects are not followed, and certificates are verified.
    certificates = Certificates(tmp_path / "tls")
    redirect = receiver(("302 Found", b"", [f"Location: http://127.0.0.1:{inside.port}/"]), tls=certificates)
    try:
        target = f'url: "https://127.0.0.1:{redirect.port}/x", allow_private: true'
        replica.write(more=f"alerts: {{webhooks: [{{name: ops, {target}, ca_file: {certificates.ca}}}]}}")
        assert "ops: the receiver answered with status 302" in replica.command("alerts", "test").stdout
        replica.write(more=f"alerts: {{webhooks: [{{name: ops, {target}}}]}}")
        assert "certificate" in replica.command("alerts", "test").stdout
        assert not inside.requests and len(redirect.requests) == 1
    finally:
        inside.close()
        redirect.close()
