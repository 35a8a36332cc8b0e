"""Long-lived connections: deadlines, and changes of listener rules, certificates and keys while
they are open."""

import contextlib
import datetime
import socket
import ssl
import time

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket

from support.authority import now
from support.keylatch import DEFAULT, wait_for
from support.raw import connect
from support.tls import send_request, context, files, refused, serial, tls_connect, tls_config
from support.upstreams import Scripted, echo

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def closed(connection, within):
    """Whether the peer closes the connection within this time, in seconds."""
    connection.settimeout(within)
    try:
        while connection.recv(4096):
            pass
        return True
    except TimeoutError:
        return False
    except (ssl.SSLError, ConnectionError):
        return True


def test_silent_connections_are_closed(serve, start, authority, echo_upstream):
    limits = "{header_timeout: 500ms, idle_timeout: 1s}"
    over = serve(echo_upstream, {"certificates": [files(authority.issue("first", "api.test"))]}, limits=limits)
    clear = start(echo_upstream, limits=limits, config=DEFAULT.replace("    limits: {limits}", "    limits: {limits}\n    h2c: false"))
    silent = [
        tls_connect(over.port, authority, alpn=["h2"]),
        tls_connect(over.port, authority, alpn=["h2"]),
        tls_connect(over.port, authority, alpn=["http/1.1"]),
        connect(clear.port),
    ]
    silent[1].sendall(PREFACE[:20])
    for n, connection in enumerate(silent):
        assert closed(connection, 5), n
    wait_for(lambda: over.metrics()["keylatch_connections"] == clear.metrics()["keylatch_connections"] == 0, "no connection is open")
    assert over.metrics()['keylatch_gate_refusals_total{reason="header_timeout"}'] == 2
    for keylatch in (over, clear):
        assert keylatch.metrics()['keylatch_gate_refusals_total{reason="idle_timeout"}'] == 1
    # Requests within the time limits are served, and each request restarts the idle time-out.
    with tls_connect(over.port, authority) as connection:
        for _ in range(3):
            time.sleep(0.6)
            assert send_request(connection)[0] == 200


def mutual(authority, more=()):
    clients = {"ca_file": str(authority.ca), "revoked_file": str(authority.revoked)}
    return {"certificates": [files(authority.issue("server", "api.test"))], "client_certificates": {**clients, **dict(more)}}


def test_open_connections_follow_changed_rules(serve, authority, echo_upstream):
    agents = [authority.issue(stem, f"{stem}.test", client=True) for stem in ("good", "gone")]
    keylatch = serve(echo_upstream, mutual(authority))
    good, gone = (tls_connect(keylatch.port, authority, client=agent) for agent in agents)
    trust = context(authority, client=agents[1], check_hostname=False)
    with good, gone, httpx.Client(http2=True, verify=trust) as http2:
        url, host = f"https://127.0.0.1:{keylatch.port}/v1/x", {"Host": "api.test"}
        assert send_request(good)[0] == send_request(gone)[0] == 200 and http2.get(url, headers=host).status_code == 200
        authority.revoke(agents[1])
        assert keylatch.command("reload").returncode == 0
        status, said = send_request(gone)
        assert (status, said["error"]["code"]) == (403, "client_certificate") and closed(gone, 5)
        answer = http2.get(url, headers=host)
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 403)
        assert send_request(good)[0] == 200, "a connection that still satisfies the rules stays open"
    assert keylatch.metrics()['keylatch_gate_refusals_total{reason="client_certificate"}'] == 2


def test_an_expired_client_certificate_is_not_resumed(serve, authority, echo_upstream):
    keylatch = serve(echo_upstream, mutual(authority))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        agent = authority.issue("short", "agent.test", client=True, until=now() + datetime.timedelta(seconds=3))
        with tls_connect(keylatch.port, authority, client=agent, maximum_version=version) as connection:
            assert send_request(connection)[0] == 200
            session, settings = connection.session, connection.context
            wait_for(lambda: send_request(connection)[0] == 403, "the certificate expires on the open connection too", 10)
        assert session and refused(keylatch.port, authority, agent)
        try:
            with settings.wrap_socket(connect(keylatch.port), server_hostname="api.test", session=session) as resumed:
                assert send_request(resumed)[0] == 403
        except (ssl.SSLError, ConnectionError):
            pass


def test_a_removed_listener_keeps_its_last_rules(serve, authority, echo_upstream):
    agent = authority.issue("agent", "agent.test", client=True)
    tls = mutual(authority)
    keylatch = serve(echo_upstream, tls)
    with tls_connect(keylatch.port, authority, client=agent) as connection:
        assert send_request(connection)[0] == 200
    secret = "s" * 32
    keylatch.template = tls_config(tls).replace("    tls:", "    origin_secret: {{header: x-origin, values: [\"" + secret + "\"]}}\n    tls:", 1)
    authority.revoke(agent)
    other = authority.issue("other", "other.test", client=True)
    keylatch.write()
    assert keylatch.command("reload").returncode == 0
    wait_for(lambda: refused(keylatch.port, authority, agent), "the revocation list is active")
    # Another listener replaces it, and opens only after a restart.
    keylatch.path.write_text(keylatch.path.read_text().replace(f"address: 127.0.0.1:{keylatch.port}", "address: 127.0.0.1:9", 1))
    done = keylatch.command("reload")
    assert done.returncode == 0 and "a restart is needed" in done.stdout, done
    assert refused(keylatch.port, authority, agent)
    with tls_connect(keylatch.port, authority, client=other) as connection:
        assert send_request(connection)[0] == 403
        assert send_request(connection, headers=f"X-Origin: {secret}\r\n")[0] == 200
    # Its files are still watched: a renewed certificate is served, and a revoked client is refused.
    renewed = authority.issue("server", "api.test")

    def shown():
        with tls_connect(keylatch.port, authority, client=other) as connection:
            return serial(connection)

    wait_for(lambda: shown() == renewed.serial, "the new certificate is shown", 15)
    authority.revoke(agent, other)
    wait_for(lambda: refused(keylatch.port, authority, other), "the new revocation list is active", 15)


def test_a_revoked_server_fails_over_to_another(start, authority):
    good, gone = (authority.issue(stem, "IP:127.0.0.1") for stem in ("good", "gone"))
    authority.revoke(gone)
    with Scripted(echo, tls=good) as one, Scripted(echo, tls=gone) as other:
        servers = f'    servers: [{{{{address: "127.0.0.1:{other.port}"}}}}, {{{{address: "127.0.0.1:{one.port}"}}}}]\n    tls: {{{{ca_file: {authority.ca}, revoked_file: {authority.revoked}}}}}'
        keylatch = start(one, config=DEFAULT.replace('    servers: [{{address: "127.0.0.1:{upstream}"}}]', servers))
        assert [httpx.post(f"http://127.0.0.1:{keylatch.port}/v1/x", content=b"x").status_code for _ in range(12)] == [200] * 12
        assert not other.requests
        assert keylatch.metrics()['keylatch_upstream_errors_total{error="InvalidCert",upstream="model"}'] >= 1


def test_the_reason_for_an_untrusted_server_is_logged(start, authority):
    with Scripted(echo, tls=authority.issue("elsewhere", "elsewhere.test")) as upstream:
        tls = f'    servers: [{{{{address: "127.0.0.1:{upstream.port}"}}}}]\n    tls: {{{{ca_file: {authority.ca}, server_name: model.test}}}}'
        keylatch = start(upstream, config=DEFAULT.replace('    servers: [{{address: "127.0.0.1:{upstream}"}}]', tls))
        assert httpx.get(f"http://127.0.0.1:{keylatch.port}/v1/x").status_code == 502
        line = wait_for(lambda: keylatch.access_log(), "a line")[0]
        assert "TLSHandshakeFailure" in line["error"] and "model.test" in line["error"], line


def test_a_ban_or_an_operator_ends_a_websocket(start, realtime):
    keylatch = start(realtime, route_filters="      - key_binding: {}", storage="{sqlite: {path: keylatch.db}}")
    url = f"ws://127.0.0.1:{keylatch.port}/v1/realtime"
    keys = [{"Authorization": f"Bearer sk-{name}-0001-abcdefgh"} for name in ("banned", "ended", "left")]
    with contextlib.ExitStack() as stack:
        banned, ended, left = (stack.enter_context(websocket(url, additional_headers=key, ping_interval=None)) for key in keys)
        end_them(keylatch, banned, ended, left)
    lines = wait_for(lambda: len(keylatch.access_log()) == 3 and keylatch.access_log(), "three lines")
    assert sorted(line.get("error", "").split()[-1:] for line in lines) == [[], ["Cut"], ["Ended"]], lines
    assert keylatch.metrics()["keylatch_open_streams"] == 0


def end_them(keylatch, banned, ended, left):
    for connection in (banned, ended, left):
        connection.send("hello")
        assert connection.recv(5) == "hello"
    assert keylatch.metrics()["keylatch_open_streams"] == 3
    listed = keylatch.command("streams", "list").stdout.splitlines()
    assert len(listed) == 4, listed
    bound = keylatch.command("bindings", "list").stdout
    assert bound.count("127.0.0.1") == 3, bound
    assert keylatch.command("bindings", "ban", "-", stdin="sk-banned-0001-abcdefgh").returncode == 0
    with pytest.raises(ConnectionClosed):
        banned.recv(5)
    number = listed[2].split()[0]
    assert keylatch.command("streams", "end", number).returncode == 0
    with pytest.raises(ConnectionClosed):
        ended.recv(5)
    left.send("still here")
    assert left.recv(5) == "still here"


def test_an_idle_websocket_is_closed_without_a_message(start, realtime):
    keylatch = start(realtime, limits="{upgrade_idle_timeout: 1s}")
    with socket.create_connection(("127.0.0.1", keylatch.port)) as connection:
        connection.settimeout(10)
        fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        connection.sendall(f"GET /v1/realtime HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode())
        said = b""
        while piece := connection.recv(4096):
            said += piece
        head, _, rest = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ") and b"{" not in rest, said
