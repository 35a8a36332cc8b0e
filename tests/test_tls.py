"""TLS towards clients and upstreams: choice and verification of certificates, and replacement
without interruption."""

import shutil
import socket
import ssl
import threading
import time

import httpx
import pytest

from support.authority import DAY, Authority, now
from support.keylatch import DEFAULT, wait_for
from support.raw import connect
from support.tls import send_request, context, files, refused, serial, tls_connect, tls_config
from support.upstreams import Scripted, echo, plain

def fields(answer):
    return dict(answer["headers"])


def test_sni_chooses_the_certificate(serve, authority, echo_upstream):
    first, wild, exact = (authority.issue(stem, *names) for stem, *names in [("first", "api.test"), ("wild", "*.tenants.test"), ("exact", "a.tenants.test")])
    keylatch = serve(echo_upstream, {"certificates": [files(first), files(wild), files(exact)]})
    for asked, shown in [("api.test", first), ("API.test", first), ("a.tenants.test", exact), ("b.tenants.test", wild)]:
        with tls_connect(keylatch.port, authority, asked) as connection:
            assert serial(connection) == shown.serial, asked
            status, said = send_request(connection)
            assert status == 200 and fields(said)["x-forwarded-proto"] == "https"
    for asked in ["other.test", "x.b.tenants.test"]:
        with pytest.raises(ssl.SSLCertVerificationError):
            tls_connect(keylatch.port, authority, asked)
    # Without a server name the first certificate is served.
    with tls_connect(keylatch.port, authority, None, check_hostname=False) as connection:
        assert serial(connection) == first.serial
    assert keylatch.metrics()[f'keylatch_certificate_expiry_timestamp_seconds{{listener="127.0.0.1:{keylatch.port}",name="api.test"}}'] == first.certificate.not_valid_after_utc.timestamp()
    # A plaintext request gets no answer, and the listener goes on.
    with connect(keylatch.port) as connection:
        connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert b"HTTP/1.1 200" not in connection.recv(4096)
    with tls_connect(keylatch.port, authority) as connection:
        assert send_request(connection)[0] == 200


def test_versions_and_protocols(serve, authority, echo_upstream):
    issued = authority.issue("first", "api.test")
    keylatch = serve(echo_upstream, {"certificates": [files(issued)], "min_version": "1.3", "http2": False})
    with pytest.raises(ssl.SSLError):
        tls_connect(keylatch.port, authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    with tls_connect(keylatch.port, authority, alpn=["h2", "http/1.1"]) as connection:
        assert (connection.version(), connection.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    both = serve(echo_upstream, {"certificates": [files(issued)]})
    with tls_connect(both.port, authority, maximum_version=ssl.TLSVersion.TLSv1_2, alpn=["h2", "http/1.1"]) as connection:
        assert (connection.version(), connection.selected_alpn_protocol()) == ("TLSv1.2", "h2")
    with tls_connect(both.port, authority) as connection:
        assert connection.selected_alpn_protocol() is None and send_request(connection)[0] == 200
    trust = context(authority, check_hostname=False)
    with httpx.Client(http2=True, verify=trust) as client:
        for _ in range(20):
            answer = client.post(f"https://127.0.0.1:{both.port}/v1/x", headers={"Host": "api.test"}, content=b"x" * 70_000)
            assert (answer.http_version, answer.status_code, len(answer.json()["body"])) == ("HTTP/2", 200, 70_000)
    assert {line["http"] for line in both.access_log()} == {"1.1", "2"}


def test_certificates_are_replaced_without_interruption(serve, authority, echo_upstream):
    old, new = authority.issue("old", "api.test"), authority.issue("new", "api.test")
    place = authority.issue("place", "api.test")
    shutil.copy(old.cert, place.cert), shutil.copy(old.key, place.key)
    keylatch = serve(echo_upstream, {"certificates": [files(place)]})
    stop, failed, done = threading.Event(), [], []

    def client(keep):
        connection = None
        while not stop.is_set():
            try:
                connection = connection or tls_connect(keylatch.port, authority)
                assert send_request(connection)[0] == 200
                done.append(serial(connection))
            except Exception as error:  # noqa: BLE001 — any error is a failure
                failed.append(repr(error))
            if not keep:
                connection.close()
                connection = None

    threads = [threading.Thread(target=client, args=(keep,)) for keep in (True, True, False, False)]
    [thread.start() for thread in threads]
    try:
        wait_for(lambda: len(done) > 50, "requests")
        # Only one of two files is replaced: the key does not match, and the old certificate is
        # still served.
        shutil.copy(new.cert, place.cert)
        wait_for(lambda: "the key does not belong to the certificate" in keylatch.stderr.read_text(), "log line")
        with tls_connect(keylatch.port, authority) as connection:
            assert serial(connection) == old.serial
        shutil.copy(new.key, place.key)
        wait_for(lambda: new.serial in done[-20:], "the new one is shown", 15)
        # A reload reads the files at once.
        shutil.copy(old.cert, place.cert), shutil.copy(old.key, place.key)
        assert keylatch.command("reload").returncode == 0
        with tls_connect(keylatch.port, authority) as connection:
            assert serial(connection) == old.serial
    finally:
        stop.set()
        [thread.join() for thread in threads]
    assert not failed and {old.serial, new.serial} <= set(done)
    assert keylatch.stderr.read_text().count("the key does not belong to the certificate") == 1, "a repeated error is logged once"


def test_invalid_client_certificates_are_refused(serve, authority, echo_upstream, tmp_path):
    other = Authority(tmp_path / "other", "Other CA")
    server = authority.issue("server", "api.test")
    good, gone = authority.issue("good", "agent-1.test", client=True), authority.issue("gone", "agent-2.test", client=True)
    bad = {
        "none": None,
        "expired": authority.issue("expired", "agent-1.test", client=True, since=now() - 3 * DAY, until=now() - DAY),
        "not yet": authority.issue("early", "agent-1.test", client=True, since=now() + DAY),
        "of itself": authority.issue("self", "agent-1.test", client=True, own=True),
        "of another CA": other.issue("other", "agent-1.test", client=True),
        "a server's": authority.issue("notclient", "agent-1.test"),
        "revoked": gone,
    }
    authority.revoke(gone)
    clients = {"ca_file": str(authority.ca), "revoked_file": str(authority.revoked)}
    keylatch = serve(echo_upstream, {"certificates": [files(server)], "client_certificates": clients})
    for why, client in bad.items():
        assert refused(keylatch.port, authority, client), why
    assert not echo_upstream.requests
    with tls_connect(keylatch.port, authority, client=good) as connection:
        assert send_request(connection)[0] == 200
        # A client revoked during its connection is refused, also on resumption.
        session, settings = connection.session, connection.context
        authority.revoke(gone, good)
        wait_for(lambda: refused(keylatch.port, authority, good), "the new revocation list is active", 15)
        assert send_request(connection)[0] == 403
    assert session and session.has_ticket
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        send_request(settings.wrap_socket(connect(keylatch.port), server_hostname="api.test", session=session))
    assert keylatch.metrics()['keylatch_gate_refusals_total{reason="tls_handshake"}'] >= len(bad)


def test_a_client_certificate_is_an_identity(serve, authority, echo_upstream):
    server = authority.issue("server", "api.test")
    agent = authority.issue("agent", "agent-1.agents.test", "URI:spiffe://test/agent-1", client=True)
    stranger = authority.issue("stranger", "elsewhere.test", client=True)
    clients = {"ca_file": str(authority.ca), "presented": "optional"}
    keylatch = serve(
        echo_upstream, {"certificates": [files(server)], "client_certificates": clients},
        route_filters="""
      - client_certificate: {allow: ["*.agents.test"]}
      - rules:
          - {name: who, if: 'identity.claims.certificate.uri[0] == "spiffe://test/agent-1"', tag: agent}
""",
    )
    with tls_connect(keylatch.port, authority, client=agent) as connection:
        assert send_request(connection)[0] == 200
    for client in (None, stranger):
        with tls_connect(keylatch.port, authority, client=client) as connection:
            status, said = send_request(connection)
            assert (status, said["error"]["code"]) == (403, "client_certificate_required")
    lines = wait_for(lambda: len(keylatch.access_log()) == 3 and keylatch.access_log(), "three lines")
    assert [line.get("subject") for line in lines] == ["agent-1.agents.test", None, None] and lines[0]["tags"] == ["agent"]
    assert [line.get("reason") for line in lines[1:]] == ["no_certificate", "name_not_allowed"]


UPSTREAM_TLS = DEFAULT.replace('    servers: [{{address: "127.0.0.1:{upstream}"}}]', '    servers: [{{address: "127.0.0.1:{upstream}"}}]\n    retries: 0\n    tls: {tls}')


def test_invalid_server_certificates_are_refused(start, authority, tmp_path):
    other = Authority(tmp_path / "other", "Other CA")
    gone = authority.issue("gone", "IP:127.0.0.1", "model.test")
    authority.revoke(gone)
    kinds = {
        "good": authority.issue("good", "IP:127.0.0.1", "model.test"),
        "another name": authority.issue("named", "IP:127.0.0.2", "elsewhere.test"),
        "expired": authority.issue("expired", "IP:127.0.0.1", "model.test", since=now() - 3 * DAY, until=now() - DAY),
        "of itself": authority.issue("self", "IP:127.0.0.1", "model.test", own=True),
        "of another CA": other.issue("other", "IP:127.0.0.1", "model.test"),
        "a client's": authority.issue("client", "IP:127.0.0.1", "model.test", client=True),
        "revoked": gone,
    }
    for name in ("", ", server_name: model.test"):
        for http in ("auto", "http1"):
            tls = f"{{{{ca_file: {authority.ca}, revoked_file: {authority.revoked}{name}}}}}\n    http: {http}"
            for why, issued in kinds.items():
                with Scripted(echo, tls=issued) as upstream:
                    keylatch = start(upstream, config=UPSTREAM_TLS.replace("{tls}", tls))
                    status = httpx.get(f"http://127.0.0.1:{keylatch.port}/v1/x").status_code
                    assert (status, len(upstream.requests)) == ((200, 1) if why == "good" else (502, 0)), (why, name, http)
                    keylatch.stop()


def test_client_certificates_for_upstreams_and_separate_connection_pools(start, authority, tmp_path):
    ours, other = authority.issue("ours", "keylatch.test", client=True), Authority(tmp_path / "other", "Other CA")
    served = authority.issue("served", "IP:127.0.0.1")
    seen = []

    def who(request, send):
        seen.append(request["target"])
        send(plain(body=b"{}"))
        return True

    upstream = Scripted(who, tls=served)
    upstream.context.verify_mode = ssl.CERT_REQUIRED
    upstream.context.load_verify_locations(authority.ca)
    config = """
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: memory
upstreams:
  - name: known
    servers: [{{address: "127.0.0.1:{upstream}"}}]
    retries: 0
    tls: {{ca_file: CA, client_certificate: {{chain_file: CERT, key_file: KEY}}}}
  - name: unknown
    servers: [{{address: "127.0.0.1:{upstream}"}}]
    retries: 0
    tls: {{ca_file: CA}}
  - name: distrusting
    servers: [{{address: "127.0.0.1:{upstream}"}}]
    retries: 0
    tls: {{ca_file: OTHER, client_certificate: {{chain_file: CERT, key_file: KEY}}}}
routes:
  - {{name: known, match: {{paths: [/known]}}, upstream: known}}
  - {{name: unknown, match: {{paths: [/unknown]}}, upstream: unknown}}
  - {{name: distrusting, match: {{paths: [/distrusting]}}, upstream: distrusting}}
"""
    for word, path in [("OTHER", other.ca), ("CERT", ours.cert), ("KEY", ours.key), ("CA", authority.ca)]:
        config = config.replace(word, str(path))
    with upstream:
        keylatch = start(upstream, config=config)
        url = f"http://127.0.0.1:{keylatch.port}"
        for _ in range(3):
            assert httpx.get(f"{url}/known").status_code == 200
            assert httpx.get(f"{url}/unknown").status_code == 502, "its connection is not reused by other upstreams"
            assert httpx.get(f"{url}/distrusting").status_code == 502, "nor by upstreams with another CA"
    assert seen == ["/known"] * 3


def test_the_handshake_timeout(serve, authority, echo_upstream):
    keylatch = serve(echo_upstream, {"certificates": [files(authority.issue("first", "api.test"))]}, limits="{header_timeout: 300ms}")
    with connect(keylatch.port) as silent, connect(keylatch.port) as slow:
        slow.sendall(b"\x16\x03\x01")
        since = time.monotonic()
        for each in (silent, slow):
            each.settimeout(5)
            with pytest.raises((ConnectionError, TimeoutError, AssertionError)):
                assert each.recv(100) != b""
        # Both handshakes time out after 300 ms; the read time-out of the test is 5 s.
        assert time.monotonic() - since < 4
    assert wait_for(lambda: keylatch.metrics().get('keylatch_gate_refusals_total{reason="handshake_timeout"}') == 2, "both time-outs are counted")


def test_frames_and_cancellation_of_a_stream_over_tls(serve, authority):
    left = threading.Event()

    def silent(_, send):
        send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(100):
                time.sleep(0.1)
                if left.is_set():
                    send(b"1\r\n:\r\n" * 1000)
        except OSError:
            left.gone = True
            raise
        return False

    with Scripted(silent) as upstream:
        keylatch = serve(upstream, {"certificates": [files(authority.issue("first", "api.test"))]}, route_filters="      - sse_keepalive: {interval: 200ms}")
        trust = context(authority, check_hostname=False)
        for http2 in (False, True):
            with httpx.Client(http2=http2, verify=trust, timeout=10) as client:
                with client.stream("GET", f"https://127.0.0.1:{keylatch.port}/v1/x", headers={"Host": "api.test"}) as answer:
                    text, pieces = "", answer.iter_text()
                    while text.count(": keep-alive") < 5:
                        text += next(pieces)
            wait_for(lambda: keylatch.metrics()["keylatch_open_streams"] == 0, "the stream ends with its client")
        left.set()
        assert {line["http"] for line in keylatch.access_log()} == {"1.1", "2"}


def test_errors_in_certificate_files_name_their_location(tmp_path, authority, start, echo_upstream):
    keylatch = start(echo_upstream)
    issued, other = authority.issue("first", "api.test"), authority.issue("second", "api.test")
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n")
    for tls, says in [
        ({"certificates": []}, "tls.certificates: the list is empty; at least one is needed"),
        ({"certificates": [{"chain_file": str(issued.cert), "key_file": str(other.key)}]}, "tls.certificates[0].key_file: the key does not belong to the certificate"),
        ({"certificates": [{"chain_file": str(empty), "key_file": str(issued.key)}]}, "certificates[0].chain_file: the file contains no PEM certificate"),
        ({"certificates": [{"chain_file": str(issued.cert), "key_file": str(encrypted)}]}, "key_file: the file contains no unencrypted PEM private key"),
        ({"certificates": [{"chain_file": "no.pem", "key_file": str(issued.key)}]}, "no.pem` cannot be read"),
        ({"certificates": [files(issued)], "client_certificates": {"ca_file": str(empty)}}, "client_certificates.ca_file: the file contains no PEM certificate"),
        ({"certificates": [files(issued)], "client_certificates": {"ca_file": str(authority.ca), "revoked_file": str(empty)}}, "revoked_file: the file contains no PEM certificate revocation list"),
        ({"certificates": [files(issued)], "min_version": "1.1"}, "unknown value `1.1`"),
    ]:
        keylatch.path.write_text(tls_config(tls).format(**keylatch.values))
        checked = keylatch.command("check")
        assert checked.returncode == 1 and says in checked.stderr and "keylatch.yaml:5:" in checked.stderr, checked.stderr
    assert socket.create_connection(("127.0.0.1", keylatch.port)).close() is None
