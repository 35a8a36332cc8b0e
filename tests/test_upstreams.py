"""Upstreams: outages and their reports, name resolution, retries, keep-alive connections, Unix
sockets, base paths."""

import http.client
import json
import socket
import subprocess
import threading
import time

import pytest
from support import raw
from support.closing import Closing
from support.h2_upstream import H2Upstream
from support.keylatch import DEFAULT, free_port, wait_for
from support.listener import Listener
from support.upstreams import Scripted, plain

SERVERS = 'servers: [{{address: "127.0.0.1:{upstream}"}}]'


def upstreams(*lines, servers=None):
    """The configuration with additional options of the upstream."""
    config = DEFAULT.replace(SERVERS, "\n    ".join([servers or SERVERS, *lines]))
    assert config != DEFAULT or not lines
    return config


def post(port, path="/v1/x", **values):
    return raw.request(port, path, method="POST", body=b"x", **values)


def ok(request, send):
    send(plain())
    return True


# Health


def lines(keylatch, text):
    return [line for line in keylatch.stderr.read_text().splitlines() if text in line]


def test_an_outage_and_its_end_are_each_reported_once(start):
    port = free_port()
    keylatch = start(port, config=upstreams("health: {{passive: {{failures: 3, eject_for: 100ms}}}}"))
    for _ in range(40):
        assert post(keylatch.port).status == 502
    assert [len(lines(keylatch, text)) for text in ("server ejected", "server recovered")] == [1, 0]
    wait_for(lambda: lines(keylatch, "retrying an ejected server"), "a connection is tried in the background")
    with Scripted(ok, listener=socket.create_server(("127.0.0.1", port))):
        wait_for(lambda: lines(keylatch, "server recovered"), "a health check succeeds without a request")
    assert [len(lines(keylatch, text)) for text in ("server ejected", "retrying an ejected server", "server recovered")] == [1, 1, 1]
    assert f"server=127.0.0.1:{port}" in lines(keylatch, "server ejected")[0]


def test_health_names_the_upstream_that_is_down(start, echo_upstream):
    dead = free_port()
    more = f'upstreams:\n  - name: spare\n    servers: [{{{{address: "127.0.0.1:{dead}"}}}}]\n'
    config = DEFAULT.replace("upstreams:\n", more) + '  - name: spare\n    match: {{paths: ["/spare/*"]}}\n    upstream: spare\n'
    keylatch = start(echo_upstream, config=config)

    def status():
        return keylatch.health()[1]["status"], {one["name"]: one["status"] for one in keylatch.health()[1]["upstreams"]}

    for _ in range(3):
        assert post(keylatch.port, "/spare/x").status == 502
    assert status() == ("degraded", {"spare": "down", "model": "ok"})
    done = keylatch.command("health")
    assert (done.returncode, done.stdout) == (3, "degraded\nupstream spare: down, 0 of 1 servers are healthy\n")
    assert keylatch.health("ready") == (200, {"status": "ok", "upstreams_down": ["spare"]}), "readiness does not depend on one upstream"
    assert keylatch.health("live") == (200, {"status": "ok"})
    for flag in ("--ready", "--live"):
        assert keylatch.command("health", flag).returncode == 0


def test_health_reports_down_upstreams_before_any_request(start):
    keylatch = start(free_port())
    wait_for(lambda: keylatch.health()[1]["status"] != "ok", "a connection is tried")
    assert keylatch.health()[0] == 200 and keylatch.health()[1]["status"] == "down"
    done = keylatch.command("health")
    assert (done.returncode, done.stdout) == (4, "down\nupstream model: down, 0 of 1 servers are healthy\n")
    assert "DOWN: 0 of 1 servers are healthy" in keylatch.command("status").stdout


def test_one_of_two_servers_is_no_outage(start, echo_upstream):
    servers = SERVERS.replace("}}]", '}}, {{address: "127.0.0.1:%d"}}]' % free_port())
    keylatch = start(echo_upstream, config=upstreams(servers=servers))
    assert {post(keylatch.port).status for _ in range(10)} == {200}
    wait_for(lambda: keylatch.health()[1]["upstreams"][0]["status"] != "ok", "a connection is tried")
    said = keylatch.health()[1]
    assert (said["status"], said["upstreams"][0]) == ("ok", {"name": "model", "status": "degraded", "servers": 2, "well": 1})


# Names


def test_an_unresolvable_name_is_reported_once(start, echo_upstream):
    keylatch = start(echo_upstream, config=upstreams("timeouts: {{connect: 100ms}}", servers='servers: [{{address: "no-such-name.invalid:80"}}]'))
    for _ in range(3):
        answer = post(keylatch.port)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "upstream_unavailable")
    assert len(lines(keylatch, "DNS resolution failed")) == 1
    said = keylatch.health()[1]
    assert (said["status"], said["upstreams"][0]["servers"], said["upstreams"][0]["well"]) == ("down", 1, 0)


MOUNTED = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']


@pytest.fixture
def hosts(tmp_path):
    """A hosts file; `start(wrapper=hosts.wrapper)` starts a process that sees it as /etc/hosts."""
    path = tmp_path / "hosts"
    path.write_text("")
    wrapper = [*MOUNTED, str(path)]
    try:
        if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("needs a mount namespace")
    except FileNotFoundError:
        pytest.skip("needs unshare")

    class Hosts:
        def __init__(self):
            self.wrapper = wrapper

        def write(self, *addresses):
            path.write_text("".join(f"{address} model.test\n" for address in addresses))

    return Hosts()


NAMED = 'servers: [{{address: "model.test:{upstream}"}}]'


def at(address, port=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def test_a_name_that_appears_later_is_resolved_within_a_second(start, hosts):
    with Scripted(ok) as upstream:
        keylatch = start(upstream, config=upstreams(servers=NAMED), wrapper=hosts.wrapper)
        assert keylatch.health()[1]["status"] == "down"
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(post(keylatch.port).status))
        hosts.write("127.0.0.1")
        waiting.start()
        waiting.join(10)
        assert answers == [200], "the request waits for the next look-up"
        wait_for(lambda: lines(keylatch, "DNS resolution recovered"), "log line")
        assert keylatch.health()[1]["status"] == "ok"


def test_no_request_fails_when_a_server_changes_its_address(start, hosts):
    hosts.write("127.0.0.2")
    with Scripted(lambda request, send: send(plain(headers=["Connection: close"])) or False, listener=at("127.0.0.2")) as before:
        keylatch = start(before, config=upstreams(servers=NAMED), wrapper=hosts.wrapper)
        assert post(keylatch.port).status == 200
        before.listener.shutdown(socket.SHUT_RDWR)
        before.close()
        hosts.write("127.0.0.3")
        with Scripted(ok, listener=at("127.0.0.3", before.port)) as after:
            # Names are looked up every 30 s, and at once after a failed connection.
            assert [post(keylatch.port).status for _ in range(20)] == [200] * 20
            assert len(after.requests) == 20


@pytest.mark.parametrize("first,listen", [("::1", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
def test_both_families_of_a_name_are_tried(start, hosts, first, listen):
    hosts.write(first, "127.0.0.1" if first == "::1" else "::1")
    with Scripted(ok, listener=at(listen)) as upstream:
        # The other address family uses no retry.
        keylatch = start(upstream, config=upstreams("retries: 0", servers=NAMED), wrapper=hosts.wrapper)
        assert {post(keylatch.port).status for _ in range(20)} == {200}
        wait_for(lambda: post(keylatch.port) and keylatch.access_log()[-1]["upstream"] == (f"[{listen}]" if ":" in listen else listen) + f":{upstream.port}", "the log names it")
        assert keylatch.health()[1]["upstreams"][0] == {"name": "model", "status": "ok", "servers": 1, "well": 1}
        assert not lines(keylatch, "server ejected")


def test_the_allowed_address_family(start, echo_upstream):
    # Either `localhost` has no IPv6 address, or no server listens there.
    for family, statuses in [("ipv4", {200}), ("ipv6", {502, 503})]:
        keylatch = start(echo_upstream, config=upstreams(f"address_family: {family}", servers='servers: [{{address: "localhost:{upstream}"}}]'))
        assert post(keylatch.port).status in statuses


# Retries


H2 = "http: http2"


@pytest.mark.parametrize("how", ["refuse", "goaway"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_an_unprocessed_stream_is_retried(start, how, method):
    with H2Upstream(lambda number, _: how if number <= 2 else "answer") as upstream:
        keylatch = start(upstream, config=upstreams(H2))
        assert raw.request(keylatch.port, method=method, body=b"x" * 1000).status == 200
        assert len(upstream.attempts) == 3 and upstream.processed == [(method, "/v1/x", b"x" * 1000)]


def test_a_refused_stream_is_retried_after_an_early_header(start):
    with H2Upstream(lambda number, _: "refuse" if number == 1 else "answer") as upstream:
        early = "      - sse_keepalive: {interval: 1s, before_headers: 30s}"
        keylatch = start(upstream, config=upstreams(H2), route_filters=early)
        answer = raw.request(keylatch.port, method="POST", body=b'{"stream": true}', headers=[("Accept", "text/event-stream")])
        assert answer.status == 200 and len(upstream.attempts) == 2 and len(upstream.processed) == 1


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("how", ["refuse", "goaway"])
def test_refused_streams_are_retried_up_to_the_limit(start, how, retries):
    with H2Upstream(lambda number, _: how) as upstream:
        keylatch = start(upstream, config=upstreams(H2, f"retries: {retries}"))
        for method in ("GET", "PUT", "POST"):
            upstream.attempts.clear()
            assert raw.request(keylatch.port, method=method, body=b"x").status == 502
            assert len(upstream.attempts) == retries + 1, method


@pytest.mark.parametrize("how", ["goaway_late", "cancel"])
def test_a_post_that_may_have_been_processed_is_not_retried(start, how):
    with H2Upstream(lambda number, _: how) as upstream:
        keylatch = start(upstream, config=upstreams(H2))
        assert post(keylatch.port).status == 502
        assert len(upstream.attempts) == len(upstream.processed) == 1


def test_a_retry_prefers_another_server(start):
    with H2Upstream(lambda *_: "refuse") as busy, H2Upstream(lambda *_: "answer") as free:
        servers = SERVERS.replace("}}]", '}}, {{address: "127.0.0.1:%d"}}]' % free.port)
        keylatch = start(busy, config=upstreams(H2, "retries: 1", servers=servers))
        assert {post(keylatch.port).status for _ in range(10)} == {200}
        assert busy.attempts and len(free.processed) == 10


# Keep-alive connections


def posts(port, count, pause):
    """Sends POSTs over one connection, with a pause after each; returns the statuses."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    statuses = []
    for number in range(count):
        client.request("POST", f"/v1/{number}", body=b"x" * 100)
        answer = client.getresponse()
        answer.read()
        statuses.append(answer.status)
        time.sleep(pause)
    client.close()
    return statuses


def test_no_request_fails_on_a_connection_closed_by_the_server(start):
    with Closing(0) as upstream:
        keylatch = start(upstream)
        client = http.client.HTTPConnection("127.0.0.1", keylatch.port, timeout=10)
        for number in range(50):
            client.request("POST", f"/v1/{number}", body=b"x")
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"ok"), number
            # Polls without a pause, so that the request follows the close before Keylatch's event
            # loop may have seen it.
            end = time.monotonic() + 10
            while upstream.closed <= number:
                assert time.monotonic() < end, "the server closes the connection"
        assert upstream.processed == [f"/v1/{n}" for n in range(50)], "each request is processed once"


def test_a_post_is_sent_once_whenever_the_server_closes(start):
    with Closing(0.002) as upstream:
        keylatch = start(upstream)
        # The pauses are as close to the server's time-out as a test can get.
        statuses = posts(keylatch.port, 200, 0.002)
        assert set(statuses) <= {200, 502} and upstream.closed > 10
        assert len(upstream.processed) == len(set(upstream.processed)) == statuses.count(200)


def test_the_idle_timeout_of_a_server_is_learned(start):
    with Closing(0.4) as upstream:
        keylatch = start(upstream)
        for number in range(12):
            assert post(keylatch.port, f"/v1/{number}").status == 200
            wait_for(lambda n=number: upstream.closed + upstream.left > n, "the connection ends")
            if upstream.left:
                break
        assert upstream.left and upstream.closed >= 3, "in the end Keylatch closes first"


def test_an_announced_idle_timeout_is_honoured(start):
    with Closing(1.0, announce=1) as upstream:
        keylatch = start(upstream)
        assert set(posts(keylatch.port, 2, 0)) == {200}
        wait_for(lambda: keylatch.metrics() and upstream.connections == 1, "one connection for both requests")
        begun = time.monotonic()
        # Keylatch closes half a second before the announced time, so the server reads the end.
        assert set(posts(keylatch.port, 2, 0.6)) == {200}
        assert upstream.connections >= 2 and upstream.closed == 0, time.monotonic() - begun


def test_idle_zero_keeps_no_connection(start):
    with Closing(5) as upstream:
        keylatch = start(upstream, config=upstreams("timeouts: {{idle: 0s}}"))
        assert set(posts(keylatch.port, 10, 0)) == {200} and upstream.connections == 10


def test_a_received_post_is_not_retried(start):
    def answer(request, send):
        if request["target"] == "/v1/first":
            send(plain())
            return True
        return False  # The request was read, and the connection ends without an answer.

    with Scripted(answer) as upstream:
        keylatch = start(upstream)
        assert post(keylatch.port, "/v1/first").status == 200
        assert post(keylatch.port, "/v1/second").status == 502
        assert [request["target"] for request in upstream.requests] == ["/v1/first", "/v1/second"]


# The parts of a request


class Parts(Listener):
    """Records what each read of a connection returns. Answers once a part ends with `end`."""

    def __init__(self, end):
        self.end, self.parts = end, []
        super().__init__()

    def serve(self, connection):
        with connection:
            while part := connection.recv(65536):
                self.parts.append(part)
                if part.endswith(self.end):
                    connection.sendall(plain())


LENGTH = (b"Content-Length: 3", [b"a", b"b", b"!"])
CHUNKED = (b"Transfer-Encoding: chunked", [b"1\r\na\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"])


@pytest.mark.parametrize(("framing", "body"), [LENGTH, CHUNKED], ids=["length", "chunked"])
def test_a_body_that_is_there_leaves_with_the_header_and_a_slow_one_leaves_as_it_comes(start, framing, body):
    header = b"POST /v1/x HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n"
    with Parts(body[-1]) as upstream:
        keylatch = start(upstream)
        with raw.connect(keylatch.port) as client, client.makefile("rb") as file:
            for _ in range(5):
                upstream.parts.clear()
                client.sendall(header + b"".join(body))
                assert raw.read_head(file)[0] == 200 and file.read(2) == b"ok"
                assert upstream.parts[0].partition(b"\r\n\r\n")[2], "the first read has part of the body"
            upstream.parts.clear()
            client.sendall(header)
            wait_for(lambda: b"".join(upstream.parts).endswith(b"\r\n\r\n"), "the header arrives without a body")
            for part in body[:-1]:
                client.sendall(part)
                wait_for(lambda part=part: b"".join(upstream.parts).endswith(part), "a part arrives without the next")
            client.sendall(body[-1])
            assert raw.read_head(file)[0] == 200


# Unix sockets and base paths


def unix_listener(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(256)
    return listener


def test_an_upstream_on_a_unix_socket(start, tmp_path):
    path = tmp_path / "model.sock"
    keylatch = start(1, config=upstreams("balance: client_hash", "health: {{passive: {{failures: 3, eject_for: 100ms}}}}", servers=f'servers: [{{{{address: "unix:{path}"}}}}]'))
    assert post(keylatch.port).status == 502
    wait_for(lambda: keylatch.health()[1]["status"] == "down", "a connection is tried")
    assert f"server=unix:{path}" in lines(keylatch, "server ejected")[0]
    with Scripted(ok, listener=unix_listener(path)) as upstream:
        wait_for(lambda: keylatch.health()[1]["status"] == "ok", "the upstream is up")
        assert set(posts(keylatch.port, 20, 0)) == {200}
        assert dict(upstream.requests[-1]["headers"])["host"] == f"127.0.0.1:{keylatch.port}", "the client's own Host"
        wait_for(lambda: keylatch.access_log()[-1]["upstream"] == f"unix:{path}", "the log names it")


def test_a_base_path_precedes_each_target(start, echo_upstream):
    health = "health: {{active: {{path: /healthz, interval: 500ms}}}}"
    keylatch = start(echo_upstream, config=upstreams("base_path: /openai/v2", health))
    for target in ("/v1/models", "/v1/x?q=a%2Fb&r=1", "/v1/%C3%A4?"):
        assert json.loads(raw.request(keylatch.port, target).body)["target"] == "/openai/v2" + target
    assert {request["target"] for request in echo_upstream.requests if "health" in request["target"]} == {"/healthz"}, "the base path is forwarded as written"
    done = keylatch.command("explain", "--peer", "127.0.0.1", "--path", "/v1/models")
    assert "upstream model, as /openai/v2/v1/models" in done.stdout


def test_a_base_path_over_http2(start):
    with H2Upstream(lambda *_: "answer") as upstream:
        keylatch = start(upstream, config=upstreams(H2, "base_path: /openai"))
        assert post(keylatch.port).status == 200 and upstream.processed[0][1] == "/openai/v1/x"
