"""Transparency: targets, fields and answers arrive as they were sent, or are refused with a
reason."""

import json
import socket
import subprocess
from urllib.parse import quote

import h2.connection
import h2.events
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from support import raw
from support.keylatch import DEFAULT, Keylatch, wait_for
from support.tls import files, tls_connect
from support.upstreams import Scripted, echo, plain


@pytest.fixture(scope="module")
def upstream():
    with Scripted(echo) as scripted:
        yield scripted


@pytest.fixture(scope="module")
def shared(upstream, tmp_path_factory):
    with Keylatch(tmp_path_factory.mktemp("unchanged"), upstream.port) as running:
        yield running


def seen(keylatch, target, *fields):
    """The status of the answer, and the target at the upstream."""
    answer = raw.request(keylatch.port, target, headers=fields)
    return answer.status, json.loads(answer.body).get("target")


UNCHANGED = [
    "/v1/model/anthropic.claude-v1%3A0/invoke",
    "/v1/model/anthropic.claude-v1%3a0/invoke",
    "/v1/a%2Bb+c",
    "/v1/%7Euser/%41",
    "/v1/a|b{c}^d",
    "/v1/%E4%BD%A0%e5%a5%bd",
    "/v1/a;b=%3B/c",
    "/v1/x?q=%7b%22a%22%3a1%7D&t=a+b%20c",
    "/v1/x?q={a|b}^`'[0]&r=//../%2e%2e",
    "/v1/x?",
]
CHANGED = [
    # The forwarded target is the judged one: dot segments are removed and repeated slashes merged,
    # the rest keeps its spelling.
    ("/v1/./x%3A0/../y%3A0", "/v1/y%3A0"),
    ("/v1/%2e%2E/v1//y%3A0//", "/v1/y%3A0/"),
    # Bytes that are invalid in a URI are escaped, which decodes to the same.
    ('/v1/x?q="a"&r=<b>', "/v1/x?q=%22a%22&r=%3Cb%3E"),
    ('/v1/"x"`', "/v1/%22x%22%60"),
]


@pytest.mark.parametrize("target", UNCHANGED)
def test_a_target_arrives_as_it_was_sent(shared, target):
    assert seen(shared, target) == (200, target)


@pytest.mark.parametrize("target, arrives", CHANGED)
def test_changes_of_a_target(shared, target, arrives):
    assert seen(shared, target) == (200, arrives)


CREDENTIALS = Credentials("AKIDEXAMPLE", "a secret that both know")


def signed(method, target, host, body, headers=(), date=None):
    """A request signed by botocore for this date, or for now."""
    request = AWSRequest(method, f"http://{host}{target}", data=body, headers=dict(headers))
    signer = SigV4Auth(CREDENTIALS, "bedrock", "us-east-1")
    if date is None:
        signer.add_auth(request)
        return dict(request.headers)
    request.context["timestamp"] = request.headers["x-amz-date"] = date
    return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)


def bedrock(request, send):
    """Answers like Bedrock: 403 if the signature does not match the received request."""
    fields = dict(request["headers"])
    names = fields["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    headers = {name: fields[name] for name in names if name not in ("host", "x-amz-date")}
    signature = signed(request["method"], request["target"], fields["host"], request["body"], headers, fields["x-amz-date"])
    fits = fields["authorization"].endswith(f"Signature={signature}")
    send(plain("200 OK" if fits else "403 Forbidden", body=request["target"].encode()))
    return True


SETTLED = "!$&'()*+,=:@-._~"
MODELS = [
    "anthropic.claude-3-5-sonnet-20241022-v2:0",
    "us.anthropic.claude-3-haiku-20240307-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.meta.llama3-1-8b-instruct-v1:0",
    "a b+c~d(e)",
]


@pytest.fixture(scope="module")
def signing(tmp_path_factory):
    config = DEFAULT.replace('["/v1/*"]}}', '["/model/*"]}}\n    allow_encoded_slash: true')
    with Scripted(bedrock) as upstream, Keylatch(tmp_path_factory.mktemp("signing"), upstream.port, config=config) as running:
        yield running


@pytest.mark.parametrize("model", MODELS)
def test_a_signature_over_the_path_stays_valid(signing, model):
    """botocore escapes the name of the model and signs the escaped path (SigV4), so the path must
    arrive unchanged."""
    target, body = f"/model/{quote(model, safe='-._~')}/invoke?x=a%2Fb%3A", b'{"prompt":"hi"}'
    answer = raw.request(signing.port, target, "POST", signed("POST", target, "localhost", body).items(), body)
    assert (answer.status, answer.body.decode()) == (200, target)
    # Rules and logs use the normalised form.
    judged = f"/model/{quote(model, safe=SETTLED)}/invoke"
    assert wait_for(lambda: [line for line in signing.access_log() if line["path"] == judged], "a line")[0]["status"] == 200


def test_the_fake_verifies_signatures(signing):
    answer = raw.request(signing.port, "/model/b", "POST", signed("POST", "/model/a", "localhost", b"x").items(), b"x")
    assert answer.status == 403


def talk(keylatch, data):
    """Sends these bytes on a new connection; returns the answer."""
    with raw.connect(keylatch.port, timeout=5) as connection:
        connection.sendall(data)
        file = connection.makefile("rb")
        head = raw.read_head(file)
        assert head, "closed without an answer"
        status, headers = head
        body, whole = (b"", True) if data.startswith(b"HEAD") else raw.read_body(file, headers)
        return raw.Answer(status, headers, body, whole)


def request_bytes(line=b"GET /v1/x?key=sk-secret HTTP/1.1", *fields, host=b"Host: localhost"):
    return b"\r\n".join([line, host, *fields]) + b"\r\n\r\n"


def test_curl_with_odd_targets_and_as_through_a_proxy(shared):
    """curl sends the target as given, and the absolute form to a proxy."""
    for arguments, arrives in [
        (["--globoff", "--path-as-is", shared.url('/v1/x%3Ay?q={"a":[1]}|<b>')], "/v1/x%3Ay?q={%22a%22:[1]}|%3Cb%3E"),
        (["--proxy", shared.url(), "http://localhost/v1/x%3Ay?q=1"], "/v1/x%3Ay?q=1"),
    ]:
        answer = subprocess.run(["curl", "-s", *arguments], capture_output=True, text=True, timeout=10, check=True)
        assert json.loads(answer.stdout).get("target") == arrives, answer.stdout


MALFORMED = [
    # Cases: the bytes, the status, the reason, and method and path in the access log.
    (request_bytes(b"GET  /v1/x HTTP/1.1"), 400, "request_line", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/a b?key=sk-secret HTTP/1.1"), 400, "request_line", "GET", "/v1/a%20b"),
    (request_bytes(b"GET /v1/x\x01 HTTP/1.1"), 400, "request_line", "GET", "/v1/x%01"),
    (request_bytes(b"GE(T /v1/x HTTP/1.1"), 400, "request_line", "-", "-"),
    (request_bytes(b"GET /v1/x HTTP/3.0"), 400, "version", "GET", "/v1/x"),
    (request_bytes(b"HEAD /v1/x#f HTTP/1.1"), 400, "target", "HEAD", "/v1/x#f"),
    (request_bytes(b"GET v1/x HTTP/1.1"), 400, "target", "GET", "-"),
    (request_bytes(b"GET http://other/v1/x HTTP/1.1"), 400, "host_and_target_differ", "GET", "-"),
    (request_bytes(b"GET https://localhost/v1/x HTTP/1.1"), 421, "target_scheme", "GET", "-"),
    (request_bytes(b"GET /v1/" + b"a" * 66_000 + b" HTTP/1.1"), 414, "target_bytes", "GET", "/v1/" + "a" * 2044),
    (request_bytes(b"CONNECT localhost:80 HTTP/1.1"), 405, "method", "CONNECT", "-"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"X-A : b"), 400, "header_name", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"X(A): b"), 400, "header_name", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"garbage"), 400, "header_name", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"X-A: b\r\n c"), 400, "folded_header", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"X-A: b\x01c"), 400, "header_value", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"X-A: b\rc"), 400, "header_value", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"X-A: b\nX-B: c"), 400, "bare_lf", "GET", "/v1/x"),
    (b"GET /v1/x HTTP/1.1\nHost: localhost\n\n", 400, "bare_lf", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", b"Host: other"), 400, "host_twice", "GET", "/v1/x"),
    (request_bytes(b"GET /v1/x HTTP/1.1", host=b"Host: u@localhost"), 400, "host", "GET", "/v1/x"),
    (request_bytes(b"POST /v1/x HTTP/1.1", b"Content-Length: 5", b"Content-Length: 6"), 400, "content_length", "POST", "/v1/x"),
    (request_bytes(b"POST /v1/x HTTP/1.1", b"Content-Length: five"), 400, "content_length", "POST", "/v1/x"),
    (request_bytes(b"POST /v1/x HTTP/1.1", b"Transfer-Encoding: gzip"), 400, "transfer_encoding", "POST", "/v1/x"),
    (request_bytes(b"POST /v1/x HTTP/1.0", b"Transfer-Encoding: chunked"), 400, "transfer_encoding", "POST", "/v1/x"),
    (b"\x16\x03\x01\x00\x75\x01\x00\x00\x71\x03\x03", 400, "request_line", "-", "-"),
]


@pytest.fixture(scope="module")
def wide(upstream, tmp_path_factory):
    """A Keylatch with large header limits, so that a long target is refused for its length."""
    with Keylatch(tmp_path_factory.mktemp("wide"), upstream.port, limits="{header_bytes: 512KiB}") as running:
        yield running


@pytest.mark.parametrize("data, status, reason, method, path", MALFORMED, ids=range(len(MALFORMED)))
def test_unparseable_requests_get_regular_refusals(wide, upstream, data, status, reason, method, path):
    metric, requests, lines = f'keylatch_gate_refusals_total{{reason="{reason}"}}', len(upstream.requests), len(wide.access_log())
    before = wide.metrics().get(metric, 0)
    answer = talk(wide, data)
    assert answer.status == status
    assert (answer.header("content-type"), answer.header("server"), answer.header("connection")) == ("application/json", "", "close")
    if method != "HEAD":
        error = json.loads(answer.body)["error"]
        assert error["code"] == reason and error["type"] == "invalid_request_error" and error["message"]
    line = wait_for(lambda: wide.access_log()[lines:], "a line")[0]
    shown = {name: line.get(name) for name in ("method", "path", "status", "answered_by", "reason")}
    assert shown == {"method": method, "path": path, "status": status, "answered_by": "gate", "reason": reason}
    assert wide.metrics()[metric] == before + 1 and len(upstream.requests) == requests
    assert "sk-secret" not in wide.stdout.read_text() + wide.stderr.read_text()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_header_in_pieces_is_checked_as_a_whole(wide, size):
    for data, status in [(request_bytes(b"\r\nGET /v1/x?q=\"a\" HTTP/1.1", b"X-A: " + b"a" * 200), 200), (request_bytes(b"GET /v1/x HTTP/1.1", b"X-A : b"), 400)]:
        with raw.connect(wide.port, timeout=5) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(data), size):
                connection.sendall(data[at : at + size])
            assert raw.read_head(connection.makefile("rb"))[0] == status


def test_a_refusal_over_tls_is_the_same(serve, upstream, authority):
    keylatch = serve(upstream, {"certificates": [files(authority.issue("first", "api.test"))]})
    with tls_connect(keylatch.port, authority) as connection:
        # The absolute form must name the scheme of the connection.
        connection.sendall(b"GET https://api.test/v1/a%3Ab?c HTTP/1.1\r\nHost: api.test\r\n\r\n")
        file = connection.makefile("rb")
        status, headers = raw.read_head(file)
        assert (status, json.loads(raw.read_body(file, headers)[0])["target"]) == (200, "/v1/a%3Ab?c")
        connection.sendall(b"GET http://api.test/v1/x HTTP/1.1\r\nHost: api.test\r\n\r\n")
        status, headers = raw.read_head(file)
        assert (status, json.loads(raw.read_body(file, headers)[0])["error"]["code"]) == (421, "target_scheme")
    with tls_connect(keylatch.port, authority) as connection:
        connection.sendall(b"GET /v1/x HTTP/1.1\r\nHost: api.test\r\nX-A : b\r\n\r\n")
        file = connection.makefile("rb")
        status, headers = raw.read_head(file)
        assert (status, json.loads(raw.read_body(file, headers)[0])["error"]["code"]) == (400, "header_name")


def test_connect_over_http2_is_logged(shared):
    lines = len(shared.access_log())
    with raw.connect(shared.port, timeout=5) as connection:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        client.send_headers(1, [(":method", "CONNECT"), (":authority", "localhost:80")], end_stream=True)
        connection.sendall(client.data_to_send())
        events = []
        while not any(isinstance(event, h2.events.StreamEnded) for event in events):
            data = connection.recv(65536)
            assert data, "closed without an answer"
            events += client.receive_data(data)
            connection.sendall(client.data_to_send())
    fields = dict(next(event.headers for event in events if isinstance(event, h2.events.ResponseReceived)))
    body = b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
    assert (fields[b":status"], b"server" in fields, json.loads(body)["error"]["code"]) == (b"405", False, "method")
    line = wait_for(lambda: shared.access_log()[lines:], "a line")[0]
    assert (line["method"], line["status"], line["reason"]) == ("CONNECT", 405, "method")


def answering(data):
    """An upstream that answers each request with these bytes."""

    def answer(_, send):
        send(data)
        return True

    return Scripted(answer)


BODILESS = [
    # Cases: the upstream's answer, and the framing fields that are forwarded.
    (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", []),
    (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", []),
    (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\nETag: \"a\"\r\n\r\n", []),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"a\"\r\n\r\n", [("content-length", "5")]),
]


@pytest.mark.parametrize("data, framing", BODILESS)
def test_responses_without_a_body_have_no_framing(start, data, framing):
    """RFC 9112, section 6.1; RFC 9110, section 8.6. The connection stays usable for a client that
    trusts these fields."""
    with answering(data) as upstream:
        keylatch = start(upstream)
        with raw.connect(keylatch.port, timeout=5) as connection:
            for _ in range(2):
                connection.sendall(request_bytes(b"GET /v1/x HTTP/1.1"))
                status, headers = raw.read_head(connection.makefile("rb", buffering=0))
                assert status in (204, 304)
                assert [field for field in headers if field[0] in ("content-length", "transfer-encoding")] == framing
                assert dict(headers)["connection"] == "keep-alive"


def test_informational_responses_need_http_1_1(start):
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 7\r\n\r\n"
    with answering(hint + plain()) as upstream:
        keylatch = start(upstream)
        assert talk(keylatch, request_bytes(b"GET /v1/x HTTP/1.0")).status == 200
        # An expectation of HTTP/1.0 is ignored (RFC 9110, section 10.1.1).
        old = request_bytes(b"POST /v1/x HTTP/1.0", b"Expect: 100-continue", b"Content-Length: 2") + b"ok"
        assert talk(keylatch, old).status == 200
        assert "expect" not in dict(upstream.requests[-1]["headers"])
        answer = talk(keylatch, request_bytes(b"GET /v1/x HTTP/1.1"))
        assert answer.status == 103 and not answer.header("content-length") and answer.header("link")


def arrived(keylatch, *fields, source="127.0.0.1"):
    """The header fields that reach the upstream."""
    answer = raw.request(keylatch.port, headers=fields, source=source)
    assert answer.status == 200, answer.body
    return dict(json.loads(answer.body)["headers"])


LOOKALIKES = [("X_Real_IP", "6.6.6.6"), ("X-Forwarded_For", "6.6.6.6"), ("X_Original_URL", "/admin"), ("Remote_User", "root"), ("X_Request_Id", "z")]


@pytest.mark.parametrize("choice", ["drop", "allow", "refuse"])
def test_underscores_in_names(start, upstream, choice):
    config = DEFAULT.replace("    limits: {limits}", f"    limits: {{limits}}\n    underscores_in_headers: {choice}")
    headers = "      - headers: {request: {set: {X-Team: ours}, remove: [X-Group]}}"
    keylatch = start(upstream, config=config, route_filters=headers)
    sent = [("X_Plan", "a"), ("X_Team", "evil"), ("X_Group", "evil"), *LOOKALIKES]
    if choice == "refuse":
        answer = raw.request(keylatch.port, headers=[("X_Plan", "a")])
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "underscore_in_header")
        assert raw.request(keylatch.port).status == 200
        return
    got = arrived(keylatch, *sent)
    assert {name for name in got if "_" in name} == ({"x_plan"} if choice == "allow" else set())
    assert (got["x-real-ip"], got["x-team"]) == ("127.0.0.1", "ours")
    # Fields that the filter removes by name are not counted.
    assert keylatch.metrics()['keylatch_dropped_header_fields_total{reason="underscore"}'] == (6 if choice == "allow" else 8)


PROXIES_FIELDS = [
    "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-Vercel-Forwarded-For", "DO-Connecting-IP", "X-Azure-ClientIP",
    "X-Azure-SocketIP", "X-AppEngine-User-IP", "X-ProxyUser-IP", "Forwarded-For", "X-Original-Host", "X-Forwarded-User", "X-Forwarded-Prefix",
    "Remote-User", "X-Middleware-Subrequest", "Proxy", "CF-IPCountry", "X-Amzn-OIDC-Identity",
]
ADDRESSES = ["X-Cluster-Client-IP", "True-Client-IP", "Fastly-Client-IP", "X-Client-IP", "X-Forwarded", "Forwarded"]


@pytest.mark.parametrize("trusted", [False, True])
def test_fields_reserved_for_proxies(start, upstream, trusted):
    keylatch = start(upstream, trusted="{networks: [loopback]}" if trusted else "{networks: [none]}")
    got = arrived(keylatch, *[(name, "6.6.6.6") for name in PROXIES_FIELDS + ADDRESSES], ("X-Amz-Date", "a"))
    assert [name for name in PROXIES_FIELDS if name.lower() in got] == (PROXIES_FIELDS if trusted else [])
    assert not [name for name in ADDRESSES if name.lower() in got] and got["x-amz-date"] == "a"


def test_the_list_of_proxy_fields_is_configurable(start, upstream):
    config = DEFAULT.replace("  - client_ip: {{}}", "  - client_ip: {{proxy_fields: {{add: [X-Tenant-*], keep: [X-HTTP-Method-Override]}}}}")
    keylatch = start(upstream, config=config, trusted="{networks: [none]}")
    got = arrived(keylatch, ("X-Tenant-Id", "7"), ("X-HTTP-Method-Override", "PUT"), ("X-Original-URL", "/admin"))
    assert got.get("x-http-method-override") == "PUT" and not {"x-tenant-id", "x-original-url"} & set(got)


def test_kept_slashes(start, upstream):
    config = DEFAULT.replace("    limits: {limits}", "    limits: {limits}\n    merge_slashes: false")
    keylatch = start(upstream, config=config)
    assert seen(keylatch, "/v1//a%3A//b/") == (200, "/v1//a%3A//b/")
    assert seen(keylatch, "/v1/./b") == (200, "/v1/b")
    for target in ["//v1/x", "/v1//../x", "//evil/v1/x"]:
        answer = raw.request(keylatch.port, target)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "path_ambiguous"), target
