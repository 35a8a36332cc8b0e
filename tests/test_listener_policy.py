"""Checks of a listener before the gate: the PROXY protocol, and `origin_secret`."""

import json
import socket
import ssl
import struct
import time

import pytest

from support.authority import Authority
from support.keylatch import DEFAULT, wait_for
from support.raw import connect, read_body, read_head, request

ENTRY = DEFAULT.replace("    limits: {limits}", "    limits: {limits}\n{entry}")
SECRETS = ["0123456789abcdef-old", "0123456789abcdef-new"]


@pytest.fixture
def serve(start):
    """Starts a Keylatch with these options of its listener."""

    def begin(upstream, entry, **values):
        text = "\n".join(f"    {key}: {json.dumps(value)}" for key, value in entry.items())
        return start(upstream, config=ENTRY.replace("{entry}", text.replace("{", "{{").replace("}", "}}")), **values)

    return begin


def v2(source, command=1):
    """A version 2 header for an IPv4 connection, with an extra TLV as load balancers add."""
    addresses = socket.inet_aton(source) + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 12345, 443) + b"\x04\x00\x02ab"
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x20 | command, 0x11]) + struct.pack("!H", len(addresses)) + addresses


def v1(source):
    return f"PROXY TCP4 {source} 10.0.0.1 12345 443\r\n".encode()


REQUEST = b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"


def send_request(connection, *pieces):
    """Sends the pieces separately, and reads one answer; `None` if there is none."""
    for piece in pieces:
        connection.sendall(piece)
        # So that each piece is a TCP segment.
        time.sleep(0.02)
    file = connection.makefile("rb")
    try:
        head = read_head(file)
    except ConnectionError:
        return None
    return head and (head[0], json.loads(read_body(file, head[1])[0] or b"{}"))


def forwarded(answer):
    return answer[0] == 200 and dict(answer[1]["headers"])["x-forwarded-for"]


def test_the_proxy_protocol_sets_the_client_address(serve, echo_upstream):
    keylatch = serve(echo_upstream, {"proxy_protocol": ["127.0.0.2", "127.0.1.0/24"]}, limits="{header_timeout: 500ms}")
    for header, named in [
        (v1("203.0.113.7"), "203.0.113.7"),
        (v2("203.0.113.8"), "203.0.113.8"),
        (v2("203.0.113.8", command=0), "127.0.0.2"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.2"),
    ]:
        for pieces in ([header + REQUEST], [header, REQUEST], [header[:9], header[9:] + REQUEST[:5], REQUEST[5:]]):
            with connect(keylatch.port, "127.0.0.2") as connection:
                assert forwarded(send_request(connection, *pieces)) == named, (header, pieces)
                # The header counts for the whole connection, and only at its beginning.
                assert forwarded(send_request(connection, REQUEST)) == named
    # The named address may itself be a trusted proxy.
    trusting = serve(echo_upstream, {"proxy_protocol": ["127.0.0.2"]}, trusted="{networks: [203.0.113.7]}")
    with connect(trusting.port, "127.0.0.2") as connection:
        assert forwarded(send_request(connection, v1("203.0.113.7") + REQUEST)) == "9.9.9.9"
    with connect(trusting.port, "127.0.0.2") as connection:
        assert forwarded(send_request(connection, v1("203.0.113.9") + REQUEST)) == "203.0.113.9"
    before = len(echo_upstream.requests)
    # Untrusted peers may not send the header, and trusted peers must.
    with connect(keylatch.port, "127.0.0.3") as connection:
        assert send_request(connection, v1("203.0.113.7") + REQUEST)[0] == 400
    with connect(keylatch.port, "127.0.0.3") as connection:
        assert forwarded(send_request(connection, REQUEST)) == "127.0.0.3"
    for wrong in (REQUEST, v1("203.0.113.7")[:-2] + REQUEST, v1("absent") + REQUEST, v1("203.0.113.7")[:20]):
        with connect(keylatch.port, "127.0.1.9") as connection:
            assert send_request(connection, wrong) is None
    with connect(keylatch.port, "127.0.1.9") as connection:
        assert send_request(connection, v1("203.0.113.7") * 2 + REQUEST)[0] == 400
    assert len(echo_upstream.requests) == before + 1
    metrics = keylatch.metrics()
    assert metrics['keylatch_gate_refusals_total{reason="proxy_protocol"}'] == 3
    assert metrics['keylatch_gate_refusals_total{reason="handshake_timeout"}'] == 1


def test_before_tls_and_before_http2(serve, echo_upstream, tmp_path):
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("first", "api.test")
    tls = {"certificates": [{"chain_file": str(issued.cert), "key_file": str(issued.key)}]}
    keylatch = serve(echo_upstream, {"proxy_protocol": ["127.0.0.2"], "tls": tls})
    context = ssl.create_default_context(cafile=authority.ca)
    with connect(keylatch.port, "127.0.0.2") as connection:
        connection.sendall(v2("203.0.113.7"))
        with context.wrap_socket(connection, server_hostname="api.test") as encrypted:
            assert forwarded(send_request(encrypted, REQUEST)) == "203.0.113.7"
    # The header and the first bytes of the handshake in one segment.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname="api.test")
    with connect(keylatch.port, "127.0.0.2") as connection:
        header = v2("203.0.113.9")
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(header + outgoing.read())
                header = b""
                incoming.write(connection.recv(65536))
        session.write(REQUEST)
        connection.sendall(outgoing.read())
        wait_for(lambda: any(("x-forwarded-for", "203.0.113.9") in seen["headers"] for seen in echo_upstream.requests), "the request")
    plain = serve(echo_upstream, {"proxy_protocol": ["127.0.0.2"]})
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    with connect(plain.port, "127.0.0.2") as connection:
        connection.sendall(v2("203.0.113.7") + preface)
        assert connection.recv(9)[3] == 4, "a SETTINGS frame: the connection uses HTTP/2"


def test_the_origins_secret(serve, echo_upstream):
    keylatch = serve(echo_upstream, {"origin_secret": {"values": SECRETS}})
    send_request = lambda *secrets: request(keylatch.port, headers=[("X-Origin-Secret", secret) for secret in secrets])  # noqa: E731
    for secret in SECRETS:
        answer = send_request(secret)
        assert answer.status == 200 and secret.encode() not in answer.body and b"origin-secret" not in answer.body.lower()
    for wrong in [(), ("",), ("0123456789abcdef",), (SECRETS[0] + "x",), (SECRETS[0][:-1],), tuple(SECRETS), (SECRETS[0], SECRETS[0])]:
        answer = send_request(*wrong)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (403, "origin_secret"), wrong
    assert request(keylatch.port, headers=[("X-Origin-Secret", SECRETS[0]), ("Connection", "x-origin-secret")]).status in (200, 400)
    assert not any("origin" in name for seen in echo_upstream.requests for name, _ in seen["headers"])
    said = keylatch.stdout.read_text() + keylatch.stderr.read_text()
    assert "0123456789abcdef" not in said
    assert keylatch.metrics()['keylatch_gate_refusals_total{reason="origin_secret"}'] == 7
    # One of two secrets is removed, which takes effect for the next request.
    keylatch.path.write_text(keylatch.path.read_text().replace(json.dumps(SECRETS), json.dumps(SECRETS[1:])))
    assert keylatch.command("reload").returncode == 0
    assert (send_request(SECRETS[0]).status, send_request(SECRETS[1]).status) == (403, 200)


def test_the_origin_secret_vouches_for_the_client_address(serve, echo_upstream):
    claims = [("CF-Connecting-IP", "203.0.113.7"), ("X-Forwarded-For", "1.1.1.1, 198.51.100.9")]
    for vouches, client in [("nothing", "127.0.0.1"), ("forwarded", "198.51.100.9"), ("cloudflare", "203.0.113.7")]:
        keylatch = serve(echo_upstream, {"origin_secret": {"values": SECRETS[:1], "header": "X-From-CDN", "vouches_for": vouches}})
        answer = request(keylatch.port, headers=[("x-from-cdn", SECRETS[0]), *claims])
        assert dict(json.loads(answer.body)["headers"])["x-forwarded-for"] == client, vouches
        assert request(keylatch.port, headers=claims).status == 403
        said = keylatch.command("explain", "--peer", "127.0.0.1", "-H", f"x-from-cdn: {SECRETS[0]}", "-H", "CF-Connecting-IP: 203.0.113.7", "-H", "X-Forwarded-For: 1.1.1.1, 198.51.100.9", "-H", "Host: localhost", "--path", "/v1/x").stdout
        assert "origin    the origin secret is present" in said and f"client    {client}," in said, said
        assert "refused with 403" in keylatch.command("explain", "--peer", "127.0.0.1", "-H", "Host: localhost", "--path", "/v1/x").stdout
