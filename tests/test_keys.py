"""The judged key is the key that the upstream uses: all sources and spellings of keys, and signed
tokens."""

import base64
import hashlib
import hmac
import json
import re
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from support import raw
from support.keylatch import wait_for
from support.new_api import key_taken
from support.stores import SECRET

OWN, FOREIGN = "127.0.0.1", "127.0.0.9"
HMAC = b"0123456789abcdef0123456789abcdef"
NEW_API = "{key_hmac: 0123456789abcdef0123456789abcdef, key_form: new_api}"
ALL = "authorization, x-api-key, api-key, x-goog-api-key, mj-api-secret, sec-websocket-protocol"
A, B = "sk-AaaaAaaaAaaaAaaa", "sk-BbbbBbbbBbbbBbbb"
PROTOCOL = "Sec-WebSocket-Protocol"
IN_BROWSER = "openai-insecure-api-key."


def key_id(key):
    return hmac.new(HMAC, key.encode(), hashlib.sha256).hexdigest()[:12]


def logged(keylatch, answer):
    """The access log line of an answer."""
    wanted = answer.header("x-request-id")
    return wait_for(lambda: next((line for line in keylatch.access_log() if line.get("request_id") == wanted), None), "the access line")


def filters(options=""):
    return f"      - key_binding: {{new_keys_per_client: 1000000/s{options}}}"


def bearer(value):
    return ("Authorization", value)


# Cases: the path, the fields, and the status: 200, or the status of the refusal.
CASES = [
    ("/v1/chat/completions", [bearer(f"Bearer {A}")], 200),
    ("/v1/chat/completions", [bearer(f"bearer {A}")], 200),
    ("/v1/chat/completions", [bearer(A)], 200),
    ("/v1/chat/completions", [bearer(f"Bearer   {A}")], 200),
    ("/v1/chat/completions", [bearer(f"Bearer {A}-17")], 200),
    ("/v1/chat/completions", [bearer(f"Bearer {A.removeprefix('sk-')}")], 200),
    ("/v1/chat/completions", [bearer(f"Bearer {A.lower()}")], 200),
    ("/v1/chat/completions", [bearer(f"Bearer {A}"), ("x-api-key", "")], 200),
    ("/v1/chat/completions", [bearer(f"Bearer {A}"), ("x-api-key", A)], 200),
    ("/v1/chat/completions", [bearer(f"Bearer {A}"), ("x-api-key", B)], 400),
    ("/v1/chat/completions", [bearer(f"Bearer {A}"), bearer(f"Bearer {B}")], 400),
    ("/v1/chat/completions", [bearer("Bearer "), bearer(f"Bearer {B}")], 400),
    ("/v1/chat/completions", [bearer(f"Basic {A}")], 400),
    ("/v1/chat/completions", [bearer(f"Bearer {A} {B}")], 400),
    ("/v1/chat/completions", [bearer(f"Bearer {A}"), ("x-goog-api-key", B)], 400),
    ("/v1/chat/completions?key=" + B, [bearer(f"Bearer {A}")], 400),
    ("/v1/chat/completions?key=" + A, [bearer(f"Bearer {A}")], 200),
    ("/v1/chat/completions", [], 401),
    ("/v1/chat/completions", [bearer("Bearer")], 401),
    ("/v1/messages", [("x-api-key", A)], 200),
    ("/v1/messages", [("x-api-key", A), bearer(f"Bearer {A}")], 200),
    ("/v1/messages", [("x-api-key", A), bearer(f"Bearer {B}")], 400),
    ("/v1/messages", [("x-api-key", A), ("x-api-key", B)], 400),
    ("/v1/messages", [("x-api-key", ""), bearer(f"Bearer {B}")], 200),
    ("/v1/models", [("x-goog-api-key", A)], 200),
    ("/v1/models", [("x-goog-api-key", A), ("x-api-key", B)], 400),
    ("/v1/models/m", [("x-api-key", A)], 200),
    ("/v1/models?key=" + A, [], 200),
    ("/v1beta/models/m:generateContent?key=" + A, [], 200),
    ("/v1beta/models/m:generateContent?alt=sse&key=" + A, [], 200),
    ("/v1beta/models/m:generateContent?key=" + A, [("x-goog-api-key", B)], 400),
    ("/v1beta/models/m:generateContent?key=" + A + "&key=" + B, [], 400),
    ("/v1beta/models/m:generateContent?%6bey=" + A, [bearer(f"Bearer {B}")], 400),
    ("/v1beta/models/m:generateContent?key=&x=1", [("x-goog-api-key", A)], 200),
    ("/v1beta/openai/models", [bearer(f"Bearer {A}"), ("x-goog-api-key", A)], 200),
    ("/v1/realtime", [(PROTOCOL, f"realtime, {IN_BROWSER}{A}, openai-beta.realtime-v1")], 200),
    ("/v1/realtime", [(PROTOCOL, f"realtime, {IN_BROWSER}{A}, {IN_BROWSER}{B}")], 400),
    ("/v1/realtime", [(PROTOCOL, f"realtime, {IN_BROWSER}{A}"), (PROTOCOL, f"{IN_BROWSER}{B}")], 400),
    ("/v1/realtime", [(PROTOCOL, f"realtime, {IN_BROWSER}{A}"), bearer(f"Bearer {B}")], 400),
    ("/v1/realtime", [(PROTOCOL, f"realtime, {IN_BROWSER}{A}"), bearer(f"Bearer {A}")], 200),
    ("/v1/realtime", [(PROTOCOL, "realtime"), bearer(f"Bearer {A}")], 200),
    ("/mj/submit/imagine", [("mj-api-secret", A)], 200),
    ("/mj/submit/imagine", [("mj-api-secret", f"Bearer {A}")], 200),
    ("/mj/submit/imagine", [("mj-api-secret", A), bearer("Bearer midjourney-proxy")], 200),
    ("/mj/submit/imagine", [("mj-api-secret", A), bearer(f"Bearer {B}")], 400),
    ("/fast/mj/submit/imagine", [("mj-api-secret", A)], 200),
    ("/api/mj/submit/imagine", [bearer(f"Bearer {A}")], 200),
    ("/api/mj/submit/imagine", [], 401),
    ("/v1/realtime", [(PROTOCOL, B), bearer(f"Bearer {A}")], 400),
    ("/v1/realtime", [(PROTOCOL, f"{B}-, realtime"), bearer(f"Bearer {A}")], 400),
    ("/v1beta/models/m:generateContent?key=" + A + "+", [], 400),
    ("/v1/models?a=b;key=" + A, [bearer(f"Bearer {B}")], 400),
    ("/suno/submit/music", [bearer(f"Bearer {A}")], 200),
    ("/kling/v1/videos/text2video", [bearer(f"Bearer {A}")], 200),
    ("/jimeng/?Action=CVSync2AsyncSubmitTask", [bearer(f"Bearer {A}")], 200),
    ("/dashboard/billing/usage", [bearer(f"Bearer {A}")], 200),
    ("/api/usage/token/", [bearer(f"Bearer {A}")], 200),
]


@pytest.fixture
def new_api(start, echo_upstream, pytestconfig):
    """A Keylatch with the routes of the shipped file, in front of an upstream that records
    requests."""
    shipped = (pytestconfig.rootpath / "config/behind-cloudflare.yaml").read_text()
    match = next(line for line in shipped.splitlines() if line.strip().startswith("paths: "))
    excepted = next(line for line in shipped.splitlines() if line.strip().startswith("except_paths: "))
    config = f"""
listeners: [{{address: "127.0.0.1:{{port}}"}}]
admin: {{{{address: "127.0.0.1:{{admin}}"}}}}
storage: memory
secrets: {NEW_API.replace("{", "{{").replace("}", "}}")}
upstreams: [{{{{name: new-api, servers: [{{{{address: "127.0.0.1:{{upstream}}"}}}}]}}}}]
filters: [request_id: {{{{}}}}]
routes:
  - name: api
    match:
      {match.strip()}
      {excepted.strip()}
    upstream: new-api
    filters:
      - key_binding: {{{{new_keys_per_client: 1000000/s, from: [{ALL}, query-key]}}}}
  - name: rest
    upstream: new-api
"""
    return start(echo_upstream, config=config.replace('[{address: "127.0.0.1:{port}"}]', '[{{address: "127.0.0.1:{port}"}}]'))


def test_the_judged_key_is_the_one_that_new_api_uses(new_api, echo_upstream):
    assert len(CASES) >= 40
    for path, fields, expected in CASES:
        echo_upstream.requests.clear()
        answer = raw.request(new_api.port, path, "POST", fields, b"{}")
        assert answer.status == expected, (path, fields, answer.body)
        line = logged(new_api, answer)
        if expected != 200:
            assert echo_upstream.requests == [], (path, fields)
            continue
        [seen] = echo_upstream.requests
        assert line["key"] == key_id(key_taken(seen["target"], seen["headers"])), (path, fields)
        assert A not in json.dumps(line) and B not in json.dumps(line)


def test_a_stolen_key_is_refused_in_every_spelling(new_api, echo_upstream):
    assert raw.request(new_api.port, headers=[raw.key(A)]).status == 200
    echo_upstream.requests.clear()
    for path, fields, _ in CASES:
        if path in ("/v1/chat/completions", "/v1/realtime") and B in json.dumps(fields):
            continue
        raw.request(new_api.port, path, "POST", fields, b"{}", source=FOREIGN)
    assert [seen for seen in echo_upstream.requests if key_taken(seen["target"], seen["headers"]) == A.removeprefix("sk-").lower()] == []


def test_images_and_the_web_console_need_no_key(new_api):
    for path in ("/mj/image/1", "/fast/mj/image/1", "/api/mj/self", "/api/mj/", "/api/status", "/"):
        assert raw.request(new_api.port, path).status == 200, path


def test_all_lines_of_an_unlisted_field_are_removed(start, echo_upstream):
    keylatch = start(echo_upstream, route_filters=filters(", from: [authorization]"), secrets=SECRET)
    fields = [raw.key(A), ("x-api-key", B), ("x-api-key", "second"), ("api-key", ""), (PROTOCOL, f"realtime, {IN_BROWSER}{B}"),
              (PROTOCOL, f"{IN_BROWSER}x"), (PROTOCOL, "v1")]
    assert raw.request(keylatch.port, headers=fields).status == 200
    [seen] = echo_upstream.requests
    assert [value for name, value in seen["headers"] if name in ("x-api-key", "api-key")] == []
    assert [value for name, value in seen["headers"] if name == PROTOCOL.lower()] == ["realtime", "v1"]


def test_a_key_in_the_query_is_a_source_or_is_refused_with_advice(start, echo_upstream):
    keylatch = start(echo_upstream, route_filters=filters(), secrets=SECRET)
    allows = start(echo_upstream, route_filters=filters(", on_missing: allow"), secrets=SECRET)
    for one in (keylatch, allows):
        answer = raw.request(one.port, f"/v1/x?key={A}")
        assert answer.status == 401 and b"in the query" in answer.body and b"Authorization: Bearer" in answer.body
        assert logged(one, answer)["reason"] == "key_in_query"
    assert raw.request(allows.port, "/v1/x?monkey=1&key=").status == 200
    reads = start(echo_upstream, route_filters=filters(f", from: [{ALL}, query-key]"), secrets=SECRET)
    assert raw.request(reads.port, f"/v1/x?alt=sse&key={A}").status == 200
    assert raw.request(reads.port, headers=[raw.key(A)], source=FOREIGN).status == 403
    assert A not in reads.stdout.read_text() + reads.stderr.read_text() + keylatch.stdout.read_text()


def test_long_keys_need_an_option(start, echo_upstream):
    long = "k" * 9000
    keylatch = start(echo_upstream, route_filters=filters(), secrets=SECRET)
    answer = raw.request(keylatch.port, headers=[raw.key(long)])
    assert answer.status == 400 and b"longer than 8192 bytes" in answer.body
    assert logged(keylatch, answer)["reason"] == "key_too_long"
    allows = start(echo_upstream, route_filters=filters(", key_bytes: 16KiB"), secrets=SECRET)
    assert raw.request(allows.port, headers=[raw.key(long)]).status == 200
    token = start(echo_upstream, route_filters="      - bearer: {accept: [well_formed], token_bytes: 16KiB}")
    assert raw.request(token.port, headers=[raw.key(long)]).status == 200


# Signed tokens.


@pytest.fixture(scope="module")
def signer():
    return ec.generate_private_key(ec.SECP256R1())


def token(signer, **claims):
    return jwt.encode({"sub": "u1", "exp": int(time.time()) + 600, **claims}, signer, algorithm="ES256")


def rewritten(text):
    """The same token with its other valid signature: (r, n - s)."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    head, _, signature = text.rpartition(".")
    raw_signature = base64.urlsafe_b64decode(signature + "==")
    r, s = raw_signature[:32], int.from_bytes(raw_signature[32:], "big")
    other = r + (order - s).to_bytes(32, "big")
    return head + "." + base64.urlsafe_b64encode(other).decode().rstrip("=")


def spellings(text):
    head, _, signature = text.rpartition(".")
    header, payload = head.split(".")
    padded = [f"{header}=.{payload}.{signature}", f"{header}.{payload}=.{signature}", text + ".x", text + "."]
    return [rewritten(text), text + "=", text + "==", head + ".", f"{head}.AAAA", f"{head}.{signature[:-1]}", *padded]


def public_pem(signer):
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return signer.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def test_the_rewritten_signature_is_valid(signer):
    """Both signatures are valid, so a signature cannot identify a token."""
    text = token(signer)
    other = rewritten(text)
    assert other != text and jwt.decode(other, signer.public_key(), algorithms=["ES256"])["sub"] == "u1"
    r, s = decode_dss_signature(encode_dss_signature(1, 2))
    assert (r, s) == (1, 2)


def test_a_stolen_token_is_one_token_in_every_spelling(start, echo_upstream, signer, tmp_path):
    (tmp_path / "key.pem").write_text(public_pem(signer))
    verified = f"      - bearer: {{accept: [{{jwt: {{algorithms: [ES256], key: {{pem: 'file:{tmp_path}/key.pem'}}}}}}]}}\n"
    limit = "\n      - rate_limit: {per: key, limit: 100/h}"
    for before, options, secrets in ((verified, ", confirm: immediate", SECRET), ("", "", SECRET), ("", "", NEW_API)):
        keylatch = start(echo_upstream, route_filters=before + filters(options) + limit, secrets=secrets, storage="{sqlite: {path: t.db}}")
        text = token(signer, jti=options)
        first = raw.request(keylatch.port, headers=[raw.key(text)])
        assert first.status == 200
        assert raw.request(keylatch.port, headers=[raw.key(text)], source=FOREIGN).status == 403
        for other in spellings(text):
            answer = raw.request(keylatch.port, headers=[raw.key(other)], source=FOREIGN)
            assert answer.status in (401, 403), (other, answer.body)
        # Another spelling by the owner counts for the same limit.
        answers = [raw.request(keylatch.port, headers=[raw.key(spelled)]) for spelled in (text, rewritten(text))]
        left = [int(re.search(r"r=(\d+)", answer.header("ratelimit"))[1]) for answer in answers]
        assert left[0] - left[1] == 1
        key = logged(keylatch, answers[0])["key"]
        assert keylatch.command("bindings", "ban", key).returncode == 0
        for spelled in (text, *spellings(text)):
            for source in (OWN, FOREIGN):
                wait_for(lambda: raw.request(keylatch.port, headers=[raw.key(spelled)], source=source).status in (401, 403), "the ban takes effect")


def test_a_binding_of_an_earlier_version_migrates_on_first_use(start, echo_upstream, signer):
    """Earlier versions hashed the whole text of a token, and keys of New API case-sensitively."""
    text = token(signer)
    for secrets, key, other, name in (
        (SECRET, text, rewritten(text), text.rpartition(".")[0]),
        (NEW_API, A, A.upper().replace("SK-", "sk-"), A.removeprefix("sk-").lower()),
    ):
        keylatch = start(echo_upstream, route_filters=filters(), secrets=secrets, storage="{sqlite: {path: t.db}}")
        whole = hmac.new(HMAC, (key if name != A.removeprefix("sk-").lower() else A.removeprefix("sk-")).encode(), hashlib.sha256).hexdigest()
        rows = keylatch.folder / "rows.csv"
        rows.write_text(f"key_id,hint,rule,networks,made_by\n{whole},sk-…,single,{OWN}/32,first_use\n")
        imported = keylatch.command("bindings", "import", str(rows))
        assert imported.returncode == 0, imported.stderr
        assert raw.request(keylatch.port, headers=[raw.key(key)], source=FOREIGN).status == 403
        moved = raw.request(keylatch.port, headers=[raw.key(key)])
        assert moved.status == 200 and logged(keylatch, moved)["key"] == key_id(name)
        assert raw.request(keylatch.port, headers=[raw.key(other)], source=FOREIGN).status == 403
        listed = keylatch.command("bindings", "list", "--json").stdout
        assert key_id(name) in listed and whole[:12] not in listed


def test_a_signed_token_in_another_field(start, echo_upstream, signer, tmp_path):
    (tmp_path / "key.pem").write_text(public_pem(signer))
    field = "{header: cf-access-jwt-assertion}"
    modes = f"[{{jwt: {{algorithms: [ES256], key: {{pem: 'file:{tmp_path}/key.pem'}}}}}}]"
    both = f"      - bearer: {{from: [{field}], accept: {modes}}}\n" + filters(f", from: [{field}]")
    keylatch = start(echo_upstream, route_filters=both, secrets=SECRET)
    access = "Cf-Access-Jwt-Assertion"
    assert raw.request(keylatch.port, headers=[(access, token(signer))]).status == 200
    missing = raw.request(keylatch.port, headers=[raw.key(token(signer))])
    assert missing.status == 401 and b"cf-access-jwt-assertion: YOUR_TOKEN" in missing.body
    text = token(signer, jti="2")
    assert raw.request(keylatch.port, headers=[(access, text)]).status == 200
    assert raw.request(keylatch.port, headers=[(access, text)], source=FOREIGN).status == 403


# Findings of `keylatch doctor`.


def test_the_doctor_finds_credentials_that_no_filter_judges(start, echo_upstream):
    def findings(keylatch):
        return [json.loads(line) for line in keylatch.command("doctor", "--json").stdout.splitlines()]

    config = """
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: memory
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
routes:
  - {{name: api, match: {{paths: [/v1/*]}}, upstream: model, filters: [key_binding: {{confirm: immediate}}]}}
  - {{name: rest, upstream: model}}
"""
    found = findings(start(echo_upstream, config=config))
    [unjudged] = [finding for finding in found if "no filter checks" in finding["what"]]
    assert (unjudged["level"], unjudged["place"]) == ("bad", "routes: rest")
    assert all(path in unjudged["what"] for path in ("/v1beta/", "/mj/", "/fast/mj/", "/suno/")) and "/v1/chat" not in unjudged["what"]
    [unverified] = [finding for finding in found if "`confirm: immediate`" in finding["what"]]
    assert (unverified["level"], unverified["place"]) == ("warn", "routes: api")


def test_the_doctor_finds_fields_that_never_arrive_and_tokens_that_may_pass_unverified(start, echo_upstream):
    config = """
listeners: [{{address: "127.0.0.1:{port}", underscores_in_headers: {underscores}}}]
admin: {{address: "127.0.0.1:{admin}"}}
storage: memory
upstreams: [{{name: model, servers: [{{address: "127.0.0.1:{upstream}"}}]}}]
routes:
  - name: api
    match: {{paths: [/v1/*]}}
    upstream: model
    filters:
      - bearer: {{accept: [{{introspection: {{endpoint: {{url: "http://127.0.0.1:9/introspect", allow_private: true}}, client_id: a, client_secret: "a-secret-of-16-bytes", on_failure: {failure}}}}}]}}
      - key_binding: {{confirm: immediate, from: {from}}}
      - rules: [{{name: teams, if: '"x_one" in request.headers || request.headers [ "x_two"] == "a" || has(request.headers.x_three)', deny: {{}}}}]
"""
    both = "[authorization, {{header: x_key}}]"
    for underscores, failure, places in (("drop", "open", both), ("allow", "closed", both), ("allow", "closed", "[x-api-key]")):
        text = config.replace("{underscores}", underscores).replace("{failure}", failure).replace("{from}", places)
        keylatch = start(echo_upstream, config=text)
        found = [json.loads(line)["what"] for line in keylatch.command("doctor", "--json").stdout.splitlines()]
        for field in ("x_key", "x_one", "x_two", "x_three"):
            assert any(f"`{field}`" in what for what in found) == (underscores == "drop"), (field, found)
        assert any("nothing has verified" in what for what in found) == (failure == "open"), found
        assert any("read different places" in what for what in found) == (places == "[x-api-key]"), found
        keylatch.stop()
